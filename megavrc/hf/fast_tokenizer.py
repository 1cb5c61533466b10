"""The text tokenizer in `tokenizers` format, giving the ids that sentencepiece gives."""

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from megavrc.errors import UserError
from megavrc.tokenizers import TextTokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of sentencepiece pieces
SPACE = "\u2581"
APART = "\ufff0"  # ends a grapheme; no character, so no text holds it
BATCH = 1024
# What prompts may hold besides plain words; both text tokenizers are compared on it.
ODD_STRINGS = (
    "",
    "  two  spaces ",
    "\ttab\nand newline\r\n",
    "UPPER lower, Mixed-Case.",
    "don't \u2013 it\u2019s 50% off, #1 & $2.99 (really?)",
    "<pad> <unk> <s> </s> [PAD]",
    "caf\u00e9 cafe\u0301 CAFE\u0301 \ufb01ne \u2460 \uff21\uff22\uff23 \u00bd",
    "\u4e00\u53ea\u732b\u5728\u8dd1 \u041a\u043e\u0448\u043a\u0430 \u0642\u0637\u0629",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \ud55c\uad6d\uc5b4",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "zero\u200bwidth\u00a0nbsp\u3000wide \u2581 underline\u2581",
    "\x01 control \x7f",
    "a" * 300,
)


def to_fast(model: Path, slots: int) -> PreTrainedTokenizerFast:
    """A sentencepiece model as a fast tokenizer whose special tokens make a whole condition.

    Called with `padding="max_length"` it returns `slots` ids: pads on the left, the begin-video token last.

    Raises:
        UserError: not a sentencepiece model, or one with features that the other format cannot express.
    """
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except Exception as error:  # protobuf's own DecodeError depends on its version
        raise UserError(f"{model}: not a sentencepiece model ({error})") from None
    names = [_name(piece.piece, piece.type) for piece in proto.pieces]
    tokenizer = Tokenizer(_model(proto, names, model))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(SPACE)])
    pad, unknown, begin = names[:3]
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in (pad, unknown, begin)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", begin], special_tokens=[(begin, 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        bos_token=begin,
        padding_side="left",
        model_max_length=slots,
        split_special_tokens=True,  # the name of a special token in a prompt is text
        clean_up_tokenization_spaces=False,
    )


def _name(piece: str, kind: int) -> str:
    """Special pieces get a space, which normalised text never holds, so that no prompt can spell them."""
    return f"{piece[:-1]} {piece[-1:]}" if kind in (UNKNOWN, CONTROL) else piece


def _model(proto: Any, names: list[str], path: Path) -> models.Model:
    spec = proto.trainer_spec
    odd = sorted({piece.type for piece in proto.pieces} - {NORMAL, UNKNOWN, CONTROL, BYTE})
    if odd or proto.normalizer_spec.escape_whitespaces is False or spec.treat_whitespace_as_suffix:
        raise UserError(f"{path}: user-defined symbols and unusual treatment of spaces cannot be converted")
    if spec.model_type == 1:
        scored = [(name, piece.score) for name, piece in zip(names, proto.pieces, strict=True)]
        return models.Unigram(scored, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    if spec.model_type == 2:
        vocab = {name: index for index, name in enumerate(names)}
        merges = generate_merges(
            vocab, {name: piece.score for name, piece in zip(names, proto.pieces, strict=True)}
        )
        return models.BPE(
            vocab, merges, unk_token=names[spec.unk_id], fuse_unk=True, byte_fallback=spec.byte_fallback
        )
    raise UserError(f"{path}: only unigram and bpe sentencepiece models can be converted")


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        # `Precompiled` drops the accents of a capital: it looks up graphemes. So what composes is composed, and each
        # character made a grapheme. What only composes then, as half-width kana, does so behind.
        steps += [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"(?<!\A)(?=[^\x00-\x7F])"), APART),
            normalizers.Precompiled(spec.precompiled_charsmap),
            normalizers.Replace(APART, ""),
            normalizers.NFC(),
        ]
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    return normalizers.Sequence(steps)


def check_ids(fast: PreTrainedTokenizerFast, text: TextTokenizer, captions: Iterable[str] = ()) -> None:
    """UserError unless both tokenizers give the same ids of the captions and of ODD_STRINGS."""
    strings = iter(chain(ODD_STRINGS, captions))
    while batch := list(islice(strings, BATCH)):
        converted = fast(batch, add_special_tokens=False, verbose=False)["input_ids"]
        for string, ids in zip(batch, converted, strict=True):
            if ids != text.ids(string):
                raise UserError(
                    f"{text.path}: cannot be converted: tokenizer.json has other ids for {string[:40]!r}"
                )
