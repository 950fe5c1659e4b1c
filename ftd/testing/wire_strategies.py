"""
Hypothesis strategies for the wire, and an in-memory link between a sender's and a receiver's machine.

On a `WireLink` nothing moves by itself: what a machine sends lies in a `Pipe` until it is delivered, in pieces of any
size, or is lost or damaged there.  That makes every interleaving of the two machines a thing that a test can ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from hypothesis import strategies as st

from ftd.wire.constants import FEATURES, MAX_PAYLOAD_LEN, MAX_WINDOW, ByteOrder, Command
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import (
    Begun,
    Cancelled,
    CommitRequested,
    DigestMismatch,
    HelloReceived,
    Payload,
    ReceiverEvent,
    Refused,
    SenderEvent,
)
from ftd.wire.framing import Header
from ftd.wire.hello import Hello, LastCheckpoint
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.sender import Buffer, SenderMachine
from ftd.wire.session import Limits

#: Limits that no test reaches by accident.
AMPLE = Limits(max_payload=1 << 30, max_transaction=1 << 40)


def byte_orders() -> st.SearchStrategy[ByteOrder]:
    """Both of them."""
    orders: tuple[ByteOrder, ByteOrder] = ("little", "big")
    return st.sampled_from(orders)


def feature_sets() -> st.SearchStrategy[frozenset[str]]:
    """Each subset of what an ftd can offer."""
    return st.frozensets(st.sampled_from(sorted(FEATURES)))


def headers() -> st.SearchStrategy[Header]:
    """Any header that can be written down, of the commands that exist."""
    u16 = st.integers(0, 0xFFFF)
    u32 = st.integers(0, MAX_PAYLOAD_LEN)
    return st.builds(Header, cmd=st.sampled_from(Command), id=u16, seq=u32, payload_len=u32)


def hellos() -> st.SearchStrategy[Hello]:
    """Any HELLO that opens a session, of a pair of any name."""
    last = st.builds(LastCheckpoint, generation=st.uuids().map(str), sequence=st.integers(0, 1 << 60))
    return st.builds(
        Hello,
        pair=st.text(max_size=40),
        node=st.text(max_size=40),
        generation=st.none() | st.uuids().map(str),
        last=st.none() | last,
        features=feature_sets(),
        max_payload=st.integers(1, MAX_PAYLOAD_LEN),
        max_transaction=st.integers(0, 1 << 50),
        window=st.integers(1, MAX_WINDOW),
        state=st.sampled_from(("primary", "standby", "promoted")),
    )


def frame_sizes() -> st.SearchStrategy[int]:
    """Bytes of one CONTINUE frame: often none, often about a header's size, at times a lot more."""
    return st.one_of(st.just(0), st.integers(0, 30), st.integers(0, 5000))


@st.composite
def chunks(draw: st.DrawFn, data: bytes, max_cuts: int = 20) -> list[memoryview]:
    """``data`` as reads may make it: cut in up to ``max_cuts`` places."""
    at = sorted(draw(st.lists(st.integers(0, len(data)), max_size=max_cuts)))
    return cut(data, at)


def cut(data: bytes, at: Sequence[int]) -> list[memoryview]:
    """Views of ``data`` between the offsets ``at``, which ascend; none of them is empty."""
    view = memoryview(data)
    return [view[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True) if start < end]


@attrs.frozen
class HandedOver:
    """A whole transaction that the receiver's machine let through."""

    id: int
    state: bytes


@attrs.define
class Store:
    """
    What a receiver keeps when a link ends: what it was handed, and the id that it expects next.

    Both change in one step, before the ACK is sent.
    """

    next_id: int = 0
    handed_over: list[HandedOver] = attrs.Factory(list)


@attrs.define
class Pipe:
    """Bytes on their way in one direction."""

    _data: bytearray = attrs.Factory(bytearray)

    def __len__(self) -> int:
        return len(self._data)

    def put(self, piece: Buffer) -> None:
        """Add bytes at the sending end."""
        self._data += piece

    def take(self, size: int) -> bytes:
        """Up to ``size`` bytes from the receiving end."""
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def flip(self, offset: int, mask: int) -> None:
        """Damage the byte at ``offset``: the bits of ``mask`` are turned over."""
        self._data[offset] ^= mask


