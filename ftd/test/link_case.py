"""Both ends of a link with owners, a source and a sink that do as they are told, as the tests of the link need them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProducer, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ftd.bus import EventBus
from ftd.interfaces import ISink
from ftd.link_protocol import LinkTimes, Traffic
from ftd.protocol import ReceiverProtocol, SenderProtocol
from ftd.status import Checkpoint
from ftd.test.wire.reaching import LIMITS, NO_DIGEST, PAIR, frame, hello_frame
from ftd.testing.transport import Link
from ftd.trace import PairTrace
from ftd.wire.constants import FEATURES, Command
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import CommitRequested, DigestMismatch, InFlight
from ftd.wire.framing import Deframer, Header
from ftd.wire.hello import Hello
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.sender import SenderMachine
from ftd.wire.session import Limits
from ftd.wire.states import State

#: Far enough apart that a test cannot take one for another.
TIMES = LinkTimes(handshake=10.0, heartbeat=1.0, dead=5.0)

#: Bytes that the transports of a test hold before they are full, and the send buffer of a frozen sender.
CAPACITY = 1000
BUFFER_LIMIT = 10_000

TraceLog = list[tuple[str, dict[str, object]]]


@implementer(IPushProducer)
class FakeSource:
    """
    A source that writes nothing by itself.

    :ivar calls: what it was told: ``pause``, ``resume``, ``stop``.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []

    @property
    def is_paused(self) -> bool:
        """Whether the last word was to pause."""
        return self.calls[-1:] == ["pause"]

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("resume")

    def stopProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("stop")


@implementer(IPushProducer)
class GreedySource:
    """Writes frames into a sender for as long as it is not paused, from inside ``resumeProducing`` too."""

    def __init__(self, sender: SenderProtocol, frames: Sequence[bytes]) -> None:
        self._sender = sender
        self._frames = list(frames)
        self.is_paused = False

    @property
    def is_done(self) -> bool:
        """Whether everything is written."""
        return not self._frames

    def go(self) -> None:
        """Write until paused."""
        while self._frames and not self.is_paused:
            self._sender.write(self._frames.pop(0))

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        assert not self.is_paused, "paused twice"
        self.is_paused = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        assert self.is_paused, "resumed twice"
        self.is_paused = False
        self.go()

    def stopProducing(self) -> None:
        """See `IPushProducer`."""


