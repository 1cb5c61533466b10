"""FVD's plumbing, protocols and commands with a network of our own, which is never called FVD."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_sets import changed, frozen, noisy, save_network, shapes, shuffled
from scripts import evaluate
from torch import Tensor, nn

from megavrc.errors import UserError
from megavrc.evaluation import features as features_module
from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.clip_source import PlannedClip
from megavrc.evaluation.distances import FLOOR, Sets, compare_sets, measure_distances, metric_names
from megavrc.evaluation.features import SELFCHECK, Detector, check_i3d, clip_features, load_detector
from megavrc.evaluation.protocols import (
    PRESETS,
    FVDProtocol,
    measured_windows,
    protocol_of,
    real_windows,
)
from megavrc.files import sha256_file
from megavrc.results import read_result
from megavrc.user_files import UserFile

CUSTOM = protocol_of("custom", changes=["n=48", "place=start"])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "tiny.pt")


@pytest.fixture(scope="module")
def detector(network: Path) -> Detector:
    return load_detector(UserFile(network))


def counting(lengths: list[int]) -> ArrayClips:
    """Clips whose pixels say the number of their frame."""
    arrays = [
        np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None, None], (length, 8, 8, 3))
        for length in lengths
    ]
    return ArrayClips("counting", [PlannedClip(f"{i:03d}") for i in range(len(lengths))], arrays)


# --- protocols -------------------------------------------------------------------------------------------------


def test_presets() -> None:
    assert [PRESETS[name].real_stride for name in ("latte", "stylegan-v", "videopoet-msrvtt")] == [3, 1, 1]
    assert protocol_of("latte", "taichi").real_stride == 6 and protocol_of("latte", "taichi").name == "latte"
    assert all((p.n, p.frames, p.stride, p.ddof) == (2048, 16, 1, 0) for p in PRESETS.values())
    assert [PRESETS[name].split for name in PRESETS] == ["train", "train", "test", "as given"]
    assert protocol_of("stylegan-v", "ucf101").split == "train+test"
    assert [PRESETS[name].size for name in PRESETS] == [256, 256, 256, None]
    other = protocol_of("latte", changes=["size=none", "n=64"])
    assert (other.size, other.n, other.name) == (None, 64, "custom (from latte)")
    for word in ("sise=3", "size", "size=x", "n=1", "ddof=2", "place=left", "frames=-3"):
        with pytest.raises(UserError, match=f"--change {word}"):
            protocol_of("latte", changes=[word])


def test_windows_of_real_clips_have_the_stride_of_the_protocol() -> None:
    source = counting([20, 48, 47, 60, 200])
    chosen = real_windows(source, protocol_of("latte"))
    assert sorted(chosen.short) == ["000", "002"]
    for window in chosen.windows:
        seen = source.read(window.clip, window.wanted)[:, 0, 0, 0].astype(int)
        assert np.array_equal(np.diff(seen), [3] * 15) and seen[-1] < source.length(window.clip)
    assert real_windows(source, protocol_of("latte")) == chosen
    starts = {
        real_windows(source, protocol_of("latte"), seed=seed).windows[-1].wanted.start for seed in range(9)
    }
    assert len(starts) > 3
    (centre,) = (w for w in real_windows(source, protocol_of("videopoet-msrvtt")).windows if w.clip == 3)
    assert centre.wanted == range(22, 38)
    assert [w.wanted for w in measured_windows(counting([17, 17]), protocol_of("latte"))] == [range(16)] * 2


def test_which_real_clips() -> None:
    source = counting([16] * 30)
    change = ["n=10"]
    first = real_windows(source, protocol_of("stylegan-v", changes=change), more=5)
    assert [w.clip for w in first.windows] == list(range(10))
    assert [w.clip for w in first.rest] == list(range(10, 15))
    draws = [
        [w.clip for w in real_windows(source, protocol_of("custom", changes=change), seed=seed).windows]
        for seed in range(2)
    ]
    assert draws[0] != draws[1] and all(len(set(draw)) == 10 for draw in draws)


def test_a_real_video_with_many_captions_counts_once() -> None:
    """As prepare_dataset msrvtt --captions all lists it; two shots of one film are two videos."""
    once = counting([16, 17, 18, 19])
    keys = ["a#0", "a#1", "a#2", "b#0", "b#1", "film#0-1", "film#1-2"]
    arrays = [once.arrays[index] for index in (0, 0, 0, 1, 1, 2, 3)]
    source = ArrayClips("captions", [PlannedClip(key) for key in keys], arrays)
    for name in ("stylegan-v", "custom"):
        chosen = real_windows(source, protocol_of(name))  # type: ignore[arg-type]
        lengths = [source.length(window.clip) for window in (*chosen.windows, *chosen.rest)]
        assert sorted(lengths) == [16, 17, 18, 19]


def test_short_clips_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"1 clips have fewer than the 16 frames .*\(001\)"):
        measured_windows(counting([16, 15, 20]), protocol_of("latte"))
    with pytest.raises(UserError, match="0 real clips of 16 frames at stride 3"):
        real_windows(counting([20, 21]), protocol_of("latte"))
    with pytest.raises(UserError, match="at least 2"):
        measured_windows(counting([16]), protocol_of("latte"))


# --- features --------------------------------------------------------------------------------------------------


def test_what_the_network_sees(tmp_path: Path) -> None:
    class Probe(nn.Module):
        """Says what it was given."""

        def forward(
            self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
        ) -> Tensor:
            flags = [float(rescale), float(resize), float(return_features), float(x.dtype == torch.uint8)]
            said = torch.tensor([float(s) for s in x.shape[1:]] + flags)
            return torch.cat([said.expand(len(x), -1), x[:, :, :, 0, 0].float().flatten(1)], dim=1)

    torch.jit.script(Probe()).save(str(tmp_path / "probe.pt"))
    probe = load_detector(UserFile(tmp_path / "probe.pt"))
    source = counting([16] * 3)
    features = clip_features(source, measured_windows(source, PRESETS["custom"]), None, probe)
    assert features[:, :8].tolist() == [[3, 16, 8, 8, 1, 1, 1, 1]] * 3
    assert features[0, 8:].tolist() == list(range(16)) * 3
    assert probe.name == "unknown" and metric_names("fvd", probe.name) == "frechet_unknown"


def test_features_are_stored_by_content(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, windows = shapes(6), measured_windows(shapes(6), CUSTOM)
    calls = []

    def features(clips: ArrayClips, size: int | None = None, wanted: Any = windows) -> Any:
        found = clip_features(clips, wanted, size, detector, tmp_path)
        calls.append(len(list(tmp_path.iterdir())))
        return found

    once = features(source)
    assert np.array_equal(features(shapes(6, name="elsewhere")), once) and calls == [1, 1]
    (stored,) = tmp_path.iterdir()
    np.savez(stored, features=once + 1)
    assert np.array_equal(features(source), once + 1)  # it is read
    stored.write_bytes(stored.read_bytes()[:99])
    assert np.array_equal(features(source), once)  # damage is not
    assert not np.array_equal(features(shapes(6, first=9)), once)  # other clips of the same name
    features(source, size=16)
    features(source, wanted=measured_windows(source, protocol_of("custom", changes=["frames=9"])))
    features(source, wanted=measured_windows(source, protocol_of("custom", changes=["frames=9", "stride=2"])))
    assert calls[-4:] == [2, 3, 4, 5]
    one_pixel = [*source.arrays[:5], source.arrays[5].copy()]
    one_pixel[5][3, 4, 5, 1] ^= 1
    features(replace(source, arrays=one_pixel))
    monkeypatch.setattr(features_module, "decoder_versions", lambda: {"av": "another"})
    features(source)
    assert calls[-2:] == [6, 7]
    another = replace(detector, sha256="0" * 64)
    clip_features(source, windows, None, another, tmp_path)
    assert len(list(tmp_path.iterdir())) == 8


def test_the_self_check_is_that_of_common_metrics() -> None:
    """8 clips of -1 and 8 of 1, 30 frames of 224x224, as they are; and its distance: of constants, between means."""
    given = []

    class Means:
        def __call__(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
            given.append((list(x.shape), float(x.min()), float(x.max()), rescale, resize, return_features))
            spread = torch.arange(8.0)[:, None] * (1 + x[:, :1, 0, 0, 0])  # 0 of zeros, 0, 2, .. of ones
            return torch.cat([x.mean(dim=(2, 3, 4)), spread], dim=1)

    found = check_i3d(Detector(Means(), "i3d", "", torch.device("cpu")))  # type: ignore[arg-type]
    assert given == [([8, 3, 30, 224, 224], x, x, False, False, True) for x in (-1.0, 1.0)]
    assert found == pytest.approx(3 * 2**2 + 7**2 + 4 * np.var(range(8), ddof=1)) and SELFCHECK == 151.256


def test_networks_that_are_none(tmp_path: Path) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Flat(nn.Module):
        def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
            return x.float().mean()

    class Nan(nn.Module):
        def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
            y = x.float().mean(dim=(2, 3, 4))
            return torch.where(y > y.min(), y, torch.nan)

    source = shapes(4)
    windows = measured_windows(source, CUSTOM)
    for module, words in ((Other(), "does not take"), (Flat(), "no features"), (Nan(), "not finite")):
        torch.jit.script(module).save(str(tmp_path / "x.pt"))
        with pytest.raises(UserError, match=words):
            clip_features(source, windows, None, load_detector(UserFile(tmp_path / "x.pt")))
    (tmp_path / "x.pt").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="not a TorchScript file"):
        load_detector(UserFile(tmp_path / "x.pt"))


# --- distances -------------------------------------------------------------------------------------------------


def test_a_report_says_what_its_value_is_worth(detector: Detector) -> None:
    real = shapes(144)
    good, bad = shapes(40, first=500, name="good"), changed(shapes(40, first=500), frozen, "frozen")
    for kind in ("fvd", "kvd"):
        report = measure_distances(kind, real, good, bad, detector, CUSTOM)  # type: ignore[arg-type]
        name = metric_names(kind, "unknown")  # type: ignore[arg-type]
        rows = {row["name"]: row for row in report.cases}
        value = {row: rows[row]["metrics"][name] for row in rows}
        assert value["good"]["low"] < value["good"]["value"] < value["good"]["high"]
        assert value["good"]["n"] == value[FLOOR]["n"] == 40
        assert value["good"]["value"] < value[FLOOR]["high"] and value["frozen"]["low"] > value[FLOOR]["high"]
        gap = report.metrics[f"{name}: second - first"]
        assert gap["low"] > 0 and "frozen is higher than good" in report.lines[-1]
        assert report.metrics["n_for_5_percent, paired"]["value"] > 1
        assert report.protocol["detector"]["name"] == "unknown"
        assert report.protocol["fvd_protocol"]["place"] == "start"


@pytest.mark.parametrize("fault", [frozen, shuffled, noisy])
def test_planted_faults_move_the_distance(fault: Any, detector: Detector) -> None:
    real, clips = shapes(96), shapes(32, first=300)
    windows = measured_windows(clips, CUSTOM)
    known = clip_features(real, measured_windows(real, CUSTOM), None, detector)
    sets = {
        name: clip_features(source, windows, None, detector)
        for name, source in (("good", clips), ("bad", changed(clips, fault)))
    }
    report = compare_sets("fvd", Sets(known[:48], known[48:], sets), "unknown", draws=60)
    good, bad, floor = (row["metrics"]["frechet_unknown"] for row in report.cases)
    assert bad["low"] > max(good["high"], floor["high"])
    assert report.metrics["frechet_unknown: second - first"]["low"] > 0


def test_identity_is_0_and_few_clips_are_said(detector: Detector) -> None:
    real = shapes(12)
    protocol = protocol_of("stylegan-v", changes=["size=none", "place=start"])
    report = measure_distances("fvd", real, real, None, detector, protocol)
    itself = report.cases[0]["metrics"]["frechet_unknown"]
    assert itself["value"] == itself["low"] == 0 < itself["high"]
    said = " ".join(report.lines)
    assert "N 12 <= 24 dimensions" in said and "floor at the same N" in said and "protocol has 2048" in said


def test_clips_that_are_stored_otherwise_are_named(detector: Detector) -> None:
    protocol = protocol_of("custom", changes=["frames=9", "n=8"])
    real = replace(shapes(16), storage="png")
    for storage in ("png", "mp4"):
        made = replace(shapes(8, 200), storage=storage)
        report = measure_distances("kvd", real, made, None, detector, protocol, floor=False, draws=20)
        assert report.protocol["measured"][0]["storage"] == storage
        said = [line for line in report.lines if "stored differently: real png, measured mp4" in line]
        assert len(said) == (storage == "mp4")


def test_clips_of_one_prompt_are_drawn_together(detector: Detector) -> None:
    """Four clips a prompt, all alike: the interval is that of 12 clips, not of 48."""
    once = shapes(12, first=100)
    arrays = [once.arrays[index // 4] for index in range(48)]
    reach = []
    for per in (4, 1):
        planned = [PlannedClip(str(index), f"prompt {index // per}") for index in range(48)]
        made = ArrayClips("made", planned, arrays)
        report = measure_distances("kvd", shapes(96), made, None, detector, CUSTOM, floor=False, draws=100)
        found = report.cases[0]["metrics"]["kernel_unknown"]
        reach.append(found["high"] - found["low"])
        assert f"of {48 // per} prompts or videos and 48 real videos" in report.protocol["interval"]
    assert reach[0] > 1.4 * reach[1]


def test_real_clips_of_one_film_are_drawn_together_and_never_on_both_sides(detector: Detector) -> None:
    films, others = shapes(24), shapes(16, first=400)
    planned = [PlannedClip(f"film {index // 4}#{index % 4}") for index in range(96)]
    real = ArrayClips("real", planned, [films.arrays[index // 4] for index in range(96)])
    protocol = protocol_of("custom", changes=["n=48", "place=start"])
    report = measure_distances("kvd", real, others, None, detector, protocol, draws=60)
    floor = report.cases[-1]
    assert floor["name"] == FLOOR and "two halves" in " ".join(report.lines)
    assert floor["metrics"]["kernel_unknown"]["low"] < 0 < floor["metrics"]["kernel_unknown"]["high"]
    few = [PlannedClip(str(index), f"prompt {index // 8}") for index in range(16)]
    made = ArrayClips("made", few, others.arrays)
    limit = measure_distances("fvd", real, made, None, detector, protocol, floor=False, draws=20)
    assert limit.cases[0]["metrics"]["frechet_unknown_inf"].get("low") is None, "of two prompts"


def test_another_split_than_the_protocols_is_said(detector: Detector) -> None:
    clips, protocol = shapes(8), protocol_of("latte", changes=["real_stride=1", "size=none", "frames=9"])
    for split, said in (("train", 0), ("test", 1)):
        real = replace(shapes(12, 50), split=split)
        report = measure_distances("kvd", real, clips, None, detector, protocol, floor=False, draws=20)
        assert (
            sum("of the split test, the protocol compares with train" in line for line in report.lines)
            == said
        )


def test_copies_of_clips_are_counted(detector: Detector) -> None:
    once = shapes(24, first=100)
    twice = ArrayClips("twice", once.clips, [*once.arrays[:12], *once.arrays[:12]])
    report = measure_distances("kvd", shapes(48), twice, None, detector, CUSTOM, draws=50)
    assert report.cases[0]["facts"]["distinct"] == 12
    assert any("12 of 24 clips are copies" in line for line in report.lines)


# --- the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name, source in (("real", shapes(40)), ("made", shapes(16, 200)), ("odd", shapes(15, 100))):
        np.savez(folder / f"{name}.npz", clips=np.stack(source.arrays))
    (folder / "plan.jsonl").write_text("".join(json.dumps({"id": f"{i:04d}"}) + "\n" for i in range(16)))
    return folder


def test_commands(
    files: Path,
    network: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = [files / "real.npz", files / "made.npz", "--planned", files / "plan.jsonl", "--i3d", network]
    options = ["--change", "size=none", "real_stride=1", "--features", tmp_path / "f", "--draws", 40]
    assert evaluate("fvd", *sets, *options, "--json", tmp_path / "fvd.json") == 0
    stored = sorted((tmp_path / "f").iterdir())
    assert evaluate("kvd", *sets, *options, "--json", tmp_path / "kvd.json") == 0
    assert sorted((tmp_path / "f").iterdir()) == stored  # shared
    found = read_result(tmp_path / "fvd.json")
    protocol = {field.name for field in dataclasses.fields(FVDProtocol)} | {"resize", "selected_by"}
    assert protocol == set(found["protocol"]["fvd_protocol"])
    assert found["protocol"]["fvd_protocol"]["name"] == "custom (from latte)"
    assert found["protocol"]["real"]["storage"] == found["protocol"]["measured"][0]["storage"] == "npz"
    assert found["protocol"]["detector"]["sha256"] == sha256_file(network)
    assert set(found["cases"][0]["metrics"]) == {
        "frechet_unknown",
        "frechet_unknown_inf",
        "precision_k3",
        "recall_k3",
        "n_for_5_percent",
    }
    assert "fvd" not in capsys.readouterr().out.lower()
    assert read_result(tmp_path / "kvd.json")["cases"][0]["metrics"]["kernel_unknown"]["n"] == 16
    assert evaluate("fvd", "--selfcheck", "--i3d", network) == 1
    assert "another file than the published I3D" in capsys.readouterr().out


MISTAKES = {
    "no network": ("fvd {}/real.npz {}/made.npz", "MEGAVRC_I3D"),
    "network that is none": ("fvd {}/real.npz {}/made.npz --i3d {}/plan.jsonl", "not a TorchScript"),
    "nothing to measure": ("fvd --i3d NET", "--real"),
    "no clips": ("kvd {}/real.npz {}/none --i3d NET", "{}/none"),
    "another set": ("fvd {}/real.npz {}/odd.npz --planned {}/plan.jsonl --i3d NET", "1 missing (0015)"),
    "sets that do not pair": ("fvd {}/real.npz {}/made.npz {}/odd.npz --i3d NET", "not clips of the same"),
    "too short": ("kvd {}/real.npz {}/made.npz --i3d NET --change frames=18", "fewer than the 18"),
    "short real": ("fvd {}/real.npz {}/made.npz --i3d NET", "at stride 3"),
    "no field": ("fvd {}/real.npz {}/made.npz --i3d NET --change size:4", "--change size:4"),
    "few draws": ("fvd {}/real.npz {}/made.npz --i3d NET --draws 3", "--draws"),
    "no device": ("fvd {}/real.npz {}/made.npz --i3d NET --device tpu", "tpu"),
    "a protocol that is none": ("fvd {}/real.npz {}/made.npz --i3d NET --protocol lattte", "latte"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line(
    mistake: str,
    files: Path,
    network: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MEGAVRC_I3D", raising=False)
    options, words = MISTAKES[mistake]
    words_of = options.replace("{}", str(files)).replace("NET", str(network)).split()
    assert evaluate(*words_of) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and words.replace("{}", str(files)) in lines[0]
