"""The model: single-device maths in plain torch, importing nothing else, so that a converted folder can carry it."""

from .attention import SegmentMask, segment_attention
from .config import CompressionConfig, ConditionConfig, ModelConfig
from .generate import generate
from .sampling import Sampling, SamplingSettings
from .vrc import VRC, VRCOutput

__all__ = [
    "VRC",
    "CompressionConfig",
    "ConditionConfig",
    "ModelConfig",
    "Sampling",
    "SamplingSettings",
    "SegmentMask",
    "VRCOutput",
    "generate",
    "segment_attention",
]