class FakeSenderOwner:
    """
    :ivar events: what it was told, in order.
    :ivar lost_with: the error of each link that ended.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.lost_with: list[WireError | None] = []
        self.frozen_changes = 0
        self.pair = PAIR
        self.features = FEATURES

    def hello(self) -> Hello:
        """See `SenderOwner`."""
        return Hello(pair=self.pair, node="a", features=self.features, max_payload=LIMITS.max_payload, state="primary")

    def opened(self, sender: SenderProtocol, hello: Hello | None, next_id: int) -> None:
        """See `SenderOwner`."""
        assert sender.is_open
        self.events.append(f"opened by {'ftd' if hello else 'kemari'}, next is {next_id}")

    def acknowledged(self, transaction: InFlight) -> None:
        """See `SenderOwner`."""
        kind = "heartbeat" if transaction.is_heartbeat else "transaction"
        self.events.append(f"{kind} {transaction.id} acknowledged")

    def superseded(self, hello: Hello) -> None:
        """See `SenderOwner`."""
        self.events.append(f"superseded by {hello.node}")

    def refused(self, transaction: InFlight, code: ErrorCode, behind: Sequence[InFlight], was_open: bool) -> None:
        """See `SenderOwner`."""
        self.events.append(f"transaction {transaction.id} refused: {code.name}")
        self.events += [f"transaction {dropped.id} dropped behind it" for dropped in behind]
        if was_open:
            self.events.append("the open transaction cancelled")

    def all_sent(self) -> None:
        """See `SenderOwner`."""
        self.events.append("all sent")

    def freeze_changed(self) -> None:
        """See `SenderOwner`."""
        self.frozen_changes += 1

    def lost(self, sender: SenderProtocol, error: WireError | None) -> None:
        """See `SenderOwner`."""
        assert not sender.connected
        self.lost_with.append(error)


@implementer(ISink)
class FakeSink:
    """
    Keeps what is committed, and insists on the order of calls.

    :ivar kept: the bytes of the committed transactions.
    :ivar held: the bytes of the open one, ``None`` while none is open.
    :ivar writes: how many there were.
    :ivar pause_at: bytes of the open transaction at which the sink pauses its producer, once.
    :ivar is_slow: commits wait in `committing` until the test fires them.
    """

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.held: bytearray | None = None
        self.writes = 0
        self.aborts = 0
        self.pause_at: int | None = None
        self.is_slow = False
        self.committing: list[Deferred[None]] = []
        self.producer: IPushProducer | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See `IConsumer`."""
        assert self.producer is None and streaming and IPushProducer.providedBy(producer)
        self.producer = producer

    def unregisterProducer(self) -> None:
        """See `IConsumer`."""
        assert self.producer is not None
        self.producer = None

    def begin(self) -> None:
        """See `ISink`."""
        assert self.held is None, "a transaction is open"
        self.held = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """See `ISink`."""
        assert self.held is not None, "no transaction is open"
        self.held += data
        self.writes += 1
        if self.pause_at is not None and len(self.held) >= self.pause_at:
            self.pause_at = None
            self.pause()

    def failure(self) -> Exception | None:
        """See `ISink`."""
        return None

    def pause(self) -> None:
        """Have the receiver wait."""
        assert self.producer is not None
        self.producer.pauseProducing()

    def resume(self) -> None:
        """Have the receiver go on."""
        assert self.producer is not None
        self.producer.resumeProducing()

    def commit(self, id: int, xxh3: str, generation: str) -> Deferred[Checkpoint]:
        """See `ISink`."""
        held, self.held = self.held, None
        assert held is not None, "no transaction is open"
        waiting: Deferred[None] = Deferred()
        self.committing.append(waiting)

        def keep(_: None) -> Checkpoint:
            self.kept.append(bytes(held))
            return Checkpoint(
                number=len(self.kept), id=id, bytes=len(held), xxh3=xxh3, generation=generation, committed_at=0.0
            )

        committed = waiting.addCallback(keep)
        if not self.is_slow:
            self.finish()
        return committed

    def finish(self, error: Exception | None = None) -> None:
        """The oldest commit that waits is done, or has failed."""
        waiting = self.committing.pop(0)
        if error is not None:
            waiting.errback(error)
        else:
            waiting.callback(None)

    def abort(self) -> None:
        """See `ISink`."""
        assert self.held is not None, "no transaction is open"
        self.held = None
        self.aborts += 1


