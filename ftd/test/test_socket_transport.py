"""How a link reads and writes its socket: what system calls it makes, and when."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from ftd.testing.fake_socket import SocketEnd, SocketLink
from ftd.testing.transport_suite import SuiteEnd, TransportSuite
from ftd.transport import LinkOptions, LinkTransport, set_options, socket_transport
from ftd.transport.adopt import adopt
from ftd.transport.socket_transport import GATHER, PIECES, READS, STAGING, SocketTransport
from ftd.transport.spin import MOST_ACTIVE, Crowd
from ftd.transport.stock import StockTransport
from ftd.wire.errors import WireError

#: Nothing of these tests is full.
LARGE = 64 << 20


class Answering(SuiteEnd):
    """
    Answers each read.

    :ivar answers: the pieces of the next answers.
    :ivar window: with which they are flushed.
    """

    def __init__(self, suite: TransportSuite) -> None:
        super().__init__(suite)
        self.answers: list[tuple[bytes, ...]] = []
        self.window = 1
        self.reads: list[int] = []
        self.does: list[Any] = []
        self.expects = False

    def dataReceived(self, data: bytes | memoryview) -> None:
        """See `LinkEnd`."""
        super().dataReceived(data)
        self._answer(len(data))

    def placed(self, size: int) -> None:
        """See `LinkEnd`."""
        super().placed(size)
        self._answer(size)

    def _answer(self, size: int) -> None:
        self.reads.append(size)
        for pieces in self.answers:
            self.link.gather(pieces)
            self.link.flush(self.window)
            if self.expects:
                self.link.expect_answer()
        self.answers = []
        if self.does:
            self.does.pop(0)()


class SocketCase(SynchronousTestCase):
    """
    A client and a server, whose transport is tested.

    :ivar now: what the server's transport takes for the time; each look at it takes ``tick`` seconds.
    """

    latency_spin: float | None = 0.0

    def setUp(self) -> None:
        self.now = 0.0
        self.tick = 10e-6
        self.patch(socket_transport, "_CROWD", Crowd(self.clock))
        self.connect()

    def connect(self, capacity: int = LARGE) -> None:
        """See `TransportSuite`."""
        suite: Any = self
        self.client, self.server = SuiteEnd(suite), Answering(suite)
        self.link = SocketLink(self.client, self.server, capacity=capacity)
        self.end: SocketEnd = self.link.server
        self.socket = self.end.handle

    def new_transport(self, transport: Any, end: SuiteEnd) -> LinkTransport:
        """See `TransportSuite`."""
        return SocketTransport(transport, end, self.latency_spin, self.clock)

    def clock(self) -> float:
        """Seconds."""
        self.now += self.tick
        return self.now

    def arrive(self, data: bytes) -> None:
        """Something has arrived, of which the reactor says so."""
        self.socket.incoming += data
        self.link.reactor.readable(self.end)

    def sent(self) -> int:
        """How often the server tried to send since this was asked last."""
        number = self.socket.calls.count("send")
        self.socket.calls.clear()
        return number

    def lost_with(self) -> type[BaseException] | None:
        """Why the server was told that it is over."""
        return self.server.lost.type if self.server.lost is not None else None


class SendTests(SocketCase):
    def test_what_is_gathered_is_one_call(self) -> None:
        self.server.link.gather((b"one", b"two"))
        self.server.link.gather((memoryview(b"three"),))
        self.assertEqual(self.sent(), 0)
        self.server.link.flush()
        self.assertEqual((self.sent(), bytes(self.socket.outgoing)), (1, b"onetwothree"))
        self.assertEqual(self.link.reactor.getDelayedCalls(), [])

    def test_without_a_flush_it_is_sent_at_the_end_of_the_turn(self) -> None:
        for _ in range(3):
            self.server.link.gather((b"one",))
        self.assertEqual(len(self.link.reactor.getDelayedCalls()), 1)
        self.link.reactor.turn()
        self.assertEqual((self.sent(), bytes(self.socket.outgoing)), (1, b"oneoneone"))

    def test_enough_for_a_call_is_sent(self) -> None:
        self.server.link.gather((bytes(GATHER - 1),))
        self.assertEqual(self.sent(), 0)
        self.server.link.gather((b"1",))
        self.assertEqual((self.sent(), self.server.link.unsent), (1, 0))

    def test_a_call_has_no_more_pieces_than_the_kernel_takes(self) -> None:
        self.server.link.gather([b"x"] * (2 * PIECES + 1))
        self.server.link.flush()
        self.assertEqual((self.sent(), bytes(self.socket.outgoing)), (3, b"x" * (2 * PIECES + 1)))

    def test_empty_pieces_do_not_hold_it_up(self) -> None:
        self.server.link.gather([b""] * (2 * PIECES) + [b"x"])
        self.server.link.flush()
        self.assertEqual(bytes(self.socket.outgoing), b"x")

    def test_a_socket_that_takes_a_part_is_waited_for(self) -> None:
        self.connect(capacity=10)
        self.server.link.gather((b"0123", b"4567", b"89ab", b"cdef"))
        self.server.link.flush()
        self.assertEqual((bytes(self.socket.outgoing), self.server.link.unsent), (b"0123456789", 6))
        self.assertTrue(self.link.reactor.writes(self.end))
        self.server.link.write(b"more")
        self.assertEqual(self.sent(), 1, "not before the reactor says so")
        self.link.pump()
        self.assertEqual(self.client.heard, b"0123456789abcdefmore")
        self.assertFalse(self.link.reactor.writes(self.end))

    def test_a_producer_is_told_once(self) -> None:
        self.connect(capacity=10)
        self.server.link.register_producer(self.server)
        for _ in range(5):
            self.server.link.write(b"0123456789")
        self.assertEqual(self.server.calls, ["pause"])
        self.link.pump()
        self.assertEqual(self.server.calls, ["pause", "resume"])

    def test_a_peer_that_takes_everything_does_not_keep_the_reactor_from_others(self) -> None:
        self.server.link.register_producer(self.server)
        self.server.blocks = [bytes(1 << 20)] * 20
        self.server.go()
        self.assertTrue(self.server.is_paused)
        self.assertEqual(self.server.link.unsent, 0)
        self.link.pump(LARGE)
        self.assertEqual(len(self.client.heard), 20 << 20)

    def test_what_a_read_leads_to_is_a_few_calls(self) -> None:
        self.server.window = 16
        self.server.answers = [(b"ack",)] * 15
        self.arrive(b"x")
        # Four at a time while there are, and at the end of the read the rest.
        self.assertEqual((self.sent(), bytes(self.socket.outgoing)), (4, b"ack" * 15))

    def test_an_answer_that_is_waited_for_goes_before_the_end_of_the_read(self) -> None:
        self.server.answers = [(b"ack",)]
        calls: list[int] = []
        self.server.does = [lambda: calls.append(self.sent())]
        self.arrive(b"x")
        self.assertEqual((calls, self.sent()), ([1], 0))

    def test_an_iterable_ends_when_the_producer_is_paused(self) -> None:
        self.connect(capacity=GATHER)
        self.server.link.register_producer(self.server)
        taken = []

        def pieces() -> Any:
            while not self.server.is_paused:
                taken.append(1)
                yield bytes(GATHER // 2)

        self.server.link.gather(pieces())
        self.assertLessEqual(len(taken), 4)


class ReadTests(SocketCase):
    def test_a_read_that_was_not_full_is_the_last(self) -> None:
        self.arrive(b"x" * 100)
        self.assertEqual((self.server.reads, self.socket.calls), ([100], ["recv"]))

    def test_a_full_one_is_followed_by_another(self) -> None:
        self.server.room = [60, 40]
        self.arrive(b"x" * 150)
        self.assertEqual(self.server.reads, [100, 50])

    def test_but_the_others_have_their_turn(self) -> None:
        self.server.room = [10]
        self.arrive(b"x" * 1000)
        self.assertEqual(self.server.reads, [10] * READS)

    def test_who_pauses_reads_no_more(self) -> None:
        self.server.room = [10]
        self.server.does = [self.server.link.pause_reading]
        self.arrive(b"x" * 1000)
        self.assertEqual(self.server.reads, [10])

    def test_a_short_pause_costs_no_system_call(self) -> None:
        self.server.link.pause_reading()
        self.assertTrue(self.link.reactor.reads(self.end))
        self.server.link.resume_reading()
        self.arrive(b"x")
        self.assertEqual(self.server.reads, [1])

    def test_a_longer_one_is_noticed_when_something_arrives(self) -> None:
        self.server.link.pause_reading()
        self.arrive(b"x")
        self.assertFalse(self.link.reactor.reads(self.end))
        self.assertEqual(self.server.reads, [])
        self.server.link.resume_reading()
        self.assertTrue(self.link.reactor.reads(self.end))

    def test_without_places_it_reads_into_what_all_share(self) -> None:
        self.arrive(b"x" * (STAGING + 1))
        self.assertEqual(self.server.reads, [STAGING, 1])

    def test_a_reader_that_breaks_ends_the_link(self) -> None:
        self.server.does = [lambda: 1 // 0]
        self.arrive(b"x")
        self.assertIs(self.lost_with(), ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.connect()
        self.arrive(b"x")
        self.assertEqual(self.server.reads, [1], "the next one reads")


class EndTests(SocketCase):
    def test_the_end_of_the_stream(self) -> None:
        self.socket.peer_has_gone(clean=True)
        self.arrive(b"last words")
        self.link.reactor.readable(self.end)
        self.assertEqual((self.server.heard, self.lost_with()), (b"last words", ConnectionDone))

    def test_a_reset(self) -> None:
        self.socket.peer_has_gone(clean=False)
        self.link.reactor.readable(self.end)
        self.assertIs(self.lost_with(), ConnectionLost)

    def test_a_reset_that_sending_meets_first(self) -> None:
        """What has arrived is still read, as by Twisted; and the kernel says but once that it was a reset."""
        self.socket.incoming += b"last words"
        self.socket.peer_has_gone(clean=True)
        self.server.link.write(b"x")
        self.assertIsNone(self.lost_with(), "not from inside of the call")
        self.link.reactor.readable(self.end)
        self.link.reactor.readable(self.end)
        self.assertEqual((self.server.heard, self.lost_with()), (b"last words", ConnectionLost))

    def test_a_reset_that_is_met_while_reading_is_paused(self) -> None:
        self.server.link.pause_reading()
        self.socket.peer_has_gone(clean=False)
        self.server.link.write(b"x")
        self.link.reactor.writable(self.end)
        self.assertIs(self.lost_with(), ConnectionLost)

    def test_who_aborts_in_a_read_reads_and_sends_no_more(self) -> None:
        self.server.room = [10]
        self.server.window = 16
        self.server.answers = [(b"never",)]
        self.server.does = [self.server.link.abort_connection]
        self.arrive(b"x" * 100)
        self.assertEqual((self.server.reads, self.sent()), ([10], 0))
        self.link.reactor.turn()
        self.assertIs(self.lost_with(), ConnectionAborted)

    def test_who_closes_in_a_read_reads_no_more_but_sends(self) -> None:
        self.server.room = [10]
        self.server.answers = [(b"good", b"bye")]
        self.server.does = [self.server.link.lose_connection]
        self.arrive(b"x" * 100)
        self.link.pump()
        self.assertEqual((self.server.reads, self.client.heard), ([10], b"goodbye"))

    def test_nothing_is_left(self) -> None:
        for end in ("lose_connection", "abort_connection"):
            self.setUp()
            self.server.link.gather((b"x",))
            getattr(self.server.link, end)()
            self.link.pump()
            self.assertIsNotNone(self.lost_with())
            self.assertEqual(self.link.reactor.getDelayedCalls(), [])
            self.assertEqual(self.server.link.unsent, 0)
            self.end.doRead()
            self.end.doWrite()


class LookTests(SocketCase):
    latency_spin = 100e-6

    def arrive_after(self, looks: int, data: bytes) -> None:
        """``data`` arrives when the socket has been looked at that often in vain."""
        read = self.socket.recv_into
        seen: list[int] = []

        def recv_into(block: Any) -> int:
            seen.append(1)
            if len(seen) == looks + 1:
                self.socket.incoming += data
            return read(block)

        self.patch(self.socket, "recv_into", recv_into)

    def test_after_a_read_it_looks_at_once(self) -> None:
        self.server.expects = True
        self.server.answers = [(b"ack",)]
        self.arrive_after(4, b"next")
        self.arrive(b"first")
        self.assertEqual((self.server.heard, self.sent()), (b"firstnext", 1))

    def test_it_does_not_look_for_longer_than_that(self) -> None:
        self.server.expects = True
        self.server.answers = [(b"ack",)]
        self.arrive_after(40, b"too late")
        self.arrive(b"first")
        self.assertEqual(self.server.heard, b"first")
        self.assertLess(self.socket.calls.count("recv"), 20)

    def test_between_reads_it_looks_in_the_next_turn(self) -> None:
        self.server.link.write(b"question")
        self.server.link.expect_answer()
        self.assertEqual(self.socket.calls, ["send"])
        self.arrive_after(3, b"answer")
        self.link.reactor.turn()
        self.assertEqual(self.server.heard, b"answer")
        self.assertEqual(self.link.reactor.getDelayedCalls(), [])

    def test_an_answer_that_comes_before_that_is_not_looked_for(self) -> None:
        self.server.link.expect_answer()
        self.arrive(b"answer")
        self.assertEqual(self.link.reactor.getDelayedCalls(), [])

    def test_the_end_is_found_too(self) -> None:
        for clean, reason in ((True, ConnectionDone), (False, ConnectionLost)):
            self.setUp()
            self.server.link.expect_answer()
            self.socket.peer_has_gone(clean=clean)
            self.link.reactor.turn()
            self.assertIs(self.lost_with(), reason)

    def test_a_reader_that_breaks_ends_the_link(self) -> None:
        self.server.does = [lambda: 1 // 0]
        self.server.link.expect_answer()
        self.socket.incoming += b"x"
        self.link.reactor.turn()
        self.assertIs(self.lost_with(), ZeroDivisionError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_answer_upon_answer_lets_the_others_have_their_turn(self) -> None:
        def again() -> None:
            self.socket.incoming += b"x"
            self.server.does.append(again)
            self.server.link.expect_answer()

        self.server.does = [again]
        self.arrive(b"x")
        count = len(self.server.reads)
        self.assertTrue(1 < count < 200, count)
        self.link.reactor.turn()
        self.assertGreater(len(self.server.reads), count, "and goes on after that")

    def test_where_many_expect_answers_nobody_looks(self) -> None:
        for number in range(MOST_ACTIVE):
            socket_transport._CROWD.leaves_room(number)
        self.server.link.expect_answer()
        self.assertEqual(self.link.reactor.getDelayedCalls(), [])

    def test_who_has_paused_does_not_look(self) -> None:
        self.server.link.expect_answer()
        self.server.link.pause_reading()
        self.socket.incoming += b"x"
        self.link.reactor.turn()
        self.assertEqual(self.server.heard, b"")


class AdoptTests(SocketCase):
    def test_what_has_a_socket_is_read_and_written_itself(self) -> None:
        end: Any = self.server
        self.assertIsInstance(adopt(self.end, end, LinkOptions()), SocketTransport)
        self.assertIsInstance(adopt(object(), end, LinkOptions()), StockTransport)

    def test_options(self) -> None:
        options = LinkOptions(congestion_control="cubic", socket_buffer=1 << 20, no_delay=False, user_timeout=2.5)
        set_options(self.end, options)
        self.assertEqual(
            self.socket.options,
            {
                (socket.SOL_SOCKET, socket.SO_SNDBUF): 1 << 20,
                (socket.SOL_SOCKET, socket.SO_RCVBUF): 1 << 20,
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
                (socket.IPPROTO_TCP, socket.TCP_NODELAY): 0,
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 2500,
                (socket.IPPROTO_TCP, socket.TCP_CONGESTION): b"cubic",
            },
        )

    def test_what_is_left_out_stays_as_the_system_has_it(self) -> None:
        set_options(self.end, LinkOptions())
        self.assertEqual(
            set(self.socket.options),
            {(socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_NODELAY)},
        )

    def test_what_has_no_socket_has_no_options(self) -> None:
        set_options(object(), LinkOptions(socket_buffer=1))

    def test_what_the_kernel_refuses(self) -> None:
        def refuse(_level: int, option: int, _value: object) -> None:
            if option == socket.TCP_CONGESTION:
                raise OSError(2, "No such file or directory")

        self.patch(self.socket, "setsockopt", refuse)
        error = self.assertRaises(WireError, set_options, self.end, LinkOptions(congestion_control="reno"))
        self.assertIn("congestion-control = reno", str(error))


class StagingTests(SocketCase):
    def test_a_read_inside_of_a_read_is_an_error_in_ftd(self) -> None:
        """Two links share the block."""
        suite: Any = self
        other = SocketLink(SuiteEnd(suite), SuiteEnd(suite))
        other.server.handle.incoming += b"x"
        self.server.does = [lambda: other.server.doRead()]
        self.arrive(b"x")
        self.assertIs(self.lost_with(), AssertionError)
        self.assertEqual(len(self.flushLoggedErrors(AssertionError)), 1)
        self.assertFalse(socket_transport._STAGING.is_in_use)
