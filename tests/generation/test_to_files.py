"""tools/generate.py: files of clips, and resuming."""

import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.generation.command import generate
from megavrc.generation.folder import Folder, load_folder
from megavrc.generation.to_files import _read_list, clips_to_write, generate_files, read_image, read_prompts
from megavrc.model.clips import sampling_settings
from megavrc.model.inputs import first_frames
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


def listed(out: Path) -> list[dict[str, Any]]:
    """The lines of the list, and that each has its files."""
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    files = {path.name for path in out.iterdir()} - {"prompts.jsonl", "sheet.png"}
    assert files == {f"{line['id']}{end}" for line in lines for end in (".mp4", ".gif")}
    return lines


def test_files_and_resuming(loaded, tmp_path) -> None:
    settings = sampling_settings(loaded.sampling)
    wanted = clips_to_write(PROMPTS, [], seed=3)
    assert generate_files(loaded, wanted, tmp_path, settings, batch_size=2) == 3
    lines = listed(tmp_path)
    assert [line["id"] for line in lines][1] == "0001-a-blue-dog-seed4" and (tmp_path / "sheet.png").is_file()
    assert [(line["caption"], line["seed"]) for line in lines] == [(PROMPTS[i], 3 + i) for i in range(3)]
    assert count_frames(tmp_path / lines[0]["path"]) == 17

    for end in ("mp4", "gif"):  # each of them is needed
        (tmp_path / f"{lines[1]['id']}.{end}").unlink()
        assert generate_files(loaded, wanted, tmp_path, settings) == 1
        assert generate_files(loaded, wanted, tmp_path, settings) == 0
    assert sorted(map(str, listed(tmp_path))) == sorted(map(str, lines))


def test_nothing_is_lost_when_other_clips_are_made_in_the_same_folder(loaded, tmp_path) -> None:
    """Another seed, prompt, sampling, length, and files that are in no list: each has a name of its own."""
    first = clips_to_write(PROMPTS[:1], [], seed=3)
    before: dict[str, bytes] = {"0000-a-red-square-moves-left-seed9.mp4": b"somebody's"}
    (tmp_path / "0000-a-red-square-moves-left-seed9.mp4").write_bytes(b"somebody's")
    for wanted, sampling, frames in (
        (first, {}, 5),
        (clips_to_write(PROMPTS[:1], [], seed=4), {}, 5),
        (clips_to_write(PROMPTS[:1], [], seed=9), {}, 5),
        (clips_to_write(["a dog"], [], seed=3), {}, 5),
        (first, {"top_k": 2}, 5),
        (first, {"top_k": 2}, 9),
    ):
        assert generate_files(loaded, wanted, tmp_path, sampling_settings(sampling), frames=frames) == 1
        now = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".mp4", ".gif")}
        assert now.items() > before.items()
        before = now
    assert len(before) == 6 * 2 + 1
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [
        "0000-a-red-square-moves-left-seed3",
        "0000-a-red-square-moves-left-seed4",
        "0000-a-red-square-moves-left-seed9-2",
        "0000-a-dog-seed3",
        "0000-a-red-square-moves-left-seed3-2",
        "0000-a-red-square-moves-left-seed3-3",
    ]
    for fps in (8, 8.0):
        assert generate_files(loaded, first, tmp_path, sampling_settings({}), frames=5, fps=fps) == 0
    rows = Image.open(tmp_path / "sheet.png").height // (20 + 2 * 16 + 4)
    assert rows == 6  # those of before too


def test_several_clips_a_prompt_and_later_more(loaded, tmp_path) -> None:
    settings = sampling_settings({})
    for copies, made in ((1, 2), (3, 4), (2, 0)):
        wanted = clips_to_write(PROMPTS[:2], [], 5, copies)
        assert len(wanted) == 2 * copies
        assert generate_files(loaded, wanted, tmp_path, settings, frames=5) == made
    assert sorted((line["caption"], line["seed"]) for line in listed(tmp_path)) == [
        *((PROMPTS[1], seed) for seed in (6, 8, 10)),
        *((PROMPTS[0], seed) for seed in (5, 7, 9)),
    ]
    with pytest.raises(UserError, match="clips_per_prompt: 0"):
        clips_to_write(PROMPTS, [], 0, 0)