class FakeReceiverOwner:
    """
    :ivar events: what it was told, in order.
    :ivar lost_with: the error of each link that ended.
    :ivar session: the receiver that has the session.
    :ivar claimed_with: the HELLO of each sender that wanted it.
    :ivar settling: what the next receiver waits for before it speaks.
    :ivar states: of the session each time that it was told of a change, and whether it was frozen.
    """

    def __init__(self) -> None:
        self.sink: ISink = FakeSink()
        self.next_id = 0
        self.events: list[str] = []
        self.lost_with: list[WireError | None] = []
        self.session: ReceiverProtocol | None = None
        self.claimed_with: list[Hello | None] = []
        self.settling: Deferred[None] | None = None
        self.pair = PAIR
        self.features = FEATURES
        self.node = "b"
        self.states: list[tuple[State, bool]] = []

    def settled(self) -> Deferred[None]:
        """See `ReceiverOwner`."""
        settling, self.settling = self.settling, None
        return settling if settling is not None else succeed(None)

    def hello(self) -> Hello:
        """See `ReceiverOwner`."""
        return Hello(
            pair=self.pair, node=self.node, features=self.features, max_payload=LIMITS.max_payload, state="standby"
        )

    def claim(self, receiver: ReceiverProtocol, hello: Hello | None) -> str:
        """See `ReceiverOwner`."""
        self.claimed_with.append(hello)
        if self.session is not None:
            return "the pair has a sender already"
        self.session = receiver
        return ""

    def opened(self, receiver: ReceiverProtocol) -> None:
        """See `ReceiverOwner`."""
        assert receiver.is_open and receiver is self.session
        self.events.append("opened")

    def begun(self, id: int) -> None:
        """See `ReceiverOwner`."""
        self.events.append(f"transaction {id} begun")

    def commit(self, request: CommitRequested) -> Deferred[None]:
        """See `ReceiverOwner`."""
        self.events.append(f"transaction {request.id} to be committed: {request.seq} frames, {request.size} bytes")
        return self.sink.commit(request.id, f"{request.xxh3:016x}", "").addCallback(self._committed)

    def _committed(self, checkpoint: Checkpoint) -> None:
        self.next_id = checkpoint.id + 1

    def heartbeat(self, id: int) -> None:
        """See `ReceiverOwner`."""
        self.events.append(f"heartbeat {id}")

    def state_changed(self) -> None:
        """See `ReceiverOwner`."""
        if self.session is not None:
            self.states.append((self.session.machine.state, self.session.is_frozen))

    def damaged(self, mismatch: DigestMismatch) -> None:
        """See `ReceiverOwner`."""
        self.events.append(f"transaction {mismatch.id} damaged")

    def cancelled(self) -> None:
        """See `ReceiverOwner`."""
        self.events.append("cancelled")

    def lost(self, receiver: ReceiverProtocol, error: WireError | None) -> None:
        """See `ReceiverOwner`."""
        assert not receiver.connected
        if receiver is self.session:
            self.session = None
        self.lost_with.append(error)


class ScriptedPeer(Protocol):
    """
    Says what the test has it say, and notes what it hears.

    :ivar heard: every byte.
    :ivar lost: why the connection ended.
    """

    def __init__(self) -> None:
        self.heard = bytearray()
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.lost = reason

    def say(self, *frames: bytes) -> None:
        """Send bytes."""
        assert self.transport is not None
        self.transport.write(b"".join(frames))

    def close(self) -> None:
        """Close the connection once everything is sent."""
        assert self.transport is not None
        self.transport.loseConnection()

    def frames(self) -> list[tuple[Header, bytes]]:
        """What was heard, cut into frames; a last one that is not whole is left out."""
        deframer = Deframer("little")
        found: list[tuple[Header, bytearray]] = []
        for piece in deframer.feed(bytes(self.heard)):
            if isinstance(piece, Header):
                found.append((piece, bytearray()))
            else:
                found[-1][1].extend(piece)
        return [(header, bytes(payload)) for header, payload in found if len(payload) == header.payload_len]

    def commands(self) -> list[str]:
        """The names of the commands it heard."""
        return [Command(header.cmd).name for header, _ in self.frames()]


@attrs.define
class Ends:
    """A whole link: a sender, a receiver and what is between them."""

    sender: SenderProtocol
    receiver: ReceiverProtocol
    link: Link


