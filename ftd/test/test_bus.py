"""The ring of events: who follows it misses nothing, or is told how much."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.bus import RING_SIZE, EventBus, encode_sse
from ftd.test.wire.profile import examples

CAPACITY = 8


class BusTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.time = 1_700_000_000.25
        self.bus = EventBus(lambda: self.time, CAPACITY)
        self.start = self.bus.last_id

    def publish(self, count: int) -> None:
        for number in range(count):
            self.bus.publish("pair", "demo", {"number": number})

    def seen_since(self, id: int) -> tuple[int, list[int]]:
        """How many were lost, and the ids of the others."""
        lost, events = self.bus.since(id)
        return lost, [event.id for event in events]

    def test_ids_begin_at_the_clock_and_grow_by_one(self) -> None:
        self.assertEqual(self.start, 1_700_000_000_250_000)
        self.publish(3)
        self.assertEqual(self.bus.last_id, self.start + 3)
        self.assertEqual(self.seen_since(self.start), (0, [self.start + 1, self.start + 2, self.start + 3]))

    def test_ids_grow_over_a_restart(self) -> None:
        self.publish(1000)
        self.time += 0.5
        self.assertGreater(EventBus(lambda: self.time).last_id, self.bus.last_id)

    def test_a_reader_gets_what_came_since(self) -> None:
        self.publish(5)
        self.assertEqual(self.seen_since(self.start + 3), (0, [self.start + 4, self.start + 5]))
        self.assertEqual(self.seen_since(self.bus.last_id), (0, []))

    def test_a_reader_that_is_too_slow_is_told_how_many_it_missed(self) -> None:
        self.publish(CAPACITY + 3)
        lost, ids = self.seen_since(self.start)
        self.assertEqual((lost, len(ids)), (3, CAPACITY))
        self.assertEqual(ids[0], self.start + 4)

    def test_the_ring_stays_as_small_as_it_is(self) -> None:
        self.publish(100 * CAPACITY)
        self.assertEqual(len(self.seen_since(0)[1]), CAPACITY)
        self.assertEqual(RING_SIZE, 4096)

    def test_it_knows_what_can_be_resumed_without_a_gap(self) -> None:
        self.assertTrue(self.bus.knows(self.start))
        self.assertFalse(self.bus.knows(self.start - 1))
        self.publish(CAPACITY)
        self.assertTrue(self.bus.knows(self.start))
        self.publish(1)
        self.assertFalse(self.bus.knows(self.start))
        self.assertTrue(self.bus.knows(self.start + 1))
        self.assertTrue(self.bus.knows(self.bus.last_id))
        self.assertFalse(self.bus.knows(self.bus.last_id + 1))

    def test_an_id_that_is_still_to_come_has_missed_nothing(self) -> None:
        self.publish(3)
        self.assertEqual(self.seen_since(self.bus.last_id + 10), (0, []))

    @examples(100)
    @given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=20))
    def test_a_reader_that_follows_counts_every_event(self, steps: list[tuple[int, bool]]) -> None:
        self.setUp()
        position, counted = self.start, 0
        for count, reads in steps:
            self.publish(count)
            if reads:
                can_resume = self.bus.knows(position)
                lost, ids = self.seen_since(position)
                self.assertEqual(can_resume, lost == 0)
                self.assertEqual(ids, list(range(position + lost + 1, self.bus.last_id + 1)))
                counted += lost + len(ids)
                position = self.bus.last_id
        self.assertEqual(counted, position - self.start)

    def test_readers_are_woken_until_they_stop(self) -> None:
        woken: list[str] = []
        stop_first = self.bus.wake_on_publish(lambda: woken.append("first"))
        stop_second = self.bus.wake_on_publish(lambda: woken.append("second"))
        self.publish(1)
        stop_first()
        self.publish(1)
        stop_second()
        self.publish(1)
        self.assertEqual(woken, ["first", "second", "second"])

    def test_a_reader_that_is_woken_finds_the_event(self) -> None:
        found: list[int] = []
        self.bus.wake_on_publish(lambda: found.append(self.seen_since(self.start)[1][-1]))
        self.publish(2)
        self.assertEqual(found, [self.start + 1, self.start + 2])

    def owed(self, name: str) -> Callable[[], None]:
        """What publishes when it is told to."""
        return lambda: self.bus.publish("pair", name, {})

    def test_what_is_owed_is_told_to_who_comes_next_and_once(self) -> None:
        first, second = self.owed("first"), self.owed("second")
        for tell in (first, second, first):
            self.bus.owe(tell)
        self.assertEqual(self.bus.last_id, self.start)
        self.assertFalse(self.bus.is_watched)
        stop = self.bus.wake_on_publish(lambda: None)
        self.assertEqual([event.pair for event in self.bus.since(self.start)[1]], ["first", "second"])
        stop()
        self.bus.wake_on_publish(lambda: None)
        self.assertEqual(self.bus.last_id, self.start + 2)

    def test_what_is_forgotten_is_not_told(self) -> None:
        first, second = self.owed("first"), self.owed("second")
        self.bus.owe(first)
        self.bus.forget(first)
        self.bus.forget(second)
        self.bus.wake_on_publish(lambda: None)
        self.assertEqual(self.bus.last_id, self.start)

    def test_it_is_watched_as_long_as_there_is_a_reader(self) -> None:
        first, second = self.bus.wake_on_publish(lambda: None), self.bus.wake_on_publish(lambda: None)
        first()
        self.assertTrue(self.bus.is_watched)
        second()
        self.assertFalse(self.bus.is_watched)


class EncodingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.bus = EventBus(lambda: 1.123456789)

    def test_an_event_is_one_message(self) -> None:
        self.bus.publish("trace", "demo", {"name": "ft_trans_cb", "args": {"cb": "put_ready"}}, "ft_trans_cb")
        (event,) = self.bus.since(0)[1]
        self.assertEqual((event.kind, event.pair, event.name), ("trace", "demo", "ft_trans_cb"))
        self.assertEqual(
            event.encoded(),
            b"id: 1123457\nevent: trace\n"
            b'data: {"pair":"demo","time":1.123457,"name":"ft_trans_cb","args":{"cb":"put_ready"}}\n\n',
        )

    def test_it_is_made_when_it_is_first_asked_for_and_only_then(self) -> None:
        made: list[int] = []

        def body() -> Mapping[str, object]:
            made.append(1)
            return {"state": "ACK"}

        self.bus.publish("pair", "demo", body)
        self.assertEqual(made, [])
        (event,) = self.bus.since(0)[1]
        self.assertIs(event.encoded(), event.encoded())
        self.assertEqual(made, [1])

    def test_a_message_without_an_id_has_no_such_line(self) -> None:
        self.assertEqual(encode_sse(None, "sync", {}), b"event: sync\ndata: {}\n\n")

    def test_a_line_break_in_a_value_does_not_end_the_line(self) -> None:
        message = encode_sse(1, "pair", {"why": "one\ntwo\r\n\nevent: forged"})
        self.assertEqual(message.count(b"\n"), 4)
        self.assertEqual(json.loads(message.splitlines()[2][len(b"data: ") :])["why"], "one\ntwo\r\n\nevent: forged")
