"""What every process of the bench does first."""

from __future__ import annotations

import ctypes
import signal
import socket
from typing import Any

from twisted.internet import tcp

#: The congestion control of every connection that is measured: the system's own may be made for other networks than
#: the loopback (bbr halves it).
CONGESTION_CONTROL = "cubic"

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def pin(sock: socket.socket) -> socket.socket:
    """Give a socket the bench's congestion control if it is one of TCP; what it accepts inherits that."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL.encode())
    return sock


def pin_twisted() -> None:
    """Do so with every TCP socket that Twisted makes in this process; to be called before the reactor is imported."""
    for kind in (tcp.Port, tcp.Client):
        _pin_kind(kind)


def _pin_kind(kind: Any) -> None:
    make = kind.createInternetSocket

    def create(self: Any) -> socket.socket:
        made: socket.socket = make(self)
        return pin(made)

    kind.createInternetSocket = create
