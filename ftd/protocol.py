"""
The two ends of a link as Twisted Protocols: what the seed calls freezing, in producers and consumers.

==============================================  ======================================================================
The seed                                        Here
==============================================  ======================================================================
``freeze_output`` on EAGAIN                     the transport pauses the sender, which is its push producer
put_notify, flush, ``put_ready``                the transport resumes it
``rate_limit`` and frozen: the caller waits     the sender is the `IConsumer` of its source and pauses it
data put while frozen is appended               the source runs on into the `Outbox` up to ``buffer-limit``
``freeze_input`` while loading                  the sink pauses the receiver, which pauses its transport
==============================================  ======================================================================
"""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.heartbeat import Heartbeat
from ftd.inbox import Inbox
from ftd.link_protocol import LinkProtocol, LinkTimes, ReceiverOwner, SenderOwner, Traffic
from ftd.outbox import Outbox
from ftd.trace import PairTrace
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import (
    Acknowledged,
    Begun,
    Cancelled,
    CommitRequested,
    DigestMismatch,
    HelloReceived,
    Opened,
    Payload,
    ReceiverEvent,
    SenderEvent,
)
from ftd.wire.hello import PROMOTED, Hello
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.sender import Buffer, SenderMachine
from ftd.wire.states import BETWEEN, State


@implementer(IConsumer, IPushProducer)
class SenderProtocol(LinkProtocol):
    """
    The sending end.

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
        rate_limit: bool,
        bandwidth: int,
        buffer_limit: int,
    ) -> None:
        super().__init__(clock, times, trace, traffic)
        self.machine = machine
        self.rate_limit = rate_limit
        self._owner = owner
        self._bandwidth = bandwidth
        self._buffer_limit = buffer_limit
        self._outbox: Outbox
        self._source: IPushProducer | None = None
        self._source_is_paused = False
        self._was_frozen = False
        self._is_closing = False
        self._was_waiting = False
        self._counted = 0
        self._heartbeat = Heartbeat(clock, times.heartbeat, self._beat)

    @property
    def is_frozen(self) -> bool:
        """``freeze_output``: the transport is full, or the bandwidth limit is reached."""
        return self._outbox.is_frozen

    @property
    def buffered(self) -> int:
        """Bytes that were put while the output was frozen and still wait."""
        return self._outbox.size

    # Towards the pair and its source

    def begin(self) -> None:
        """Send BEGIN."""
        self._put(self.machine.begin())

    def write(self, data: bytes) -> None:
        """Send one CONTINUE frame: `IConsumer`'s name for `write_frame`."""
        self.write_frame((data,))

    def write_frame(self, pieces: tuple[Buffer, ...]) -> None:
        """Send one CONTINUE frame; its pieces must not change until the transaction has ended."""
        self._put(self.machine.continue_(*pieces), *pieces)

    def commit(self) -> None:
        """Send COMMIT; the owner hears how it went."""
        self._put(self.machine.commit())

    def atomic(self, pieces: tuple[Buffer, ...]) -> None:
        """Send a whole transaction as one ATOMIC frame; the owner hears how it went."""
        before, after = self.machine.atomic(*pieces)
        self._put(before, *pieces, after)

    def cancel(self) -> None:
        """Send CANCEL."""
        self._put(self.machine.cancel())

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
        self._outbox = Outbox(self._transport(), self.clock, self.trace, self._bandwidth, self._regulate)
        self._transport().registerProducer(self, True)  # type: ignore[attr-defined]

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

    def dataReceived(self, data: bytes) -> None:
        self.traffic.received += len(data)
        self._sign_of_life()
        if self._error is not None or self._is_closing:
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
        self._source = None
        self._owner.lost(self, error)
        self._tell_gone()

    def _close_transport(self) -> None:
        self._is_closing = True
        self._regulate()

    def _put(self, *pieces: Buffer) -> None:
        self._outbox.put(pieces)
        self._heartbeat.said()
        self._regulate()

    def _regulate(self) -> None:
        """
        The one place that pauses and resumes the source.

        It is paused while the output is frozen and the rate limit is on, and at the buffer's limit whatever the rate
        limit says; from there it runs again when half of the buffer has gone.
        """
        outbox = self._outbox
        self.traffic.sent += outbox.sent - self._counted
        self._counted = outbox.sent
        self._note_waiting()
        is_frozen = outbox.is_frozen
        if is_frozen != self._was_frozen:
            self._was_frozen = is_frozen
            self._owner.freeze_changed()
        if self._is_closing and not outbox.size and not outbox.is_full:
            self._transport().unregisterProducer()  # type: ignore[attr-defined]
            self._transport().loseConnection()
        if self._source is None:
            return
        threshold = self._buffer_limit // 2 if self._source_is_paused else self._buffer_limit
        must_pause = (self.rate_limit and is_frozen) or outbox.size >= threshold
        if must_pause != self._source_is_paused:
            self._source_is_paused = must_pause
            if must_pause:
                self._source.pauseProducing()
            else:
                self._source.resumeProducing()

    def _on_event(self, event: SenderEvent) -> None:
        if isinstance(event, HelloReceived) and event.hello.state == PROMOTED:
            self.fail(WireError(ErrorCode.STATE_INVALID, f"the standby has been promoted on {event.hello.node}"))
            self._owner.superseded(event.hello)
        elif isinstance(event, HelloReceived):
            self._put(self.machine.greet(self._owner.hello()))
        elif isinstance(event, Opened):
            self._session_is_open()
            self._owner.opened(self, self.machine.peer_hello, event.next_id)
            if not self.machine.peer_is_kemari:
                self._heartbeat.start()
        elif isinstance(event, Acknowledged):
            self._owner.acknowledged(event.transaction)
        else:
            self._owner.refused(event.transaction, event.code)

    def _beat(self) -> None:
        """Between transactions an empty one, inside of one an empty frame; a frozen peer hears of us anyway."""
        if self.is_frozen or self._is_closing:
            return
        if self.machine.state in BETWEEN:
            self._put(self.machine.heartbeat())
        elif self.machine.is_inside:
            self.write(b"")

    def _note_waiting(self) -> None:
        """The peer's time to answer, or to read, starts when it begins to be waited for."""
        is_waiting = self._waits_for_peer()
        if is_waiting and not self._was_waiting:
            self._sign_of_life()
        self._was_waiting = is_waiting

    def _waits_for_peer(self) -> bool:
        # What the bandwidth limit holds back is this side's business: the peer has not been asked yet.
        return self._outbox.is_full or (bool(self.machine.in_flight) and not self._outbox.size)


