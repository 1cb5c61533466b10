"""What decides whether the study's runs may begin: the tokenizer's gate, and captions that fit the slots."""

import json
from pathlib import Path

import measure
import pytest

from megavrc.errors import UserError
from megavrc.files import read_json, write_json
from megavrc.tokenizers import TextTokenizer

CONFIG = "pretrain/configs/scenes_video.yaml"  # 28 slots


def test_the_gate_names_what_does_not_pass(tmp_path: Path) -> None:
    scores = {"whole": {"value": 0.822}, "shape": {"value": 0.98}, "jitter": {"value": 0.2}}
    write_json(tmp_path / "scores.json", {"scores": {"real": {}, "reconstructed": scores}})
    with pytest.raises(
        UserError, match=r"do not pass: whole 0\.822, at least 0\.97; jitter 0\.200, at most 0\.1;"
    ):
        measure.gate(
            tmp_path / "scores.json", tmp_path / "gate.json", {"whole": 0.97, "shape": 0.97}, {"jitter": 0.1}
        )
    assert not (tmp_path / "gate.json").exists()
    measure.gate(tmp_path / "scores.json", tmp_path / "gate.json", {"whole": 0.8}, {"jitter": 0.6})
    assert read_json(tmp_path / "gate.json") == {"whole": 0.822, "jitter": 0.2}


def test_a_caption_that_would_be_cut_is_refused(tmp_path: Path) -> None:
    words = ["a red ring moves left", "ring " * 26, "ring " * 28]
    TextTokenizer.train(words, tmp_path / "tokenizer.model", vocab=40)
    lines = [json.dumps({"caption": text.strip(), "split": "test"}) + "\n" for text in words]
    manifest, found = tmp_path / "manifest.jsonl", tmp_path / "captions.json"
    manifest.write_text("".join(lines))
    with pytest.raises(UserError, match="slots: is 28, 29 are needed for 'ring ring"):
        measure.captions(manifest, tmp_path / "tokenizer.model", Path(CONFIG), found)
    manifest.write_text("".join(lines[:2]))
    measure.captions(manifest, tmp_path / "tokenizer.model", Path(CONFIG), found)
    assert read_json(found)["needed"] == 27
