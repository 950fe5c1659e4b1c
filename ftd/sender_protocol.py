"""The sending end of a link: see `ftd.protocol` for what freezes when."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IConsumer, IDelayedCall, IProducer, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.bandwidth import SharedBandwidth
from ftd.heartbeat import Heartbeat
from ftd.link_protocol import LinkProtocol, LinkTimes, SenderOwner, Traffic
from ftd.outbox import PORTION, Outbox
from ftd.trace import PairTrace
from ftd.transport import DEFAULT_OPTIONS, LinkOptions
from ftd.wire.constants import HEADER_SIZE
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import (
    Acknowledged,
    HelloReceived,
    Opened,
    SenderEvent,
)
from ftd.wire.hello import PROMOTED
from ftd.wire.sender import Buffer, SenderMachine
from ftd.wire.states import BETWEEN, State

#: Seconds until it is looked again whether what was gathered in this turn of the reactor has gone: not before the end
#: of the turn, and not in every turn if something keeps it.
_SOON = 0.001


@implementer(IConsumer, IPushProducer)
class SenderProtocol(LinkProtocol):
    """
    The sending end.

    :param bandwidth: bytes per second; 0 for no limit of this pair's own.
    :param shared: the limit that it shares with the daemon's other pairs.
    :param buffer_limit: bytes that the source may run ahead of a frozen output.
    """

    def __init__(
        self,
        machine: SenderMachine,
        owner: SenderOwner,
        *,
        clock: IReactorTime,
        times: LinkTimes,
        trace: PairTrace,
        traffic: Traffic,
        options: LinkOptions = DEFAULT_OPTIONS,
        rate_limit: bool,
        bandwidth: int,
        shared: SharedBandwidth | None = None,
        buffer_limit: int,
    ) -> None:
        super().__init__(clock, times, trace, traffic, options)
        self.machine = machine
        self.rate_limit = rate_limit
        self._owner = owner
        self._bandwidth = bandwidth
        self._shared = shared
        self._buffer_limit = buffer_limit
        self._outbox: Outbox
        self._source: IPushProducer | None = None
        self._source_is_paused = False
        self._was_frozen = False
        self._is_closing = False
        self._was_waiting = False
        self._drain_wanted = False
        self._drain_look: IDelayedCall | None = None
        self._counted = 0
        self._heartbeat = Heartbeat(clock, times.heartbeat, self._beat)

    @property
    def is_frozen(self) -> bool:
        """``freeze_output``: the transport is full, or the bandwidth limit is reached."""
        return self._outbox.is_frozen

    @property
    def buffered(self) -> int:
        """Bytes that wait because the output is frozen, those that the transport has taken over included."""
        return self._outbox.backlog

    @property
    def unsent(self) -> int:
        """
        Bytes that are not with the kernel yet: those of the last pieces that were written must not change.  More than
        `buffered`, which the transport may have taken over without a copy.
        """
        return self._outbox.unsent

    def want_drained(self) -> None:
        """Have everything sent, and the owner told when it is: it may be before this returns."""
        self._drain_wanted = True
        self._look_drained()

    # Towards the pair and its source

    def begin(self) -> None:
        """Send BEGIN."""
        self._put((self.machine.begin(),))

    def write(self, data: bytes) -> None:
        """Send one CONTINUE frame: `IConsumer`'s name for `write_frame`."""
        self.write_frame((data,))

    def write_frame(self, pieces: tuple[Buffer, ...]) -> None:
        """Send one CONTINUE frame; its pieces must not change until `unsent` says that they have gone."""
        self._put((self.machine.continue_(*pieces), *pieces))

    def write_run(self, data: memoryview, frame_size: int) -> None:
        """Send ``data`` as a run of CONTINUE frames of ``frame_size``; it must not change until `unsent` says so."""
        self._put(self.machine.continue_run(data, frame_size))

    def commit(self) -> None:
        """Send COMMIT; the owner hears how it went."""
        self._put((self.machine.commit(),), flush=True)
        self.link.expect_answer()

    def atomic(self, pieces: tuple[Buffer, ...]) -> None:
        """Send a whole transaction as one ATOMIC frame; the owner hears how it went."""
        before, after = self.machine.atomic(*pieces)
        self._put((before, *pieces, after), flush=True)
        self.link.expect_answer()

    def cancel(self) -> None:
        """Send CANCEL; the source is let go of, as it is one of the open transaction."""
        cancel = self.machine.cancel()
        self.unregisterProducer()
        self._put((cancel,), flush=True)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Take ``producer`` as the source: it is paused as the freeze semantics say.  Push producers only."""
        if not streaming or not IPushProducer.providedBy(producer):
            raise ValueError("the source has to be a push producer: it is paused, not pulled")
        if self._source is not None:
            raise RuntimeError(f"{self._source!r} is the source already")
        self._source = producer
        self._source_is_paused = False
        self._regulate()

    def unregisterProducer(self) -> None:
        """The source is done."""
        self._source = None
        self._source_is_paused = False

    def set_rate_limit(self, enabled: bool) -> None:
        """The seed's ``rate_limit``: whether a frozen output pauses the source."""
        self.rate_limit = enabled
        self._regulate()

    def set_bandwidth(self, rate: int) -> None:
        """Bytes per second, 0 for no limit."""
        self._bandwidth = rate
        if self.connected:
            self._outbox.set_bandwidth(rate)
            self._regulate()

    def connectionMade(self) -> None:
        super().connectionMade()
        # Small against the buffer, so that half of that is not gone in one step.
        portion = min(PORTION, self._buffer_limit // 4)
        self._outbox = Outbox(self.link, self.clock, self.trace, self._bandwidth, self._regulate, self._shared, portion)
        self.link.register_producer(self)

    def pauseProducing(self) -> None:
        """The transport is full.  Twisted says so again at every write while it is."""
        self._outbox.pause()
        self._regulate()

    def resumeProducing(self) -> None:
        """The transport is empty."""
        self._sign_of_life()
        self._outbox.resume()
        self._regulate()

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` says the rest."""

    def dataReceived(self, data: bytes | memoryview) -> None:
        self.traffic.received += len(data)
        self._sign_of_life()
        if self._error is not None or self._is_closing:
            return
        if len(data) == HEADER_SIZE and (transaction := self.machine.acknowledged_by(data)) is not None:
            # As most answers come.
            self._owner.acknowledged(transaction)
            self._note_waiting()
            return
        try:
            for event in self.machine.receive(data):
                self._on_event(event)
        except WireError as error:
            self.fail(error)
        self._note_waiting()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        cut_short = self._outbox.cut_short(in_payload=self.machine.state is State.CONTINUE)
        error = self._ended(reason, cut_short or self.machine.end_of_stream())
        self.machine.close()
        self._outbox.close()
        self._heartbeat.stop()
        self._drain_wanted = False
        if self._drain_look is not None:
            self._drain_look.cancel()
            self._drain_look = None
        self._source = None
        self._owner.lost(self, error)
        self._tell_gone()

    def _close_transport(self) -> None:
        self._is_closing = True
        self._regulate()

    def _put(self, pieces: Sequence[Buffer], flush: bool = False) -> None:
        outbox = self._outbox
        outbox.put(pieces, flush)
        self._heartbeat.said()
        if self._source is not None or self._was_frozen or self._drain_wanted or outbox.is_frozen or self._is_closing:
            self._regulate()
        else:
            # Nobody has to be told anything, which is how it is with most small transactions.
            self._count_sent()
            self._note_waiting()

    def _regulate(self) -> None:
        """
        The one place that pauses and resumes the source.

        It is paused while the output is frozen and the rate limit is on, and at the buffer's limit whatever the rate
        limit says; from there it runs again when half of the buffer has gone.
        """
        outbox = self._outbox
        self._count_sent()
        self._note_waiting()
        is_frozen = outbox.is_frozen
        if is_frozen is not self._was_frozen:
            self._was_frozen = is_frozen
            self._owner.freeze_changed()
        if self._is_closing and not outbox.size and not outbox.is_full:
            self.link.unregister_producer()
            self.link.lose_connection()
        if self._drain_wanted:
            self._look_drained()
        if self._source is None:
            return
        threshold = self._buffer_limit // 2 if self._source_is_paused else self._buffer_limit
        must_pause = (self.rate_limit and is_frozen) or outbox.backlog >= threshold
        if must_pause != self._source_is_paused:
            self._source_is_paused = must_pause
            if must_pause:
                self._source.pauseProducing()
            else:
                self._source.resumeProducing()

    def _count_sent(self) -> None:
        sent = self._outbox.sent
        self.traffic.sent += sent - self._counted
        self._counted = sent

    def _look_drained(self) -> None:
        """
        The transport tells when it was full and has room; of what it has only gathered nobody tells, as that goes with
        the end of the turn at the latest.
        """
        outbox = self._outbox
        if self._drain_wanted and not outbox.is_frozen:
            # The transport may call from inside of this, and all may be said then.
            self.link.flush()
        if not self._drain_wanted:
            return
        if not outbox.unsent:
            self._drain_wanted = False
            self._owner.all_sent()
        elif not outbox.is_frozen and self._drain_look is None:
            self._drain_look = self.clock.callLater(_SOON, self._look_again)

    def _look_again(self) -> None:
        self._drain_look = None
        self._look_drained()

    def _on_event(self, event: SenderEvent) -> None:
        if isinstance(event, Acknowledged):
            self._owner.acknowledged(event.transaction)
        elif isinstance(event, HelloReceived) and event.hello.state == PROMOTED:
            self.fail(WireError(ErrorCode.STATE_INVALID, f"the standby has been promoted on {event.hello.node}"))
            self._owner.superseded(event.hello)
        elif isinstance(event, HelloReceived):
            self._put((self.machine.greet(self._owner.hello()),), flush=True)
        elif isinstance(event, Opened):
            self._session_is_open()
            self._outbox.window = self.machine.window
            self._owner.opened(self, self.machine.peer_hello, event.next_id)
            if not self.machine.peer_is_kemari:
                self._heartbeat.start()
        else:
            if event.cancel:
                self.unregisterProducer()
                self._put((event.cancel,), flush=True)
            self._owner.refused(event.transaction, event.code, event.behind, bool(event.cancel))

    def _beat(self) -> None:
        """Between transactions an empty one, inside of one an empty frame; a frozen peer hears of us anyway."""
        if self.is_frozen or self._is_closing:
            return
        if self.machine.state in BETWEEN and not self.machine.in_flight:
            self._put((self.machine.heartbeat(),), flush=True)
        elif self.machine.is_inside:
            self._put((self.machine.continue_(),), flush=True)

    def _note_waiting(self) -> None:
        """The peer's time to answer, or to read, starts when it begins to be waited for."""
        is_waiting = self._waits_for_peer()
        if is_waiting and not self._was_waiting:
            self._sign_of_life()
        self._was_waiting = is_waiting

    def _waits_for_peer(self) -> bool:
        # What the bandwidth limit holds back is this side's business: the peer has not been asked yet.
        outbox = self._outbox
        return outbox.is_full or (not outbox.size and len(self.machine.in_flight) > 0)
