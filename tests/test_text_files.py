"""Text that users bring: one encoding, one kind of line, tables whose rows fit their header."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from megavrc.__main__ import main
from megavrc.config import load_config, run_command
from megavrc.errors import UserError
from megavrc.files import read_json, read_jsonl, read_lines, read_table, read_text, write_json
from megavrc.generation.to_files import read_prompts
from megavrc.tokenization.v3c import v3c
from megavrc.video.errors import VideoError
from megavrc.video.manifest import read_captions

TEXT = '{"caption": "caf\u00e9"}\n'
OTHERS = ("cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")  # le and be: without a mark


@pytest.mark.parametrize("encoding", OTHERS)
def test_other_encodings_are_refused_with_file_and_line(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.json").write_bytes(TEXT.encode(encoding))
    for read in (read_text, read_json, read_lines, read_table):
        with pytest.raises(
            UserError, match=r"x.json line 1: byte 0x.. is no (UTF-8|text); save the file as UTF-8"
        ):
            list(read(tmp_path / "x.json"))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(TEXT.encode("utf-8-sig"))
    assert read_text(tmp_path / "x.json") == TEXT
    assert read_json(tmp_path / "x.json") == {"caption": "caf\u00e9"}


def test_json_keeps_names_that_are_no_utf8(tmp_path: Path) -> None:
    content = {"root": "/data/caf\udce9", "caption": "caf\u00e9"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert "caf\u00e9".encode() in (tmp_path / "x.json").read_bytes()


# --- tables ------------------------------------------------------------------------------------------------------


def rows(tmp_path: Path, text: str, delimiter: str = ",") -> list[tuple[int, dict[str, str]]]:
    (tmp_path / "t.csv").write_bytes(text.encode())
    return list(read_table(tmp_path / "t.csv", delimiter))


def test_rows_of_a_table(tmp_path: Path) -> None:
    assert rows(tmp_path, "\ufeffpath, caption\r\na.mp4, a red square\r\n") == [
        (2, {"path": "a.mp4", "caption": "a red square"})
    ]
    quoted = 'path, caption\na.mp4, "a, red"\n\nb.mp4,"two\nlines"\nc.mp4,say ""hi""\nd.mp4\n'
    assert rows(tmp_path, quoted) == [
        (2, {"path": "a.mp4", "caption": "a, red"}),
        (4, {"path": "b.mp4", "caption": "two\nlines"}),
        (6, {"path": "c.mp4", "caption": 'say ""hi""'}),
        (7, {"path": "d.mp4"}),
    ]
    assert rows(tmp_path, ",path,caption,\n0,a.mp4,x,\n") == [(2, {"path": "a.mp4", "caption": "x"})]
    assert rows(tmp_path, "a\tb\n1\t2\n", "\t") == [(2, {"a": "1", "b": "2"})]
    assert rows(tmp_path, "\n , \n\npath,caption\na.mp4,x\n") == [(5, {"path": "a.mp4", "caption": "x"})]
    assert rows(tmp_path, "") == rows(tmp_path, "\n\n") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,caption\nb.mp4,x\na.mp4,a, red, square\n",
            r"line 3: 4 cells, the header names 2 \(path, caption\)",
        ),
        ("path,caption,\na.mp4,a,red\n", "line 2: 3 cells, the header names 2"),
        ("path\na, b\n", "line 2: 2 cells, .*; a cell that holds ',' needs quotation marks"),
        ('path,caption\na.mp4,x\nb.mp4,"open\nc.mp4,y\n', "line 3: unexpected end of data"),
        ("path,caption\ra.mp4,x\rb.mp4,y\r", "line 1: .*lines end in a line feed"),
        ('path,caption\na.mp4,"a" red\n', "line 2: ',' expected after '\"'"),
        ("path,caption,path\na,b,c\n", "line 1: column path stands there twice"),
        ("path,caption\na.mp4," + "x" * 200_000 + "\n", "line 2: a cell is longer than 131,072 characters"),
        ("\n\npath,caption\na.mp4,a, red\n", r"line 4: 3 cells, the header names 2 \(path, caption\)"),
        ("\n,\npath,path\n", "line 3: column path stands there twice"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"t.csv {message}"):
        rows(tmp_path, text)


def test_lines_that_end_in_carriage_returns_are_not_one_line(tmp_path: Path) -> None:
    for text in ("a red square\ra blue disc\r", "a\rb", "a\rb\n"):
        (tmp_path / "p.txt").write_bytes(text.encode())
        for read in (read_lines, read_prompts, read_captions):
            with pytest.raises(UserError, match=r"p.txt: one line with carriage returns .* line feeds"):
                list(read(tmp_path / "p.txt"))
    (tmp_path / "p.txt").write_bytes(b"a red square\r\r\na blue disc\r")
    assert read_prompts(tmp_path / "p.txt") == ["a red square", "a blue disc"]


def test_what_is_no_file_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for name, reason in (
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("no", "no such file"),
    ):
        for read in (read_lines, read_prompts, read_captions):
            with pytest.raises(UserError, match=rf"{name}.txt: {reason}$"):
                list(read(tmp_path / f"{name}.txt"))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    for line in ('{"path": "a", "path": "b"}', '{"path": "a", "x": {"y": 1, "y": 1}}'):
        (tmp_path / "m.jsonl").write_text(f'{{"path": "c"}}\n{line}\n')
        with pytest.raises(
            UserError, match=r"m.jsonl line 2: not valid JSON \('(path|y)' stands there twice\)"
        ):
            list(read_jsonl(tmp_path / "m.jsonl"))


# --- through the commands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("prepare_dataset list --table {} --out m.jsonl", "path,caption\na.mp4,caf\u00e9\n"),
        ("prepare_dataset v3c --folder V3C1 --metadata {} --out m.jsonl", "id,title\n1,caf\u00e9\n"),
        ("train_text_tokenizer --captions {} --out t.model", "path,caption\na.mp4,caf\u00e9\n"),
        ("results page {}", "caf\u00e9\n"),
        ("results show {}", '{"caf\u00e9": 1}'),
    ],
)
def test_commands_say_it_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str,
    encoding: str,
) -> None:
    (tmp_path / "V3C1" / "videos").mkdir(parents=True)
    (tmp_path / "V3C1" / "msb").mkdir()
    (tmp_path / "user.csv").write_bytes(text.encode(encoding))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["megavrc", *command.format("user.csv").split()])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and "user.csv line" in error


@dataclass
class Config:
    steps: int = 1


def test_configurations_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("# caf\u00e9\nsteps: 3\n".encode("utf-8-sig"))
    assert load_config(Config, ["--config", str(tmp_path / "c.yaml")]) == Config(3)
    for encoding in OTHERS:
        (tmp_path / "c.yaml").write_bytes("# caf\u00e9\nsteps: 3\n".encode(encoding))
        with pytest.raises(UserError, match=r"c.yaml line 1: byte 0x.. is no (UTF-8|text)"):
            load_config(Config, ["--config", str(tmp_path / "c.yaml")])


def test_shot_boundaries_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "1.mp4").touch()
    (tmp_path / "msb").mkdir()
    (tmp_path / "msb" / "1.tsv").write_bytes("startframe\tstarttime\tendframe\tendtime\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"1.tsv line 1: byte 0xff is no UTF-8"):
        v3c(tmp_path, tmp_path / "m.jsonl")


def test_text_of_a_terminal_in_another_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    def say(prompt: list[str], out: Path) -> None:
        print(prompt, out)

    for words in (["--prompt", "a", "caf\udce9", "--out", "x"], ["--prompt", "a", "--out", "caf\udce9"]):
        assert run_command(say, words) == 2
        assert "'caf\\udce9' is no UTF-8" in capsys.readouterr().err


def test_reasons_of_videos_are_text() -> None:
    assert VideoError("a", "open", "caf\udce9.png: no picture").reason == "caf\\udce9.png: no picture"


def test_a_terminal_without_the_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii", write_through=True))
    (tmp_path / "caf\u00e9.md").touch()
    monkeypatch.setattr(sys, "argv", ["megavrc", "results", "page", str(tmp_path / "caf\u00e9.md")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and rb"caf\xe9.md: as it was" in printed.getvalue()
