"""
How a standby's QEMU is given the device state that it goes on from.

Through a pipe whose reading end is passed over QMP (``getfd``, then ``migrate-incoming fd:…``): no path that QEMU's
user or mount namespace might not reach, and nobody else who could connect.  Measured with QEMU 7.2, 320 KiB: 3 ms from
``getfd`` to loaded, as with a unix socket.

What QEMU does with a state that it cannot load (7.2 and 10.0, also with one that ends early): it ends, with the reason
on its standard error.  The guest's RAM is as before then; a fresh QEMU on it can try again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IWriteDescriptor
from twisted.internet.task import deferLater
from zope.interface import implementer

from ftd.vm.errors import QmpTimeout, VmError
from ftd.vm.qmp import Qmp, QmpEvent

#: The name under which QEMU has the pipe.
_PIPE_NAME = "ftd-incoming-state"

#: Bytes that the pipe is to hold; what an unprivileged process may ask for at most on a stock Linux.
_PIPE_SIZE = 1 << 20

#: Seconds between two looks at a run state that is about to change.
_LOOK_AGAIN = 0.001

#: What tells switches where the guest's network address is now (QEMU's own defaults): milliseconds, and rounds.
_ANNOUNCEMENT = {"initial": 50, "max": 550, "rounds": 5, "step": 100}


@implementer(IWriteDescriptor)
class DeviceFeed:
    """
    One device state on its way into QEMU.

    :param state: must not change before `close`.
    :ivar is_written: all of it is in the pipe.
    """

    def __init__(self, reactor: IReactorFDSet, state: memoryview) -> None:
        self.is_written = False
        self._reactor = reactor
        self._rest = state.cast("B")
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writing, False)
        with suppress(OSError):
            # Where it may not be that large, QEMU reads it in more pieces.
            fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def hand_over(self, pass_on: Callable[[int], None]) -> None:
        """Give ``pass_on`` the end that QEMU reads from."""
        pass_on(self._reading)

    def start(self) -> None:
        """QEMU has its end: write."""
        self._close_theirs()
        self._reactor.addWriter(self)
        self.doWrite()

    def close(self) -> None:
        """Nothing more is written: for QEMU that is the end of the state."""
        self._close_theirs()
        if self._writing >= 0:
            self._reactor.removeWriter(self)
            os.close(self._writing)
            self._writing = -1

    def fileno(self) -> int:
        """See `IFileDescriptor`."""
        return self._writing

    def logPrefix(self) -> str:
        """See `ILoggingContext`."""
        return "incoming device state"

    def doWrite(self) -> None:
        """There is room."""
        try:
            while len(self._rest):
                self._rest = self._rest[os.write(self._writing, self._rest) :]
        except BlockingIOError:
            return
        except OSError:
            # QEMU has closed its end.  Why is for QMP to tell, or for its absence.
            self.close()
            return
        self.is_written = True
        self.close()

    def connectionLost(self, reason: Any) -> None:
        """See `IFileDescriptor`: QEMU has closed its end."""
        del reason
        self.close()

    def _close_theirs(self) -> None:
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1


async def load_device_state(qmp: Qmp, state: memoryview, reactor: Any, limit: float) -> None:
    """
    Have a QEMU that waits with ``-incoming defer`` load ``state``; its guest is paused then.

    :param limit: seconds that it may take.
    :raises QmpError: it ended (which is how it says that it cannot), hangs, or refused.
    """
    feed = DeviceFeed(reactor, state)
    try:
        feed.hand_over(qmp.pass_descriptor)
        await qmp.execute("getfd", {"fdname": _PIPE_NAME})
        await load_from(qmp, f"fd:{_PIPE_NAME}", feed.start, reactor, limit)
    finally:
        feed.close()


async def load_from(qmp: Qmp, uri: str, start: Callable[[], None], reactor: Any, limit: float) -> None:
    """
    The same from where ``uri`` says.

    :param start: called when QEMU has taken that.
    """
    ended = qmp.wait_for(_is_end, limit)
    # Whatever happens first: nobody may be left to hear of this.
    ended.addErrback(lambda failure: failure)
    try:
        await qmp.execute("migrate-incoming", {"uri": uri})
        start()
        event = await ended
    except QmpTimeout:
        raise QmpTimeout(f"QEMU did not load the device state within qemu-time, {limit:g} s") from None
    finally:
        ended.addErrback(lambda _: None)
        if not ended.called:
            ended.cancel()
    if event.data.get("status") != "completed":
        raise VmError("QEMU could not load the device state; its standard error says why")
    deadline = reactor.seconds() + limit
    while (await run_state_of(qmp)) == "inmigrate":
        if reactor.seconds() > deadline:
            raise QmpTimeout(f"QEMU has loaded the device state but stays in inmigrate for {limit:g} s")
        await deferLater(reactor, _LOOK_AGAIN)


async def run_state_of(qmp: Qmp) -> str:
    """What ``query-status`` says: ``inmigrate``, ``paused``, ``running`` …."""
    return str((await qmp.execute("query-status"))["status"])


async def announce(qmp: Qmp) -> None:
    """Have the guest's NICs tell the network where they are now."""
    await qmp.execute("announce-self", _ANNOUNCEMENT)


def _is_end(event: QmpEvent) -> bool:
    return event.name == "MIGRATION" and event.data.get("status") in ("completed", "failed", "cancelled")
