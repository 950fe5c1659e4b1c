"""
Output commit: what a guest sends leaves only when the standby knows the state that sent it.

A gate stands between QEMU's end of one NIC and the network.  While it holds, frames from the guest are kept by epoch:
`NetGate.seal` ends one, while the guest is stopped for the checkpoint that covers it, and `NetGate.release` lets it
go, when that checkpoint is acknowledged.  Frames from outside pass at once: what the guest has not seen it can be sent
again.  See QEMU.md, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ftd.config import NetConfig
from ftd.vm.netgate_frames import BadFrame, FrameQueue, NetGateError
from ftd.vm.netgate_lines import ILine, StreamLine
from ftd.vm.netgate_sockets import Sockets
from ftd.vm.netgate_uplinks import ITap, TapEnd, TapLine

__all__ = ["BadFrame", "GateState", "NetGate", "NetGateError"]

_log = Logger()

#: Bytes from outside that wait for a guest that does not read; then the outside has to wait.
_INWARD_LIMIT = 256 * 1024

#: Pieces that are sent at a time, before others get their turn.
_PIECES = 64

#: Reads at the end of an epoch.  A guest that is stopped cannot fill its socket for the second time; a process that is
#: no QEMU could go on for ever.
_DRAIN_READS = 1024


class GateState(Enum):
    """What passes a gate."""

    #: Nothing, either way: it is read, and thrown away.
    CLOSED = "closed"
    #: All, at once.
    OPEN = "open"
    #: From the guest what is released; from outside all.
    HOLDING = "holding"


class _Flow:
    """
    Frames in one direction.

    :param limit: bytes in the queue from which on the source is not read.
    :ivar epoch: that of the frames that come now; ``None`` if they are thrown away.
    :ivar passed: frames that have left.
    :ivar dropped: frames that were thrown away.
    """

    def __init__(self, limit: int) -> None:
        self.queue = FrameQueue()
        self.limit = limit
        self.epoch: int | None = None
        self.passed = 0
        self.dropped = 0

    @property
    def is_full(self) -> bool:
        """Whether no more may come."""
        return self.queue.bytes >= self.limit

    def pull(self, source: ILine) -> bool:
        """Read once; whether there was something.  Read although there is no room, it is thrown away."""
        epoch = None if self.is_full else self.epoch
        frames = source.receive(self.queue, epoch)
        if frames is not None and epoch is None:
            self.dropped += frames
        return frames is not None

    def push(self, target: ILine) -> bool:
        """Send what may leave; whether there is more."""
        for _ in range(_PIECES):
            piece = self.queue.front()
            if piece is None or not target.is_up:
                break
            size = target.send(piece)
            if size:
                self.passed += self.queue.sent(size)
            if size < len(piece):
                break
        return self.queue.front() is not None

    def discard(self) -> None:
        """Throw away what waits."""
        self.dropped += self.queue.discard()


class NetGate:
    """
    The gate of one NIC.  It is closed at first.

    :param held_limit: bytes of frames from the guest that are kept at most, but for what one read brings; then the
        guest has to wait, or, where QEMU would wait with it, loses them.
    :param name: what the log calls the VM.
    :param changed: told when the guest or the uplink has come or gone.
    :ivar state: what passes.
    :ivar epoch: the number of the epoch that frames from the guest belong to now; the first is 1.
    """

    def __init__(
        self,
        reactor: Any,
        config: NetConfig,
        *,
        held_limit: int,
        name: str = "",
        changed: Callable[[], None] = lambda: None,
        sockets: Sockets | None = None,
        open_tap: Callable[[str], ITap] = TapEnd,
    ) -> None:
        self.config = config
        self._reactor = reactor
        self.state = GateState.CLOSED
        self.epoch = 1
        self._name = f"{name} {config.key}".strip()
        self._notify = changed
        self._telling: IDelayedCall | None = None
        self._outward = _Flow(held_limit)
        self._inward = _Flow(_INWARD_LIMIT)
        sockets = sockets or Sockets()
        self._guest: ILine = StreamLine(
            reactor,
            config.socket,
            dials=config.connect,
            unblocks=config.connect,
            name=f"{self._name}, guest",
            readable=self._guest_readable,
            writable=self._push_in,
            changed=self._guest_changed,
            sockets=sockets,
        )
        uplink_name = f"{self._name}, uplink"
        self._uplink: ILine = (
            TapLine(
                reactor,
                config.uplink,
                name=uplink_name,
                readable=self._uplink_readable,
                writable=self._push_out,
                changed=self._uplink_changed,
                open_tap=open_tap,
            )
            if config.uplink_kind == "tap"
            else StreamLine(
                reactor,
                config.uplink,
                dials=True,
                name=uplink_name,
                readable=self._uplink_readable,
                writable=self._push_out,
                changed=self._uplink_changed,
                sockets=sockets,
            )
        )

    # What is shown

    @property
    def guest_up(self) -> bool:
        """Whether QEMU's end is connected."""
        return self._guest.is_up

    @property
    def uplink_up(self) -> bool:
        """Whether frames can leave, and come."""
        return self._uplink.is_up

    @property
    def why_down(self) -> str:
        """What is missing, and what to do; empty if nothing is."""
        return "; ".join(line.why_down for line in (self._guest, self._uplink) if line.why_down)

    @property
    def held_frames(self) -> int:
        """Frames from the guest that have not left: those held, and those that the uplink has not taken yet."""
        return self._outward.queue.frames

    @property
    def held_bytes(self) -> int:
        """Their bytes, with 4 for each frame."""
        return self._outward.queue.bytes

    @property
    def passed_out(self) -> int:
        """Frames from the guest that have left."""
        return self._outward.passed

    @property
    def passed_in(self) -> int:
        """Frames from outside that the guest's end has taken."""
        return self._inward.passed

    @property
    def dropped(self) -> int:
        """
        Frames of both directions that were thrown away: while closed, by `discard`, as there is no guest; and at the
        limit, where QEMU would stand still if it were not read.
        """
        return self._outward.dropped + self._inward.dropped

    # Life

    def start(self) -> None:
        """
        Open the uplink, and be there for the guest.

        :raises NetGateError: if that cannot be; nothing is left open then.
        """
        try:
            self._uplink.start()
            self._guest.start()
        except NetGateError as error:
            self._guest.stop()
            self._uplink.stop()
            raise NetGateError(f"{self._name}: {error}") from None
        self._set_epochs()
        self._balance()

    def stop(self) -> Deferred[None]:
        """Disconnect both sides; what is held is lost."""
        self._guest.stop()
        self._uplink.stop()
        self.close()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        return succeed(None)

    # What passes

    def close(self) -> None:
        """From now on nothing passes, and what waits is thrown away."""
        self.state = GateState.CLOSED
        self._inward.discard()
        self.discard()

    def open(self) -> None:
        """Let everything pass, first what is held."""
        self.state = GateState.OPEN
        self.release_all()

    def hold(self) -> None:
        """From now on keep what comes from the guest until it is released."""
        if self.state is not GateState.HOLDING:
            self.state = GateState.HOLDING
            self._set_epochs()
            self._balance()

    def seal(self) -> int:
        """
        End an epoch, with all that the guest has sent so far, as far as ``held_limit`` allows.  The guest is stopped.

        What is left in the socket by the limit belongs to the next epoch, which is late but never wrong.

        :returns: the number to `release` it by.
        """
        for _ in range(_DRAIN_READS):
            if self._outward.is_full or not self._outward.pull(self._guest):
                break
        sealed = self.epoch
        self.epoch += 1
        self._set_epochs()
        self._push_out()
        return sealed

    def release(self, epoch: int) -> None:
        """
        Let the frames of an epoch and of those before it leave, in order.

        :raises ValueError: if it was not sealed: no checkpoint can cover it.
        """
        if epoch >= self.epoch:
            raise ValueError(f"{self._name}: epoch {epoch} is not sealed, so nothing can be known to cover it")
        queue = self._outward.queue
        queue.released = max(queue.released, epoch)
        self._push_out()

    def release_all(self) -> None:
        """Let all that is held leave, and go on as before."""
        sealed = self.epoch
        self.epoch += 1
        self._set_epochs()
        self.release(sealed)

    def discard(self) -> None:
        """Throw away what is held: it must not leave, as the state that sent it is not the VM's any more."""
        self._outward.discard()
        self._set_epochs()
        self._balance()

    # Inside

    def _set_epochs(self) -> None:
        passes = self.state is not GateState.CLOSED
        self._outward.epoch = self.epoch if self.state is GateState.HOLDING else 0 if passes else None
        self._inward.epoch = 0 if passes and self._guest.is_up else None

    def _balance(self) -> None:
        """Tell the reactor what there is to wait for."""
        out, back = self._outward, self._inward
        self._guest.watch(reading=not (out.is_full and self._guest.can_wait), writing=back.queue.front() is not None)
        self._uplink.watch(reading=not back.is_full, writing=out.queue.front() is not None)

    def _push_out(self) -> None:
        self._outward.push(self._uplink)
        self._balance()

    def _push_in(self) -> None:
        self._inward.push(self._guest)
        self._balance()

    def _guest_readable(self) -> None:
        self._outward.pull(self._guest)
        self._push_out()

    def _uplink_readable(self) -> None:
        self._inward.pull(self._uplink)
        self._push_in()

    def _guest_changed(self) -> None:
        # The half of a frame is neither read on with what the next one says, nor is the other half sent to it; and
        # what the last one did not take is old by the time that there is a next one.
        self._outward.queue.forget_begun()
        self._inward.queue.rewind()
        self._inward.discard()
        self._set_epochs()
        self._balance()
        self._tell()

    def _uplink_changed(self) -> None:
        self._inward.queue.forget_begun()
        self._outward.queue.rewind()
        self._push_out()
        self._tell()

    def _tell(self) -> None:
        # Later: who is told may do anything, and a line may have gone in the middle of something.
        if self._telling is None:
            self._telling = self._reactor.callLater(0, self._tell_now)

    def _tell_now(self) -> None:
        self._telling = None
        self._notify()
