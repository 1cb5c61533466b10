"""tools/generate.py: files of clips, and resuming."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.generation.command import generate
from megavrc.generation.folder import Folder, load_folder
from megavrc.generation.to_files import clips_to_write, generate_files, read_image, read_prompts
from megavrc.model.clips import sampling_settings
from megavrc.video import count_frames, read_frames, write_mp4, write_png

PROMPTS = ["a red square moves left", "A blue DOG!", "a red square moves left"]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Folder:
    return load_folder(folder)


def test_generating_needs_neither_the_compiler_nor_the_engine(folder) -> None:
    code = (
        "import sys; from megavrc.generation.folder import load_folder; load_folder(sys.argv[1]);"
        "print([name for name in ('torch._dynamo', 'deepspeed', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"  # each of them costs seconds of every command's start


def test_files_and_resuming(loaded, tmp_path) -> None:
    settings = sampling_settings(loaded.sampling)
    wanted = clips_to_write(PROMPTS, [], seed=3)
    assert generate_files(loaded, wanted, tmp_path, settings, batch_size=2) == 3
    names = [clip.name for clip in wanted]
    assert names[1] == "0001-a-blue-dog" and len(set(names)) == 3
    files = {path.name for path in tmp_path.iterdir()}
    clips = {f"{name}{end}" for name in names for end in (".mp4", ".gif")}
    assert files == clips | {"prompts.jsonl", "sheet.png"}
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [(line["caption"], line["seed"]) for line in lines] == [(PROMPTS[i], 3 + i) for i in range(3)]
    assert count_frames(tmp_path / lines[0]["path"]) == 17

    (tmp_path / f"{names[1]}.mp4").unlink()
    assert generate_files(loaded, wanted, tmp_path, settings) == 1
    assert generate_files(loaded, wanted, tmp_path, settings) == 0
    assert generate_files(loaded, clips_to_write(PROMPTS[:1], [], seed=4), tmp_path, settings) == 1
    assert (
        generate_files(
            loaded, clips_to_write(PROMPTS[:1], [], seed=4), tmp_path, sampling_settings({"top_k": 2})
        )
        == 1
    )


def test_clips_of_another_precision_are_not_taken_for_these(folder, loaded, tmp_path) -> None:
    wanted, settings = clips_to_write(PROMPTS[:1], [], seed=3), sampling_settings({"top_k": 1})
    half = load_folder(folder, dtype="bf16")
    for model, made in ((loaded, 1), (half, 1), (half, 0), (loaded, 1)):
        assert generate_files(model, wanted, tmp_path, settings, frames=5) == made
    assert json.loads((tmp_path / "prompts.jsonl").read_text())["dtype"] == "torch.float32"
    pytest.importorskip("torchao", reason="torchao is not installed")
    for model, made in ((load_folder(folder, quantize="int8"), 1), (loaded, 1)):
        assert generate_files(model, wanted, tmp_path, settings, frames=5) == made


def test_an_interrupted_run_leaves_no_line_about_what_it_wrote_over(loaded, tmp_path) -> None:
    """Other clips are made in the place of the first ones, and the second of them cannot be written."""
    wanted, settings = clips_to_write(PROMPTS[:2], [], seed=3), sampling_settings({})
    assert generate_files(loaded, wanted, tmp_path, settings, frames=5) == 2
    blocked = tmp_path / f"{wanted[1].name}.gif"
    blocked.unlink()
    blocked.mkdir()
    with pytest.raises(OSError):
        generate_files(loaded, wanted, tmp_path, sampling_settings({"top_k": 1}), frames=5)
    blocked.rmdir()
    assert generate_files(loaded, wanted, tmp_path, settings, frames=5) == 2


def test_a_first_picture_of_any_size(loaded, tmp_path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[..., 0] = 200
    write_png(tmp_path / "red.png", picture)
    image = read_image(tmp_path / "red.png", 16)
    assert image.shape == (16, 16, 3) and abs(int(image[8, 8, 0]) - 200) < 4
    wanted = clips_to_write(PROMPTS[:1], [], seed=0)
    assert (
        generate_files(loaded, wanted, tmp_path, sampling_settings({}), image[None], frames=5, scale=4) == 1
    )
    shown = read_frames(tmp_path / f"{wanted[0].name}.mp4", [0])[:, 2::4, 2::4]
    again = loaded.video_tokenizer.decode(loaded.video_tokenizer.encode(image[None, None]))[0, 0]
    assert np.abs(shown[0].astype(int) - again.numpy()).mean() < 12
    with pytest.raises(UserError, match="not a picture"):
        read_image(tmp_path / "prompts.jsonl", 16)


def test_prompt_files(tmp_path) -> None:
    (tmp_path / "p.txt").write_text("a dog\n\n  caf\u00e9 \n")
    assert read_prompts(tmp_path / "p.txt") == ["a dog", "caf\u00e9"]
    (tmp_path / "p.txt").write_text("\ufeffone\u2028prompt\x85\r\ntwo\n")
    assert read_prompts(tmp_path / "p.txt") == ["one\u2028prompt", "two"]
    (tmp_path / "p.txt").write_bytes(b"a dog\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"p\.txt line 2: byte 0xe9 is no UTF-8"):
        read_prompts(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "q.txt")


def test_the_command(folder, loaded, tmp_path, capsys) -> None:
    common = ["--model", str(folder), "--out", str(tmp_path / "out")]
    options = [
        "--prompt",
        json.dumps(PROMPTS[:2]),
        "--seed",
        "7",
        "--top_k",
        "1",
        "--frames",
        "5",
        "--scale",
        "4",
    ]
    assert run_command(generate, common + options) == 0
    assert "2 clips generated, 0 were there" in capsys.readouterr().out
    _, frames = loaded.generate(PROMPTS[:2], seed=[7, 8], frames=5, settings=sampling_settings({"top_k": 1}))
    shown = read_frames(tmp_path / "out" / "0001-a-blue-dog.mp4", range(5))[:, 2::4, 2::4]
    assert torch.tensor(shown.astype(int)).sub(frames[1].int()).abs().float().mean() < 12
    assert run_command(generate, common) == 2
    assert capsys.readouterr().err == "error: give one of --prompt, --prompts and --label\n"


def test_pictures_and_clips_that_name_other_files_are_one_line(folder, tmp_path, capsys) -> None:
    """Nothing is opened but the file itself: neither the secret beside it nor a host is asked."""
    words = ["--model", str(folder), "--prompt", "a", "--out", str(tmp_path / "out")]
    write_mp4(tmp_path / "secret.mp4", np.full((17, 16, 16, 3), 200, np.uint8))
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for name, text in {
            "first.png": "ffconcat version 1.0\nfile secret.mp4\n",
            "clip.mp4": f"#EXTM3U\n#EXTINF:1,\n{address}\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        }.items():
            (tmp_path / name).write_text(text)
        for name in ("first.png", "clip.mp4", "pipe.mp4", address, f"concat:{tmp_path}/secret.mp4"):
            for option in ("--first_image", "--clip"):
                path = name if ":" in name else str(tmp_path / name)
                assert run_command(generate, [*words, option, path]) == 2
                error = capsys.readouterr().err
                assert error.count("\n") == 1 and "that can be read" in error
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not (tmp_path / "out").exists()


def test_a_photo_is_the_first_frame_as_it_is_shown(tmp_path) -> None:
    stored = np.zeros((16, 16, 3), np.uint8)
    stored[:8] = 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"  # turned clockwise: the top is shown on the right
    Image.fromarray(stored).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    shown = read_image(tmp_path / "photo.jpg", 16).float()
    assert shown[:, 9:].mean() > 250 and shown[:, :7].mean() < 5
