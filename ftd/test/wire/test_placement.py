"""What is read in place is what would have been received: the same events, bytes, errors and counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.test.wire.reaching import (
    FIRST_ID,
    NO_DIGEST,
    PAIR,
    RecordingTrace,
    frame,
    head,
    hello,
    taken,
)
from ftd.testing.wire_strategies import byte_orders
from ftd.wire import placement
from ftd.wire.constants import FEATURES, ByteOrder, Command
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import CommitRequested, DigestMismatch, Payload, ReceiverEvent
from ftd.wire.placement import Placed
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.session import NO_TRACE, Limits, WireTrace

#: So that frames of some bytes are worth a place.
SMALL = {
    "LEAST_PLAN": 50,
    "MOST_PLAN": 300,
    "LEAST_REST": 4,
    "LEAST_PREDICTED": 1,
    "PREDICTED_FROM": 0,
    "LEAST_RUN": 2,
    "MOST_PLACES": 30,
    "FEW": 2,
    "FIRST_LOOK": 4,
    "FURTHER_LOOK": 2,
}

AMPLE = Limits(max_payload=1 << 22, max_transaction=1 << 24)


class Memory:
    """Room in blocks of ``block`` bytes; what was filled is in `held`."""

    def __init__(self, block: int) -> None:
        self.held = bytearray()
        self._block = block
        self._given: list[bytearray] = []
        self._begun_at = 0

    def room(self, size: int) -> Sequence[memoryview]:
        """See `IInPlaceSink`: the rest of a block that has been begun, and new ones."""
        if not self._given:
            sizes = [self._block - self._begun_at]
            while sum(sizes) < size:
                sizes.append(self._block)
            self._given = [bytearray(b"?" * each) for each in sizes]
        views = []
        for block in self._given:
            if size > 0:
                views.append(memoryview(block)[:size])
                size -= len(views[-1])
        return views

    def filled(self, size: int) -> bytes:
        """See `IInPlaceSink`; the bytes that were filled."""
        given = b"".join(self._given)
        assert size <= len(given)
        self._given = []
        self._begun_at = (self._begun_at + size) % self._block
        return given[:size]


@attrs.define
class Reading:
    """
    A machine that reads, and what it told.

    :ivar story: its events, payload joined, and what it was answered.
    :ivar placed: bytes that never went through the machine.
    """

    machine: ReceiverMachine
    refusals: set[int]
    memory: Memory | None = None
    story: list[object] = attrs.Factory(list)
    placed: int = 0
    error: str = ""

    def read(self, data: bytes, sizes: Iterator[int]) -> None:
        """All of ``data``, in reads of at most the given sizes."""
        if self.memory is not None:
            self.machine.room = self.memory.room
        at = 0
        try:
            while at < len(data):
                places = self.machine.places()
                size = min(next(sizes), len(data) - at)
                if places:
                    size = min(size, sum(map(len, places)))
                    self._fill(places, data[at : at + size])
                    self._on_placed(size)
                else:
                    self._receive(data[at : at + size])
                at += size
        except WireError as error:
            self.error = str(error)

    def outcome(self) -> tuple[object, ...]:
        """All that shows."""
        machine = self.machine
        state, inside, id, counters = machine.state, machine.is_inside, machine.id, (machine.seq, machine.size)
        return self.story, self.error, state, inside, id, counters, str(machine.end_of_stream())

    def _fill(self, places: Sequence[memoryview], data: bytes) -> None:
        for place in places:
            part, data = data[: len(place)], data[len(place) :]
            place[: len(part)] = part

    def _on_placed(self, size: int) -> None:
        payload, rest = self.machine.placed(size)
        if payload:
            assert self.memory is not None
            self.placed += payload
            self._tell_payload(self.memory.filled(payload))
        if rest:
            self._receive(rest)

    def _receive(self, data: bytes) -> None:
        for event in self.machine.receive(data):
            self._tell(event)

    def _tell(self, event: ReceiverEvent) -> None:
        if isinstance(event, Placed):
            assert self.memory is not None
            self.placed += len(event.view)
            self._tell_payload(self.memory.filled(len(event.view)))
        elif isinstance(event, Payload):
            self._tell_payload(bytes(event.view))
        else:
            self.story.append(event)
        if isinstance(event, DigestMismatch) or (isinstance(event, CommitRequested) and event.size in self.refusals):
            if self.machine.can_refuse:
                self.story.append(self.machine.refuse(ErrorCode.FLUSH))
        elif isinstance(event, CommitRequested):
            self.story.append(self.machine.acknowledge())

    def _tell_payload(self, data: bytes) -> None:
        if self.story and isinstance(self.story[-1], bytearray):
            self.story[-1] += data
        else:
            self.story.append(bytearray(data))


def opened(
    features: frozenset[str] = NO_DIGEST,
    limits: Limits = AMPLE,
    *,
    byte_order: ByteOrder = "little",
    window: int = 1,
    trace: WireTrace = NO_TRACE,
) -> ReceiverMachine:
    """A receiver whose session with an ftd is open."""
    machine = ReceiverMachine(limits, pair=PAIR, next_id=FIRST_ID, byte_order=byte_order, trace=trace)
    machine.greet(attrs.evolve(hello(FEATURES), window=window))
    payload = attrs.evolve(hello(features, "primary"), window=window).encode()
    taken(machine, frame(Command.HELLO, payload=payload, byte_order=byte_order))
    machine.open()
    return machine


@st.composite
def streams(draw: st.DrawFn, byte_order: ByteOrder) -> bytes:
    """Transactions of frames that are often of the same length, at times damaged somewhere."""
    stream = bytearray()
    id = FIRST_ID
    for _ in range(draw(st.integers(1, 3))):
        stream += frame(Command.BEGIN, id, byte_order=byte_order)
        seq = 0
        for length, count in draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), max_size=4)):
            for _ in range(count):
                payload = bytes((seq + at) % 251 for at in range(length))
                stream += frame(Command.CONTINUE, id, seq, payload, byte_order)
                seq += 1
        last = draw(st.sampled_from((Command.COMMIT, Command.COMMIT, Command.CANCEL)))
        stream += frame(last, id, seq, byte_order=byte_order)
        id += last is Command.COMMIT
    for offset, mask in draw(st.lists(st.tuples(st.integers(0, len(stream) - 1), st.integers(1, 255)), max_size=1)):
        stream[offset] ^= mask
    return bytes(stream[: draw(st.integers(0, len(stream)))]) if draw(st.booleans()) else bytes(stream)


def endless(sizes: Sequence[int]) -> Callable[[], Iterator[int]]:
    """``sizes`` over and over."""

    def cycle() -> Iterator[int]:
        while True:
            yield from sizes

    return cycle


class SameTests(SynchronousTestCase):
    """In place and received."""

    def setUp(self) -> None:
        for name, value in SMALL.items():
            self.patch(placement, name, value)

    @examples(400)
    @given(st.data())
    def test_any_stream_in_any_reads(self, data: st.DataObject) -> None:
        byte_order = data.draw(byte_orders())
        stream = data.draw(streams(byte_order))
        limits = data.draw(st.sampled_from((Limits(1000, 100_000), Limits(15, 150))))
        sizes = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=10))
        refusals = data.draw(st.sets(st.integers(0, 100), max_size=3))
        received, placed = (
            Reading(opened(limits=limits, byte_order=byte_order, window=3), refusals, memory)
            for memory in (None, Memory(data.draw(st.integers(1, 80))))
        )
        received.read(stream, endless([len(stream)])())
        placed.read(stream, endless(sizes)())
        self.assertEqual(placed.outcome(), received.outcome())

    def test_most_of_it_never_goes_through_the_machine(self) -> None:
        """The property would hold of a machine that never has a place, too."""
        frames = [frame(Command.CONTINUE, FIRST_ID, seq, bytes([seq]) * 10) for seq in range(100)]
        stream = frame(Command.BEGIN, FIRST_ID) + b"".join(frames) + frame(Command.COMMIT, FIRST_ID, 100)
        for size in (1, 7, 22, 100, 1000):
            reading = Reading(opened(), set(), Memory(64))
            reading.read(stream, endless([size])())
            self.assertEqual(reading.story[1], b"".join(bytes([seq]) * 10 for seq in range(100)))
            self.assertGreater(reading.placed, 600, f"reads of {size}")

    def test_a_digest_behind_what_was_placed(self) -> None:
        machine = opened(FEATURES)
        reading = Reading(machine, set(), Memory(64))
        stream = frame(Command.BEGIN, FIRST_ID) + b"".join(
            frame(Command.CONTINUE, FIRST_ID, seq, b"0123456789") for seq in range(20)
        )
        reading.read(stream, endless([50])())
        # xxh3-64 of 20 times 0123456789, computed by the program xxhsum.
        digest = reading.machine._digest.digest()[::-1]
        reading.read(frame(Command.COMMIT, FIRST_ID, 20, digest), endless([5])())
        self.assertIsInstance(reading.story[2], CommitRequested)

    def test_trace_events_are_those_of_frames_that_were_received(self) -> None:
        frames = [frame(Command.CONTINUE, FIRST_ID, seq, b"0123456789") for seq in range(20)]
        stream = frame(Command.BEGIN, FIRST_ID) + b"".join(frames)
        traces = RecordingTrace(), RecordingTrace()
        for trace, memory in zip(traces, (None, Memory(64)), strict=True):
            Reading(opened(trace=trace), set(), memory).read(stream, endless([22])())
        self.assertEqual(traces[1].lines, traces[0].lines)

    def test_no_room_is_given_to_more_than_a_transaction_may_have(self) -> None:
        asked: list[int] = []
        machine = opened(limits=Limits(10, 55))

        class Noting(Memory):
            def room(self, size: int) -> Sequence[memoryview]:
                asked.append(machine.size + size)
                return super().room(size)

        reading = Reading(machine, set(), Noting(1000))
        stream = frame(Command.BEGIN, FIRST_ID) + b"".join(
            frame(Command.CONTINUE, FIRST_ID, seq, b"0123456789") for seq in range(6)
        )
        reading.read(stream, endless([9])())
        self.assertIn("max-transaction allows", reading.error)
        self.assertLessEqual(max(asked), 55)


class PlaceTests(SynchronousTestCase):
    """What is worth a place."""

    def machine(self, *, kemari: bool = False) -> ReceiverMachine:
        if kemari:
            machine = ReceiverMachine(AMPLE, pair=PAIR, kemari=True)
            machine.open()
        else:
            machine = opened()
        machine.room = lambda size: [memoryview(bytearray(size))]
        return machine

    def lengths(self, machine: ReceiverMachine) -> list[int]:
        return [len(place) for place in machine.places()]

    def test_nothing_outside_of_a_transaction(self) -> None:
        machine = self.machine()
        self.assertEqual(self.lengths(machine), [])
        taken(machine, frame(Command.BEGIN, FIRST_ID))
        self.assertEqual(self.lengths(machine), [])

    def test_nothing_without_room(self) -> None:
        machine = self.machine()
        machine.room = None
        taken(machine, frame(Command.BEGIN, FIRST_ID) + head(Command.CONTINUE, FIRST_ID, 0, 1 << 20))
        self.assertEqual(self.lengths(machine), [])
        machine.room = lambda _size: []
        self.assertEqual(self.lengths(machine), [])

    def test_the_rest_of_a_payload_and_a_bit(self) -> None:
        for kemari in (False, True):
            machine = self.machine(kemari=kemari)
            id = machine.id
            taken(machine, frame(Command.BEGIN, id) + head(Command.CONTINUE, id, 0, 100_000) + b"x" * 30_000)
            self.assertEqual(self.lengths(machine), [70_000, placement.SLACK])

    def test_a_short_rest_has_none(self) -> None:
        machine = self.machine()
        taken(machine, frame(Command.BEGIN, FIRST_ID) + head(Command.CONTINUE, FIRST_ID, 0, 10_000))
        self.assertEqual(self.lengths(machine), [])

    def test_equal_frames_are_predicted(self) -> None:
        machine = self.machine()
        frames = [frame(Command.CONTINUE, FIRST_ID, seq, bytes(50_000)) for seq in range(6)]
        taken(machine, frame(Command.BEGIN, FIRST_ID) + b"".join(frames)[:-20_000])
        places = machine.places()
        self.assertEqual([len(place) for place in places], [20_000, 12, 45_536])
        places[1][:] = head(Command.CONTINUE, FIRST_ID, 6, 50_000)
        self.assertEqual(machine.placed(20_000 + 12 + 100), (20_100, b""))
        self.assertEqual(self.lengths(machine)[:2], [49_900, 12])

    def test_no_more_than_the_kernel_takes_in_one_call(self) -> None:
        for block in (10, 64, 5000, 1 << 20):
            machine = self.machine()
            machine.room = lambda size, block=block: [
                memoryview(bytearray(min(block, size - at))) for at in range(0, size, block)
            ]
            taken(machine, frame(Command.BEGIN, FIRST_ID))
            for seq in range(3):
                taken(machine, frame(Command.CONTINUE, FIRST_ID, seq, bytes(200_000)))
            self.assertLessEqual(len(machine.places()), 1000)
            taken(machine, head(Command.CONTINUE, FIRST_ID, 3, 4_000_000))
            self.assertLessEqual(len(machine.places()), 1000)
