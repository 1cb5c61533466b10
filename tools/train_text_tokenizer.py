"""Train the text tokenizer (a sentencepiece model) on captions."""

import json
from pathlib import Path

from megavrc.config import UserError, command
from megavrc.tokenizers.text import DEFAULT_VOCAB, TextTokenizer


def train_text_tokenizer(captions: Path, out: Path, vocab: int = DEFAULT_VOCAB) -> None:
    """Train a sentencepiece model on the captions of a manifest or of a text file.

    Args:
        captions: manifest.jsonl (split "train", or none) or a .txt file with a caption a line.
        out: the model file to write, for example tokenizer.model.
        vocab: number of tokens at most; few captions give fewer.
    """
    if not captions.is_file():
        raise UserError(f"{captions}: no such file")
    texts = captions.read_text().splitlines()
    if captions.suffix == ".jsonl":
        texts = _manifest_captions(captions, texts)
    if not any(text.strip() for text in texts):
        raise UserError(f"{captions}: holds no captions")
    tokenizer = TextTokenizer.train(texts, out, vocab)
    longest = max(texts, key=lambda text: len(tokenizer.ids(text)))
    print(f"{out}: {tokenizer.vocab} tokens from {len(texts)} captions")
    print(f"the longest caption needs {len(tokenizer.ids(longest)) + 1} slots: {longest[:100]!r}")


def _manifest_captions(path: Path, lines: list[str]) -> list[str]:
    captions = []
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            if sample.get("split", "train") == "train":
                captions.append(sample.get("caption") or "")
        except (json.JSONDecodeError, AttributeError):
            raise UserError(f"{path}: line {number} is not a JSON object") from None
    return captions


if __name__ == "__main__":
    command(train_text_tokenizer)
