"""tools/evaluate.py on a tiny model with random weights, as a user runs it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scripts import evaluate
from tiny import TINY

from megavrc.benchmarks.speed import token_baseline
from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import FORMAT_VERSION
from megavrc.generation.keymap import to_folder
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.model.omnitokenizer import OmniTokenizerNet
from megavrc.results import read_result
from megavrc.tokenizers import TextTokenizer
from megavrc.video import write_mp4
from megavrc.video.scenes import render_scene, scene
from megavrc.video.shapes import COMBINATIONS, Combination, caption, clip

SPLITS = {"train": COMBINATIONS[:3], "val": COMBINATIONS[:2], "heldout": COMBINATIONS[3:5]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, a converted folder, and `manifest.jsonl` with clips of 32x32."""
    world = tmp_path_factory.mktemp("world")
    rows = []
    for split, combinations in SPLITS.items():
        for combination in combinations:
            name = f"{split}-{len(rows)}"
            _, frames = clip(0, len(rows), (combination,), size=32)
            write_mp4(world / f"{name}.mp4", frames)
            attributes = combination._asdict()
            rows.append({"id": name, "path": f"{name}.mp4", "split": split, "attributes": attributes})
    (world / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    (world / "model").mkdir()
    text = TextTokenizer.train(map(caption, COMBINATIONS), world / "model" / "tokenizer.model")
    condition = ConditionConfig(slots=48, vocab=text.vocab)
    config = ModelConfig(layers=1, heads=1, width=16, vocab=32, grid=4, condition=condition)
    parts = {"vrc": VRC(config).state_dict(), "video_tokenizer": OmniTokenizerNet(TINY).state_dict()}
    save_file(to_folder(parts), world / "model" / "model.safetensors")
    described = {"model_type": "vrc", "format_version": FORMAT_VERSION}
    described |= {"vrc": config.to_dict(), "video_tokenizer": TINY.to_dict()}
    (world / "model" / "config.json").write_text(json.dumps(described))
    return world


def test_alignment(world: Path, tmp_path: Path) -> None:
    results = []
    for number in range(2):
        paths = ("--json", tmp_path / f"{number}.json", "--sheet", tmp_path / "sheet.png")
        options = ("--model", world / "model", "--manifest", world / "manifest.jsonl", "--prompts", 6)
        assert evaluate("alignment", *options, *paths) == 0
        results.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert results[0] == results[1]
    assert {name: scores["n"] for name, scores in results[0].items()} == {
        "real": 2,
        "reconstructed": 2,
        "generated": 6,
        "generated_t1": 6,
        "heldout": 6,
    }
    assert results[0]["real"].pop("iou") > 0.95
    right = {"colour": 1, "shape": 1, "direction": 1, "all": 1, "whole": 1}
    bounds = {f"{name}_{end}" for name in right for end in ("low", "high")}
    assert results[0]["real"].keys() == {*right, *bounds, "n"}
    assert results[0]["real"].items() >= (right | {"n": 2}).items()
    assert results[0]["generated"]["all"] == 0  # random weights
    assert 0 < results[0]["reconstructed"]["psnr"] < 30
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 5


@pytest.fixture(scope="module")
def scenes_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of 32x32, written as tools/make_scenes.py writes them."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for index in range(3):
        shown = scene(0, index)
        write_mp4(folder / f"{index}.mp4", render_scene(shown, size=32), crf=4)
        attributes = dataclasses.asdict(shown)
        rows.append(
            {"path": f"{index}.mp4", "split": "val", "caption": shown.caption, "attributes": attributes}
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


def test_scenes(world: Path, scenes_manifest: Path, tmp_path: Path) -> None:
    load_folder(world / "model").video_tokenizer.save(tmp_path / "tokenizer")
    results = {}
    for name in ("model", "tokenizer"):
        given = world / "model" if name == "model" else tmp_path / "tokenizer"
        outputs = ("--json", tmp_path / f"{name}.json", "--sheet", tmp_path / "sheet.png")
        options = ["--manifest", scenes_manifest, "--n", 1, "--batch", 2]
        options += ["--draws", 2] if name == "model" else []
        assert evaluate("scenes", *options, f"--{name}", given, *outputs) == 0
        results[name] = read_result(tmp_path / f"{name}.json")
    sets, alone = (
        {row["name"]: row["metrics"] for row in results[name]["cases"]} for name in ("model", "tokenizer")
    )
    assert list(sets) == ["real", "reconstructed", "from_first_frame", "generated"]
    names = ("modes", "modes_whole", "modes_other", "modes_perfect")
    left = {name: sets["reconstructed"].pop(name) for name in names}
    untold = int(scene(0, 0).bits > 0)
    assert left["modes_whole"]["n"] == untold == 1
    assert alone == {name: sets[name] for name in ("real", "reconstructed")}
    real = sets["real"]["colour"]
    assert real["low"] == pytest.approx(1 / (1 + 1.96**2), abs=1e-3)  # Wilson's, of one clip
    assert real | {"low": 1} == {"value": 1, "unit": "", "low": 1, "high": 1, "n": 1}
    assert sets["generated"]["all"]["value"] == 0  # random weights
    assert 0 < sets["reconstructed"]["psnr"]["value"] < 30 and "psnr" not in sets["generated"]
    drawn = sets["from_first_frame"]
    assert drawn["modes_whole"]["high"] > 0
    assert drawn["modes_whole"] | {"high": 0} == {"value": 0, "unit": "", "low": 0, "high": 0, "n": untold}
    assert drawn["modes"]["n"] == 0  # no clip is whole, so none has a motion
    assert [name for name in sets["real"] if name.startswith("whole_by_latent/")][-1] == "whole_by_latent/4"
    assert results["model"]["protocol"]["clips"] == 1 and results["model"]["versions"]["scipy"]
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 5
    assert evaluate("scenes", *options, "--tokenizer", tmp_path / "tokenizer", "--draws", 2) == 2


def test_clips_of_any_program(world: Path, scenes_manifest: Path, tmp_path: Path) -> None:
    """The detectors of shapes and of scenes on clips in a file, which know them by caption or key."""
    made = [
        clip(0, number, (combination,), size=32)[1] for number, combination in enumerate(COMBINATIONS[:4])
    ]
    said = [
        caption(combination) for combination in [*COMBINATIONS[:3], COMBINATIONS[20]]
    ]  # the last is not shown
    np.savez(tmp_path / "shapes.npz", clips=np.stack(made), prompts=np.array(said))
    options = ("--clips", tmp_path / "shapes.npz", "--json", tmp_path / "shapes.json")
    assert evaluate("alignment", *options) == 0
    found = read_result(tmp_path / "shapes.json")["cases"][0]["metrics"]
    assert found["all"]["value"] == 0.75 and found["all"]["low"] < 0.75 < found["all"]["high"]
    assert found["whole"]["value"] == 1 and found["all"]["n"] == 4

    shown = [scene(0, index) for index in range(3)]
    frames = [render_scene(each, size=32) for each in shown][::-1]
    prompts = np.array([each.caption for each in shown][::-1])
    np.savez(tmp_path / "scenes.npz", clips=np.stack(frames), prompts=prompts)
    options = (scenes_manifest, "--clips", tmp_path / "scenes.npz", "--json", tmp_path / "scenes.json")
    assert evaluate("scenes", *options) == 0
    found = read_result(tmp_path / "scenes.json")
    [source] = found["protocol"]["sources"]
    assert source["n"] == 3 and source["storage"] == "npz" and source["sha256"]
    sets = {row["name"]: row["metrics"] for row in found["cases"]}
    assert list(sets) == ["real", "clips"]
    for name in ("count", "colour", "shape", "whole", "all"):
        assert sets["clips"][name]["value"] == 1, "not through a codec, as the real ones are"


def test_a_page_of_all_metrics(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a converted folder, which generates once; what is missing says why."""
    rows = [json.loads(line) for line in (world / "manifest.jsonl").read_text().splitlines()]
    named = [row | {"caption": caption(Combination(**row["attributes"]))} for row in rows]
    (world / "captioned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    monkeypatch.delenv("MEGAVRC_CLIP", raising=False)
    monkeypatch.delenv("MEGAVRC_I3D", raising=False)
    real = f"{world / 'captioned.jsonl'}:train"
    out = tmp_path / "page"
    assert evaluate("all", real, world / "model", out, "--draws", 20) == 0
    page = (out / "metrics.md").read_text()
    for name in ("drift", "alignment", "redundancy", "copying"):
        assert f"## {name}: " in page and read_result(out / f"{name}.json")["cases"]
    sources = [read_result(out / f"{name}.json")["protocol"]["sources"] for name in ("drift", "alignment")]
    assert sources[0] == sources[1] and len({each["sha256"] for each in sources[0]}) == 2
    assert page.count("## Not measured") == 1 and "- `fvd`: --i3d: needed" in page
    assert "- `clipsim`: --clip: needed" in page and "- `scenes`: " in page
    assert read_result(out / "alignment.json")["cases"][0]["metrics"]["all"]["n"] == 3
    assert evaluate("all", real, tmp_path / "nowhere", out) == 2


def test_a_page_of_all_metrics_asks_for_as_many_clips_as_its_protocol(
    scenes_manifest: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the real clips; each metric compares them with the same two."""
    for name in ("MEGAVRC_CLIP", "MEGAVRC_I3D"):
        monkeypatch.delenv(name, raising=False)
    options = ("--draws", 20, "--change", "n=2")
    assert evaluate("all", f"{scenes_manifest}:val", world / "model", tmp_path / "page", *options) == 0
    assert "Made for 2 of 3 real clips" in (tmp_path / "page" / "metrics.md").read_text()
    for name in ("drift", "scenes"):
        sources = read_result(tmp_path / "page" / f"{name}.json")["protocol"]["sources"]
        assert [each["n"] for each in sources] == [2, 2]


def test_a_page_of_all_metrics_says_why_scenes_are_not_scored(
    scenes_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of another program, of which one is shorter."""
    for name in ("MEGAVRC_CLIP", "MEGAVRC_I3D"):
        monkeypatch.delenv(name, raising=False)
    shown = [scene(0, index) for index in range(3)]
    frames = {f"{index}": render_scene(each, size=32)[: 17 - index] for index, each in enumerate(shown)}
    np.savez(tmp_path / "made.npz", prompts=np.array([each.caption for each in shown]), **frames)
    out = tmp_path / "page"
    assert evaluate("all", f"{scenes_manifest}:val", tmp_path / "made.npz", out, "--draws", 20) == 0
    page = (out / "metrics.md").read_text()
    assert "made.npz: clip 1: 16 frames, the first clip has 17: cut all to one length" in page
    assert "## drift: " in page and not (out / "scenes.json").exists()


def test_speed(world: Path, tmp_path: Path) -> None:
    options = (
        "--model",
        world / "model",
        "--baseline",
        "true",
        "--repeats",
        5,
        "--json",
        tmp_path / "speed.json",
    )
    assert evaluate("speed", *options) == 0
    result = read_result(tmp_path / "speed.json")
    seconds = {row["name"]: row["metrics"]["seconds"] for row in result["cases"]}
    wanted = seconds["token"]["value"] / seconds["segment"]["value"]
    assert result["metrics"]["token / segment"]["value"] == pytest.approx(wanted)
    assert len(seconds["token"]["samples"]) == seconds["token"]["n"] == 5
    assert evaluate("speed", *options[:2], *options[4:]) == 0  # of the model alone
    result = read_result(tmp_path / "speed.json")
    assert [row["name"] for row in result["cases"]] == ["segment"] and not result["metrics"]


def test_the_baseline_is_treated_as_the_model_is(world: Path) -> None:
    """Same dtype, and its matrices stored as a loaded folder's are: else the ratio would flatter one of them."""
    for dtype in ("fp32", "bf16"):
        model = load_folder(world / "model", dtype=dtype).model
        baseline = token_baseline(model)
        assert baseline.config.prediction == "token" and baseline.config.width == model.config.width
        weights = dict(model.named_parameters())
        shared = [(weights[name], other) for name, other in baseline.named_parameters() if name in weights]
        assert len(shared) > 8 and {other.dtype for _, other in shared} == {weights["head.weight"].dtype}
        assert all(own.stride() == other.stride() for own, other in shared)
    assert not baseline.training


def test_mistakes(
    world: Path,
    scenes_manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "plain.jsonl").write_text('{"path": "a.mp4", "split": "val"}\n')
    (tmp_path / "train.jsonl").write_text(
        '{"path": "a.mp4", "attributes": {"colour": "red", "shape": "square", "direction": "up"}}\n'
    )
    model = ("--model", world / "model")
    for options, words in (
        (("alignment", *model, "--manifest", tmp_path / "plain.jsonl"), "attributes"),
        (("alignment", *model, "--manifest", tmp_path / "train.jsonl"), "splits train and val"),
        (("alignment", "--model", tmp_path, "--manifest", world / "manifest.jsonl"), "config.json"),
        (("speed", *model, "--repeats", 2), "repeats 2"),
        (("alignment", *model, "--prompts", 0), "--prompts: 0, at least 1"),
        (("redundancy", "x", "--keep", 0.5, 1.5), "--keep: 1.5 is not a share"),
        (("redundancy", "x", "--keep", 0), "--keep: 0.0 is not a share"),
        (("speed", *model, "--device", "abacus"), "abacus"),
        (("speed", *model, "--first_temperature=-1"), "temperature >= 0"),
        (
            ("alignment", *model, "--manifest", tmp_path / "none", "--later_temperature=-1"),
            "temperature >= 0",
        ),
        (("alignment", *model, "--manifest", tmp_path / "none", "--speculative=-1"), "speculative"),
        (("alignment", *model), "--clips"),
        (("alignment", "--clips", f"{world / 'manifest.jsonl'}:val"), "have no caption such as"),
        (("scenes", "--manifest", tmp_path / "plain.jsonl"), "megavrc make_scenes"),
        (("scenes", "--manifest", world / "manifest.jsonl"), "megavrc make_scenes"),  # of shapes
        (("scenes", "--manifest", scenes_manifest, "--split", "test"), "split test"),
        (("scenes", "--manifest", scenes_manifest, "--n", 0), "at least 1"),
        (("scenes", "--manifest", scenes_manifest, "--tokenizer", tmp_path / "none"), "no video tokenizer"),
    ):
        assert evaluate(*options) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
