"""What waits for the transport: in order, uncopied, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from ftd.bus import EventBus
from ftd.outbox import Outbox
from ftd.test.wire.profile import examples
from ftd.trace import TRACE_EVENTS, PairTrace
from ftd.transport.stock import StockTransport
from ftd.wire.sender import Buffer


class NotingTransport(StringTransport):
    """
    :ivar written: the very objects that it was given.
    :ivar when_written: called inside of every ``write``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.when_written: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        """See `ITransport`."""
        super().write(data)
        self.written.append(data)
        self.when_written()


class LazyLink(StockTransport):
    """
    Takes what it gets, and sends it when the test says so.

    :ivar flushes: how often it was asked to.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.flushes = 0
        self._held: list[Buffer] = []

    @property
    def unsent(self) -> int:
        """See `LinkTransport`."""
        return sum(map(len, self._held))

    def gather(self, pieces: Iterable[Buffer]) -> None:
        """See `LinkTransport`."""
        self._held += pieces

    def flush(self, window: int = 1) -> None:  # noqa: ARG002
        """See `LinkTransport`."""
        self.flushes += 1

    def take_all(self) -> None:
        """All of it is with the kernel."""
        self._held.clear()


class OutboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.bus = EventBus(lambda: 0.0)
        self.transport = NotingTransport()
        self.changes = 0
        self.outbox = self.new_outbox()

    def new_outbox(self, bandwidth: int = 0) -> Outbox:
        trace = PairTrace("demo", self.bus, TRACE_EVENTS)
        return Outbox(StockTransport(self.transport), self.clock, trace, bandwidth, self.changed)

    def changed(self) -> None:
        self.changes += 1

    def traced(self) -> list[str]:
        """The names of the trace events, without ``ft_trans_``."""
        return [event.name.removeprefix("ft_trans_") for event in self.bus.since(0)[1]]

    def test_what_can_go_goes_at_once_and_uncopied(self) -> None:
        pieces = (b"header", b"payload")
        self.outbox.put(pieces)
        self.assertTrue(all(map(lambda a, b: a is b, self.transport.written, pieces)))
        self.assertEqual((self.outbox.sent, self.outbox.size, self.traced()), (13, 0, []))

    def test_a_transport_that_takes_all_gets_them_in_one_call(self) -> None:
        link = LazyLink()
        link.takes_all = True
        outbox = Outbox(link, self.clock, PairTrace("demo", self.bus), 0, self.changed)
        calls: list[list[Buffer]] = []

        def gather(pieces: Iterable[Buffer]) -> None:
            calls.append(list(pieces))
            # It is full as soon as it has sent some of it.
            outbox.pause()

        self.patch(link, "gather", gather)
        outbox.put((b"header", b"payload"))
        outbox.put((b"waits",))
        self.assertEqual((calls, outbox.sent, outbox.size), ([[b"header", b"payload"]], 13, 5))

    def test_what_waits_is_not_copied_either(self) -> None:
        payload = bytes(100)
        self.outbox.pause()
        self.outbox.put((payload,))
        self.assertEqual((self.outbox.sent, self.outbox.size), (0, 100))
        self.outbox.resume()
        self.assertIs(self.transport.written[0], payload)
        self.assertEqual((self.outbox.sent, self.outbox.size), (100, 0))

    def test_a_part_of_something_larger_becomes_the_bytes_that_twisted_wants(self) -> None:
        self.outbox.put((memoryview(b"some state")[5:], bytearray(b"!")))
        self.assertEqual(self.transport.written, [b"state", b"!"])
        self.assertEqual({type(piece) for piece in self.transport.written}, {bytes})

    def test_a_transport_that_fills_up_between_two_pieces_gets_the_second_one_later(self) -> None:
        self.transport.when_written = self.outbox.pause
        self.outbox.put((b"header", b"payload"))
        self.assertEqual((self.transport.written, self.outbox.size), ([b"header"], 7))
        self.outbox.resume()
        self.assertEqual(self.transport.written, [b"header", b"payload"])

    def test_a_piece_of_no_bytes_waits_for_nothing(self) -> None:
        """As the payload of an empty frame is one."""
        self.transport.when_written = self.outbox.pause
        self.outbox.put((b"header", b""))
        self.transport.when_written = lambda: None
        self.outbox.resume()
        self.outbox.put((b"next",))
        self.assertEqual((b"".join(self.transport.written), self.outbox.size), (b"headernext", 0))

    def test_what_the_transport_has_taken_over_is_unsent_until_it_says_so(self) -> None:
        link = LazyLink()
        outbox = Outbox(link, self.clock, PairTrace("demo", self.bus), 0, self.changed)
        outbox.put((b"header", b"payload"))
        self.assertEqual((outbox.size, outbox.unsent, outbox.backlog, link.flushes), (0, 13, 0, 0))
        outbox.put((b"commit",), flush=True)
        self.assertEqual((outbox.unsent, link.flushes), (19, 1))
        outbox.pause()
        outbox.put((b"begin",), flush=True)
        self.assertEqual((outbox.size, outbox.unsent, outbox.backlog, link.flushes), (5, 24, 24, 1))
        link.take_all()
        outbox.resume()
        self.assertEqual((outbox.size, outbox.unsent, outbox.backlog, link.flushes), (0, 5, 0, 2))

    def test_it_is_full_while_the_transport_says_so(self) -> None:
        self.outbox.pause()
        self.outbox.pause()
        self.assertEqual((self.outbox.is_full, self.outbox.is_frozen), (True, True))
        self.assertEqual(self.traced(), ["freeze_output"])
        self.outbox.resume()
        self.assertEqual((self.outbox.is_full, self.outbox.is_frozen), (False, False))
        self.assertEqual(self.traced(), ["freeze_output", "put_ready", "flush", "cb"])

    def test_an_empty_bucket_freezes_it_without_being_full(self) -> None:
        self.outbox = self.new_outbox(bandwidth=1000)
        self.outbox.put((bytes(100),))
        self.assertEqual((self.outbox.is_full, self.outbox.is_frozen, self.changes), (False, True, 0))
        self.clock.advance(0.1)
        self.assertEqual((self.outbox.is_frozen, self.changes), (False, 1))

    def test_a_resume_before_the_bucket_is_full_again_sends_nothing(self) -> None:
        self.outbox = self.new_outbox(bandwidth=1000)
        self.outbox.put((bytes(1000),))
        self.outbox.pause()
        sent = self.outbox.sent
        self.outbox.resume()
        self.assertEqual((self.outbox.sent, self.outbox.is_frozen), (sent, True))
        self.assertEqual(self.traced(), ["freeze_output", "put_ready", "flush"])

    def test_the_rest_of_a_piece_goes_before_what_was_put_after_it(self) -> None:
        self.outbox = self.new_outbox(bandwidth=10_000)
        self.outbox.put((b"a" * 2000, b"b" * 2000))
        self.outbox.put((b"c" * 10,))
        self.assertEqual(self.outbox.size + self.outbox.sent, 4010)
        for _ in range(100):
            self.clock.advance(0.01)
        self.assertEqual(self.transport.value(), b"a" * 2000 + b"b" * 2000 + b"c" * 10)
        self.assertEqual((self.outbox.size, self.outbox.sent), (0, 4010))

    def test_what_is_closed_lets_go_of_everything(self) -> None:
        self.outbox = self.new_outbox(bandwidth=1000)
        self.outbox.put((bytes(2000),))
        self.outbox.close()
        self.assertEqual((self.outbox.size, self.clock.getDelayedCalls()), (0, []))
        self.outbox.resume()
        self.assertEqual(len(self.transport.value()), self.outbox.sent)

    @examples(100)
    @given(st.data())
    def test_the_order_is_kept_and_every_byte_counted(self, data: st.DataObject) -> None:
        self.setUp()
        put = bytearray()
        fills_up = st.booleans()

        def maybe_fill() -> None:
            if data.draw(fills_up, label="fills up"):
                self.outbox.pause()

        self.transport.when_written = maybe_fill
        for _ in range(data.draw(st.integers(0, 20), label="steps")):
            pieces = data.draw(st.lists(st.binary(max_size=2000), max_size=4), label="pieces")
            put += b"".join(pieces)
            self.outbox.put(pieces)
            step = data.draw(st.sampled_from(("nothing", "resume", "time", "bandwidth")), label="then")
            if step == "resume":
                self.outbox.resume()
            elif step == "time":
                self.clock.advance(data.draw(st.floats(0, 1), label="seconds"))
            elif step == "bandwidth":
                self.outbox.set_bandwidth(data.draw(st.sampled_from((0, 700, 100_000)), label="bandwidth"))
            self.assertEqual(self.outbox.sent, len(self.transport.value()))
            self.assertEqual(self.outbox.sent + self.outbox.size, len(put))
            self.assertFalse(self.outbox.size and not self.outbox.is_frozen)
        self.transport.when_written = lambda: None
        self.outbox.set_bandwidth(0)
        self.outbox.resume()
        self.assertEqual(self.transport.value(), bytes(put))
