"""The configuration of a converted folder, as transformers wants it."""

from typing import Any

from transformers import PretrainedConfig

FORMAT_VERSION = 1


class VRCConfig(PretrainedConfig):
    """Generator and video tokenizer of one folder.

    Attributes:
        vrc: `ModelConfig.to_dict()`.
        video_tokenizer: `OmniTokenizerConfig.to_dict()`.
        format_version: of the folder; another one than FORMAT_VERSION is refused by name.
    """

    model_type = "vrc"

    def __init__(
        self,
        vrc: dict[str, Any] | None = None,
        video_tokenizer: dict[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"this folder has VRC format {format_version}, its code reads {FORMAT_VERSION}: convert the run again"
            )
        self.vrc = vrc or {}
        self.video_tokenizer = video_tokenizer or {}
        self.format_version = format_version
        super().__init__(**kwargs)
