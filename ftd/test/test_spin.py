"""When a link looks for its answer."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.transport.spin import ACTIVE, LONGEST_LOOK, MOST_ACTIVE, MOST_SKIPPED, SHORTEST_LOOK, Crowd, SpinPolicy


class PolicyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.policy = SpinPolicy(None)

    def expect(self, waited: float | None) -> float:
        """An answer is expected, and comes after ``waited`` seconds, or not."""
        budget = self.policy.budget()
        if budget and waited is not None and waited <= budget:
            self.policy.answered(waited)
        elif budget:
            self.policy.missed()
        return budget

    def test_who_was_told_does_as_told(self) -> None:
        for limit in (0.0, 0.5):
            self.policy = SpinPolicy(limit)
            self.assertEqual({self.expect(None) for _ in range(100)}, {limit})

    def test_while_it_pays_it_looks_every_time(self) -> None:
        budgets = [self.expect(20e-6) for _ in range(1000)]
        self.assertTrue(all(SHORTEST_LOOK <= budget <= LONGEST_LOOK for budget in budgets))

    def test_it_looks_as_long_as_its_answers_take(self) -> None:
        for _ in range(100):
            self.expect(2e-6)
        self.assertEqual(self.policy.budget(), SHORTEST_LOOK)
        for _ in range(100):
            self.expect(24e-6)
        self.assertGreater(self.policy.budget(), 80e-6)

    def test_when_it_does_not_pay_it_looks_less_and_less_often(self) -> None:
        looks = [number for number in range(10_000) if self.expect(None)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
        self.assertEqual(gaps, sorted(gaps))
        self.assertLess(len(looks), 30)
        self.assertEqual(gaps[-1], MOST_SKIPPED + 1, "but never gives up")

    def test_a_peer_that_has_come_near_is_found(self) -> None:
        for _ in range(5000):
            self.expect(None)
        budgets = [self.expect(20e-6) for _ in range(2 * MOST_SKIPPED)]
        first = next(number for number, budget in enumerate(budgets) if budget)
        self.assertTrue(all(budgets[first:]))

    @examples(100)
    @given(st.lists(st.one_of(st.none(), st.floats(0, 200e-6)), max_size=60))
    def test_a_look_is_bounded_whatever_happens(self, waits: list[float | None]) -> None:
        self.setUp()
        for waited in waits:
            self.assertLessEqual(self.expect(waited), LONGEST_LOOK)


class CrowdTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.crowd = Crowd(self.clock.seconds)

    def test_a_few_may_look(self) -> None:
        self.assertTrue(all(self.crowd.leaves_room(number) for number in range(MOST_ACTIVE)))
        self.assertTrue(self.crowd.leaves_room(0))

    def test_where_there_are_more_nobody_does(self) -> None:
        for number in range(MOST_ACTIVE):
            self.crowd.leaves_room(number)
        self.assertFalse(self.crowd.leaves_room("one more"))
        self.assertFalse(self.crowd.leaves_room(0))

    def test_who_expects_nothing_does_not_count_for_long(self) -> None:
        for number in range(50):
            self.crowd.leaves_room(number)
        self.clock.advance(ACTIVE * 1.1)
        self.assertTrue(self.crowd.leaves_room(0))

    def test_nor_does_who_is_gone(self) -> None:
        for number in range(MOST_ACTIVE + 1):
            self.crowd.leaves_room(number)
        self.crowd.leave(0)
        self.crowd.leave(0)
        self.assertTrue(self.crowd.leaves_room(1))
