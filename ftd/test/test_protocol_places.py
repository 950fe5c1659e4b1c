"""A receiver whose sink has room: what is read to its place, and what its sink and its commits make it wait for."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from zope.interface import implementer

from ftd.interfaces import IInPlaceSink
from ftd.protocol import ReceiverProtocol
from ftd.test.link_case import FakeSink, LinkTestCase, ScriptedPeer, code_of
from ftd.test.test_protocol_receiver import transaction
from ftd.test.wire.profile import examples
from ftd.test.wire.reaching import frame, head
from ftd.test.wire.test_placement import SMALL
from ftd.testing.transport import Link
from ftd.wire import placement
from ftd.wire.constants import Command


@implementer(IInPlaceSink)
class RoomySink(FakeSink):
    """
    A `FakeSink` with room in blocks.

    :ivar filled_bytes: how much came by `filled`.
    :ivar has_room: whether it has room now.
    """

    def __init__(self, block: int = 50) -> None:
        super().__init__()
        self.filled_bytes = 0
        self.has_room = True
        self._block = block
        self._given: list[bytearray] = []

    def room(self, size: int) -> Sequence[memoryview]:
        """See `IInPlaceSink`."""
        assert self.held is not None, "no transaction is open"
        if not self.has_room:
            return ()
        while sum(map(len, self._given)) < size:
            self._given.append(bytearray(self._block))
        views = [memoryview(block) for block in self._given]
        return [view[: max(0, size - at * self._block)] for at, view in enumerate(views) if size > at * self._block]

    def filled(self, size: int) -> None:
        """See `IInPlaceSink`."""
        given, self._given = b"".join(self._given), []
        assert 0 < size <= len(given), "that much room was not given"
        self.filled_bytes += size
        self.write(given[:size])

    def write(self, data: bytes | memoryview) -> None:
        """See `ISink`."""
        self._given = []
        super().write(data)


class PlacedTests(LinkTestCase):
    """Reads that go to their place."""

    def setUp(self) -> None:
        super().setUp()
        for name, value in SMALL.items():
            self.patch(placement, name, value)
        self.secondary.sink = self.sink = self.roomy = RoomySink()
        self.open_up()

    def open_up(self) -> None:
        self.receiver: ReceiverProtocol
        self.peer: ScriptedPeer
        self.link: Link
        self.receiver, self.peer, self.link = self.open_from_script()

    def read(self, data: bytes) -> int:
        """One read of the start of ``data``; how much that was."""
        places = self.receiver.places()
        if not places:
            scratch = bytearray(data)
            self.receiver.dataReceived(memoryview(scratch))
            # What was read is gone when the call is over.
            scratch[:] = b"!" * len(scratch)
            return len(data)
        at = 0
        for place in places:
            part = data[at : at + len(place)]
            place[: len(part)] = part
            at += len(part)
        self.receiver.placed(at)
        return at

    def read_all(self, data: bytes, size: int = 1 << 20) -> None:
        """Reads of up to ``size`` bytes."""
        while data:
            data = data[self.read(data[:size]) :]

    def test_it_arrives_where_the_sink_wants_it(self) -> None:
        payloads = [bytes([seq]) * 20 for seq in range(50)]
        before = self.receiver_traffic.received
        self.read_all(transaction(0, *payloads) + transaction(1, *payloads), 100)
        self.assertEqual(self.sink.kept, [b"".join(payloads)] * 2)
        self.assertGreater(self.roomy.filled_bytes, 1000)
        self.assertEqual(self.receiver_traffic.received - before, len(transaction(0, *payloads)) * 2)
        self.link.pump()
        self.assertEqual(self.peer.commands(), ["ACK", "ACK"])

    def test_a_sink_without_room_gets_all_of_it_too(self) -> None:
        payloads = [bytes([seq]) * 20 for seq in range(50)]
        self.roomy.has_room = False
        self.read_all(transaction(0, *payloads), 100)
        self.assertEqual((self.sink.kept, self.roomy.filled_bytes), ([b"".join(payloads)], 0))

    def test_a_sink_that_was_never_asked_has_no_places(self) -> None:
        self.receiver.dataReceived(frame(Command.BEGIN, 0) + head(Command.CONTINUE, 0, 0, 100))
        self.assertEqual(list(self.receiver.places()), [])

    def test_a_sink_that_is_full_is_given_nothing_more(self) -> None:
        self.sink.pause_at = 30
        self.receiver.dataReceived(frame(Command.BEGIN, 0) + head(Command.CONTINUE, 0, 0, 100) + b"a" * 10)
        self.read(b"b" * 90 + frame(Command.CONTINUE, 0, 1, b"c" * 3))
        self.assertEqual(self.sink.held, b"a" * 10 + b"b" * 90)
        self.assertTrue(self.receiver.is_frozen)
        self.assertEqual(list(self.receiver.places()), [])
        self.sink.resume()
        self.assertEqual(self.sink.held, b"a" * 10 + b"b" * 90 + b"c" * 3)

    def test_nothing_has_a_place_while_the_sink_is_full(self) -> None:
        self.receiver.dataReceived(frame(Command.BEGIN, 0) + head(Command.CONTINUE, 0, 0, 100) + b"a" * 10)
        self.assertEqual(len(self.receiver.places()[0]), 50)
        self.sink.pause()
        self.assertEqual(list(self.receiver.places()), [])
        self.sink.resume()
        self.assertEqual(len(self.receiver.places()[0]), 50)

    def test_an_error_in_what_was_predicted(self) -> None:
        frames = [frame(Command.CONTINUE, 0, seq, b"0123456789") for seq in (0, 1, 2, 3, 5, 6)]
        self.read_all(frame(Command.BEGIN, 0) + b"".join(frames), 30)
        self.link.pump()
        self.assertEqual(code_of(self.secondary.lost_with), ["STATE_INVALID"])
        self.assertEqual((self.sink.held, self.sink.aborts, self.receiver.machine.size), (None, 1, 40))

    def test_a_link_that_ends_in_a_payload(self) -> None:
        frames = [frame(Command.CONTINUE, 0, seq, b"0123456789") for seq in range(4)]
        self.read_all((frame(Command.BEGIN, 0) + b"".join(frames))[:-3], 30)
        self.peer.close()
        self.link.pump()
        self.assertEqual(code_of(self.secondary.lost_with), ["RECV_PAYLOAD"])

    @examples(200)
    @given(
        st.lists(st.lists(st.tuples(st.integers(0, 25), st.integers(1, 12)), max_size=3), min_size=1, max_size=3),
        st.lists(st.integers(1, 120), min_size=1, max_size=10),
        st.lists(st.integers(1, 200), max_size=10),
        st.integers(1, 60),
    )
    def test_wherever_it_stops_it_loses_nothing(
        self, shapes: list[list[tuple[int, int]]], reads: list[int], pauses: list[int], block: int
    ) -> None:
        super().setUp()
        self.secondary.sink = self.sink = RoomySink(block)
        self.sink.is_slow = True
        self.open_up()
        expected = []
        stream = b""
        for id, shape in enumerate(shapes):
            lengths = [length for length, count in shape for _ in range(count)]
            payloads = [bytes([(at + id) % 256]) * length for at, length in enumerate(lengths)]
            stream += transaction(id, *payloads)
            # What has no frame is a heartbeat.
            expected += [b"".join(payloads)] if payloads else []
        turn = 0
        while stream or self.receiver.is_frozen:
            turn += 1
            if self.sink.committing:
                self.sink.finish()
            elif self.receiver.is_frozen:
                self.sink.pause_at = pauses.pop() if pauses else None
                self.sink.resume()
            elif stream:
                if pauses:
                    self.sink.pause_at = pauses.pop()
                stream = stream[self.read(stream[: reads[turn % len(reads)]]) :]
        self.assertEqual(self.sink.kept, expected)
