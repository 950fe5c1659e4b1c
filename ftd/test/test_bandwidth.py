"""The bandwidth limit: how even and how exact it is, and what changes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.bandwidth import TokenBucket
from ftd.protocol import SenderProtocol
from ftd.test.link_case import GreedySource, LinkTestCase
from ftd.test.wire.profile import examples
from ftd.testing.transport import TWISTED_BUFFER, Link
from ftd.testing.wire_strategies import AMPLE
from ftd.wire.constants import HEADER_SIZE

#: How far from the limit the flow may be over two seconds.
TOLERANCE = 0.05


class TokenBucketTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.bucket = TokenBucket(self.clock.seconds, 10_000)

    def test_a_portion_is_a_twentieth_of_a_second(self) -> None:
        self.assertEqual(TokenBucket(self.clock.seconds, 1_000_000).portion, 50_000)

    def test_a_portion_is_never_tiny(self) -> None:
        self.assertEqual(TokenBucket(self.clock.seconds, 100).portion, 512)

    def test_what_goes_has_to_be_waited_for(self) -> None:
        self.assertAlmostEqual(self.bucket.take(1000), 0.1)
        self.assertAlmostEqual(self.bucket.take(1000), 0.2)

    def test_time_pays(self) -> None:
        self.bucket.take(1000)
        self.clock.advance(0.06)
        self.assertAlmostEqual(self.bucket.take(0), 0.04)
        self.clock.advance(0.05)
        self.assertEqual(self.bucket.take(0), 0.0)

    def test_a_pause_saves_up_one_portion_and_no_more(self) -> None:
        self.clock.advance(60)
        self.assertEqual(self.bucket.take(512), 0.0)
        self.assertAlmostEqual(self.bucket.take(100), 0.01)

    def test_a_new_rate_does_not_forget_what_has_gone(self) -> None:
        self.bucket.take(1000)
        self.bucket.set_rate(1000)
        self.assertAlmostEqual(self.bucket.take(0), 1.0)

    def test_time_before_a_change_counts_at_the_old_rate(self) -> None:
        self.bucket.take(1000)
        self.clock.advance(0.05)
        self.bucket.set_rate(1_000_000)
        self.assertAlmostEqual(self.bucket.take(0), 0.0005)


class FlowTests(LinkTestCase):
    """The limit as a peer sees it."""

    def start(self, rate: int, seconds_worth: float = 10.0, frame_size: int = 5000) -> tuple[SenderProtocol, Link]:
        """A sender at its limit, which has more to send than the test takes."""
        sender, _, link = self.open_to_script(self.new_sender(bandwidth=rate, limits=AMPLE), capacity=TWISTED_BUFFER)
        sender.begin()
        frames = [bytes(frame_size)] * (int(rate * seconds_worth / frame_size) + 1)
        source = GreedySource(sender, frames)
        sender.registerProducer(source, True)
        source.go()
        return sender, link

    def flow(self, link: Link, seconds: float, step: float) -> int:
        """Bytes that arrive within ``seconds``."""
        before = len(link.to_server.delivered)
        self.pass_time(seconds, link, step)
        return len(link.to_server.delivered) - before

    def assert_near(self, flow: float, expected: float) -> None:
        self.assertLessEqual(abs(flow - expected), expected * TOLERANCE, f"{flow} instead of {expected}")

    def test_two_seconds_carry_twice_the_limit(self) -> None:
        for rate in (12_345, 100_000, 5_000_000):
            for step in (0.002, 0.02):
                self.setUp()
                _, link = self.start(rate, frame_size=max(500, rate // 30))
                self.pass_time(1, link, step)
                with self.subTest(rate=rate, step=step):
                    self.assert_near(self.flow(link, 2, step), 2 * rate)

    def test_the_first_two_seconds_do_too(self) -> None:
        _, link = self.start(100_000)
        self.assert_near(self.flow(link, 2, 0.01), 200_000)

    def test_a_slow_limit_is_kept_over_a_longer_time(self) -> None:
        _, link = self.start(1000, seconds_worth=30)
        self.assert_near(self.flow(link, 20, 0.05), 20_000)

    def test_one_large_frame_goes_in_even_portions(self) -> None:
        sender, _, link = self.open_to_script(self.new_sender(bandwidth=100_000), capacity=TWISTED_BUFFER)
        sender.begin()
        sender.write(bytes(500_000))
        flows = [self.flow(link, 0.1, 0.01) for _ in range(20)]
        self.assert_near(sum(flows), 200_000)
        self.assertLessEqual(max(flows), 15_000)
        self.assertGreaterEqual(min(flows), 5_000)

    def test_it_can_be_changed_at_any_time(self) -> None:
        sender, link = self.start(100_000, seconds_worth=100)
        self.assert_near(self.flow(link, 2, 0.01), 200_000)
        sender.set_bandwidth(500_000)
        self.assert_near(self.flow(link, 2, 0.01), 1_000_000)
        sender.set_bandwidth(50_000)
        self.pass_time(1, link)
        self.assert_near(self.flow(link, 2, 0.01), 100_000)

    def test_a_much_higher_limit_works_at_once(self) -> None:
        sender, link = self.start(1000)
        self.pass_time(2, link)
        sender.set_bandwidth(1_000_000)
        self.assertGreater(self.flow(link, 0.05, 0.01), 5_000)

    def test_zero_is_no_limit(self) -> None:
        sender, link = self.start(100_000)
        self.pass_time(0.5, link)
        sender.set_bandwidth(0)
        link.pump()
        self.assertFalse(sender.is_frozen)
        self.assertGreater(len(link.to_server.delivered), 1_000_000)
        self.assertEqual(sender.buffered, 0)

    def test_a_limit_can_be_set_where_there_was_none(self) -> None:
        sender, link = self.start(0)
        sender.set_bandwidth(100_000)
        source = GreedySource(sender, [bytes(5000)] * 100)
        sender.unregisterProducer()
        sender.registerProducer(source, True)
        source.go()
        self.assert_near(self.flow(link, 2, 0.01), 200_000)

    def test_a_limit_that_is_set_before_the_link_stands_holds(self) -> None:
        sender = self.new_sender()
        sender.set_bandwidth(100_000)
        _, _, link = self.open_to_script(sender, capacity=TWISTED_BUFFER)
        sender.begin()
        sender.write(bytes(1_000_000))
        self.assert_near(self.flow(link, 2, 0.01), 200_000)

    def test_an_empty_bucket_freezes_the_output_and_pauses_the_source(self) -> None:
        sender, link = self.start(10_000)
        self.assertTrue(sender.is_frozen)
        self.assertLessEqual(sender.buffered, 5000 + HEADER_SIZE)
        self.assertGreaterEqual(self.primary.frozen_changes, 1)
        sender.unregisterProducer()
        self.pass_time(2, link)
        self.assertFalse(sender.is_frozen)

    def test_a_full_transport_and_an_empty_bucket_are_both_waited_for(self) -> None:
        sender, _, link = self.open_to_script(self.new_sender(bandwidth=100_000), capacity=1000)
        self.clock.advance(0.5)
        sender.begin()
        sender.write(bytes(20_000))
        link.to_server.is_stalled = True
        waiting = link.to_server.waiting
        self.assertGreater(waiting, 1000)
        self.clock.advance(1)
        self.assertEqual(link.to_server.waiting, waiting, "the transport is full")
        link.to_server.is_stalled = False
        link.to_server.deliver()
        refilled = link.to_server.waiting
        self.assertGreater(refilled, 1000)
        link.to_server.deliver()
        link.pump()
        self.assertLess(len(link.to_server.delivered), 20_000, "the bucket is empty")
        self.pass_time(1, link)
        self.assertEqual(sender.buffered, 0)

    @examples(50)
    @given(st.lists(st.tuples(st.sampled_from((0, 3000, 40_000, 900_000)), st.floats(0, 0.5)), max_size=10))
    def test_whatever_changes_nothing_is_lost(self, changes: list[tuple[int, float]]) -> None:
        self.setUp()
        sender, peer, link = self.open_to_script(capacity=TWISTED_BUFFER)
        sender.begin()
        frames = [bytes([number]) * 4000 for number in range(50)]
        source = GreedySource(sender, frames)
        sender.registerProducer(source, True)
        source.go()
        for rate, seconds in changes:
            sender.set_bandwidth(rate)
            self.pass_time(seconds, link, 0.05)
        sender.set_bandwidth(0)
        link.pump()
        self.assertEqual([payload for _, payload in peer.frames() if payload], frames)