class LinkTestCase(SynchronousTestCase):
    """Each test has one owner of senders, one of receivers, and a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sender_bus = EventBus(lambda: 0.0)
        self.receiver_bus = EventBus(lambda: 0.0)
        self.sender_trace = PairTrace("demo", self.sender_bus)
        self.receiver_trace = PairTrace("standby", self.receiver_bus)
        self.sender_traffic = Traffic()
        self.receiver_traffic = Traffic()
        self.primary = FakeSenderOwner()
        self.secondary = FakeReceiverOwner()
        assert isinstance(self.secondary.sink, FakeSink)
        self.sink = self.secondary.sink

    def new_sender(
        self, *, rate_limit: bool = True, bandwidth: int = 0, limits: Limits = LIMITS, times: LinkTimes = TIMES
    ) -> SenderProtocol:
        """A sender of `primary` that is not connected."""
        return SenderProtocol(
            SenderMachine(limits, pair=self.primary.pair, trace=self.sender_trace),
            self.primary,
            clock=self.clock,
            times=times,
            trace=self.sender_trace,
            traffic=self.sender_traffic,
            rate_limit=rate_limit,
            bandwidth=bandwidth,
            buffer_limit=BUFFER_LIMIT,
        )

    def new_receiver(
        self, *, kemari: bool = False, ack_first: bool = False, limits: Limits = LIMITS, times: LinkTimes = TIMES
    ) -> ReceiverProtocol:
        """A receiver of `secondary` that is not connected."""
        machine = ReceiverMachine(limits, pair=self.secondary.pair, kemari=kemari, trace=self.receiver_trace)
        return ReceiverProtocol(
            machine,
            self.secondary,
            clock=self.clock,
            times=times,
            trace=self.receiver_trace,
            traffic=self.receiver_traffic,
            kemari=kemari,
            ack_first=ack_first,
        )

    def connect(
        self, sender: SenderProtocol | None = None, receiver: ReceiverProtocol | None = None, capacity: int = CAPACITY
    ) -> Ends:
        """A link on which nothing has been delivered yet."""
        sender = sender or self.new_sender()
        receiver = receiver or self.new_receiver()
        return Ends(sender, receiver, Link(sender, receiver, capacity=capacity))

    def open(
        self, sender: SenderProtocol | None = None, receiver: ReceiverProtocol | None = None, capacity: int = CAPACITY
    ) -> Ends:
        """A link with an open session."""
        ends = self.connect(sender, receiver, capacity)
        ends.link.pump()
        assert ends.sender.is_open
        return ends

    def open_to_script(
        self, sender: SenderProtocol | None = None, capacity: int = CAPACITY, kemari: bool = False
    ) -> tuple[SenderProtocol, ScriptedPeer, Link]:
        """A sender with an open session to a peer that the test plays; what that heard so far is forgotten."""
        sender, peer = sender or self.new_sender(), ScriptedPeer()
        link = Link(sender, peer, capacity=capacity)
        if not kemari:
            peer.say(hello_frame())
        peer.say(frame(Command.ACK, 0))
        link.pump()
        assert sender.is_open
        peer.heard.clear()
        return sender, peer, link

    def open_from_script(
        self,
        receiver: ReceiverProtocol | None = None,
        capacity: int = CAPACITY,
        features: frozenset[str] = NO_DIGEST,
    ) -> tuple[ReceiverProtocol, ScriptedPeer, Link]:
        """A receiver with an open session from a peer that the test plays; what that heard so far is forgotten."""
        receiver, peer = receiver or self.new_receiver(), ScriptedPeer()
        link = Link(peer, receiver, capacity=capacity)
        peer.say(hello_frame(features, state="primary"))
        link.pump()
        assert receiver.is_open
        peer.heard.clear()
        return receiver, peer, link

    def pass_time(self, seconds: float, link: Link, step: float = 0.1) -> None:
        """Let time pass on both ends while what they say is delivered."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            link.pump()

    def traced(self, bus: EventBus) -> TraceLog:
        """The trace events on ``bus``, oldest first."""
        _, events = bus.since(0)
        log: TraceLog = []
        for event in events:
            assert not callable(event.body)
            log.append((event.name, event.body["args"]))
        return log


def code_of(errors: Sequence[WireError | None]) -> list[str]:
    """The names of the codes, ``none`` for a link that ended without an error."""
    return [error.code.name if error is not None else "none" for error in errors]
