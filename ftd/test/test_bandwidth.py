"""The bandwidth limit: how even and how exact it is, and what changes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.bandwidth import SharedBandwidth, Throttle, TokenBucket
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

    def use_up(self) -> None:
        self.bucket.spend(self.bucket.available)

    def test_a_portion_is_a_fortieth_of_a_second(self) -> None:
        self.assertEqual((self.bucket.portion, self.bucket.available), (250, 250))

    def test_a_portion_is_never_nothing(self) -> None:
        self.assertEqual(TokenBucket(self.clock.seconds, 3).portion, 1)

    def test_what_goes_has_to_be_waited_for(self) -> None:
        self.use_up()
        self.assertEqual(self.bucket.available, 0)
        self.assertAlmostEqual(self.bucket.wait(), 0.025)
        self.clock.advance(0.01)
        self.assertAlmostEqual(self.bucket.wait(), 0.015)

    def test_no_wait_is_so_short_that_the_clock_does_not_notice_it(self) -> None:
        self.assertEqual(self.bucket.wait(), 0.001)

    def test_time_pays(self) -> None:
        self.use_up()
        self.clock.advance(0.0625)
        self.assertEqual(self.bucket.available, 625)

    def test_a_pause_saves_up_little(self) -> None:
        self.clock.advance(60)
        self.assertEqual(self.bucket.available, 750)

    def test_being_late_costs_nothing(self) -> None:
        self.use_up()
        self.bucket.wait()
        self.clock.advance(0.25)
        self.assertEqual(self.bucket.available, 2500)
        self.clock.advance(1)
        self.assertEqual(self.bucket.available, 2500, "nobody waits any more")

    def test_being_very_late_does(self) -> None:
        self.use_up()
        self.bucket.wait()
        self.clock.advance(60)
        self.assertEqual(self.bucket.available, 5000)

    def test_a_new_rate_does_not_forget_what_has_gone(self) -> None:
        self.use_up()
        self.bucket.set_rate(1000)
        self.assertAlmostEqual(self.bucket.wait(), 0.025)

    def test_time_before_a_change_counts_at_the_old_rate(self) -> None:
        self.use_up()
        self.clock.advance(0.0625)
        self.bucket.set_rate(1_000_000)
        self.assertEqual(self.bucket.available, 625)

    def test_what_a_high_rate_saved_up_is_no_burst_at_a_low_one(self) -> None:
        self.clock.advance(60)
        self.bucket.set_rate(1000)
        self.assertEqual(self.bucket.available, 75)


class Member:
    """A pair that sends whatever it may, in writes of one size."""

    def __init__(self, clock: Clock, shared: SharedBandwidth | None, rate: int, size: int, total: int) -> None:
        self.throttle = Throttle(clock, rate, shared, self.go)
        self.size = size
        self.left = total
        self.sent = 0
        self._rest = 0

    def go(self) -> None:
        """Send until there is nothing left or it has to wait."""
        while self.left and not self.throttle.is_waiting:
            wanted = min(self.left, self._rest or self.size)
            got = self.throttle.take(wanted) if self.throttle.is_on else wanted
            self._rest = wanted - got
            self.left -= got
            self.sent += got


#: More than any test lets through.
ENDLESS = 1 << 40


class ThrottleTests(SynchronousTestCase):
    """What comes through, at any rate and size, and between pairs."""

    def setUp(self) -> None:
        self.clock = Clock()

    def member(
        self, shared: SharedBandwidth | None = None, *, rate: int = 0, size: int = 4096, total: int = ENDLESS
    ) -> Member:
        member = Member(self.clock, shared, rate, size, total)
        member.go()
        return member

    def pass_time(self, seconds: float, step: float = 0.0015) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def assert_near(self, flow: float, expected: float, msg: str = "") -> None:
        self.assertLessEqual(abs(flow - expected), expected * TOLERANCE, f"{flow} instead of {expected} {msg}")

    def test_two_seconds_at_any_rate_and_size(self) -> None:
        for rate in (10 << 10, 1 << 20, 1 << 30):
            for size in (12, 1024, 1 << 20, 1 << 28):
                if rate // size > 1 << 16:
                    continue
                member = self.member(rate=rate, size=size)
                self.pass_time(2)
                self.assert_near(member.sent, 2 * rate, f"{rate} {size}")

    def test_a_process_that_is_late_again_and_again(self) -> None:
        member = self.member(rate=1 << 20)
        for late in (0.3, 0.01, 0.2, 0.4, 0.09, 0.5, 0.3, 0.2):
            self.clock.advance(late)
        self.assert_near(member.sent, 2 << 20)

    def test_it_does_not_wake_up_all_the_time(self) -> None:
        for rate in (1, 10 << 10, 1 << 30):
            member = self.member(rate=rate)
            for _ in range(100):
                (call,) = self.clock.getDelayedCalls()
                self.clock.advance(call.getTime() - self.clock.seconds())
            self.assertGreater(self.clock.seconds(), 2.2)
            member.throttle.close()
            self.clock = Clock()

    def test_pairs_with_one_limit_each_get_the_same(self) -> None:
        members = [self.member(rate=100_000, size=size) for size in (100, 4096, 1 << 20)]
        self.pass_time(2)
        for member in members:
            self.assert_near(member.sent, 200_000)

    def test_a_shared_limit_is_shared_equally_whatever_they_write(self) -> None:
        for rate, count in ((100_000, 3), (50 << 20, 40), (1 << 20, 100)):
            shared = SharedBandwidth(self.clock, rate)
            members = [self.member(shared, size=(100, 4096, 1 << 20)[at % 3]) for at in range(count)]
            before = [member.sent for member in members]
            self.pass_time(4)
            flows = [member.sent - had for member, had in zip(members, before, strict=True)]
            self.assert_near(sum(flows), 4 * rate)
            for flow in flows:
                self.assert_near(flow, sum(flows) / count)
            for member in members:
                member.throttle.close()

    def test_what_one_does_not_want_the_others_get(self) -> None:
        shared = SharedBandwidth(self.clock, 300_000)
        slow = self.member(shared, rate=20_000)
        greedy = [self.member(shared) for _ in range(2)]
        self.pass_time(2)
        self.assert_near(slow.sent, 40_000)
        for member in greedy:
            self.assert_near(member.sent, 280_000)

    def test_one_alone_gets_all_of_it(self) -> None:
        member = self.member(SharedBandwidth(self.clock, 300_000))
        self.pass_time(2)
        self.assert_near(member.sent, 600_000)

    def test_one_that_comes_later_gets_its_share_from_then_on(self) -> None:
        shared = SharedBandwidth(self.clock, 300_000)
        self.member(shared)
        self.pass_time(2)
        late = self.member(shared)
        self.pass_time(2)
        self.assert_near(late.sent, 300_000)

    def test_one_that_leaves_leaves_its_share(self) -> None:
        shared = SharedBandwidth(self.clock, 300_000)
        first, second = self.member(shared), self.member(shared)
        self.pass_time(1)
        first.throttle.close()
        had = second.sent
        self.pass_time(2)
        self.assert_near(second.sent - had, 600_000)
        second.throttle.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_has_had_enough_does_not_keep_the_rest(self) -> None:
        """Of its grant, that is: it stays idle with some of it."""
        shared = SharedBandwidth(self.clock, 300_000)
        self.member(shared, total=1000)
        endless = self.member(shared)
        short = [self.member(shared, total=9000) for _ in range(5)]
        self.pass_time(2)
        self.assertEqual([member.left for member in short], [0] * 5)
        self.assert_near(endless.sent, 600_000 - 45_000 - 1000)

    def test_it_is_changed_at_any_time(self) -> None:
        shared = SharedBandwidth(self.clock, 300_000)
        members = [self.member(shared), self.member(shared)]
        for rate in (300_000, 1_000_000, 30_000):
            shared.set_rate(rate)
            before = [member.sent for member in members]
            self.pass_time(2)
            for member, had in zip(members, before, strict=True):
                self.assert_near(member.sent - had, rate)

    def test_it_is_set_and_taken_away(self) -> None:
        shared = SharedBandwidth(self.clock)
        unlimited = self.member(shared, total=10_000_000)
        self.assertEqual(unlimited.left, 0)
        shared.set_rate(100_000)
        member = self.member(shared, total=10_000_000)
        self.pass_time(2)
        self.assert_near(member.sent, 200_000)
        shared.set_rate(0)
        self.assertEqual(member.left, 0)

    def test_what_did_not_go_after_all_is_not_lost(self) -> None:
        shared = SharedBandwidth(self.clock, 10_000)
        throttle = Throttle(self.clock, 10_000, shared, lambda: None)
        self.assertEqual(throttle.take(200), 200)
        throttle.give_back(200)
        self.assertEqual(throttle.take(250), 250)

    def test_one_that_breaks_does_not_stop_the_others(self) -> None:
        shared = SharedBandwidth(self.clock, 10_000)
        told: list[str] = []

        def broken() -> None:
            told.append("broken")
            raise ZeroDivisionError

        for ready in (broken, lambda: told.append("other")):
            Throttle(self.clock, 0, shared, ready).take(100_000)
        self.pass_time(0.1)
        self.assertEqual(told, ["broken", "other"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


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
        for _ in range(100):
            self.clock.advance(0.01)
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