def test_processes_add_to_one_folder_at_the_same_time(loaded, tmp_path) -> None:
    """The same prompt and seeds with other sampling, so that both want the same names."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)

    def work(top_k: int) -> None:
        wanted = clips_to_write(PROMPTS[:1], [], 5, 8)
        start.wait()
        generate_files(loaded, wanted, tmp_path, sampling_settings({"top_k": top_k}), frames=1, batch_size=1)

    workers = [context.Process(target=work, args=(top_k,)) for top_k in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    made = [(line["seed"], line["sampling"]["later"]["top_k"]) for line in listed(tmp_path)]
    assert sorted(made) == [(seed, top_k) for seed in range(5, 13) for top_k in (1, 2)]


@pytest.mark.parametrize("fps", [1e-4, 0.0, 1e9, math.nan])
def test_frame_rates_that_no_file_has_are_refused(loaded, tmp_path, fps) -> None:
    wanted = clips_to_write(PROMPTS[:1], [], 0)
    with pytest.raises(UserError, match=r"fps: .* is not between"):
        generate_files(loaded, wanted, tmp_path, sampling_settings({}), frames=5, fps=fps)
    assert not list(tmp_path.iterdir())


def test_clips_of_another_precision_are_not_taken_for_these(folder, loaded, tmp_path) -> None:
    wanted, settings = clips_to_write(PROMPTS[:1], [], seed=3), sampling_settings({"top_k": 1})
    half = load_folder(folder, dtype="bf16")
    for model, made in ((loaded, 1), (half, 1), (half, 0), (loaded, 0)):
        assert generate_files(model, wanted, tmp_path, settings, frames=5) == made
    assert [line["dtype"] for line in listed(tmp_path)] == ["torch.float32", "torch.bfloat16"]
    for model, made in ((load_folder(folder, quantize="int8"), 1), (loaded, 0)):
        assert generate_files(model, wanted, tmp_path, settings, frames=5) == made


def test_an_interrupted_run_lists_what_it_made(loaded, tmp_path) -> None:
    """The second clip of a batch cannot be written: the first one stays, and is not made again."""
    wanted, settings = clips_to_write(PROMPTS[:2], [], seed=3), sampling_settings({})
    blocked = tmp_path / f"{wanted[1].name}.gif"
    blocked.mkdir()
    with pytest.raises(OSError):
        generate_files(loaded, wanted, tmp_path, settings, frames=5)
    blocked.rmdir()
    assert [line["seed"] for line in listed(tmp_path)] == [3]
    assert generate_files(loaded, wanted, tmp_path, settings, frames=5) == 1


def test_all_prompts_are_checked_before_the_first_clip(folder, tmp_path, capsys) -> None:
    (tmp_path / "p.txt").write_text("a dog\n" * 4 + "a blue dog " * 12 + "\n")
    words = ["--model", str(folder), "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]
    assert run_command(generate, [*words, "--batch_size", "2"]) == 2
    assert "prompt 'a blue dog a blue" in (error := capsys.readouterr().err) and error.count("\n") == 1
    for more, said in (
        (["--frames", "6"], "1 + 4k frames, got 6"),
        (["--frames", "33", "--overlap", "6"], "overlap: 6"),
        (["--seed", "-1"], "seed: -1"),
        (["--seed", str(2**64 - 2)], f"seed: {2**64}"),
    ):
        (tmp_path / "p.txt").write_text("a dog\n" * 3)
        assert run_command(generate, [*words, *more]) == 2
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_beginning_that_is_no_whole_number_of_latent_frames_is_refused(folder, tmp_path, capsys) -> None:
    write_mp4(tmp_path / "clip.mp4", np.full((17, 16, 16, 3), 200, np.uint8))
    words = ["--model", str(folder), "--prompt", "a", "--out", str(tmp_path / "out")]
    assert run_command(generate, [*words, "--clip", str(tmp_path / "clip.mp4"), "--clip_frames", "4"]) == 2
    assert "error: --clip_frames: a clip has 1 + 4k frames, got 4\n" == capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--clip_frames", "5"], "give it with --clip"),
        (["--draft", "repeat"], "give it with --speculative"),
        (["--overlap", "5"], "give it with --frames above 17"),
        (["--device", "tpu"], "device tpu: not on this machine; choose auto"),
    ],
)
def test_options_that_would_be_ignored_are_refused(folder, tmp_path, capsys, words, said) -> None:
    common = ["--model", str(folder), "--out", str(tmp_path / "out"), "--prompt", "a"]
    assert run_command(generate, [*common, *words]) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "expected an object of sampling options, got list"),
        ('{"temperature": "hot"}', "temperature: 'hot' is not a number"),
        ('{"first_top_p": [0.5]}', "first_top_p: [0.5] is not a number"),
        ('{"guidance": true}', "guidance: True is not a number"),
        ('{"later_guidance": 1e999}', "later_guidance: inf is not a finite number"),
        ('{"plausibility": {}}', "plausibility: {} is not a number"),
        ('{"top_k": 2.5}', "first_top_k: 2.5 is not a whole number"),
        (f'{{"speculative": "{"9" * 999}"}}', "is not a whole number"),
        ('{"draft": 3}', "draft: 3 is not a text"),
        ('{"draft": "guess"}', "draft one of neighbour"),
        ("\xff", "line 1: byte 0xff is no UTF-8"),
        ("{", "not valid JSON"),
    ],
)
def test_a_hostile_generation_config_is_one_line(folder, tmp_path, content, said) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as error:
        load_folder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/generation_config.json") and said in str(error.value)


def test_the_sheet_of_many_clips_is_no_tower(loaded, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("megavrc.generation.to_files.SHEET_HEIGHT", 200)
    caplog.set_level("INFO", "megavrc")
    wanted = clips_to_write(["a dog"] * 5, [], seed=0)
    assert generate_files(loaded, wanted, tmp_path, sampling_settings({}), frames=1) == 5
    row = 20 + 2 * 16 + 4
    assert Image.open(tmp_path / "sheet.png").height in range(3 * row, 200)
    assert "shows the first 3 of these 5 clips" in caplog.text


def test_what_is_counted_are_clips_and_long_ones_say_how_far_they_are(
    loaded, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("megavrc.progress.PROGRESS_SECONDS", 0)
    wanted = clips_to_write(PROMPTS, [], seed=3)
    generate_files(loaded, wanted, tmp_path, sampling_settings({}), frames=25, overlap=9, batch_size=2)
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[:3]
        == [f"generate 3 clips: 0/3, frame {seen} of 25" for seen in (17, 25)]
        + [line for line in lines if line.startswith("generate 3 clips: 2/3, frame 25 of 25, ")][:1]
    )
    assert lines[-1].startswith("generate 3 clips: 3 done")


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


def test_a_photo_is_scaled_as_by_every_other_door(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 75, 4), np.uint8)
    for kind in ("png", "jpg"):
        path = tmp_path / f"photo.{kind}"
        Image.fromarray(noise if kind == "png" else noise[..., :3].copy()).save(path)
        assert torch.equal(read_image(path, 16), first_frames(path, 1, 16)[0, 0])


def test_prompt_files(tmp_path) -> None:
    (tmp_path / "p.txt").write_text("a dog\n\n  caf\u00e9 \n")
    assert read_prompts(tmp_path / "p.txt") == ["a dog", "caf\u00e9"]
    (tmp_path / "p.txt").write_text("\ufeffone\u2028prompt\x85\r\ntwo\n")
    assert read_prompts(tmp_path / "p.txt") == ["one\u2028prompt", "two"]
    (tmp_path / "p.txt").write_bytes(b"a dog\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"p\.txt line 2: byte 0xe9 is no UTF-8"):
        read_prompts(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no captions"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "q.txt")


def test_prompts_of_a_table_are_its_captions(tmp_path) -> None:
    (tmp_path / "p.csv").write_text('path,Caption\na.mp4,"a dog, running"\nb.mp4,\nc.mp4, a cat\n')
    (tmp_path / "p.jsonl").write_text('{"id": "a", "text": "a dog, running"}\n{"id": "b", "text": "a cat"}\n')
    for name in ("p.csv", "p.jsonl"):
        assert read_prompts(tmp_path / name) == ["a dog, running", "a cat"]
    (tmp_path / "p.csv").write_text("a dog\na cat\n")
    with pytest.raises(
        UserError, match=r"p\.csv: holds no captions: no column is one of caption, text, prompt"
    ):
        read_prompts(tmp_path / "p.csv")
    with pytest.raises(UserError, match=r"p\.tsv: captions are read from .*, not from \.tsv"):
        read_prompts(tmp_path / "p.tsv")


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
    shown = read_frames(tmp_path / "out" / "0001-a-blue-dog-seed8.mp4", range(5))[:, 2::4, 2::4]
    assert torch.tensor(shown.astype(int)).sub(frames[1].int()).abs().float().mean() < 12
    assert run_command(generate, common) == 2
    assert capsys.readouterr().err == "error: give one of --prompt, --prompts and --label\n"


def test_warnings_of_a_command_are_plain_lines(folder, tmp_path, capsys) -> None:
    words = ["--model", str(folder), "--out", str(tmp_path / "out"), "--prompt", "a \u6f22 dog", ""]
    assert run_command(generate, words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == [
        "warning: prompt 'a \u6f22 dog' has characters that the model does not know: they are not in its "
        "training captions",
        "warning: prompt '' is empty: the clip shows anything",
    ]


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


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"5", b"{}", b'{"id": 5}', b"\xff", b"[" * 100_000, b"9" * 5_000, b'{"id"'),
        *(b'{"id": "../clip"}', b'{"id": "/clip"}'),  # whose files would be written elsewhere
        *(b'{"id": ""}', b'{"id": "a\\u0000b"}', b'{"id": "%s"}' % (b"x" * 300)),  # no file has such a name
        *(b'{"id": "a", "scale": %s}' % value for value in (b'"x"', b"0", b"null", b"1.5", b"[1]", b"65")),
    ],
)
def test_a_damaged_list_of_what_is_there_is_one_line(tmp_path, content):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"prompts\.jsonl.*; correct it, or move it away") as said:
        _read_list(tmp_path)
    assert "\n" not in str(said.value)
