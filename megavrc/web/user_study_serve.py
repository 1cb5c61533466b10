"""`megavrc user_study serve`: the page of a blind study, until interrupted."""

import importlib.util
import signal
from pathlib import Path

from megavrc.errors import UserError
from megavrc.web.address import check_address, shown_address
from megavrc.web.user_study import read_user_study
from megavrc.web.user_study_answers import Answers


def serve_study(study: Path, host: str = "127.0.0.1", port: int = 7861) -> None:
    """Serve a blind study until interrupted, and print its links. Started again, it goes on where it was.

    Args:
        study: folder written by megavrc user_study build.
        host: address to listen on; 0.0.0.0 lets other machines in, with a link.
        port: TCP port.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed: pip install 'megavrc[serve]'")
    found = read_user_study(study)
    check_address(host, port)
    given = len(Answers(found).all())
    import uvicorn

    from megavrc.web.user_study_app import study_app

    app = study_app(found)
    start = f"{shown_address(host, port)}/r/"
    print(f"{study}: {given} answers so far; Ctrl-C ends it. Links:", flush=True)
    if found.open_link:
        print(f"  {start}{found.open_link}  for all raters", flush=True)
    for number, link in enumerate(found.links, 1):
        print(f"  {start}{link}  for rater {number} alone", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, server_header=False)
    except KeyboardInterrupt:
        pass
    print("ended")
