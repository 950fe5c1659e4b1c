"""
The tap device on the outside of a gate.

It is opened, never made: a tap that ftd made would be connected to nothing, and would be gone when ftd is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Protocol

from twisted.logger import Logger

from ftd.vm.netgate_frames import FRAME_HEADER, FrameQueue, NetGateError, frames_in
from ftd.vm.netgate_lines import Retry
from ftd.vm.netgate_sockets import IEnd, Watched, reason_of

_log = Logger()

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x0001

#: ``struct ifreq``: a name, flags, and what is left of the union.
_IFREQ = struct.Struct("16sH22x")

#: Bytes of an interface's name at most; the kernel has 16, with a 0 at the end.
_LONGEST_NAME = 15

#: Frames that are read or written at a time, before others get their turn: each costs a system call.
BURST: Final = 256

#: Bytes that are read at a time, as far as the last frame allows.
_BURST_SIZE = 512 * 1024


class ITap(IEnd, Protocol):
    """A tap, as a gate needs it: each read and each write is a frame."""

    def is_enabled(self) -> bool:
        """Whether the interface is up; what is written to one that is not fails."""


class TapEnd:
    """
    A tap, open: a frame is one read or one write.

    :raises NetGateError: if it cannot be opened.
    """

    def __init__(self, name: str) -> None:
        if len(name.encode()) > _LONGEST_NAME:
            raise NetGateError(f"{name!r} is no name of an interface: it has more than {_LONGEST_NAME} bytes")
        self._name = name
        try:
            # Without this the kernel would make one.
            socket.if_nametoindex(name)
        except OSError:
            raise NetGateError(
                f"there is no tap {name}; make it: ip tuntap add dev {name} mode tap && ip link set {name} up"
            ) from None
        try:
            self._number = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NetGateError(
                f"cannot open {_TUN}: {reason_of(error)}; load the module tun, and let ftd's user open it"
            ) from None
        try:
            fcntl.ioctl(self._number, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError as error:
            os.close(self._number)
            raise NetGateError(f"cannot use tap {name}: {_why_not(error, name)}") from None

    def is_enabled(self) -> bool:
        """See `ITap`."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            try:
                found = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(self._name.encode(), 0))
            except OSError:
                return False
        _name, flags = _IFREQ.unpack(found)
        return bool(flags & _IFF_UP)

    def fileno(self) -> int:
        """See `IEnd`."""
        return self._number

    def recv_into(self, buffer: memoryview, /) -> int:
        """See `IEnd`."""
        return os.readv(self._number, [buffer])

    def send(self, data: memoryview, /) -> int:
        """See `IEnd`."""
        return os.write(self._number, data)

    def close(self) -> None:
        """See `IEnd`."""
        os.close(self._number)
        self._number = -1


def _why_not(error: OSError, name: str) -> str:
    if error.errno == errno.EBUSY:
        return "another program has it; end that, or use another tap"
    if error.errno == errno.EPERM:
        return f"no permission; give it to ftd's user (ip tuntap add dev {name} mode tap user USER), or CAP_NET_ADMIN"
    if error.errno == errno.EINVAL:
        return "it is not a plain tap (mode tap, without multi_queue)"
    return reason_of(error)


class TapLine:
    """
    Frames through a tap; see `ILine`.

    While the interface is down, or gone, what the guest says is kept, as it is for any other uplink that is down.
    """

    def __init__(
        self,
        reactor: Any,
        tap: str,
        *,
        name: str,
        readable: Callable[[], None],
        writable: Callable[[], None],
        changed: Callable[[], None],
        open_tap: Callable[[str], ITap],
    ) -> None:
        self._reactor = reactor
        self._tap = tap
        self._name = name
        self._readable = readable
        self._writable = writable
        self._changed = changed
        self._open_tap = open_tap
        self._retry = Retry(reactor, self._attempt)
        self._end: ITap | None = None
        self._watched: Watched | None = None
        self._is_enabled = False
        self._why_down = "not started"

    @property
    def is_up(self) -> bool:
        """See `ILine`."""
        return self._end is not None and self._is_enabled

    @property
    def why_down(self) -> str:
        """See `ILine`."""
        return "" if self.is_up else self._why_down

    @property
    def can_wait(self) -> bool:
        """See `ILine`."""
        return True

    def start(self) -> None:
        """See `ILine`."""
        self._open()

    def stop(self) -> None:
        """See `ILine`."""
        self._retry.stop()
        self._close("stopped")

    def watch(self, *, reading: bool, writing: bool) -> None:
        """See `ILine`."""
        if self._watched is not None:
            self._watched.watch(reading=reading, writing=writing)

    def receive(self, queue: FrameQueue, epoch: int | None) -> int | None:
        """See `ILine`."""
        frames = size = 0
        while self._end is not None and frames < BURST and size < _BURST_SIZE:
            try:
                length = self._end.recv_into(queue.room()[FRAME_HEADER.size :])
            except BlockingIOError:
                break
            except OSError as error:
                self._failed(self._end, error)
                break
            frames += queue.received_frame(length, epoch)
            size += length
        return frames or None

    def send(self, piece: memoryview) -> int:
        """See `ILine`."""
        gone = 0
        if self._end is None or not self._is_enabled:
            return gone
        for frame in islice(frames_in(piece), BURST):
            try:
                self._end.send(frame)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EINVAL:
                    self._failed(self._end, error)
                    break
                # Shorter than an Ethernet header.  No network would carry it either.
                _log.warn("{name}: the guest sent {size} bytes, no frame", name=self._name, size=len(frame))
            gone += FRAME_HEADER.size + len(frame)
        return gone

    def _open(self) -> None:
        end = self._end = self._open_tap(self._tap)
        self._watched = Watched(self._reactor, end, readable=self._readable, writable=self._writable, lost=self._lost)
        self._look(end)

    def _look(self, end: ITap) -> None:
        self._is_enabled = end.is_enabled()
        if self._is_enabled:
            self._retry.worked()
        else:
            self._disabled()

    def _disabled(self) -> None:
        self._is_enabled = False
        self.watch(reading=False, writing=False)
        why = f"tap {self._tap} is down; enable it: ip link set {self._tap} up"
        if why != self._why_down:
            _log.warn("{name}: {why}", name=self._name, why=why)
        self._why_down = why
        self._retry.later()

    def _attempt(self) -> None:
        try:
            if self._end is None:
                self._open()
            else:
                self._look(self._end)
        except NetGateError as error:
            self._why_down = str(error)
            self._retry.later()
        if self.is_up:
            _log.info("{name}: tap {tap} is up", name=self._name, tap=self._tap)
            self._changed()

    def _failed(self, end: ITap, error: OSError) -> None:
        if error.errno == errno.EIO and not end.is_enabled():
            self._disabled()
            self._changed()
        else:
            self._vanished(reason_of(error))

    def _lost(self, _reason: str) -> None:
        # The reactor's words are those for connections.
        self._vanished("the interface is gone")

    def _vanished(self, reason: str) -> None:
        self._close(f"tap {self._tap} does not work any more: {reason}; see that it is still there")
        _log.warn("{name}: {why}", name=self._name, why=self._why_down)
        self._retry.later()
        self._changed()

    def _close(self, why: str) -> None:
        if self._watched is not None:
            self._watched.close()
        self._watched = self._end = None
        self._is_enabled = False
        self._why_down = why
