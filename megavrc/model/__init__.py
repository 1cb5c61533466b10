"""The model: single-device maths in plain torch, importing nothing else, so that a converted folder can carry it."""

from .attention import SegmentMask, segment_attention
from .config import CompressionConfig, ConditionConfig, ModelConfig
from .pipeline import ClipRequest, VideoPipeline
from .sampling import Sampling, SamplingSettings
from .vrc import VRC, VRCOutput

__all__ = [
    "VRC",
    "ClipRequest",
    "CompressionConfig",
    "ConditionConfig",
    "ModelConfig",
    "Sampling",
    "SamplingSettings",
    "SegmentMask",
    "VRCOutput",
    "VideoPipeline",
    "segment_attention",
]
