"""`megavrc serve`: a web page that generates video from a converted folder; shows the clip while its frames arrive."""

import importlib.util
from pathlib import Path

from megavrc.errors import UserError


def serve(model: Path, host: str = "127.0.0.1", port: int = 7860, device: str = "auto") -> None:
    """Serve the page until interrupted.

    Args:
        model: folder written by megavrc convert_checkpoint to-hf.
        host: address to listen on; 0.0.0.0 lets other machines in, without a password.
        port: TCP port.
        device: cpu or cuda; auto is cuda where there is one.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("gradio is not installed: pip install 'megavrc[serve]'")
    from megavrc.generation.folder import load_folder
    from megavrc.web.demo_page import serve as serve_page

    serve_page(load_folder(model, device), host, port)
