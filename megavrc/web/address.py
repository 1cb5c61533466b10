"""The address that a page listens on."""

import errno
import socket

from megavrc.errors import UserError


def check_address(host: str, port: int) -> None:
    """UserError unless this machine can listen there."""
    if not 0 < port < 2**16:
        raise UserError(f"port: {port} is not one from 1 to {2**16 - 1}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            pass
    except (socket.gaierror, UnicodeError):
        raise UserError(f"host: {host!r} is not known; choose 127.0.0.1, or 0.0.0.0 for all") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f"host: {host} is no address of this machine; choose 127.0.0.1, or 0.0.0.0 for all"
            ) from None
        why = {errno.EADDRINUSE: "taken", errno.EACCES: "not allowed"}.get(error.errno or 0, error.strerror)
        raise UserError(f"port: {port} on {host} is {why}; choose another --port") from None


def shown_address(host: str, port: int) -> str:
    """The address to open in a browser of this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
