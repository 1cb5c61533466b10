"""Text features: the encoder's numbers, beside the tokens with the same keys, whatever happens to the tasks."""

import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from encoders import make_encoder
from jobs import files
from token_sets import Sample, write_tokens
from transformers import AutoTokenizer, T5EncoderModel

from megavrc.config import run_command
from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import DataError, done_path, shard_name
from megavrc.data.text_features import TextFeatures
from megavrc.errors import UserError
from megavrc.files import read_json, write_json
from megavrc.tokenization.result import verify
from megavrc.tokenization.text_features import text_features
from megavrc.tokenizers.text_encoder import TextEncoder

COUNTS = {"video": {"train": (5, 0, 3), "val": (2,)}, "image": {"train": (20,)}}


def caption_of(number: int) -> str | None:
    colour = ("red", "blue")[number % 2]
    return [f"a {colour} square moves left", "circle", None, f"video number {number}", ""][number % 5]


def sample(kind: str, number: int) -> Sample:
    fields = {"caption": caption_of(number), "label": None, "source": "s"}
    return f"{number:016x}-{kind[0]}", np.full((1, 2, 2), number % 8), fields


def make_tokens(out: Path, counts: dict[str, dict[str, tuple[int, ...]]] = COUNTS) -> Path:
    """Finished datasets, as a tokenization job leaves them."""
    for kind, splits in counts.items():
        numbers = itertools.count()
        shards = {
            split: [[sample(kind, each) for each in itertools.islice(numbers, size)] for size in sizes]
            for split, sizes in splits.items()
        }
        write_tokens(out / kind, shards, (1, 2, 2), 8, kind=kind)
    return out


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def made(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features that were made undisturbed. Not to be changed."""
    out = make_tokens(tmp_path_factory.mktemp("features") / "tokens")
    text_features(out, encoder, batch=2)
    return out


def test_features_are_those_of_the_encoder(made: Path, encoder: Path) -> None:
    """Against transformers, one caption at a time."""
    model, tokenizer = T5EncoderModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    for kind, splits in COUNTS.items():
        for split in splits:
            tokens = TokenDataset(made / kind, split=split)
            features = TextFeatures(tokens)
            assert len(features) == len(tokens) and features.width == 16
            for index in range(len(tokens)):
                found, caption = features[index], tokens[index]["caption"]
                assert features.key(index) == tokens.key(index)
                assert torch.equal(features.by_key(tokens.key(index)), found)
                assert features.read(index)[1] == {"caption": caption, "cut": False}
                assert found.dtype == torch.float16
                if not caption:
                    assert found.shape == (0, 16)
                    continue
                ids = tokenizer(caption, return_tensors="pt")
                with torch.no_grad():
                    expected = model(**ids).last_hidden_state[0]
                torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=1e-3)
    with pytest.raises(KeyError):
        features.by_key("none")


def test_the_identity_is_recorded(made: Path, encoder: Path) -> None:
    info = TextFeatures(TokenDataset(made / "video")).info
    assert info["tokens"]["manifest_id"] == TokenDataset(made / "video").manifest_id
    assert info["encoder"]["name"] == "tiny" and len(info["encoder"]["sha256"]) == 64
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(info["encoder"]["files"])
    assert (info["max_tokens"], info["precision"], info["width"]) == (127, "fp32", 16)


def test_webdataset_joins_them_with_the_tokens(made: Path) -> None:
    for tar in (made / "video" / "shards").glob("*.tar"):
        both = [tar, made / "video" / "text_features" / "shards" / tar.name]
        keys = [
            [
                sample["__key__"]
                for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
            ]
            for path in both
        ]
        assert keys[0] == keys[1]


def test_tasks_make_the_same_bytes(
    made: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_tokens(tmp_path / "tokens")
    text_features(out, encoder, batch=2, task=1, of=2)
    assert "2 of 5 shards done\nstill to run: --array=0,2,4 with --of 5" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"finish it with megavrc tokenize_videos text-features"):
        TextFeatures(TokenDataset(out / "video"))
    text_features(out, encoder, batch=2, task=0, of=2)
    assert "image/text_features: 20 samples, 0 captions cut" in capsys.readouterr().out
    assert files(out) == files(made)


def test_a_task_leaves_what_another_one_writes(made: Path, encoder: Path, tmp_path: Path) -> None:
    """Two tasks that end together both find all shards done, and write the manifest."""
    out = shutil.copytree(made, tmp_path / "tokens")
    folder = out / "video" / "text_features"
    theirs, killed = (
        folder / ".manifest.json.a1b2c3d4",
        folder / "shards" / f".x-000000-of-000001.tar.{'0' * 16}.tmp",
    )
    theirs.touch()
    killed.touch()
    text_features(out, encoder, batch=2)
    assert theirs.exists() and not killed.exists()


def test_killed_and_stopped_tasks_continue(tmp_path: Path) -> None:
    """Ended while they encode, the first in a process of its own; the result is that of one which ran through."""
    encoder = make_encoder(tmp_path / "encoder", width=64)
    counts = {"video": {"train": (4,) * 50}}
    whole, out = make_tokens(tmp_path / "whole", counts), make_tokens(tmp_path / "tokens", counts)
    fork = multiprocessing.get_context("fork")  # importing anew would take most of the time
    process = fork.Process(target=text_features, args=(out, encoder), kwargs={"batch": 1})
    process.start()
    wait_for_shards(out, 1)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    killed = done_shards(out)
    stopper = threading.Thread(target=stop_this_process, args=(out, killed + 1))
    stopper.start()
    with pytest.raises(SystemExit) as stopped:
        text_features(out, encoder, batch=1)
    stopper.join()
    assert stopped.value.code == 75
    assert killed < done_shards(out) < 50
    text_features(out, encoder, batch=1)
    text_features(whole, encoder, batch=1)
    assert files(out) == files(whole)


def stop_this_process(out: Path, shards: int) -> None:
    wait_for_shards(out, shards)
    os.kill(os.getpid(), signal.SIGTERM)


def wait_for_shards(out: Path, count: int) -> None:
    end = time.monotonic() + 120
    while done_shards(out) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


def done_shards(out: Path) -> int:
    return len(list((out / "video" / "text_features" / "shards").glob("*.done.json")))


def test_a_damaged_shard_is_noticed_and_made_again(made: Path, encoder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "tokens")
    tar = out / "video" / "text_features" / "shards" / shard_name("train", 0, 3)
    content = bytearray(tar.read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 4
    tar.write_bytes(content)
    tokens = TokenDataset(out / "video")
    features = pickle.loads(pickle.dumps(TextFeatures(tokens)))
    with pytest.raises(DataError, match=f"{tar}: sample .* is damaged"):
        features[0]
    assert len(list(features.problems(tokens))) == 2  # the hash of the shard, and the sample
    tar.write_bytes(content[:-512])
    with pytest.raises(DataError, match=f"{tar}: shard has"):
        TextFeatures(tokens)
    text_features(out, encoder, batch=2)
    assert list(TextFeatures(tokens).problems(tokens)) == []
    assert tar.read_bytes() == (made / tar.relative_to(out)).read_bytes()


def test_verify_reads_them_too(
    done: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(done, tmp_path / "tokens")
    text_features(out, encoder)
    verify(out)
    assert "/image train: text features, 0 problems" in capsys.readouterr().out
    tar = next((out / "video" / "text_features" / "shards").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[content.index(b"video")] ^= 1  # in a caption
    tar.write_bytes(content)
    with pytest.raises(DataError, match="2 problems"):
        verify(out)
    assert f"{tar}: sample " in capsys.readouterr().err


def test_long_captions_are_cut(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_tokens(tmp_path, {"video": {"train": (5,)}})
    text_features(out, encoder, max_tokens=3)
    features = TextFeatures(TokenDataset(out / "video"))
    found = [(len(features[index]), features.read(index)[1]["cut"]) for index in range(5)]
    assert found == [(3, True), (2, False), (0, False), (3, True), (0, False)]
    assert "2 captions cut" in capsys.readouterr().out


def test_the_decoder_of_a_whole_model_is_left_out(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "whole", whole=True)
    texts = ["a red square", "circle"]
    for precision in ("fp32", "bf16"):
        (first, cut), (second, _) = TextEncoder(folder, precision=precision).encode(texts, 10)  # type: ignore[arg-type]
        assert (first.shape, second.shape, cut) == ((4, 16), (2, 16), False)
        assert first.dtype == torch.float32


def test_an_encoder_with_a_limit_of_its_own(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "short")
    write_json(
        folder / "tokenizer_config.json",
        read_json(folder / "tokenizer_config.json") | {"model_max_length": 2},
    )
    ((features_LF, cut),) = TextEncoder(folder).encode(["a red square"], 10)
    assert (len(features_LF), cut) == (2, True)


def test_features_of_a_newer_plan_are_refused(made: Path, encoder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "tokens")
    plan = out / "video" / "text_features" / "plan.json"
    write_json(plan, read_json(plan) | {"format": 2})
    with pytest.raises(UserError, match=r"made by a newer megavrc \(format 2, this one reads up to 1\)"):
        text_features(out, encoder, batch=2)


def test_other_settings_encoders_and_tokens_are_refused(made: Path, encoder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(made, tmp_path / "tokens")
    with pytest.raises(
        UserError, match=r"plan.json is another plan \(max_tokens differ\); remove .*text_features"
    ):
        text_features(out, encoder, batch=2, max_tokens=5)
    other = make_encoder(tmp_path / "tiny", seed=1)
    with pytest.raises(UserError, match=r"another plan \(encoder differ\)"):
        text_features(out, other, batch=2)
    features = out / "video" / "text_features"
    aside = features.rename(tmp_path / "aside")
    shutil.rmtree(out / "video")
    make_tokens(out, {"video": {"train": (4,)}})
    aside.rename(features)
    with pytest.raises(UserError, match=r"another plan \(tokens differ\)"):
        text_features(out, encoder, batch=2)
    with pytest.raises(UserError, match="features of other tokens"):
        TextFeatures(TokenDataset(out / "video"))
    with pytest.raises(UserError, match="format 'megavrc-text-features 1', expected 'megavrc-shards 1'"):
        TokenDataset(features)


def broken_folders(folder: Path, encoder: Path) -> dict[str, Path]:
    """Folders that are no text encoder, by what the error must say."""
    stripped, text_only, weightless, short = (shutil.copytree(encoder, folder / str(n)) for n in range(4))
    model = T5EncoderModel.from_pretrained(encoder)
    state = {name: value for name, value in model.state_dict().items() if "block.1" not in name}
    model.save_pretrained(stripped, state_dict=state)
    (weightless / "model.safetensors").unlink()
    (short / "model.safetensors").write_bytes((encoder / "model.safetensors").read_bytes()[:1000])
    for path in text_only.glob("tokenizer*"):
        path.unlink()
    return {
        "weights of the text encoder are missing": stripped,
        "not a text encoder that transformers loads": weightless,
        "loads: Error while deserializing header": short,
        "no tokenizer (expected one of": text_only,
        "no such file or folder": folder / "none",
    }


def test_folders_that_are_no_encoder(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_tokens(tmp_path / "tokens")
    broken = broken_folders(tmp_path, encoder)
    capsys.readouterr()
    for number, (message, folder) in enumerate(broken.items()):
        for path in out.glob("*/text_features"):
            shutil.rmtree(path)
        words: list[Any] = ["--out", out, "--encoder", folder]
        assert run_command(text_features, [str(word) for word in words]) == 2, number
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and f"{folder}" in printed and message in printed
    assert (
        run_command(text_features, ["--out", str(out), "--encoder", str(encoder), "--device", "cuda:99"]) == 2
    )
    assert "device cuda:99: not on this machine" in capsys.readouterr().err
    assert run_command(text_features, ["--out", str(tmp_path), "--encoder", str(encoder)]) == 2
    assert "no finished dataset" in capsys.readouterr().err


def test_features_that_do_not_fit_float16_are_refused(encoder: Path, tmp_path: Path) -> None:
    model = T5EncoderModel.from_pretrained(encoder)
    model.encoder.final_layer_norm.weight.data.fill_(1e6)
    folder = shutil.copytree(encoder, tmp_path / "loud")
    model.save_pretrained(folder)
    out = make_tokens(tmp_path / "tokens")
    with pytest.raises(
        DataError, match=r"train-000000-of-000003.tar: sample 0{16}-v has features that are not finite"
    ):
        text_features(out, folder)
    tar = out / "video" / "text_features" / "shards" / shard_name("train", 0, 3)
    assert not list(tar.parent.iterdir()) and not done_path(tar).exists()
    assert read_json(tar.parents[1] / "plan.json")["encoder"]["name"] == "loud"
