"""Folders of pictures through the whole offline job."""

from pathlib import Path

from scripts import run_script
from tiny import save_tokenizer
from trees import frames

from megavrc.data.dataset import TokenDataset


def test_folders_of_pictures_become_tokens(tmp_path: Path) -> None:
    def run(tool: str, *options: object) -> None:
        assert run_script(f"tools/{tool}", *options) == 0

    for name, count in (("sky_train/a/a_1", 12), ("sky_train/a/a_2", 4), ("sky_test/b/b_1", 9)):
        frames(tmp_path / name, count, "frames_{:08d}.jpg")
    save_tokenizer(tmp_path / "tokenizer")
    manifest, out = tmp_path / "m.jsonl", tmp_path / "tokens"
    run("prepare_dataset.py", "skytimelapse", "--folder", tmp_path, "--out", manifest, "--fps", 25)
    plan = ["--tokenizer", tmp_path / "tokenizer", "--size", 32, "--frames", 9, "--splits", "[train,test]"]
    run("tokenize_videos.py", "plan", "--manifest", manifest, "--out", out, *plan)
    run("tokenize_videos.py", "run", "--out", out)
    run("tokenize_videos.py", "finalize", "--out", out)
    samples = [TokenDataset(out / "video", split=split).read(0)[1] for split in ("train", "test")]
    assert [(sample["source"], sample["label"]) for sample in samples] == [
        ("sky_train/a/a_1", 0),
        ("sky_test/b/b_1", 0),
    ]
    failures = "".join(path.read_text() for path in (out / "failures").iterdir())
    assert "sky_train/a/a_2" in failures and "4 frames, a clip needs 9" in failures
