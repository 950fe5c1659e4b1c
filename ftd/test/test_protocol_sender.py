"""The sending end: what freezes and thaws it, what that means for its source, and how it closes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from ftd.link_protocol import LinkTimes
from ftd.protocol import SenderProtocol
from ftd.test.link_case import BUFFER_LIMIT, CAPACITY, FakeSource, GreedySource, LinkTestCase, code_of
from ftd.test.wire.profile import examples
from ftd.test.wire.reaching import frame
from ftd.testing.transport import Link
from ftd.trace import TRACE_EVENTS
from ftd.wire.constants import HEADER_SIZE, Command

#: A frame that fills the transport by itself.
BIG = b"b" * (CAPACITY + 500)

_FREEZING = (
    "ft_trans_freeze_output",
    "ft_trans_put_ready",
    "ft_trans_flush",
    "ft_trans_append",
    "ft_trans_realloc",
    "ft_trans_cb",
)


@implementer(IPullProducer)
class PullSource:
    def resumeProducing(self) -> None:
        """See `IPullProducer`."""

    def stopProducing(self) -> None:
        """See `IPullProducer`."""


class FreezeTests(LinkTestCase):
    """``freeze_output`` and ``put_ready``: the transport pauses and resumes the sender."""

    def setUp(self) -> None:
        super().setUp()
        self.sender, self.peer, self.link = self.open_to_script()
        self.sender.begin()
        self.link.pump()
        self.primary.frozen_changes = 0
        self.sender_trace.switch(dict.fromkeys(_FREEZING, True))

    def put_aside(self) -> int:
        """Bytes that wait and that the transport has not taken over."""
        return self.sender.buffered - self.sender.link.unsent

    def test_a_frame_that_fits_does_not_freeze(self) -> None:
        self.sender.write(b"x" * (CAPACITY - HEADER_SIZE))
        self.assertFalse(self.sender.is_frozen)
        self.assertEqual(self.traced(self.sender_bus), [])
        self.assertEqual(self.primary.frozen_changes, 0)

    def test_a_full_transport_freezes(self) -> None:
        self.sender.write(BIG)
        self.assertTrue(self.sender.is_frozen)
        self.assertEqual(self.put_aside(), 0)
        self.assertEqual(self.traced(self.sender_bus), [("ft_trans_freeze_output", {})])
        self.assertEqual(self.primary.frozen_changes, 1)

    def test_a_drained_transport_thaws(self) -> None:
        self.sender.write(BIG)
        self.link.pump()
        self.assertFalse(self.sender.is_frozen)
        self.assertEqual(
            self.traced(self.sender_bus)[1:],
            [
                ("ft_trans_put_ready", {}),
                ("ft_trans_flush", {"size": 0, "req": 0}),
                ("ft_trans_cb", {"cb": "put_ready"}),
            ],
        )
        self.assertEqual(self.primary.frozen_changes, 2)

    def test_what_is_put_while_frozen_is_appended_and_the_buffer_grows(self) -> None:
        self.sender.write(BIG)
        waiting = self.link.to_server.waiting
        self.sender.write(b"y" * 100)
        self.assertEqual(self.link.to_server.waiting, waiting)
        self.assertEqual(self.put_aside(), HEADER_SIZE + 100)
        self.assertEqual(
            self.traced(self.sender_bus)[1:],
            [
                ("ft_trans_realloc", {"old_size": 0, "new_size": HEADER_SIZE}),
                ("ft_trans_append", {"size": HEADER_SIZE}),
                ("ft_trans_realloc", {"old_size": HEADER_SIZE, "new_size": 100}),
                ("ft_trans_append", {"size": 100}),
            ],
        )

    def test_a_buffer_that_was_large_enough_before_does_not_grow(self) -> None:
        for _ in range(2):
            self.sender.write(BIG)
            self.sender.write(b"y" * 100)
            self.link.pump()
        names = [name for name, _ in self.traced(self.sender_bus)]
        self.assertEqual((names.count("ft_trans_realloc"), names.count("ft_trans_append")), (2, 4))

    def test_thawing_flushes_the_buffer(self) -> None:
        self.sender.write(BIG)
        self.sender.write(b"y" * 100)
        self.sender_trace.switch({"ft_trans_append": False, "ft_trans_realloc": False})
        self.link.pump()
        self.assertEqual(self.sender.buffered, 0)
        self.assertEqual([payload for _, payload in self.peer.frames()], [b"", BIG, b"y" * 100])
        self.assertEqual(
            self.traced(self.sender_bus)[-3:],
            [
                ("ft_trans_put_ready", {}),
                ("ft_trans_flush", {"size": HEADER_SIZE + 100, "req": HEADER_SIZE + 100}),
                ("ft_trans_cb", {"cb": "put_ready"}),
            ],
        )

    def test_a_flush_that_fills_the_transport_again_stops_there(self) -> None:
        self.sender.write(BIG)
        self.sender_trace.switch({"ft_trans_append": False, "ft_trans_realloc": False})
        self.sender.write(BIG)
        self.sender.write(b"y" * 100)
        frame_size, rest = HEADER_SIZE + len(BIG), HEADER_SIZE + 100
        self.link.to_server.deliver()
        self.assertTrue(self.sender.is_frozen)
        self.assertEqual(self.put_aside(), rest)
        self.assertEqual(
            self.traced(self.sender_bus)[-3:],
            [
                ("ft_trans_put_ready", {}),
                ("ft_trans_freeze_output", {}),
                ("ft_trans_flush", {"size": frame_size, "req": frame_size + rest}),
            ],
        )
        self.link.pump()
        self.assertEqual(self.traced(self.sender_bus)[-1], ("ft_trans_cb", {"cb": "put_ready"}))
        self.assertEqual([payload for _, payload in self.peer.frames()], [b"", BIG, BIG, b"y" * 100])

    def test_being_told_to_pause_again_and_again_changes_nothing(self) -> None:
        source = FakeSource()
        self.sender.registerProducer(source, True)
        self.sender.write(BIG)
        for _ in range(3):
            self.sender.pauseProducing()
        self.assertEqual(self.traced(self.sender_bus), [("ft_trans_freeze_output", {})])
        self.assertEqual(source.calls, ["pause"])
        self.assertEqual(self.primary.frozen_changes, 1)

    def test_events_that_are_off_cost_nothing_and_say_nothing(self) -> None:
        self.sender_trace.switch(dict.fromkeys(TRACE_EVENTS, False))
        self.sender.write(BIG)
        self.sender.write(BIG)
        self.link.pump()
        self.assertEqual(self.traced(self.sender_bus), [])

    def test_headers_and_payloads_are_traced(self) -> None:
        self.sender_trace.switch({**dict.fromkeys(_FREEZING, False), "ft_trans_send_header": True})
        self.sender_trace.switch({"ft_trans_put_buffer": True})
        self.sender.write(b"abc")
        self.sender.write_frame((b"de", b"f"))
        self.assertEqual(
            self.traced(self.sender_bus),
            [
                ("ft_trans_put_buffer", {"size": 3, "pos": 0}),
                ("ft_trans_send_header", {"cmd": Command.CONTINUE}),
                ("ft_trans_put_buffer", {"size": 3, "pos": 3}),
                ("ft_trans_send_header", {"cmd": Command.CONTINUE}),
            ],
        )


class SourceTests(LinkTestCase):
    """The sender is the consumer of its source, and says when that has to wait."""

    def setUp(self) -> None:
        super().setUp()
        self.sender, self.peer, self.link = self.open_to_script()
        self.sender.begin()
        self.link.pump()
        self.source = FakeSource()

    def fill(self, size: int) -> None:
        """Have about ``size`` bytes in the buffer of a frozen sender, in frames of 1,000."""
        self.sender.write(BIG)
        for _ in range(size // 1000):
            self.sender.write(b"z" * (1000 - HEADER_SIZE))

    def test_with_the_rate_limit_a_freeze_pauses_the_source_and_a_thaw_resumes_it(self) -> None:
        self.sender.registerProducer(self.source, True)
        self.sender.write(BIG)
        self.assertEqual(self.source.calls, ["pause"])
        self.link.pump()
        self.assertEqual(self.source.calls, ["pause", "resume"])

    def test_the_source_goes_on_only_when_all_is_flushed(self) -> None:
        self.sender.registerProducer(self.source, True)
        self.sender.write(BIG)
        self.sender.write(BIG)
        self.link.to_server.deliver()
        self.assertEqual(self.source.calls, ["pause"])
        self.link.pump()
        self.assertEqual(self.source.calls, ["pause", "resume"])

    def test_without_it_the_source_runs_on_up_to_the_limit_of_the_buffer(self) -> None:
        self.sender.set_rate_limit(False)
        self.sender.registerProducer(self.source, True)
        self.fill(BUFFER_LIMIT - 1000)
        self.assertEqual(self.source.calls, [])
        self.sender.write(b"z" * (1000 - HEADER_SIZE))
        self.assertEqual(self.sender.buffered - self.sender.link.unsent, BUFFER_LIMIT)
        self.assertEqual(self.source.calls, ["pause"])

    def test_from_the_limit_it_goes_on_when_half_of_the_buffer_is_gone(self) -> None:
        self.sender.set_rate_limit(False)
        self.sender.registerProducer(self.source, True)
        self.fill(BUFFER_LIMIT)
        buffered = []
        while self.source.is_paused:
            buffered.append(self.sender.buffered)
            self.link.to_server.deliver()
        self.assertGreaterEqual(min(buffered), BUFFER_LIMIT // 2)
        self.assertLess(self.sender.buffered, BUFFER_LIMIT // 2)
        self.assertTrue(self.sender.is_frozen)
        self.assertEqual(self.source.calls, ["pause", "resume"])

    def test_at_the_limit_the_toggle_changes_nothing(self) -> None:
        self.sender.set_rate_limit(False)
        self.sender.registerProducer(self.source, True)
        self.fill(BUFFER_LIMIT)
        self.sender.set_rate_limit(True)
        self.sender.set_rate_limit(False)
        self.assertEqual(self.source.calls, ["pause"])

    def test_the_toggle_works_at_once(self) -> None:
        self.sender.registerProducer(self.source, True)
        self.sender.write(BIG)
        self.sender.set_rate_limit(False)
        self.assertEqual(self.source.calls, ["pause", "resume"])
        self.sender.set_rate_limit(False)
        self.sender.set_rate_limit(True)
        self.sender.set_rate_limit(True)
        self.assertEqual(self.source.calls, ["pause", "resume", "pause"])

    def test_a_source_that_comes_to_a_frozen_sender_is_paused(self) -> None:
        self.sender.write(BIG)
        self.sender.registerProducer(self.source, True)
        self.assertEqual(self.source.calls, ["pause"])

    def test_a_source_that_is_done_hears_nothing_more(self) -> None:
        self.sender.registerProducer(self.source, True)
        self.sender.unregisterProducer()
        self.sender.write(BIG)
        self.link.pump()
        self.assertEqual(self.source.calls, [])

    def test_the_next_source_does_not_inherit_a_pause(self) -> None:
        self.sender.registerProducer(self.source, True)
        self.sender.write(BIG)
        self.sender.unregisterProducer()
        self.link.pump()
        second = FakeSource()
        self.sender.registerProducer(second, True)
        self.sender.write(BIG)
        self.assertEqual(second.calls, ["pause"])

    def test_one_source_at_a_time(self) -> None:
        self.sender.registerProducer(self.source, True)
        self.assertRaises(RuntimeError, self.sender.registerProducer, FakeSource(), True)

    def test_a_source_that_has_to_be_pulled_is_refused(self) -> None:
        self.assertRaises(ValueError, self.sender.registerProducer, PullSource(), True)
        self.assertRaises(ValueError, self.sender.registerProducer, self.source, False)

    def test_a_source_that_writes_when_it_is_resumed_keeps_one_frame_in_the_buffer_at_most(self) -> None:
        frames = [bytes([number]) * 700 for number in range(30)]
        source = GreedySource(self.sender, frames)
        self.sender.registerProducer(source, True)
        source.go()
        while not source.is_done:
            self.assertTrue(source.is_paused)
            self.assertLessEqual(self.sender.buffered, 700)
            self.assertTrue(self.link.step(100))
        self.link.pump()
        self.assertEqual([payload for _, payload in self.peer.frames()[1:]], frames)
        self.assertLess(self.link.client.most_unsent, CAPACITY + HEADER_SIZE + 700)

    def test_a_link_that_ends_lets_go_of_the_source(self) -> None:
        self.sender.registerProducer(self.source, True)
        self.sender.set_bandwidth(1000)
        self.sender.write(BIG)
        self.link.cut(clean=False)
        self.link.pump()
        self.sender.set_rate_limit(False)
        self.sender.set_bandwidth(0)
        self.assertEqual(self.source.calls, ["pause"])
        self.assertEqual((self.sender.buffered, self.clock.getDelayedCalls()), (0, []))


class RandomFreezeTests(LinkTestCase):
    """Whatever stalls and goes on, nothing is lost or reordered, and the buffer stays bounded."""

    largest = 3000

    @examples(150)
    @given(st.lists(st.binary(max_size=largest), max_size=30), st.booleans(), st.data())
    def test_all_frames_arrive_in_order(self, frames: list[bytes], rate_limit: bool, data: st.DataObject) -> None:
        self.setUp()
        no_beats = LinkTimes(handshake=1000.0, heartbeat=1000.0, dead=1000.0)
        sender, peer, link = self.open_to_script(self.new_sender(rate_limit=rate_limit, times=no_beats))
        sender.begin()
        link.pump()
        peer.heard.clear()
        source = GreedySource(sender, frames)
        sender.registerProducer(source, True)
        source.go()
        actions: list[Callable[[], object]] = [
            lambda: link.to_server.deliver(data.draw(st.integers(1, 2 * self.largest), label="deliver")),
            lambda: sender.set_rate_limit(data.draw(st.booleans(), label="rate limit")),
            lambda: sender.set_bandwidth(data.draw(st.sampled_from((0, 5_000, 100_000)), label="bandwidth")),
            lambda: self.clock.advance(data.draw(st.floats(0, 0.3), label="seconds")),
            sender.pauseProducing,
        ]
        for action in data.draw(st.lists(st.sampled_from(actions), max_size=40), label="actions"):
            action()
            self.check(sender, source)
        # From here on nothing stands in the way any more.
        sender.set_bandwidth(0)
        sender.resumeProducing()
        link.pump()
        self.assertTrue(source.is_done)
        self.assertEqual((sender.buffered, sender.is_frozen), (0, False))
        self.assertEqual([payload for _, payload in peer.frames()], frames)
        self.assertEqual([header.seq for header, _ in peer.frames()], list(range(sender.machine.seq)))

    def check(self, sender: SenderProtocol, source: GreedySource) -> None:
        self.assertLess(sender.buffered, BUFFER_LIMIT + HEADER_SIZE + self.largest)
        if sender.rate_limit and sender.is_frozen:
            self.assertTrue(source.is_paused)
        elif source.is_paused:
            self.assertGreaterEqual(sender.buffered, BUFFER_LIMIT // 2)
        if not source.is_paused:
            self.assertTrue(source.is_done)


class WireTests(LinkTestCase):
    """What a call puts on the wire."""

    def test_each_call_is_its_frame(self) -> None:
        sender, peer, link = self.open_to_script()
        sender.begin()
        sender.write(b"one")
        sender.write_frame((b"t", memoryview(b"wo")))
        sender.cancel()
        sender.begin()
        sender.commit()
        link.pump()
        self.assertEqual(peer.commands(), ["BEGIN", "CONTINUE", "CONTINUE", "CANCEL", "BEGIN", "COMMIT"])
        self.assertEqual([payload for _, payload in peer.frames()], [b"", b"one", b"two", b"", b"", b""])

    def test_an_atomic_transaction_is_one_frame(self) -> None:
        ends = self.open()
        ends.sender.atomic((b"all ", b"at once"))
        ends.link.pump()
        self.assertEqual(self.sink.kept, [b"all at once"])
        self.assertEqual(self.primary.events[-1], "transaction 0 acknowledged")

    def test_traffic_is_counted(self) -> None:
        ends = self.open()
        ends.sender.begin()
        ends.sender.write(BIG)
        ends.sender.commit()
        ends.link.pump()
        sent, answered = len(ends.link.to_server.delivered), len(ends.link.to_client.delivered)
        self.assertGreater(sent, len(BIG))
        self.assertEqual((self.sender_traffic.sent, self.sender_traffic.received), (sent, answered))
        self.assertEqual((self.receiver_traffic.sent, self.receiver_traffic.received), (answered, sent))

    def test_a_kemari_is_known_by_its_ack(self) -> None:
        sender, _, _ = self.open_to_script(kemari=True)
        self.assertEqual(self.primary.events, ["opened by kemari, next is 0"])
        self.assertTrue(sender.machine.peer_is_kemari)


class CloseTests(LinkTestCase):
    """A polite end."""

    def setUp(self) -> None:
        super().setUp()
        self.sender, self.peer, self.link = self.open_to_script()

    def close(self) -> Link:
        self.sender.close()
        self.link.pump()
        return self.link

    def test_an_idle_link_ends_at_once_and_without_an_error(self) -> None:
        self.assertTrue(self.close().is_over)
        self.assertEqual(self.primary.lost_with, [None])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_closes_is_told_when_it_is_over(self) -> None:
        told: list[int] = []
        for _ in range(2):
            self.sender.close().addCallback(lambda _: told.append(len(self.primary.lost_with)))
        self.assertEqual(told, [])
        self.link.pump()
        self.assertEqual(told, [1, 1], "after its owner")
        self.successResultOf(self.sender.close())

    def test_the_end_is_traced(self) -> None:
        self.sender_trace.switch({"ft_trans_close": True})
        self.close()
        self.assertEqual(self.traced(self.sender_bus), [("ft_trans_close", {})])

    def test_what_waits_in_the_buffer_is_sent_first(self) -> None:
        self.sender.begin()
        self.sender.write(BIG)
        self.sender.write(BIG)
        self.sender.cancel()
        self.assertTrue(self.close().is_over)
        self.assertEqual(self.peer.commands(), ["BEGIN", "CONTINUE", "CONTINUE", "CANCEL"])
        self.assertEqual(self.primary.lost_with, [None])

    def test_what_the_bandwidth_limit_holds_back_is_sent_first(self) -> None:
        self.sender.set_bandwidth(10_000)
        self.sender.begin()
        self.sender.write(BIG)
        self.sender.cancel()
        self.sender.close()
        self.link.pump()
        self.assertFalse(self.link.is_over)
        self.pass_time(0.5, self.link)
        self.assertTrue(self.link.is_over)
        self.assertEqual(self.peer.commands(), ["BEGIN", "CONTINUE", "CANCEL"])

    def test_a_peer_that_does_not_read_is_not_waited_for_for_ever(self) -> None:
        self.sender.begin()
        self.sender.write(BIG)
        self.sender.cancel()
        self.link.to_server.is_stalled = True
        self.close()
        self.pass_time(9.8, self.link)
        self.assertTrue(self.link.client.connected)
        self.pass_time(0.4, self.link)
        self.assertFalse(self.link.client.connected)
        self.assertEqual(code_of(self.primary.lost_with), ["FLUSH"])

    def test_what_the_peer_still_says_is_not_heard(self) -> None:
        self.sender.begin()
        self.sender.write(BIG)
        self.sender.commit()
        self.sender.close()
        self.link.to_server.is_stalled = True
        self.peer.say(frame(Command.ACK, 0, 1))
        self.link.pump()
        self.assertEqual(self.link.to_client.waiting, 0)
        self.assertNotIn("transaction 0 acknowledged", self.primary.events)