@attrs.define
class WireLink:
    """
    A sender and a receiver, from the first byte of their link to its last.

    The sender answers a HELLO at once, and the receiver opens the session at once.  A `CommitRequested` waits for
    `answer`, and until then the receiver takes no more bytes.

    :ivar store: outlives the link.
    :ivar events: what the sender's machine reported.
    :ivar pending: what the receiver's machine was last asked, until it is answered.
    :ivar sender_error: what broke the session at the sender, if anything did.
    :ivar receiver_error: the same at the receiver.
    """

    sender: SenderMachine
    receiver: ReceiverMachine
    store: Store
    sender_hello: Hello
    receiver_hello: Hello
    to_receiver: Pipe = attrs.Factory(Pipe)
    to_sender: Pipe = attrs.Factory(Pipe)
    events: list[SenderEvent] = attrs.Factory(list)
    pending: CommitRequested | DigestMismatch | None = None
    sender_error: WireError | None = None
    receiver_error: WireError | None = None
    _incoming: Iterator[ReceiverEvent] = attrs.field(factory=lambda: iter(()), init=False)
    _held: bytearray = attrs.field(factory=bytearray, init=False)

    @classmethod
    def between(
        cls,
        store: Store,
        *,
        sender_features: frozenset[str] = FEATURES,
        receiver_features: frozenset[str] = FEATURES,
        windows: tuple[int, int] = (1, 1),
        limits: Limits = AMPLE,
        kemari: bool = False,
        byte_order: ByteOrder = "little",
    ) -> WireLink:
        """
        Two new machines, and what the receiver says first already on its way.

        :param windows: what the sender's and the receiver's HELLO say.
        """

        def hello(features: frozenset[str], window: int, state: str) -> Hello:
            return Hello(
                pair="linked",
                node=state,
                features=features,
                max_payload=limits.max_payload,
                max_transaction=limits.max_transaction,
                window=window,
                state=state,
            )

        link = cls(
            SenderMachine(limits, pair="linked", byte_order=byte_order),
            ReceiverMachine(limits, pair="linked", next_id=store.next_id, kemari=kemari, byte_order=byte_order),
            store,
            hello(sender_features, windows[0], "primary"),
            hello(receiver_features, windows[1], "standby"),
        )
        link.to_sender.put(link.receiver.open() if kemari else link.receiver.greet(link.receiver_hello))
        return link

    @property
    def is_broken(self) -> bool:
        """Whether one of the ends has found an error; no more bytes are delivered then."""
        return self.sender_error is not None or self.receiver_error is not None

    def send(self, *pieces: Buffer) -> None:
        """Put on its way what a call of the sender's machine returned, and the payload that belongs to it."""
        for piece in pieces:
            self.to_receiver.put(piece)

    def deliver_to_sender(self, size: int) -> None:
        """Let the sender read up to ``size`` bytes."""
        if self.is_broken:
            return
        try:
            for event in self.sender.receive(self.to_sender.take(size)):
                self.events.append(event)
                if isinstance(event, HelloReceived):
                    self.send(self.sender.greet(self.sender_hello))
                elif isinstance(event, Refused):
                    self.send(event.cancel)
        except WireError as error:
            self.sender_error = error

    def deliver_to_receiver(self, size: int) -> None:
        """Let the receiver read up to ``size`` bytes, unless it still has to answer."""
        if self.is_broken or self.pending is not None:
            return
        self._incoming = self.receiver.receive(self.to_receiver.take(size))
        self._read_on()

    def answer(self, refusal: ErrorCode | None = None) -> None:
        """Answer what is `pending`: hand the transaction over and acknowledge it, or refuse it."""
        request, self.pending = self.pending, None
        assert request is not None, "nothing is to be answered"
        if refusal is not None:
            reply = self.receiver.refuse(refusal)
        else:
            assert isinstance(request, CommitRequested), "it arrived damaged"
            if not request.is_heartbeat:
                self.store.handed_over.append(HandedOver(request.id, bytes(self._held)))
            reply = self.receiver.acknowledge()
            self.store.next_id = self.receiver.id
        self.to_sender.put(reply)
        self._read_on()

    def settle(self) -> None:
        """Deliver whatever is on its way and acknowledge whatever arrives whole, until nothing moves any more."""
        while not self.is_broken:
            if isinstance(self.pending, CommitRequested):
                self.answer()
            elif self.pending is not None:
                self.answer(ErrorCode.RECV_PAYLOAD)
            elif self.to_sender:
                self.deliver_to_sender(len(self.to_sender))
            elif self.to_receiver:
                self.deliver_to_receiver(len(self.to_receiver))
            else:
                return

    def _read_on(self) -> None:
        try:
            for event in self._incoming:
                self._on_receiver_event(event)
                if self.pending is not None:
                    return
        except WireError as error:
            self.receiver_error = error

    def _on_receiver_event(self, event: ReceiverEvent) -> None:
        if isinstance(event, Payload):
            self._held += event.view
        elif isinstance(event, Begun | Cancelled):
            self._held.clear()
        elif isinstance(event, HelloReceived):
            self.to_sender.put(self.receiver.open())
        else:
            self.pending = event
