"""The tasks: batches, condition dropout, checks of data against the model, decoded clips and their windows."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_sets import Sample, write_tokens
from videos import make_videos
from worlds import ROOT, environment

from megavrc.checkpoint import read_weights
from megavrc.config import load_config
from megavrc.data.shards import DataError, shard_name
from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.model.attention import BackendError
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer, TextTokenizer
from megavrc.training.tasks.tokenizer import TokenizerTask
from megavrc.training.tasks.tokenizer_config import ClipDataConfig, TokenizerRunConfig
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig, TokenDataConfig
from megavrc.video import write_png

CAPTIONS = ["a red square moves left", "a blue circle moves up", "a green square moves down"]


def make_tokens(
    folder: Path,
    frames: int,
    tokenizer: str = "a" * 64,
    label: int | None = None,
    splits: tuple[str, ...] = ("train",),
) -> Path:
    shape = (frames, 8, 8)
    rng = np.random.default_rng(0)

    def sample(number: int, split: str) -> Sample:
        fields = {"caption": CAPTIONS[number % 3], "label": label, "source": "s"}
        return f"{number:016x}-{split}", rng.integers(0, 512, shape), fields

    shards = {split: [[sample(number, split) for number in range(12)]] for split in splits}
    return write_tokens(folder, shards, shape, 512, tokenizer, classes=None)


def text_tokenizer(folder: Path) -> str:
    TextTokenizer.train(CAPTIONS, folder / "tokenizer.model", 64)
    return str(folder / "tokenizer.model")


def video_run(folder: Path, **model: Any) -> RunConfig:
    settings: dict[str, Any] = {"frames": 4, "layers": 1, "condition": ConditionConfig(vocab=64)} | model
    data = TokenDataConfig(str(make_tokens(folder / "video", 5)), text_tokenizer(folder))
    return RunConfig(run_dir=str(folder / "run"), stage="video", model=ModelConfig(**settings), data=data)


def batch_of(task: VRCTask, positions: range) -> dict[str, Any]:
    return task.collate([task.source[p % len(task.source)] | {"position": p} for p in positions])


def test_a_batch_of_clips(tmp_path: Path) -> None:
    task = VRCTask(video_run(tmp_path))
    batch = batch_of(task, range(4))
    assert batch["ids"].shape == (4, 5, 8, 8) and batch["ids"].dtype == torch.long
    assert batch["condition"].values.shape == (4, 8)
    assert task.text is not None
    assert batch["condition"].values[1].tolist() == task.text.encode(CAPTIONS[1], 8)
    loss, metrics = task.loss(task.build(), batch, 0)
    assert loss.requires_grad
    assert set(metrics) == {"first", "later", "frame_1", "frame_2", "frame_3", "frame_4"}
    assert float(loss.detach()) == pytest.approx(float(metrics["first"] + metrics["later"]), rel=1e-5)


def test_the_attention_backend_is_the_configuration_s(tmp_path: Path) -> None:
    config = video_run(tmp_path)
    losses = {}
    for config.train.attention in ("rects", "dense"):
        task = VRCTask(config)
        torch.manual_seed(0)
        losses[config.train.attention] = task.loss(task.build().eval(), batch_of(task, range(2)), 0)[0]
    assert losses["rects"].item() == pytest.approx(losses["dense"].item(), rel=1e-5)
    config.train.attention = "flex"
    task = VRCTask(config)
    with pytest.raises(BackendError, match="'flex' cannot run on cpu"):
        task.loss(task.build(), batch_of(task, range(2)), 0)


def test_the_condition_is_dropped_by_position_alone(tmp_path: Path) -> None:
    task = VRCTask(video_run(tmp_path))
    drops = batch_of(task, range(4000))["draws"]["drop"].tolist()
    assert 0.08 < np.mean(drops) < 0.12
    assert batch_of(task, range(100, 140))["draws"]["drop"].tolist() == drops[100:140]


def test_known_cells_and_noise_are_drawn_by_position_alone_and_for_training_only(tmp_path: Path) -> None:
    task = VRCTask(video_run(tmp_path, refine=True, context_noise=0.2, dropout=0.0))
    whole, part = (batch_of(task, places)["draws"] for places in (range(100, 108), range(104, 106)))
    assert set(whole) == {"drop", "known", "context"}
    for name in whole:
        assert torch.equal(whole[name][4:6], part[name])
    later = batch_of(task, range(112, 120))["draws"]  # the same samples an epoch later
    assert not torch.equal(whole["known"], later["known"])
    assert not torch.equal(whole["context"], later["context"])
    batch, net = batch_of(task, range(4)), task.build()
    torch.nn.init.normal_(net.get_parameter("head.weight"), std=0.2)
    trained = net.train()(batch["ids"], batch["condition"], **batch["draws"]).loss
    torch.testing.assert_close(task.loss(net, batch, 0)[0], trained)  # batch norms have moved by a rounding
    one_pass = net.eval()(batch["ids"], batch["condition"]).loss
    assert torch.equal(task.loss(net, batch, 0)[0], one_pass) and not torch.isclose(trained, one_pass)
    assert set(batch_of(VRCTask(video_run(tmp_path)), range(2))["draws"]) == {"drop"}


@pytest.mark.slow
def test_a_run_that_refines_resumes_exactly(tmp_path: Path) -> None:
    """Six steps in one go, and in two: the same metrics and weights, to the bit."""
    make_tokens(tmp_path / "video", 5)
    text_tokenizer(tmp_path)
    settings = {
        "stage": "video",
        "model": {"frames": 4, "layers": 1, "refine": True, "context_noise": 0.1, "condition": {"vocab": 64}},
        "data": {"path": str(tmp_path / "video"), "text_tokenizer": str(tmp_path / "tokenizer.model")},
        "train": {"global_batch": 4, "micro_batch": 2, "log_every": 1, "save_every": 3, "preview_every": 0},
        "optimizer": {"warmup": 1, "schedule": "constant"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    script = [sys.executable, str(ROOT / "pretrain/pretrain_vrc.py"), f"--config={tmp_path / 'run.yaml'}"]
    for name, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        words = [f"--run_dir={tmp_path / name}", f"--train.steps={steps}"]
        done = subprocess.run([*script, *words], env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    losses = [[line["loss"] for line in each if "loss" in line] for each in lines]
    assert losses[0] == losses[1] and len(set(losses[0])) == 6
    weights = [read_weights(tmp_path / name)[0] for name in ("whole", "parts")]
    assert any("partial" in name for name in weights[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_labels_are_the_condition_of_class_models(tmp_path: Path) -> None:
    data = TokenDataConfig(str(make_tokens(tmp_path / "image", 1, label=2)))
    model = ModelConfig(frames=0, layers=1, condition=ConditionConfig(kind="class", classes=3))
    task = VRCTask(RunConfig(run_dir=str(tmp_path), stage="image", model=model, data=data))
    batch = batch_of(task, range(3))
    assert batch["condition"].values.tolist() == [2, 2, 2]
    assert set(task.loss(task.build(), batch, 0)[1]) == {"first"}
    data.path = str(make_tokens(tmp_path / "unlabelled", 1))
    with pytest.raises(UserError, match="no label"):
        batch_of(VRCTask(RunConfig(run_dir=str(tmp_path), stage="image", model=model, data=data)), range(3))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"grid": 16}, "model.grid"),
        ({"vocab": 256}, "model.vocab"),
        ({"frames": 3}, "model.frames"),
        ({"condition": ConditionConfig(vocab=5)}, "model.condition.vocab"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, model: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        VRCTask(video_run(tmp_path, **model))


def test_another_video_tokenizer_is_refused(tmp_path: Path) -> None:
    config = video_run(tmp_path)
    OmniTokenizer(tiny_net()).save(tmp_path / "omni")
    config.data.video_tokenizer = str(tmp_path / "omni")
    with pytest.raises(UserError, match="tokenizer"):
        VRCTask(config)


def tiny() -> OmniTokenizerConfig:
    sizes = {"width": 16, "heads": 2, "dim_head": 8, "enc_block": "t", "dec_block": "t", "temporal_depth": 1}
    return OmniTokenizerConfig(**sizes, codes=512)


def tiny_net() -> OmniTokenizerNet:
    torch.manual_seed(0)
    return OmniTokenizerNet(tiny())


def preview_run(tmp_path: Path) -> RunConfig:
    config = video_run(tmp_path)
    tokenizer = OmniTokenizer(tiny_net())
    tokenizer.save(tmp_path / "omni")
    make_tokens(tmp_path / "again", 5, tokenizer.sha256)
    config.data.path, config.data.video_tokenizer = str(tmp_path / "again"), str(tmp_path / "omni")
    config.preview.count = 4
    return config


def test_a_preview_is_a_sheet_and_an_animation(tmp_path: Path) -> None:
    task = VRCTask(preview_run(tmp_path))
    module = task.build()
    assert isinstance(module, VRC)
    task.preview(module, tmp_path / "previews", 7)
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == [
        "step-00000007.gif",
        "step-00000007.png",
    ]


def test_a_preview_leaves_damaged_samples_out_where_they_may_be_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = preview_run(tmp_path)
    tar = tmp_path / "again" / "shards" / shard_name("train", 0, 1)
    whole = tar.read_bytes()
    first = bytearray(whole)
    first[first.index(b"\x93NUMPY") + 200] ^= 1
    tar.write_bytes(first)
    module = VRCTask(config).build()
    with pytest.raises(DataError, match="is damaged"):
        VRCTask(config).preview(module, tmp_path / "previews", 7)
    config.data.on_damage = "replace"
    logging.getLogger("megavrc").propagate = True
    VRCTask(config).preview(module, tmp_path / "previews", 7)
    assert (tmp_path / "previews" / "step-00000007.gif").is_file()
    assert "preview: 1 damaged samples left out, the first because" in caplog.text
    tar.write_bytes(bytes(len(whole)))
    VRCTask(config).preview(module, tmp_path / "previews", 8)
    assert "step 8: no preview" in caplog.text
    assert not (tmp_path / "previews" / "step-00000008.gif").exists()


def clip_run(folder: Path, schedule: dict[int, int]) -> TokenizerRunConfig:
    data = ClipDataConfig(str(folder / "videos" / "manifest.jsonl"), frames_schedule=schedule)
    config = TokenizerRunConfig(run_dir=str(folder / "run"), model=tiny(), data=data)
    config.train.global_batch = config.train.micro_batch = 2
    return config


def test_clips_are_decoded_once_without_the_broken_ones(
    tmp_path: Path, alone: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    make_videos(tmp_path / "videos")
    logging.getLogger("megavrc").propagate = True
    task = TokenizerTask(clip_run(tmp_path, {}), alone)
    assert [task.source[index]["key"] for index in range(len(task.source))] == ["v0", "v1", "v2", "v3", "v4"]
    for number in range(5):
        assert abs(task.source[number]["clip"].astype(int)[0].mean() - (40 * number + 20)) < 4
    assert "1 of 6 videos are left out" in caplog.text
    array = next((tmp_path / "run" / "cache").glob("*.npy"))
    written = array.stat().st_mtime_ns
    TokenizerTask(clip_run(tmp_path, {}), alone)
    assert array.stat().st_mtime_ns == written
    for name in ("0.mp4", "1.mp4", "2.mp4", "3.mp4", "4.mp4"):
        (tmp_path / "videos" / name).write_bytes(b"")
    config = clip_run(tmp_path, {})
    config.data.frames = 9
    with pytest.raises(UserError, match="no video can be decoded"):
        TokenizerTask(config, alone)


def test_clips_on_demand_and_pictures(tmp_path: Path, alone: Rank, caplog: pytest.LogCaptureFixture) -> None:
    manifest = make_videos(tmp_path / "videos")
    cached = TokenizerTask(clip_run(tmp_path, {}), alone).source
    config = clip_run(tmp_path / "again", {})
    config.data.path, config.data.cache = str(manifest), False
    logging.getLogger("megavrc").propagate = True
    source = TokenizerTask(config, alone).source
    assert len(source) == 6 and not (tmp_path / "again").exists()
    assert [source[index]["key"] for index in range(6)] == ["v0", "v1", "v2", "v2", "v3", "v4"]
    assert "broken.mp4: open" in caplog.text
    assert np.array_equal(source[4]["clip"], cached[3]["clip"])
    picture = np.zeros((80, 96, 3), np.uint8)
    picture[:, 48:] = 200
    write_png(tmp_path / "videos" / "picture.png", picture)
    manifest.write_text(json.dumps({"path": "picture.png"}) + "\n")
    config.data.frames = 1
    [clip] = TokenizerTask(config, alone).source[0]["clip"]
    assert clip.shape == (64, 64, 3) and clip[5, 5].max() < 5 and clip[60, 60].min() > 195


def test_images_are_frames_spread_over_the_clip(tmp_path: Path, alone: Rank) -> None:
    make_videos(tmp_path / "videos", broken=False)
    config = clip_run(tmp_path, {})
    config.data.frames_schedule, config.data.images_per_clip = {0: [9, 1], 4: 1}, 4
    task = TokenizerTask(config, alone)
    assert [task.frames_at(step) for step in range(6)] == [9, 1, 9, 1, 1, 1]
    clip = task.source[0]["clip"]
    for position in range(2, 4):
        batch = task.collate([task.source[0] | {"position": position}])
        assert batch["clips"].shape == (4, 1, 64, 64, 3) and batch["frame"].tolist() == [0] * 4
        found = [int(np.abs(clip - image.numpy()).sum((1, 2, 3)).argmin()) for image in batch["clips"]]
        gaps = sorted((b - a) % 17 for a, b in zip(found, found[1:] + found[:1], strict=True))
        assert gaps == [4, 4, 4, 5]
    batch = task.collate([task.source[i % 5] | {"position": i} for i in range(0, 400, 4)])
    assert batch["clips"].shape[:2] == (100, 9) and set(batch["frame"].tolist()) == set(range(9))


def test_windows_follow_the_schedule_and_the_position(tmp_path: Path, alone: Rank) -> None:
    make_videos(tmp_path / "videos", broken=False)
    task = TokenizerTask(clip_run(tmp_path, {0: 9, 3: 17}), alone)
    assert [task.frames_at(step) for step in (0, 2, 3, 9)] == [9, 9, 17, 17]

    def batch(step: int) -> torch.Tensor:
        return task.collate([task.source[i] | {"position": 2 * step + i} for i in range(2)])["clips"]

    assert batch(2).shape == (2, 9, 64, 64, 3) and batch(3).shape == (2, 17, 64, 64, 3)
    assert torch.equal(batch(1), batch(1))
    starts = {int(batch(step)[0, 0].float().mean().round()) for step in (0, 1, 2)}
    starts |= {
        int(task.collate([task.source[0] | {"position": p}])["clips"][0, 0].float().mean().round())
        for p in range(6)
    }
    assert len(starts) > 2, "windows start at different frames"


def run_tool(*words: Any, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)),
        cwd=ROOT,
        env=environment() | (env or {}),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_from_videos_to_a_converted_model(tmp_path: Path) -> None:
    """The commands of the demo at a tiny size; every part once, then all again, which does nothing."""
    python, run = sys.executable, tmp_path / "demo"
    small = ["--train.log_every=2", "--train.save_every=4", "--preview.count=2"]
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    commands = [
        [python, "tools/make_shapes.py", f"--out={run / 'data'}", "--clips=72", "--val=4", "--processes=1"],
        [*launch, "pretrain/pretrain_tokenizer.py", "--config=pretrain/configs/demo_tokenizer.yaml", *small]
        + [f"--run_dir={run / 'tokenizer'}", f"--data.path={run / 'data' / 'manifest.jsonl'}"]
        + ["--train.steps=8", "--objective.warmup_steps=3", '--data.frames_schedule={"0": 9, "5": 17}'],
        [
            python,
            "tools/tokenize_videos.py",
            "all",
            f"--manifest={run / 'data' / 'manifest.jsonl'}",
            "--size=64",
        ]
        + [f"--tokenizer={run / 'tokenizer' / 'model'}", f"--out={run / 'tokens'}"],
    ]
    for words in commands:
        done = run_tool(*words)
        assert done.returncode == 0, done.stderr[-2000:]
    stages = {"RUN": str(run), "PYTHON": python, "IMAGE_OPTIONS": " ".join(["--train.steps=6", *small])}
    stages |= {"VIDEO_OPTIONS": " ".join(["--train.steps=6", *small, "--train.zero=3"])}
    for attempt in range(2):
        done = run_tool("bash", "pretrain/two_stage.sh", env=stages)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("step 6/6" in done.stdout) == (attempt == 0)
    assert read_json(run / "stage2" / "complete.json")["step"] == 6
    assert (run / "stage2" / "previews" / "step-00000006.gif").is_file()
    assert (run / "hf" / "config.json").is_file()
    refused = run_tool(
        python,
        "pretrain/pretrain_vrc.py",
        "--config",
        run / "stage1" / "config.yaml",
        "--seed=1",
        "--train.steps=9",
    )
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and "seed: 0 there, 1 here" in refused.stderr
    config = load_config(RunConfig, ["--config", str(run / "stage1" / "config.yaml")])
    assert config.train.steps == 6 and os.path.samefile(config.run_dir, run / "stage1")
