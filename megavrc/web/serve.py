"""`megavrc serve`: a web page that generates video from a converted folder; shows the clip while its frames arrive."""

import importlib.util
from pathlib import Path
from typing import Literal

from megavrc.errors import UserError
from megavrc.web.address import check_address


def serve(
    model: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    dtype: Literal["fp32", "bf16"] | None = None,
    quantize: Literal["int8", "fp8", "int4", "nf4"] | None = None,
    text_encoder: Path | None = None,
    waiting: int = 64,
) -> None:
    """Serve the page until interrupted.

    Args:
        model: folder written by megavrc convert_checkpoint to-hf.
        host: address to listen on; 0.0.0.0 lets other machines in, without a password.
        port: TCP port.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        dtype: type of the generator's weights (default: the folder's); the video tokenizer stays fp32.
        quantize: keep the generator's matrices in fewer bits: int8 (on a CPU it saves time), fp8, int4 (CUDA) or nf4.
        text_encoder: folder of the encoder that made the features, for a model of text features.
        waiting: visitors that may wait for their turn; further ones get a message.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("gradio is not installed: pip install 'megavrc[serve]'")
    from megavrc.generation.folder import load_folder
    from megavrc.web.demo_page import serve as serve_page

    if waiting < 1:
        raise UserError(f"waiting: {waiting} is not a positive number")
    check_address(host, port)  # before the model is loaded
    serve_page(load_folder(model, device, dtype, quantize, text_encoder), host, port, waiting)
