"""Text encoders with random weights in folders of Hugging Face format."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5ForConditionalGeneration

WORDS = ["a red square moves left", "a blue circle moves up", "video number 0 1 2 3 4 5 6 7 8 9"]


def make_encoder(folder: Path, seed: int = 0, width: int = 16, whole: bool = False) -> Path:
    """A tiny T5 encoder, or (whole) an encoder-decoder, with its tokenizer."""
    torch.manual_seed(seed)
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    (T5ForConditionalGeneration if whole else T5EncoderModel)(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "</s>", "<unk>"]
    words.train_from_iterator(WORDS, trainers.WordLevelTrainer(special_tokens=special))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder
