"""
The pipe through which QEMU hands over its device state.

``migrate`` with ``fd:`` into a pipe that was passed over QMP before the guest is stopped is quicker than with ``unix:``
(docs/benchmarks.md): QEMU neither connects nor waits for a reader, as the pipe holds all of a small VM's state.  It
needs no path either, so QEMU's user, its mount namespace and the length of socket paths do not matter.

Rejected: reading in a thread.  The state comes in a few reads while the reactor has nothing else to do for this VM.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.vm.errors import VmError

#: Bytes that the pipe is to hold; what an unprivileged process may ask for at most on a stock Linux.
_PIPE_SIZE = 1 << 20

#: Bytes of the buffer at first: the device state of a small VM.
_FIRST_SIZE = 1 << 20

_READ_SIZE = 1 << 20


class DeviceBuffer:
    """
    The memory for a device state: allocated once, and again only when one is larger than any before.

    :param limit: bytes it may take.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._memory = memoryview(bytearray(min(_FIRST_SIZE, limit)))

    def room(self, used: int) -> memoryview:
        """
        The memory behind the first ``used`` bytes, which stay; not empty.

        :raises VmError: if they are as many as the limit allows.
        """
        if used == len(self._memory):
            if used >= self._limit:
                raise VmError(f"the device state is larger than qemu-device-limit, {self._limit} bytes; raise it")
            larger = memoryview(bytearray(min(2 * used, self._limit)))
            larger[:used] = self._memory
            self._memory = larger
        return self._memory[used:]

    def state(self, size: int) -> memoryview:
        """The first ``size`` bytes."""
        return self._memory[:size].toreadonly()


@implementer(IReadDescriptor)
class DeviceStream:
    """
    One device state on its way.

    :ivar done: fires with the state, in the buffer, at the end of the stream.  What came before a failed migration is
        whatever it is: that ``migrate`` completed has to be known from QEMU.
    """

    def __init__(self, reactor: IReactorFDSet, buffer: DeviceBuffer) -> None:
        self.done: Deferred[memoryview] = Deferred()
        #: Why it could not be read to its end.
        self.failure: Failure | None = None
        self._reactor = reactor
        self._buffer = buffer
        self._size = 0
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        with suppress(OSError):
            # Where it may not be that large, QEMU waits for the reader now and then.
            fcntl.fcntl(self._reading, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def hand_over(self, pass_on: Callable[[int], None]) -> None:
        """Give ``pass_on`` the end that QEMU writes to, and begin to read."""
        pass_on(self._writing)
        self._reactor.addReader(self)

    def close_ours(self) -> None:
        """QEMU has its end: without this one the stream would never end."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def abandon(self) -> None:
        """Nobody wants the state any more."""
        self._close()
        self.done.addErrback(lambda _: None)

    def _close(self) -> None:
        self.close_ours()
        if self._reading >= 0:
            self._reactor.removeReader(self)
            os.close(self._reading)
            self._reading = -1

    def fileno(self) -> int:
        """See `IReadDescriptor`."""
        return self._reading

    def logPrefix(self) -> str:
        """See `ILoggingContext`."""
        return "device state"

    def doRead(self) -> None:
        """There is something to read."""
        try:
            while True:
                count = os.readv(self._reading, [self._buffer.room(self._size)[:_READ_SIZE]])
                if not count:
                    self._close()
                    self.done.callback(self._buffer.state(self._size))
                    return
                self._size += count
        except BlockingIOError:
            return
        except (OSError, VmError):
            self._fail(Failure())

    def connectionLost(self, reason: Any) -> None:
        """QEMU has closed its end; what it wrote before that is still in the pipe."""
        if self._reading >= 0:
            self.doRead()
        if self._reading >= 0:
            self._fail(reason)

    def _fail(self, failure: Failure) -> None:
        self.failure = failure
        self._close()
        self.done.errback(failure)
