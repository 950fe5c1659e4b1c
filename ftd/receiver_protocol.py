"""The receiving end of a link: see `ftd.protocol` for what freezes when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.inbox import Inbox
from ftd.interfaces import IInPlaceSink
from ftd.link_protocol import LinkProtocol, LinkTimes, ReceiverOwner, Traffic
from ftd.trace import PairTrace
from ftd.transport import DEFAULT_OPTIONS, LinkOptions
from ftd.wire.constants import HEADER_SIZE, MAX_WINDOW
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import (
    Begun,
    Cancelled,
    CommitRequested,
    DigestMismatch,
    HelloReceived,
    Payload,
    ReceiverEvent,
)
from ftd.wire.hello import Hello
from ftd.wire.placement import Placed
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.states import State

# Asked for before every read, and dear to look for in its enum each time.
_INSIDE_FRAMES = State.CONTINUE

_OWN_ERROR = "an error in ftd; the log says which"


#: Bytes of ACKs that may wait for a sender to read them: those of the largest window five times.
_MOST_UNREAD = 5 * MAX_WINDOW * HEADER_SIZE


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
        options: LinkOptions = DEFAULT_OPTIONS,
        kemari: bool,
        ack_first: bool,
    ) -> None:
        super().__init__(clock, times, trace, traffic, options)
        self.machine = machine
        self._owner = owner
        self._kemari = kemari
        self._ack_first = ack_first
        self._told: Hello | None = None
        self._has_claim = False
        self._inbox = Inbox(machine, self._on_event, self._is_held)
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

    def dataReceived(self, data: bytes | memoryview) -> None:
        self.traffic.received += len(data)
        self._sign_of_life()
        if self._error is None:
            self._take_in(data)

    def places(self) -> Sequence[memoryview]:
        """See `ftd.transport.LinkEnd`.  Nothing has a place while something that was read before it waits."""
        if self.machine.state is not _INSIDE_FRAMES or self._is_held() or not self._inbox.is_empty:
            return ()
        return self.machine.places()

    def placed(self, size: int) -> None:
        """See `ftd.transport.LinkEnd`."""
        self.traffic.received += size
        self._sign_of_life()
        if self._error is not None:
            return
        payload, rest = self.machine.placed(size)
        if payload:
            self._filled(payload)
        if rest:
            self._take_in(rest)

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
        self.link.write(data)

    def _acknowledge(self) -> None:
        """Say that it is committed; the sender is likely to say the next thing soon."""
        ack = self.machine.acknowledge()
        self.traffic.sent += len(ack)
        self._sign_of_life()
        self.link.gather((ack,))
        if self.link.unsent > _MOST_UNREAD:
            self.fail(WireError(ErrorCode.UNKNOWN, "the sender goes on sending, and reads none of its ACKs"))
            return
        self.link.flush(self.machine.window)
        self.link.expect_answer()

    def _take_in(self, data: bytes | memoryview) -> None:
        try:
            self._inbox.put(data)
        except WireError as error:
            self.fail(error)

    def _drain(self) -> None:
        try:
            self._inbox.drain()
        except WireError as error:
            self.fail(error)
        except Exception:
            # Inside of a read Twisted ends the connection; here the one who called would go on without what was lost.
            self.log.failure("in going on with what was read")
            self.fail(WireError(ErrorCode.UNKNOWN, _OWN_ERROR))

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
            self.link.pause_reading()
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
            self.link.resume_reading()

    def _on_event(self, event: ReceiverEvent) -> None:
        _TAKEN[type(event)](self, event)

    def _on_payload(self, event: Payload) -> None:
        if not self._sink_has_begun:
            self._begin_sink()
        self._owner.sink.write(event.view)

    def _on_placed(self, event: Placed) -> None:
        self._filled(len(event.view))

    def _on_begun(self, event: Begun) -> None:  # noqa: ARG002
        if not self._has_claim:
            # A Kemari sender shows itself by its first BEGIN.
            self._take_claim(None)

    def _on_cancelled(self, event: Cancelled) -> None:  # noqa: ARG002
        self._abort_sink()
        self._owner.cancelled()

    def _on_mismatch(self, event: DigestMismatch) -> None:
        self._abort_sink()
        self._send(self.machine.refuse(ErrorCode.RECV_PAYLOAD))
        self._owner.damaged(event)

    def _room(self, size: int) -> Sequence[memoryview]:
        """Where the sink wants the next payload; nowhere as long as it does not know of a transaction."""
        if not self._sink_has_begun:
            return ()
        sink: IInPlaceSink = self._owner.sink  # type: ignore[assignment]
        return sink.room(size)

    def _filled(self, size: int) -> None:
        sink: IInPlaceSink = self._owner.sink  # type: ignore[assignment]
        sink.filled(size)

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

    def _greeted_by(self, event: HelloReceived) -> None:
        hello = event.hello
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
        if IInPlaceSink.providedBy(self._owner.sink):
            self.machine.room = self._room
        self._session_is_open()
        self._owner.opened(self)

    def _commit_requested(self, request: CommitRequested) -> None:
        if request.is_heartbeat:
            self._owner.heartbeat(request.id)
            self._acknowledge()
            return
        self._begin_sink()
        self._sink_has_begun = False
        # What the sink has lost already was never held whole: its commit will fail, and be refused.
        self._is_acknowledged = self._ack_first and self._owner.sink.failure() is None
        if self._is_acknowledged:
            self._acknowledge()
        self._is_committing = True
        committing = self._owner.commit(request)
        if committing.called and not committing.paused and committing.result is None:
            # A sink that was ready at once, as most are: nothing is to be called back.
            self._committed_at_once()
            return
        committing.addCallbacks(self._committed, self._not_committed)
        committing.addErrback(self._commit_broke)
        # A sink that is ready at once has not held anything up.
        self._freeze_or_go_on()

    def _committed_at_once(self) -> None:
        try:
            self._committed(None)
        except Exception:
            self._commit_broke(Failure())

    def _committed(self, _: None) -> None:
        self._is_committing = False
        if self.connected and self._error is None:
            if not self._is_acknowledged:
                self._acknowledge()
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
        self.fail(WireError(ErrorCode.UNKNOWN, _OWN_ERROR))

    def _waits_for_peer(self) -> bool:
        return not self._kemari and not self._input_is_frozen and self.machine.state is not State.COMMIT


#: What is done with each event.
_TAKEN: dict[type[ReceiverEvent], Callable[[ReceiverProtocol, Any], None]] = {
    Payload: ReceiverProtocol._on_payload,
    Placed: ReceiverProtocol._on_placed,
    Begun: ReceiverProtocol._on_begun,
    CommitRequested: ReceiverProtocol._commit_requested,
    Cancelled: ReceiverProtocol._on_cancelled,
    DigestMismatch: ReceiverProtocol._on_mismatch,
    HelloReceived: ReceiverProtocol._greeted_by,
}
