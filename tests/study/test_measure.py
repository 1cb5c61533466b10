"""What decides whether the study's runs may begin: the tokenizer's gate, and captions that fit the slots."""

import json
from pathlib import Path

import measure
import pytest

from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.results import case, result, write_result
from megavrc.tokenizers import TextTokenizer

CONFIG = "pretrain/configs/scenes_video.yaml"  # 28 slots


def test_the_gate_names_what_does_not_pass(tmp_path: Path) -> None:
    values = {"whole": 0.822, "shape": 0.98, "jitter": 0.2, "speed": None}  # None: no clip says anything
    metrics = {name: {"value": value, "unit": "", "n": 8} for name, value in values.items()}
    scores, passed = tmp_path / "scores.json", tmp_path / "gate.json"
    write_result(scores, result("evaluate scenes", {}, [case("real", {}), case("reconstructed", metrics)]))
    wrong = r"whole 0\.822, at least 0\.97; speed None, at least 0\.97; jitter 0\.2, at most 0\.1;"
    with pytest.raises(UserError, match=f"do not pass: {wrong}"):
        measure.gate(scores, passed, {"whole": 0.97, "shape": 0.97, "speed": 0.97}, {"jitter": 0.1})
    assert not passed.exists()
    measure.gate(scores, passed, {"whole": 0.8}, {"jitter": 0.6})
    assert read_json(passed) == {"whole": 0.822, "jitter": 0.2}


def test_a_caption_that_would_be_cut_is_refused(tmp_path: Path) -> None:
    words = ["a red ring moves left", "ring " * 26, "ring " * 28]
    TextTokenizer.train(words, tmp_path / "tokenizer.model", vocab=40)
    words[0] += "\u2028"  # ends no line
    lines = [
        json.dumps({"caption": text.rstrip(" "), "split": "test"}, ensure_ascii=False) + "\n"
        for text in words
    ]
    manifest, found = tmp_path / "manifest.jsonl", tmp_path / "captions.json"
    manifest.write_text("".join(lines))
    with pytest.raises(UserError, match="slots: is 28, 29 are needed for 'ring ring"):
        measure.captions(manifest, tmp_path / "tokenizer.model", Path(CONFIG), found)
    manifest.write_text("".join(lines[:2]))
    measure.captions(manifest, tmp_path / "tokenizer.model", Path(CONFIG), found)
    assert read_json(found)["needed"] == 27
