"""Which transport a link gets, and how its socket is set."""

from __future__ import annotations

import os
import socket
from typing import Any, cast

from twisted.internet.interfaces import IUNIXTransport
from twisted.internet.tcp import Connection

from ftd.transport.base import LinkEnd, LinkTransport
from ftd.transport.options import LinkOptions
from ftd.transport.socket_transport import SocketTransport
from ftd.transport.stock import StockTransport
from ftd.transport.tls_transport import TlsEnd, TlsTransport
from ftd.wire.errors import ErrorCode, WireError


def adopt(transport: Any, end: LinkEnd, options: LinkOptions) -> LinkTransport:
    """
    The link's transport on top of ``transport``, which Twisted has made and connected.

    :param end: the protocol; it is Twisted's protocol of ``transport`` already.
    """
    if options.tls is None:
        return _carry(transport, end, options)

    def carry(tls: LinkEnd) -> LinkTransport:
        # Twisted's transports bring what comes to their protocol, which wants it from TLS only.
        end.dataReceived = tls.dataReceived  # type: ignore[method-assign]
        return _carry(transport, tls, options)

    return TlsTransport(cast(TlsEnd, end), options.tls, carry)


def _carry(transport: Any, end: LinkEnd, options: LinkOptions) -> LinkTransport:
    # A connection that Twisted itself encrypts has a protocol of its own on its socket.
    if isinstance(transport, Connection) and not transport.TLS:
        return SocketTransport(transport, end, options.latency_spin)
    return StockTransport(transport)


def set_options(transport: Any, options: LinkOptions) -> None:
    """
    Set what is to be set of the socket of ``transport``; nothing where it has none, as in memory.

    :raises WireError: the kernel refuses something.
    """
    if not isinstance(transport, Connection):
        return
    handle = transport.getHandle()
    if options.socket_buffer:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            _set(handle, "socket-buffer", socket.SOL_SOCKET, option, options.socket_buffer)
    # Twisted's unix connections have the interface of its TCP ones, but their sockets have no such options.
    if IUNIXTransport.providedBy(transport):
        return
    _set(handle, "no-delay", socket.IPPROTO_TCP, socket.TCP_NODELAY, int(options.no_delay))
    _set(handle, "keep-alive", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if options.user_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
        # RFC 5482, in milliseconds.
        _set(handle, "user-timeout", socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(options.user_timeout * 1000))
    if options.congestion_control and hasattr(socket, "TCP_CONGESTION"):
        wanted = options.congestion_control.encode()
        _set(handle, "congestion-control", socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted)


def _set(handle: socket.socket, key: str, level: int, option: int, value: int | bytes) -> None:
    try:
        handle.setsockopt(level, option, value)
    except OSError as error:
        shown = value.decode() if isinstance(value, bytes) else value
        why = os.strerror(error.errno) if error.errno else str(error)
        raise WireError(ErrorCode.UNKNOWN, f"the kernel refuses {key} = {shown} for the link: {why}") from error