@implementer(IPushProducer)
class ReceiverProtocol(LinkProtocol):
    """
    The receiving end.

    :param kemari: the sender is a Kemari, which is greeted with an ACK.
    :param ack_first: acknowledge what is held whole, before the sink has it for good (``ack = received``).
    """

    def __init__(
        self,
        machine: ReceiverMachine,
        owner: ReceiverOwner,
        *,
        clock: IReactorTime,
        times: LinkTimes,
        trace: PairTrace,
        traffic: Traffic,
        kemari: bool,
        ack_first: bool,
    ) -> None:
        super().__init__(clock, times, trace, traffic)
        self.machine = machine
        self._owner = owner
        self._kemari = kemari
        self._ack_first = ack_first
        self._told: Hello | None = None
        self._has_claim = False
        self._inbox = Inbox(self._on_event, self._is_held)
        self._sink_has_begun = False
        self._sink_is_full = False
        self._is_committing = False
        self._is_acknowledged = False
        self._input_is_frozen = False

    @property
    def is_frozen(self) -> bool:
        """``freeze_input``: nothing is read until the sink is ready."""
        return self._input_is_frozen

    # Towards the sink

    def pauseProducing(self) -> None:
        """The sink cannot take more now."""
        self._sink_is_full = True
        self._freeze_or_go_on()

    def resumeProducing(self) -> None:
        """The sink takes more."""
        self._sink_is_full = False
        self._freeze_or_go_on()

    def stopProducing(self) -> None:
        """The sink wants nothing more, ever."""
        self.fail(WireError(ErrorCode.FLUSH, "the sink takes nothing more"))

    def connectionMade(self) -> None:
        super().connectionMade()
        # What was committed last is told in HELLO, and a commit of the link before this one may still be under way.
        self._owner.settled().addCallback(self._greet)

    def _greet(self, _: None) -> None:
        if not self.connected or self._error is not None:
            return
        if self._kemari:
            self._send(self.machine.open())
        else:
            self._told = self._owner.hello()
            self._send(self.machine.greet(self._told))

    def dataReceived(self, data: bytes) -> None:
        self.traffic.received += len(data)
        self._sign_of_life()
        if self._error is None:
            self._inbox.put(self.machine.receive(data))
            self._drain()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        error = self._ended(reason, self.machine.end_of_stream())
        self._inbox.clear()
        if self._has_claim:
            self._owner.sink.unregisterProducer()
            self._abort_sink()
        self._owner.lost(self, error)
        self._tell_gone()

    def refuse_session(self, reason: str) -> None:
        """Tell the sender, in a HELLO, why it cannot have the session, and close."""
        if self._error is None:
            self._error = WireError(ErrorCode.STATE_INVALID, reason)
            if not self._kemari:
                self._send(self.machine.hello_frame(attrs.evolve(self._owner.hello(), refused=reason)))
            self.close()

    def fail(self, error: WireError) -> None:
        if self._error is not None:
            return
        if not self.is_open and self.machine.peer_hello is None and not self._kemari:
            # It may be an ftd that was set up for another pair or version: it is told why.
            self.refuse_session(error.detail)
            self._error = error
            return
        super().fail(error)

    def _send(self, data: bytes) -> None:
        self.traffic.sent += len(data)
        self._sign_of_life()
        self._transport().write(data)

    def _drain(self) -> None:
        try:
            self._inbox.drain()
        except WireError as error:
            self.fail(error)

    def _is_held(self) -> bool:
        return self._sink_is_full or self._is_committing or self._error is not None

    def _freeze_or_go_on(self) -> None:
        must_freeze = self._sink_is_full or self._is_committing
        if must_freeze == self._input_is_frozen or self._error is not None or not self.connected:
            return
        if must_freeze:
            self._input_is_frozen = True
            if self.trace.ft_trans_freeze_input is not None:
                self.trace.ft_trans_freeze_input()
            self._transport().pauseProducing()  # type: ignore[attr-defined]
            self._owner.state_changed()
            return
        self._input_is_frozen = False
        self._owner.state_changed()
        self._sign_of_life()
        if self.trace.ft_trans_get_ready is not None:
            self.trace.ft_trans_get_ready()
        if self.trace.ft_trans_cb is not None:
            self.trace.ft_trans_cb("get_ready")
        self._drain()
        if not self._input_is_frozen and self._error is None:
            self._transport().resumeProducing()  # type: ignore[attr-defined]

    def _on_event(self, event: ReceiverEvent) -> None:
        if isinstance(event, Payload):
            self._begin_sink()
            self._owner.sink.write(event.view)
        elif isinstance(event, Begun):
            if not self._has_claim:
                # A Kemari sender shows itself by its first BEGIN.
                self._take_claim(None)
        elif isinstance(event, CommitRequested):
            self._commit_requested(event)
        elif isinstance(event, Cancelled):
            self._abort_sink()
            self._owner.cancelled()
        elif isinstance(event, DigestMismatch):
            self._abort_sink()
            self._send(self.machine.refuse(ErrorCode.RECV_PAYLOAD))
            self._owner.damaged(event)
        else:
            self._greeted_by(event.hello)

    def _begin_sink(self) -> None:
        """Not before there is something for it: a heartbeat, which has no frame, never reaches the sink."""
        if not self._sink_has_begun:
            self._sink_has_begun = True
            self._owner.sink.begin()
            self._owner.begun(self.machine.id)

    def _abort_sink(self) -> None:
        if self._sink_has_begun:
            self._sink_has_begun = False
            self._owner.sink.abort()

    def _greeted_by(self, hello: Hello) -> None:
        if self._told != self._owner.hello():
            self.refuse_session("another session has changed what this side holds; connect again")
            return
        self._take_claim(hello)
        if self._has_claim:
            self.machine.id = self._owner.next_id
            self._send(self.machine.open())

    def _take_claim(self, hello: Hello | None) -> None:
        refusal = self._owner.claim(self, hello)
        if refusal:
            self.refuse_session(refusal)
            return
        self._has_claim = True
        self._owner.sink.registerProducer(self, True)
        self._session_is_open()
        self._owner.opened(self)

    def _commit_requested(self, request: CommitRequested) -> None:
        if request.is_heartbeat:
            self._owner.heartbeat(request.id)
            self._send(self.machine.acknowledge())
            return
        self._begin_sink()
        self._sink_has_begun = False
        # What the sink has lost already was never held whole: its commit will fail, and be refused.
        self._is_acknowledged = self._ack_first and self._owner.sink.failure() is None
        if self._is_acknowledged:
            self._send(self.machine.acknowledge())
        self._is_committing = True
        committing = self._owner.commit(request)
        committing.addCallbacks(self._committed, self._not_committed)
        committing.addErrback(self._commit_broke)
        # A sink that is ready at once has not held anything up.
        self._freeze_or_go_on()

    def _committed(self, _: None) -> None:
        self._is_committing = False
        if self.connected and self._error is None:
            if not self._is_acknowledged:
                self._send(self.machine.acknowledge())
            if not self._input_is_frozen and self.trace.ft_trans_cb is not None:
                # The sink was ready at once; otherwise this is said on going on.
                self.trace.ft_trans_cb("get_ready")
            self._owner.state_changed()
            self._freeze_or_go_on()

    def _not_committed(self, failure: Failure) -> None:
        self._is_committing = False
        error = failure.value
        if not isinstance(error, WireError):
            self.log.failure("a sink failed in a way it should not", failure)
            error = WireError(ErrorCode.UNKNOWN, "the sink failed; the log says how")
        if not self.connected or self._error is not None:
            return
        if self._is_acknowledged or not self.machine.can_refuse:
            # The sender believes it is committed, or cannot be told otherwise: it has to ask again when it reconnects.
            self.fail(error)
            return
        self._send(self.machine.refuse(error.code))
        self._owner.state_changed()
        self._freeze_or_go_on()

    def _commit_broke(self, failure: Failure) -> None:
        self.log.failure("after a commit", failure)
        self.fail(WireError(ErrorCode.UNKNOWN, "an error in ftd; the log says which"))

    def _waits_for_peer(self) -> bool:
        return not self._kemari and not self._input_is_frozen and self.machine.state is not State.COMMIT
