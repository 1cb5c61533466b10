"""`megavrc train_text_tokenizer`: a sentencepiece model from captions."""

from pathlib import Path

from megavrc.tokenizers.text import DEFAULT_VOCAB, TextTokenizer
from megavrc.video.manifest import read_captions


def train_text_tokenizer(captions: Path, out: Path, vocab: int = DEFAULT_VOCAB) -> None:
    """Train a sentencepiece model on the captions of a manifest, of a table or of a text file.

    Args:
        captions: manifest.jsonl or a .csv with a column `caption` (split "train", or none), or a .txt file with one
            caption a line.
        out: the model file to write, for example tokenizer.model.
        vocab: number of tokens at most; few captions give fewer.
    """
    texts = [text for text in read_captions(captions, "train") if text.strip()]
    tokenizer = TextTokenizer.train(texts, out, vocab)
    longest = max(texts, key=lambda text: len(tokenizer.ids(text)))
    fewer = f", fewer than {vocab}: the captions give no more" if tokenizer.vocab < vocab else ""
    print(f"{out}: {tokenizer.vocab} tokens from {len(texts)} captions{fewer}")
    print(f"the longest caption needs {len(tokenizer.ids(longest)) + 1} slots: {longest[:100]!r}")
