"""The transactions that a pair remembers, and what it tells of them."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ftd.bus import EventBus
from ftd.history import REMEMBERED, History
from ftd.status import Outcome, Timeline, TransactionStatus


class HistoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.time = 1000.0
        self.bus = EventBus(self.now)
        self.seen = self.bus.last_id
        self.history = History("demo", self.bus, self.now)

    def now(self) -> float:
        return self.time

    def events(self) -> list[dict[str, Any]]:
        """What was published since the last time, as its readers see it."""
        _, fresh = self.bus.since(self.seen)
        self.seen = self.bus.last_id
        found = []
        for event in fresh:
            self.assertEqual((event.kind, event.pair), ("transaction", "demo"))
            found.append(json.loads(event.encoded().decode().partition("data: ")[2]))
        return found

    def test_a_transaction_from_its_begin_to_its_end(self) -> None:
        transaction = self.history.begin(65535)
        begun = TransactionStatus(
            id=65535,
            number=None,
            seq=0,
            bytes=0,
            outcome=Outcome.OPEN,
            detail="",
            frozen_seconds=0.0,
            timeline=Timeline(begun=1000.0),
        )
        self.assertEqual(self.history.recent(), [begun])
        transaction.first_data = 1000.3
        transaction.frozen_seconds = 1.23456789
        self.time = 1001.0
        self.history.commit_requested(transaction, seq=3, size=700, number=42)
        self.assertEqual(self.history.recent()[0].outcome, Outcome.IN_FLIGHT)
        self.time = 1002.0
        self.history.end(transaction, Outcome.COMMITTED)
        self.assertEqual(
            self.history.recent(),
            [
                TransactionStatus(
                    id=65535,
                    number=42,
                    seq=3,
                    bytes=700,
                    outcome=Outcome.COMMITTED,
                    detail="",
                    frozen_seconds=1.234568,
                    timeline=Timeline(begun=1000.0, first_data=1000.3, commit=1001.0, ended=1002.0),
                )
            ],
        )
        self.assertEqual(transaction.commit_seconds, 1.0)

    def test_every_end_is_counted_and_told(self) -> None:
        endings = {
            Outcome.COMMITTED: "committed",
            Outcome.CANCELLED: "cancelled",
            Outcome.NACKED: "nacked",
            Outcome.FAILED: "failed",
        }
        self.assertEqual(self.history.counts, dict.fromkeys(endings, 0))
        for id, (outcome, action) in enumerate(endings.items()):
            transaction = self.history.begin(id)
            self.history.end(transaction, outcome, "because")
            begun, ended = self.events()
            self.assertEqual((begun["action"], begun["id"], begun["outcome"]), ("begun", id, "open"))
            self.assertEqual((ended["action"], ended["id"], ended["outcome"]), (action, id, outcome.value))
            self.assertEqual(ended["detail"], "because")
            self.assertEqual(set(ended["timeline"]), {"begun", "first_data", "commit", "ended"})
        self.assertEqual(self.history.counts, dict.fromkeys(endings, 1))

    def test_an_event_shows_what_was_then(self) -> None:
        transaction = self.history.begin(0)
        transaction.bytes = 700
        self.history.end(transaction, Outcome.FAILED, "later")
        begun, _ = self.events()
        self.assertEqual((begun["bytes"], begun["outcome"], begun["detail"]), (0, "open", ""))

    def test_the_last_256_are_remembered_and_all_are_counted(self) -> None:
        for id in range(300):
            self.history.end(self.history.begin(id), Outcome.COMMITTED)
        self.assertEqual(REMEMBERED, 256)
        self.assertEqual([row.id for row in self.history.recent()], list(range(44, 300)))
        self.assertEqual(self.history.counts[Outcome.COMMITTED], 300)
