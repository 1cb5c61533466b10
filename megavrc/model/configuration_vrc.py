"""The configuration of a converted folder, as transformers wants it."""

from typing import Any

from transformers import PretrainedConfig

FORMAT_VERSION = 2


class VRCConfig(PretrainedConfig):
    """Generator and video tokenizer of one folder.

    Attributes:
        vrc: `ModelConfig.to_dict()`.
        video_tokenizer: `OmniTokenizerConfig.to_dict()`.
        training: where the weights come from: stage, step, facts (tokenizer hashes), summary (for the model card),
            example (a prompt), fps (where the training clips had one rate).
        format_version: of the folder; version 1 had no `training`, one that is not known is refused by name.
    """

    model_type = "vrc"

    def __init__(
        self,
        vrc: dict[str, Any] | None = None,
        video_tokenizer: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        if format_version not in (1, FORMAT_VERSION):
            raise ValueError(
                f"this folder has VRC format {format_version}, its code reads 1 and {FORMAT_VERSION}: "
                "convert the run again"
            )
        self.vrc = vrc or {}
        self.video_tokenizer = video_tokenizer or {}
        self.training = training or {}
        self.format_version = FORMAT_VERSION
        super().__init__(**kwargs)

    @property
    def fps(self) -> float:
        """Frames a second of the clips; 8 where the training data do not say."""
        return float(self.training.get("fps", 8))
