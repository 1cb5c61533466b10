"""CLIPSIM with tiny CLIP models: one with random weights, and one whose answer is known."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_folders import save_clip
from clip_sets import changed, frozen, shapes
from numpy.typing import NDArray
from scripts import evaluate
from transformers import CLIPModel

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.clip_model import Captions, ClipModel
from megavrc.evaluation.clip_source import PlannedClip
from megavrc.evaluation.clipsim import measure_clipsim, similarities
from megavrc.results import read_result
from megavrc.user_files import UserFile


@pytest.fixture(scope="module")
def random_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "random")


def test_as_transformers_own_similarity(random_clip: Path) -> None:
    model, source = ClipModel(UserFile(random_clip)), shapes(3)
    found = similarities(source, model, range(0, 16, 5))
    own = model._model
    tokens = model._tokenizer([clip.prompt for clip in source.clips], padding=True, return_tensors="pt")
    for index, frames in enumerate(source.arrays):
        pixels = model._pictures(images=list(frames[0:16:5]), return_tensors="pt")["pixel_values"]
        out = own(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
        cosines = out.logits_per_image / own.logit_scale.exp()
        assert found.own[index] == pytest.approx(cosines[:, index].mean().item(), abs=1e-6)
    assert found.cut == 0


def test_a_known_answer(random_clip: Path, tmp_path: Path) -> None:
    """Both towers end in constants, at 60 degrees: the cosine is 0.5 for every clip and caption."""
    model = CLIPModel.from_pretrained(random_clip)
    angle = math.radians(60)
    ends = [(model.vision_model.post_layernorm, 0.0), (model.text_model.final_layer_norm, angle)]
    for norm, turn in ends:
        torch.nn.init.zeros_(norm.weight)
        with torch.no_grad():
            norm.bias.copy_(torch.tensor([math.cos(turn), math.sin(turn)] + [0.0] * 14))
    for projection in (model.visual_projection, model.text_projection):
        torch.nn.init.eye_(projection.weight)
    made = ClipModel(UserFile(save_clip(tmp_path / "made", model)))
    report = measure_clipsim(shapes(5), made)
    metrics = report.cases[0]["metrics"]
    assert metrics["clipsim"]["value"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["above_others"]["value"] == pytest.approx(0, abs=1e-6)
    same = measure_clipsim(shapes(5), made, real=shapes(5), mode="video")
    assert same.cases[0]["metrics"]["clipsim"]["value"] == pytest.approx(1, abs=1e-6)


def test_weights_that_are_cut_short_are_one_line(random_clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(random_clip, tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((random_clip / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut: not a CLIP model that transformers loads: .*header"):
        ClipModel(UserFile(folder))


class Matching:
    """Knows the caption of every clip: a clip's number stands in its pixels, a caption's at its end."""

    facts: dict[str, object] = {}

    def frames(self, frames_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.eye(64, dtype=np.float32)[frames_NHWC[:, 0, 0, 0]]

    def captions(self, texts: Sequence[str]) -> Captions:
        numbers = [int(text.split()[-1]) for text in texts]
        return Captions(np.eye(64, dtype=np.float32)[numbers], [False] * len(texts))


def numbered(shift: int = 0, name: str = "numbered") -> ArrayClips:
    arrays = [np.full((16, 8, 8, 3), index, np.uint8) for index in range(40)]
    planned = [PlannedClip(f"{i}", f"number {(i + shift) % 40}") for i in range(40)]
    return ArrayClips(name, planned, arrays)


def test_wrong_captions_are_caught_and_frozen_clips_are_not_its_business() -> None:
    right, wrong = numbered(), numbered(1)
    report = measure_clipsim(right, Matching())
    assert report.cases[0]["metrics"]["clipsim"]["value"] == 1
    assert report.cases[0]["metrics"]["above_others"]["low"] == 1
    bad = measure_clipsim(wrong, Matching()).cases[0]["metrics"]
    assert bad["clipsim"]["value"] == 0 and bad["above_others"]["high"] <= 0
    still = measure_clipsim(changed(right, frozen), Matching()).cases[0]["metrics"]["clipsim"]
    assert still["value"] == 1
    paired = measure_clipsim(right, Matching(), against=numbered(name="same"))
    assert "no difference is shown" in paired.lines[0]


def test_captions_that_are_missing_or_too_long(random_clip: Path) -> None:
    model, source = ClipModel(UserFile(random_clip)), shapes(3)
    long = ArrayClips("long", [clip._replace(prompt="red " * 30) for clip in source.clips], source.arrays)
    report = measure_clipsim(long, model)
    assert report.cases[0]["facts"]["cut_captions"] == 3 and "3 captions are longer" in report.lines[0]
    mute = ArrayClips("mute", [source.clips[0], PlannedClip("b")], source.arrays[:2])
    with pytest.raises(UserError, match=r"1 clips have no caption \(b\)"):
        measure_clipsim(mute, model)
    with pytest.raises(UserError, match="0000 has 17 frames, 46 are needed"):
        measure_clipsim(source, model, stride=3)


def test_captions_of_one_video_are_drawn_together() -> None:
    """20 captions a video: the interval is that of the videos."""
    once = numbered()
    planned = [PlannedClip(f"{i}#{k}", f"number {i if i % 2 else 39}") for i in range(40) for k in range(20)]
    many = ArrayClips("many", planned, [once.arrays[i] for i in range(40) for _ in range(20)])
    found = measure_clipsim(many, Matching()).cases[0]["metrics"]["clipsim"]
    assert found["n"] == 40 and found["high"] - found["low"] == pytest.approx(0.31, abs=0.06)


def test_the_control_is_a_caption_of_another_video() -> None:
    """Every video has two captions, told apart by case alone: the next clip's is that of the same video."""
    once = numbered()
    planned = [PlannedClip(f"{i}#{k}", f"{'nN'[k]}umber {i}") for i in range(40) for k in range(2)]
    many = ArrayClips("many", planned, [once.arrays[i] for i in range(40) for _ in range(2)])
    assert measure_clipsim(many, Matching()).cases[0]["metrics"]["above_others"]["value"] == 1
    one = ArrayClips("one", planned[:2], many.arrays[:2])
    assert similarities(one, Matching(), range(1)).other.tolist() == [1, 1], "there is no other"


