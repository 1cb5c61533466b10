"""The text tokenizer: sentencepiece, with the layout of condition slots.

Notable: ids 0, 1, 2 are pad, unknown and begin-video, and there is no end piece. A condition is left-padded and ends
in begin-video, so that all samples of a batch have one layout.
"""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from megavrc.errors import UserError
from megavrc.files import sha256_file, write_atomic

PAD, UNKNOWN, BEGIN = 0, 1, 2
SPECIAL_PIECES = 3
DEFAULT_VOCAB = 8000
MOST_TOKENS = 1_000_000  # far above any text tokenizer's; its trainer takes 32 bits
RESERVED = "\u2585"  # sentencepiece leaves out texts with its sign for what is unknown
LONGEST = 4192  # bytes of a text, beyond which sentencepiece leaves it out unless it is told another bound


class TextTokenizer:
    """A trained text tokenizer.

    Args:
        path: tokenizer.model, as `train` writes it.

    Raises:
        UserError: missing, damaged, or a model with other special ids.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if (inside := self.path / "tokenizer.model").is_file():
            raise UserError(f"{self.path}: a folder; its text tokenizer is {inside}")
        if not self.path.is_file():
            raise UserError(
                f"{self.path}: no such text tokenizer; train one with megavrc train_text_tokenizer"
            )
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.path.read_bytes())
        except RuntimeError:
            raise UserError(f"{self.path}: not a sentencepiece model") from None
        ids = self._processor.pad_id(), self._processor.unk_id(), self._processor.bos_id()
        if ids != (PAD, UNKNOWN, BEGIN):
            raise UserError(
                f"{self.path}: pad, unknown, begin have ids {ids}, expected {(PAD, UNKNOWN, BEGIN)}; "
                "train the model with megavrc train_text_tokenizer"
            )

    @property
    def vocab(self) -> int:
        """Number of ids."""
        return int(self._processor.vocab_size())

    @property
    def sha256(self) -> str:
        """Hash of the model file."""
        return sha256_file(self.path)

    def encode(self, text: str, slots: int, truncate: bool = False) -> list[int]:
        """Ids of a condition: pads, the text's ids, begin-video; `slots` in all.

        Args:
            text: the caption or prompt; an empty one gives the null condition and begin-video.
            slots: length of the result.
            truncate: cut a longer text at its end instead of refusing it.

        Raises:
            UserError: the text needs more than slots - 1 ids.
        """
        ids = self.ids(text)
        if len(ids) > slots - 1 and not truncate:
            raise UserError(
                f"prompt {text[:40]!r} has {len(ids)} tokens, the model takes {slots - 1}; shorten it"
            )
        ids = ids[: slots - 1]
        return [PAD] * (slots - 1 - len(ids)) + ids + [BEGIN]

    def ids(self, text: str) -> list[int]:
        """Ids of the text alone; UserError if it holds half a character, which is no text."""
        try:
            return list(self._processor.encode(text.encode()))
        except UnicodeEncodeError:
            raise UserError(f"prompt {text!a:.60}: holds half a character; correct the text") from None

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special ones left out."""
        return str(self._processor.decode([i for i in ids if i not in (PAD, BEGIN)]))

    @classmethod
    def train(cls, captions: Iterable[str], path: str | Path, vocab: int = DEFAULT_VOCAB) -> "TextTokenizer":
        """Train on captions and write `path`; the same captions in the same order give the same bytes.

        Args:
            captions: one text each; empty ones are skipped.
            path: tokenizer.model to write.
            vocab: number of ids at most; few captions give fewer.

        Raises:
            UserError: no captions, a vocabulary that cannot hold their characters, or another file at `path`.
        """
        texts = [" ".join(caption.replace(RESERVED, " ").split()) for caption in captions]
        texts = [text for text in texts if text]
        if not texts:
            raise UserError("no captions to train a text tokenizer on")
        if vocab > MOST_TOKENS:
            raise UserError(f"vocab {vocab}: at most {MOST_TOKENS}")
        longest = max(len(text.encode()) for text in texts)
        bound: dict[str, Any] = {"max_sentence_length": longest} if longest > LONGEST else {}
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab,
                hard_vocab_limit=False,
                normalization_rule_name="nmt_nfkc_cf",
                pad_id=PAD,
                unk_id=UNKNOWN,
                bos_id=BEGIN,
                eos_id=-1,
                num_threads=1,
                shuffle_input_sentence=False,
                **bound,
                minloglevel=2,
            )
        except RuntimeError as error:
            needed = re.search(r"required_chars\. \S+ vs (\d+)", str(error))
            if needed or vocab < 1:
                least = f"at least {needed[1]}" if needed else "a positive number"
                raise UserError(f"vocab {vocab}: the characters of the captions need {least}") from None
            raise UserError("the captions hold no visible characters to train a text tokenizer on") from None
        if Path(path).exists() and not (Path(path).is_file() and Path(path).read_bytes() == model.getvalue()):
            raise UserError(
                f"{path}: is there and is not what these captions give; choose another name, or delete it"
            )
        write_atomic(path, model.getvalue())
        return cls(path)
