"""The data section of a run's configuration: blends, shuffles, damage, addresses, other datasets refused."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from token_sets import Sample, write_tokens
from worlds import World, run_torchrun

from megavrc.config import dump_yaml, load_config
from megavrc.data.shards import shard_name
from megavrc.data.stream import Stream
from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.training.run_folder import RunFolder
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig

ROOT = Path(__file__).parents[2]


def make_images(
    folder: Path, counts: tuple[int, ...] = (6, 6), seed: int = 0, tokenizer: str = "a", **info: Any
) -> Path:
    shape = (1, 8, 8)

    def sample(shard: int, number: int) -> Sample:
        ids = np.random.default_rng([seed, shard, number]).integers(0, 512, shape)
        return f"{folder.name}-{shard}-{number}", ids, {"caption": None, "label": 0}

    shards = [[sample(shard, number) for number in range(count)] for shard, count in enumerate(counts)]
    return write_tokens(
        folder, {"train": shards}, shape, **{"vocab": 512, **info}, tokenizer_sha256=tokenizer * 64
    )


def write_config(folder: Path, data: dict[str, Any], **more: Any) -> Path:
    """A run of the image stage on classes, written as YAML."""
    model = {"frames": 0, "layers": 1, "condition": {"kind": "class", "classes": 1}}
    train = {"steps": 6, "global_batch": 4, "micro_batch": 1, "log_every": 1, "save_every": 100}
    content = {"run_dir": str(folder / "run"), "stage": "image", "model": model, "data": data, "train": train}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**content, **more}))
    return path


def load(folder: Path, **data: Any) -> RunConfig:
    return load_config(RunConfig, ["--config", str(write_config(folder, data))])


def delivered(task: VRCTask, positions: int) -> list[str]:
    stream = Stream(
        task.source,
        task.order,
        global_batch=positions,
        micro_batch=positions,
        collate=lambda items: [item["key"] for item in items],
        max_damaged=task.max_damaged,
    )
    [keys] = islice(iter(stream), 1)
    return keys


def test_a_blend_in_yaml(tmp_path: Path) -> None:
    a, b = make_images(tmp_path / "a"), make_images(tmp_path / "b", seed=1)
    config = load(tmp_path, blend=[{"path": str(a), "weight": 0.75}, {"path": str(b), "weight": 0.25}])
    dump_yaml(config, tmp_path / "again.yaml")
    assert load_config(RunConfig, ["--config", str(tmp_path / "again.yaml")]) == config
    keys = delivered(VRCTask(config), 48)
    assert sum(key.startswith("a") for key in keys) == 36
    assert len(set(keys[:16])) == 16, "12 of a and 4 of b: each once so far"


def test_a_window_keeps_to_its_shards(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "a", (5,) * 6)
    keys = delivered(VRCTask(load(tmp_path, path=str(folder), shuffle="window", window=2)), 30)
    assert len(set(keys)) == 30
    assert [len({key.split("-")[1] for key in keys[i : i + 10]}) for i in (0, 10, 20)] == [2, 2, 2]
    keys = delivered(VRCTask(load(tmp_path, path=str(folder))), 30)
    assert len({key.split("-")[1] for key in keys[:10]}) > 2


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "data.path"),
        ({"path": "a", "blend": [{"path": "b"}]}, "data.path: give either it or data.blend"),
        ({"path": "a", "window": 0}, "data.window: 0"),
        ({"path": "a", "shuffle": "some"}, "data.shuffle|some"),
        ({"blend": [{"path": "a", "wieght": 2}]}, "wieght"),
        ({"blend": [{"weight": 2}]}, "path"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, data: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load(tmp_path, **data)


def test_datasets_that_do_not_fit_are_named(tmp_path: Path) -> None:
    a, b = make_images(tmp_path / "a"), make_images(tmp_path / "b", tokenizer="b")
    with pytest.raises(UserError, match=r"data.blend: tokenizer is 'aaa.*/a and 'bbb.*/b"):
        VRCTask(load(tmp_path, blend=[{"path": str(a)}, {"path": str(b)}]))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"vocab": 1024}, "vocab is 512 in .*/a and 1024 in .*/b"),
        ({"kind": "video"}, "kind is 'image' in .*/a and 'video' in .*/b"),
        ({"tokenizer": "b"}, "tokenizer is 'aaa.*/a and 'bbb.*/b"),
        ({"classes": ["bike"]}, "classes is None in .*/a and .'bike'.* in .*/b"),
    ],
)
def test_a_validation_set_that_does_not_fit_is_refused_at_the_start(
    tmp_path: Path, other: dict[str, Any], named: str
) -> None:
    a = make_images(tmp_path / "a")
    b = make_images(tmp_path / "b", seed=1, **other)
    held_out = {"held_out": {"path": str(b), "split": "train"}}
    with pytest.raises(UserError, match=rf"data.validation.held_out: {named}"):
        VRCTask(load(tmp_path, path=str(a), validation=held_out))


def test_a_validation_set_that_is_trained_on_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = make_images(tmp_path / "a"), make_images(tmp_path / "b", seed=1)
    sets = {"held_out": {"path": str(b), "split": "train"}}
    assert len(VRCTask(load(tmp_path, path=str(a), validation=sets)).validation["held_out"].source) == 12
    assert not caplog.records
    VRCTask(load(tmp_path, blend=[{"path": str(a)}, {"path": str(b)}], validation=sets))
    assert f"data.validation.held_out: split train of {b} is trained on" in caplog.text


def test_a_dataset_at_a_url_and_a_cache_that_is_too_small(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "a", (5,) * 6)
    size = (folder / "shards" / shard_name("train", 0, 6)).stat().st_size
    where = {"path": folder.as_uri(), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(
        UserError, match=r"data.cache_gb: .* shuffle global uses at once.* data.shuffle: window"
    ):
        VRCTask(load(tmp_path, **where, cache_gb=3.5 * size / 1e9))
    with pytest.raises(UserError, match=r"lower data.window"):
        VRCTask(load(tmp_path, **where, cache_gb=3.5 * size / 1e9, shuffle="window"))
    small = {"cache_gb": 3.5 * size / 1e9, "shuffle": "window", "window": 2}
    remote, here = (
        VRCTask(load(tmp_path, **{**where, "path": path}, **small)) for path in (where["path"], str(folder))
    )
    assert delivered(remote, 60) == delivered(here, 60)
    assert remote.identity == here.identity, "a run may move from one to the other"
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 3


def test_another_dataset_is_refused_with_the_difference(tmp_path: Path, alone: Rank) -> None:
    a, b = make_images(tmp_path / "a"), make_images(tmp_path / "b", (6, 5))

    def open_run(**data: Any) -> None:
        config = load(tmp_path, **data)
        task = VRCTask(config)
        RunFolder(config, task.identity, task.facts, alone).close()

    open_run(path=str(a))
    open_run(path=str(a.rename(tmp_path / "moved")))
    with pytest.raises(
        UserError, match=r"data.0.manifest: '\w+' there, '\w+' here; data.0.samples: 12 there, 11 here"
    ):
        open_run(path=str(b))
    with pytest.raises(UserError, match=r"order.shuffle: 'global' there, 'window' here"):
        open_run(path=str(tmp_path / "moved"), shuffle="window")
    with pytest.raises(UserError, match=r"data.1: None there"):
        open_run(blend=[{"path": str(tmp_path / "moved")}, {"path": str(b)}])


def damaged(folder: Path) -> Path:
    """Bits of one sample of the first shard are flipped."""
    tar = folder / "shards" / shard_name("train", 0, 2)
    content = bytearray(tar.read_bytes())
    content[content.index(b"\x93NUMPY") + 200] ^= 1
    tar.write_bytes(content)
    return folder


def run_two_ranks(folder: Path, **data: Any) -> tuple[int, str, list[dict[str, float]]]:
    path = write_config(folder, {"path": str(damaged(make_images(folder / "tokens"))), **data})
    done = run_torchrun(2, ROOT / "pretrain" / "pretrain_vrc.py", "--config", path, "--train.workers=1")
    metrics = folder / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    return done.returncode, done.stdout + done.stderr, [json.loads(line) for line in lines]


def test_ranks_stay_in_step_when_a_sample_is_replaced(tmp_path: Path) -> None:
    code, output, metrics = run_two_ranks(tmp_path, on_damage="replace")
    assert code == 0, output
    assert [line["step"] for line in metrics] == list(range(1, 7))
    assert metrics[-1]["replaced"] >= 2, "two epochs, and a sample of either rank"
    assert "sample tokens-0-0 is damaged (crc32 does not fit); another sample takes its place" in output


@pytest.mark.slow
def test_all_ranks_end_on_a_damaged_sample_as_a_mistake(tmp_path: Path) -> None:
    """One rank meets it; the others only lose that rank."""
    path = write_config(tmp_path, {"path": str(damaged(make_images(tmp_path / "tokens")))})
    words = (ROOT / "pretrain" / "pretrain_vrc.py", "--config", path, "--train.watchdog_s=20")
    ended = World(2, tmp_path, *words).wait()
    assert ended.codes == [2, 2], ended.outputs
    damage = "sample tokens-0-0 is damaged (crc32 does not fit)"
    assert all(damage in output for output in ended.outputs), "the others tell it too"
    assert "Traceback" not in "".join(ended.outputs)


def test_a_run_folder_that_cannot_be_made_is_the_user_s_mistake(tmp_path: Path, alone: Rank) -> None:
    config = load(tmp_path, path=str(make_images(tmp_path / "a")))
    (tmp_path / "file").touch()
    config.run_dir = str(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"run_dir: .*/file/run cannot be written: Not a directory"):
        RunFolder(config, {}, {}, alone)
