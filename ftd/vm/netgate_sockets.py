"""
Unix sockets of a gate, and what the reactor knows of them.

Twisted's own transports read when they please.  A checkpoint has to take, at one moment, all that the guest has said
so far, so the gate reads and writes by itself, and the reactor only says when.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from twisted.python.log import Logger as LoggingContext
from zope.interface import implementer

from ftd.vm.netgate_frames import NetGateError
from ftd.vm.netgate_peer import unblock_peer

#: Who may connect to a socket that ftd listens on: its user and group.  The frames of a VM are nobody else's.
_SOCKET_MODE = 0o660


class IEnd(Protocol):
    """What is read and written without waiting, as a non-blocking socket is: that, or a tap."""

    def fileno(self) -> int:
        """The file descriptor."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """What is there; 0 at the end.  :raises BlockingIOError: if nothing is."""

    def send(self, data: memoryview, /) -> int:
        """How much was taken.  :raises BlockingIOError: if nothing was."""

    def close(self) -> None:
        """Give the file descriptor up."""


class IDoor(Protocol):
    """What takes calls without waiting for one."""

    def fileno(self) -> int:
        """The file descriptor."""

    def accept(self) -> IEnd:
        """Who calls.  :raises BlockingIOError: if nobody does."""

    def close(self) -> None:
        """Give the file descriptor up."""


class _Door:
    """A listening socket."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.fileno = listening.fileno
        self.close = listening.close

    def accept(self) -> IEnd:
        """See `IDoor`."""
        end, _address = self._listening.accept()
        # It does not inherit that from the one that listens.
        end.setblocking(False)
        return end


class Sockets:
    """Makes unix sockets; tests have their own."""

    def listen(self, path: str) -> IDoor:
        """
        A non-blocking socket that listens at ``path``.  One that was left there and has no listener is replaced.

        :raises NetGateError: if there cannot be one.
        """
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.setblocking(False)
            listening.bind(path)
            # Nobody can connect before there is somebody to listen, so nobody does with another mode than this.
            os.chmod(path, _SOCKET_MODE)
            listening.listen(1)
        except OSError as error:
            listening.close()
            raise NetGateError(
                f"cannot listen at {path}: {reason_of(error)}; its directory has to exist, and ftd has to be allowed to"
                " write there"
            ) from None
        return _Door(listening)

    def dial(self, path: str) -> IEnd:
        """
        A connected non-blocking socket.

        :raises OSError: if nobody takes the call.
        """
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.setblocking(False)
            connected.connect(path)
        except OSError:
            connected.close()
            raise
        return connected

    def unblock_peer(self, end: Any) -> bool:
        """See `ftd.vm.netgate_peer.unblock_peer`."""
        return unblock_peer(end)

    def remove(self, path: str) -> None:
        """Nobody listens at ``path`` any more."""
        with suppress(OSError):
            os.unlink(path)


def reason_of(error: OSError) -> str:
    """Why, in the system's words."""
    # Python finds some paths too long by itself, and then there is no number.
    return error.strerror or str(error)


def _remove_stale(path: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        # Where it cannot be seen it cannot be made either, and that error says more.
        return
    if not is_socket:
        raise NetGateError(f"{path} exists and is not a socket; remove it, or choose another path for the VM's network")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise NetGateError(f"{path} cannot be used: {reason_of(error)}") from None
    raise NetGateError(
        f"somebody listens at {path} already: another ftd, or a QEMU with server=on, for which ftd is to connect:"
        " write `connect:` instead of `unix:`"
    )


@implementer(IReadWriteDescriptor)
class Watched(LoggingContext):
    """
    Something with a file descriptor that the reactor watches, for whatever is wanted at the moment.

    :ivar reading: whether to be told when it can be read.
    :ivar writing: whether to be told when it can be written.
    """

    def __init__(
        self,
        reactor: Any,
        end: IEnd | IDoor,
        *,
        readable: Callable[[], None],
        writable: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._end = end
        self._readable = readable
        self._writable = writable
        self._lost = lost
        self.reading = False
        self.writing = False

    def watch(self, *, reading: bool, writing: bool) -> None:
        """From now on be told of these."""
        if reading != self.reading:
            self.reading = reading
            (self._reactor.addReader if reading else self._reactor.removeReader)(self)
        if writing != self.writing:
            self.writing = writing
            (self._reactor.addWriter if writing else self._reactor.removeWriter)(self)

    def close(self) -> None:
        """No more of it."""
        self.watch(reading=False, writing=False)
        self._end.close()

    def fileno(self) -> int:
        """See `IFileDescriptor`."""
        return self._end.fileno()

    def doRead(self) -> None:
        """See `IReadDescriptor`."""
        self._readable()

    def doWrite(self) -> None:
        """See `IWriteDescriptor`."""
        self._writable()

    def connectionLost(self, reason: Failure) -> None:
        """See `IFileDescriptor`: the reactor has seen that the other end is gone, and watches this no more."""
        self.reading = self.writing = False
        self._lost(str(reason.value))
