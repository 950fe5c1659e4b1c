"""What both ends of a link share: time limits, the way a link ends, and what they ask of the pair they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Protocol as TypingProtocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.interfaces import ISink
from ftd.trace import PairTrace
from ftd.transport import DEFAULT_OPTIONS, LinkOptions, LinkTransport, adopt, set_options
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import CommitRequested, DigestMismatch, InFlight
from ftd.wire.hello import Hello

if TYPE_CHECKING:
    from ftd.receiver_protocol import ReceiverProtocol
    from ftd.sender_protocol import SenderProtocol


@attrs.frozen(kw_only=True)
class LinkTimes:
    """Seconds: see the keys of the same names in ``docs/configuration.md``."""

    handshake: float
    heartbeat: float
    dead: float


@attrs.define
class Traffic:
    """Bytes of all links a pair has had."""

    sent: int = 0
    received: int = 0


class LinkProtocol(Protocol):
    """What both ends share: time limits and the way a link ends."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        times: LinkTimes,
        trace: PairTrace,
        traffic: Traffic,
        options: LinkOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.clock = clock
        self.times = times
        self.trace = trace
        self.traffic = traffic
        self._options = options
        self.is_open = False
        #: From `connectionMade` on.
        self.link: LinkTransport
        self._last_sign = clock.seconds()
        self._timer: IDelayedCall | None = None
        self._error: WireError | None = None
        self._when_gone: list[Deferred[None]] = []

    def connectionMade(self) -> None:
        self.link = adopt(self.transport, self, self._options)
        self._last_sign = self.clock.seconds()
        self._timer = self.clock.callLater(self.times.handshake, self._handshake_too_slow)
        try:
            set_options(self.transport, self._options)
        except WireError as error:
            self.fail(error)

    def fail(self, error: WireError) -> None:
        """End the link because of ``error``, unless it is ending already."""
        if self._error is None:
            self._error = error
            self.is_open = False
            self.hang_up()

    def hang_up(self) -> None:
        """Close the link without waiting for a peer that may not read."""
        self.link.abort_connection()

    def close(self) -> Deferred[None]:
        """
        Let what was said reach the peer, but do not wait for it for longer than a handshake may take.

        :return: fires when the link is gone.
        """
        if not self.connected:
            return succeed(None)
        gone: Deferred[None] = Deferred()
        self._when_gone.append(gone)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self.clock.callLater(self.times.handshake, self.hang_up)
        self._close_transport()
        return gone

    def _close_transport(self) -> None:
        self.link.lose_connection()

    @property
    def silence(self) -> float:
        """Seconds since the peer gave a sign of life, or was not asked for one."""
        return self.clock.seconds() - self._last_sign

    def dataReceived(self, data: bytes | memoryview) -> None:  # noqa: ARG002
        raise AssertionError("each end reads for itself")

    def places(self) -> Sequence[memoryview]:
        """See `LinkEnd`."""
        return ()

    def placed(self, size: int) -> None:
        """See `LinkEnd`."""
        raise AssertionError(f"{size} bytes in no place")

    def _session_is_open(self) -> None:
        self.is_open = True
        self._sign_of_life()
        self._watch(self.times.dead)

    def _sign_of_life(self) -> None:
        self._last_sign = self.clock.seconds()

    def _watch(self, delay: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self.clock.callLater(delay, self._check_life)

    def _check_life(self) -> None:
        if not self._waits_for_peer():
            self._sign_of_life()
        left = self._last_sign + self.times.dead - self.clock.seconds()
        if left > 0:
            self._watch(left)
        else:
            self.fail(WireError(ErrorCode.RECV_HDR, f"no sign of life from the peer for {self.times.dead:g} s"))

    def _waits_for_peer(self) -> bool:
        """Whether the peer's silence means anything now."""
        raise AssertionError("each end says for itself")

    def _handshake_too_slow(self) -> None:
        hint = "may not speak TLS, as this side does" if self._options.tls else "may want TLS (link-certificate)"
        detail = f"the handshake was not done within {self.times.handshake:g} s; the peer {hint}"
        self.fail(WireError(ErrorCode.RECV_HDR, detail))

    def _ended(self, reason: Failure, at_end: WireError | None) -> WireError | None:
        """The link is gone: stop the clock, and what error that is, if any."""
        self.is_open = False
        self.connected = 0
        self.link.closed()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self.trace.ft_trans_close is not None:
            self.trace.ft_trans_close()
        if self._error is not None or at_end is None:
            return self._error
        if isinstance(reason.value, ConnectionDone):
            return at_end
        return WireError(at_end.code, f"{at_end.detail} ({reason.getErrorMessage()})")

    def _tell_gone(self) -> None:
        """The pair has been told that the link is gone; now those who wait for it are."""
        waiting, self._when_gone = self._when_gone, []
        for gone in waiting:
            gone.callback(None)


class SenderOwner(TypingProtocol):
    """What a sender tells its pair."""

    def hello(self) -> Hello:
        """What to answer the receiver's HELLO with."""

    def superseded(self, hello: Hello) -> None:
        """The standby has been promoted: it takes nothing any more, and this side has to stand down."""

    def opened(self, sender: SenderProtocol, hello: Hello | None, next_id: int) -> None:
        """The session is open; ``hello`` is ``None`` from a Kemari."""

    def acknowledged(self, transaction: InFlight) -> None:
        """The oldest transaction in flight is committed."""

    def refused(self, transaction: InFlight, code: ErrorCode, behind: Sequence[InFlight], was_open: bool) -> None:
        """
        The oldest transaction in flight was dropped by the receiver, and all that came after it.

        :param behind: the others that were in flight, in order; there will be no answer to them.
        :param was_open: a transaction was open; it is cancelled already, and none is open now.
        """

    def freeze_changed(self) -> None:
        """``is_frozen`` or ``buffered`` has changed."""

    def all_sent(self) -> None:
        """``unsent`` is 0; said once after each `SenderProtocol.want_drained`, unless the link is lost first."""

    def lost(self, sender: SenderProtocol, error: WireError | None) -> None:
        """The link is gone."""


class ReceiverOwner(TypingProtocol):
    """What a receiver asks of its pair, and tells it."""

    sink: ISink
    #: The id that the next transaction has to carry.
    next_id: int

    def settled(self) -> Deferred[None]:
        """Fires when no commit is under way, at once if none is."""

    def hello(self) -> Hello:
        """This side's HELLO, as of now."""

    def claim(self, receiver: ReceiverProtocol, hello: Hello | None) -> str:
        """A sender wants the session: empty if it is to have it, else why not."""

    def opened(self, receiver: ReceiverProtocol) -> None:
        """The session is open."""

    def begun(self, id: int) -> None:
        """A transaction opened."""

    def commit(self, request: CommitRequested) -> Deferred[None]:
        """Commit the sink's open transaction.  Errbacks with a `WireError` that says what to refuse it with."""

    def heartbeat(self, id: int) -> None:
        """The sender gave a sign of life, which takes an id like any transaction."""

    def damaged(self, mismatch: DigestMismatch) -> None:
        """The open transaction is dropped because its digest is wrong."""

    def state_changed(self) -> None:
        """``is_frozen`` has changed, or a commit has been answered."""

    def cancelled(self) -> None:
        """The sender dropped the open transaction."""

    def lost(self, receiver: ReceiverProtocol, error: WireError | None) -> None:
        """The link is gone."""
