"""Weights in fewer bits, for generation."""

from megavrc.model import VRC


def quantize_int8(model: VRC) -> None:
    """Keep the matrices of the trunk and the head as int8 with a scale per row (torchao, weight-only), in place.

    Embeddings, norms, compressor and decompressor stay as they are. The model then only generates.

    Raises:
        ValueError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ValueError("quantize: int8 needs torchao: pip install 'megavrc[int8]'") from None
    quantize_(model.trunk, Int8WeightOnlyConfig())
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: name == "head")
