"""What tests of checkpoints share."""

from pathlib import Path

import pytest

from megavrc.vlm.tiny import IMAGE, tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with a processor, as a user has one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llava")
    words = {"<pad>": 0, "<unk>": 1, "what": 5, "is": 6, "red": 7, "<image>": IMAGE}
    words |= {f"w{number}": number for number in range(256) if number not in words.values()}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", extra_special_tokens=["<image>"]
        ),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for turn in messages %}{% for part in turn['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}{% endfor %}",
    ).save_pretrained(folder)
    tiny("llava").save_pretrained(folder)
    return folder
