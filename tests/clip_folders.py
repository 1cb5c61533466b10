"""A tiny CLIP in a folder, as transformers keeps it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from megavrc.video.shapes import COMBINATIONS, caption

PREPROCESSOR = """{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "resample": 3,
"crop_size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"""


def save_clip(folder: Path, model: CLIPModel | None = None) -> Path:
    """A tiny CLIP with its tokenizer, as transformers keeps them; texts of at most 12 tokens."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = CLIPTextConfig(vocab_size=64, max_position_embeddings=12, eos_token_id=1, bos_token_id=0, **sizes)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    (model or CLIPModel(config)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<start>", "<end>", "<unk>"])
    words.train_from_iterator(map(caption, COMBINATIONS), trainer)
    ends = [("<start>", 0), ("<end>", 1)]
    words.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    names = {"pad_token": "<end>", "eos_token": "<end>", "bos_token": "<start>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PREPROCESSOR)
    return folder
