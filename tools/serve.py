"""A web page that generates video from a converted folder; shows the clip while its frames arrive."""

from pathlib import Path

from megavrc.config import command
from megavrc.errors import UserError


def serve(model: Path, host: str = "127.0.0.1", port: int = 7860, device: str = "cpu") -> None:
    """Serve the page until interrupted.

    Args:
        model: folder written by tools/convert_checkpoint.py to-hf.
        host: address to listen on; 0.0.0.0 lets other machines in, without a password.
        port: TCP port.
        device: cpu or cuda.
    """
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("gradio is not installed: pip install -e '.[serve]'") from None
    from megavrc.generation.folder import load_folder
    from megavrc.web.demo_page import serve

    serve(load_folder(model, device), host, port)


if __name__ == "__main__":
    command(serve)