def test_one_caption_has_no_control() -> None:
    """Else a model would seem to ignore its captions: the difference from itself is 0 with an interval of 0."""
    once = numbered()
    same = ArrayClips("same", [PlannedClip(f"{i}", "number 5") for i in range(40)], once.arrays)
    report = measure_clipsim(same, Matching())
    assert set(report.cases[0]["metrics"]) == {"clipsim", "n_for_5_percent"}
    assert "40 clips have no other caption of another video" in report.lines[0]
    planned = [PlannedClip("a#0", "number 0"), PlannedClip("a#1", "number 1"), PlannedClip("b", "number 0")]
    some = ArrayClips("some", planned, [once.arrays[i] for i in (0, 1, 0)])
    report = measure_clipsim(some, Matching())  # the first has none: b has its caption
    metrics = report.cases[0]["metrics"]
    assert metrics["clipsim"]["value"] == metrics["above_others"]["value"] == 1
    assert "1 clips have no other" in report.lines[0]


def test_command(
    random_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shapes(4)
    prompts = np.array([clip.prompt for clip in source.clips])
    np.savez(tmp_path / "a.npz", clips=np.stack(source.arrays), prompts=prompts)
    np.savez(tmp_path / "mute.npz", clips=np.stack(source.arrays))
    a = tmp_path / "a.npz"
    options = ["--clip", random_clip, "--json", tmp_path / "c.json"]
    assert evaluate("clipsim", a, "--against", a, "--real", a, *options) == 0
    found = read_result(tmp_path / "c.json")
    assert found["metrics"]["clipsim: second - first"]["value"] == 0
    assert found["protocol"]["clip"]["sha256"] == UserFile(random_clip).sha256
    assert evaluate("clipsim", a, "--mode", "video", "--real", a, *options) == 0
    found = read_result(tmp_path / "c.json")
    assert found["cases"][0]["metrics"]["clipsim"]["value"] == pytest.approx(1)
    assert found["protocol"]["real"]["sha256"] == found["protocol"]["sources"][0]["sha256"]
    monkeypatch.delenv("MEGAVRC_CLIP", raising=False)
    capsys.readouterr()
    for words, said in (
        ((a,), "MEGAVRC_CLIP"),
        ((a, "--clip", tmp_path), "not a CLIP model"),
        ((tmp_path / "mute.npz", *options), "no caption"),
        ((a, "--mode", "video", *options), "--real"),
        ((a, "--frames", 0, *options), "--frames"),
    ):
        assert evaluate("clipsim", *words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0]
