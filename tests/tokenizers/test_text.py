"""The text tokenizer: layout of the condition slots, training, errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.tokenizers.text import BEGIN, PAD, UNKNOWN, TextTokenizer
from megavrc.tokenizers.train_text import train_text_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = [
    f"a {c} {s} moves {d}" for c in ("red", "green") for s in ("square", "circle") for d in ("left", "right")
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, tmp_path_factory.mktemp("text") / "tokenizer.model", vocab=128)


def test_padded_left_with_begin_last(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a red square moves left", 8)
    words = tokenizer.ids("a red square moves left")
    assert len(words) == 5 and ids == [PAD, PAD, *words, BEGIN]
    assert tokenizer.encode("", 4) == [PAD, PAD, PAD, BEGIN]
    assert tokenizer.decode(ids) == "a red square moves left"
    assert max(ids) < tokenizer.vocab


def test_case_and_spaces_do_not_matter(tokenizer: TextTokenizer) -> None:
    assert tokenizer.ids("  A Red  SQUARE moves left ") == tokenizer.ids("a red square moves left")


def test_unknown_characters_and_spelled_out_specials_are_text(tokenizer: TextTokenizer) -> None:
    assert UNKNOWN in tokenizer.ids("a \u2603")
    assert BEGIN not in tokenizer.ids("<s> a red") and PAD not in tokenizer.ids("<pad> a red")


def test_half_a_character_is_refused(tokenizer: TextTokenizer) -> None:
    for text in ("a red \ud83d", "caf\udce9"):
        with pytest.raises(UserError, match=r"prompt '.*\\ud.*': holds half a character"):
            tokenizer.encode(text, 8)


def test_a_long_prompt_is_refused_or_cut(tokenizer: TextTokenizer) -> None:
    with pytest.raises(UserError, match="5 tokens, the model takes 4"):
        tokenizer.encode("a red square moves left", 5)
    assert tokenizer.encode("a red square moves left", 5, truncate=True) == [
        *tokenizer.ids("a red square moves left")[:4],
        BEGIN,
    ]


def test_training_is_deterministic(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    again = TextTokenizer.train(CAPTIONS, tmp_path / "tokenizer.model", vocab=128)
    assert again.sha256 == tokenizer.sha256


def test_few_captions_give_fewer_tokens(tmp_path: Path) -> None:
    assert TextTokenizer.train(CAPTIONS, tmp_path / "tokenizer.model", vocab=8000).vocab < 300


@pytest.mark.parametrize("caption", ["zebra " * 1000, "zebra \u2585"])
def test_no_caption_is_left_out(tmp_path: Path, caption: str) -> None:
    """sentencepiece leaves out texts of more than 4192 bytes, and those with its sign for what is unknown."""
    tokenizer = TextTokenizer.train([caption, *CAPTIONS], tmp_path / "tokenizer.model", vocab=60)
    assert UNKNOWN not in tokenizer.ids("zebra") and tokenizer.decode(tokenizer.ids("zebra")) == "zebra"


def test_errors_name_the_cause(tmp_path: Path) -> None:
    for vocab, needed in ((5, "at least 22"), (0, "a positive number"), (-1, "a positive number")):
        with pytest.raises(
            UserError, match=rf"^vocab {vocab}: the characters of the captions need {needed}$"
        ):
            TextTokenizer.train(CAPTIONS, tmp_path / "x.model", vocab=vocab)
    with pytest.raises(UserError, match=r"^vocab 99999999999: at most"):
        TextTokenizer.train(CAPTIONS, tmp_path / "x.model", vocab=99_999_999_999)
    with pytest.raises(
        UserError, match=r"^the captions hold no visible characters to train a text tokenizer on$"
    ):
        TextTokenizer.train(["\u200b"], tmp_path / "x.model")
    with pytest.raises(UserError, match="no captions"):
        TextTokenizer.train(["", "  "], tmp_path / "x.model")
    with pytest.raises(UserError, match="no such text tokenizer"):
        TextTokenizer(tmp_path / "x.model")
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UserError, match=f"a folder; its text tokenizer is {tmp_path}/tokenizer.model"):
        TextTokenizer(tmp_path)
    (tmp_path / "x.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        TextTokenizer(tmp_path / "x.model")


def test_a_model_with_other_special_ids_is_refused(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_prefix=str(tmp_path / "other"), vocab_size=40, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="expected \\(0, 1, 2\\)"):
        TextTokenizer(tmp_path / "other.model")


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/train_text_tokenizer.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


def test_command_reads_a_manifest(tmp_path: Path) -> None:
    lines = [{"id": str(i), "caption": c, "split": "train"} for i, c in enumerate(CAPTIONS)]
    lines += [
        {"id": "v", "caption": "\u2603 of the validation split", "split": "val"},
        {"id": "n", "caption": None},
        {"id": "s", "caption": "a line separator\u2028inside"},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "manifest.jsonl").write_text(text)
    out = tmp_path / "tokenizer.model"
    done = _command("--captions", str(tmp_path / "manifest.jsonl"), "--out", str(out), "--vocab", "128")
    assert done.returncode == 0, done.stderr
    assert TextTokenizer(out).ids("\u2603")[-1] == UNKNOWN
    assert "6 slots" in done.stdout
    assert f": 128 tokens from {len(CAPTIONS) + 1} captions\n" in done.stdout


def test_command_reads_the_captions_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"zoo/{number}.mp4,{caption}\n" for number, caption in enumerate(CAPTIONS))
    (tmp_path / "list.csv").write_text(f"file_name,text\n{rows}")
    train_text_tokenizer(tmp_path / "list.csv", tmp_path / "table.model", 40)
    TextTokenizer.train(CAPTIONS, tmp_path / "captions.model", 40)
    assert (tmp_path / "table.model").read_bytes() == (tmp_path / "captions.model").read_bytes()
    assert "40 tokens from 8 captions\n" in capsys.readouterr().out
    train_text_tokenizer(tmp_path / "list.csv", tmp_path / "large.model", 5000)
    assert (
        "90 tokens from 8 captions, fewer than 5000: the captions give no more\n" in capsys.readouterr().out
    )


def test_command_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"caption": "x"}\nnot json\n')
    for name, message in (("none.txt", "no such file"), ("bad.jsonl", "line 2")):
        assert (
            run_command(
                train_text_tokenizer, ["--captions", str(tmp_path / name), "--out", str(tmp_path / "t.model")]
            )
            == 2
        )
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and message in error


def test_training_never_replaces_another_file(tmp_path: Path) -> None:
    (captions := tmp_path / "captions.txt").write_text("a red square\n")
    (other := tmp_path / "other.txt").write_text("blue circles move\n")
    for _ in range(2):  # the same again is no other file
        train_text_tokenizer(captions, tmp_path / "t.model", 40)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for out in (captions, tmp_path / "t.model", tmp_path):
        with pytest.raises(UserError, match="is not what these captions give"):
            train_text_tokenizer(other, out, 40)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
