"""The network interface that gloo takes between several machines.

gloo listens where the machine's own name leads, and on the loopback if it leads nowhere. Debian and others write that
name beside 127.0.1.1 into /etc/hosts. There no other machine reaches it.
"""

import contextlib
import fcntl
import os
import socket
import struct

from torch.distributed import Store  # type: ignore[attr-defined]  # public, in torch's documentation

ADDRESS = 0x8915  # SIOCGIFADDR of Linux: the IPv4 address of an interface


def own_address(towards: str) -> str:
    """The IPv4 address of this machine on the way to another one; empty if there is no way. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.connect((towards, 9))
            return asker.getsockname()[0]
    except OSError:
        return ""


def choose_interface(store: Store, rank: int, keys: list[str]) -> None:
    """Set GLOO_SOCKET_IFNAME where gloo would listen on the loopback and ranks are on other machines.

    Args:
        store: has under each rank's key its `own_address` towards the first rank.
        rank: of this process.
        keys: of all ranks, in order.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or not _is_local(own_address(socket.gethostname())):
        return
    addresses = [address.decode() for address in store.multi_get(keys)]
    mine = addresses[rank]
    elsewhere = [address for address in addresses if address not in ("", mine)]
    if elsewhere and _is_local(mine):  # the first rank's machine, whose name MASTER_ADDR is
        mine = own_address(elsewhere[0])
    if elsewhere and (name := interface_of(mine)):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_of(address: str) -> str | None:
    """The name of the interface that has an IPv4 address; None if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without one
                found = fcntl.ioctl(asker, ADDRESS, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


def _is_local(address: str) -> bool:
    return address == "" or address.startswith("127.")
