"""A plan is decoded by the PyAV and FFmpeg that it names, on every machine and in every part."""

import json
from pathlib import Path

import av
import pytest
from jobs import SMALL, files

from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.files import read_json, sha256_json, write_json
from megavrc.tokenization.job import plan, run, run_all
from megavrc.tokenization.plan import UNHASHED
from megavrc.tokenization.result import finalize, status, verify

FEW = {**SMALL, "images_per_video": 0}


def planned(out: Path, changes: dict[str, object]) -> None:
    """Let the plan be one that was made elsewhere, or (None) without a key."""
    content = {**read_json(out / "plan.json"), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    content["plan_sha256"] = sha256_json({k: v for k, v in content.items() if k not in UNHASHED})
    write_json(out / "plan.json", content)


def test_plan_and_datasets_name_the_decoder(done: Path) -> None:
    decoder = read_json(done / "plan.json")["decoder"]
    assert decoder["av"] == av.__version__
    assert decoder["libswscale"] == ".".join(map(str, av.library_versions["libswscale"]))
    assert set(decoder) == {"contract", "av", "libavcodec", "libavformat", "libswscale"}
    for kind in ("video", "image"):
        assert TokenDataset(done / kind).info["decoder"] == decoder


@pytest.mark.parametrize(
    ("name", "version"), [("av", "17.0.0"), ("libavcodec", "62.11.99"), ("contract", "0")]
)
def test_another_decoder_is_refused(
    manifest: Path, tokenizer: Path, tmp_path: Path, name: str, version: str
) -> None:
    plan(manifest, tmp_path, tokenizer, **FEW)
    here = read_json(tmp_path / "plan.json")["decoder"]
    planned(tmp_path, {"decoder": {**here, name: version}})
    before = files(tmp_path)
    message = (
        rf"plan.json: decoder is {name} {version} there, {name} {here[name]} here, so ids may differ; .*"
        rf"pip install av=={version if name == 'av' else av.__version__}.* another --out"
    )
    for start in (
        lambda: run(tmp_path),
        lambda: plan(manifest, tmp_path, tokenizer, **FEW),
        lambda: run_all(manifest, tmp_path, tokenizer, **FEW),
    ):
        with pytest.raises(UserError, match=message) as error:
            start()
        assert "\n" not in str(error.value)
    assert files(tmp_path) == before
    status(tmp_path)


def test_what_is_done_may_be_finished_by_another(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Only decoding has to be the same: a finished job is finalized, verified and found finished anywhere."""
    plan(manifest, tmp_path, tokenizer, **FEW)
    planned(tmp_path, {})  # the same again: our way of writing it changes nothing
    run(tmp_path)
    before = read_json(tmp_path / "plan.json")
    planned(tmp_path, {"decoder": {**before["decoder"], "av": "17.0.0"}})
    now = read_json(tmp_path / "plan.json")["plan_sha256"]
    for path in tmp_path.rglob("*.done.json"):  # as if that had run it
        path.write_text(path.read_text().replace(before["plan_sha256"], now))
    run(tmp_path)
    finalize(tmp_path)
    verify(tmp_path)
    failures = tmp_path / "failures" / "train-000000.jsonl"
    line = {"source": "a/00.mp4", "start": None, "stage": "io", "reason": "the drive was gone"}
    failures.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"av 17\.0\.0 there"):
        run(tmp_path, retry_failed=True)


def test_a_plan_of_before_runs_with_one_warning(
    manifest: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(manifest, tmp_path, tokenizer, **FEW)
    planned(tmp_path, {"decoder": None})
    before = (tmp_path / "plan.json").read_bytes()
    plan(manifest, tmp_path, tokenizer, **FEW)  # `all` does so each time
    assert (tmp_path / "plan.json").read_bytes() == before
    capsys.readouterr()
    run(tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert (
        len(lines) == 1 and "plan.json does not name its decoder" in lines[0] and av.__version__ in lines[0]
    )
    finalize(tmp_path)
    verify(tmp_path)
    assert "decoder" not in TokenDataset(tmp_path / "video").info  # the bytes that it would have had before
    run(tmp_path)
    assert "warning" not in capsys.readouterr().err
