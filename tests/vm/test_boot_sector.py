"""A guest that counts is killed at every point of a checkpoint; the standby goes on, and nobody has seen too much."""

from __future__ import annotations

import random

from tests.proxy import Then
from tests.raw_peer import ACK, COMMIT, CONTINUE
from tests.vm import guest
from tests.vm.case import OnQemu10, VmCase
from tests.vm.monitor import Json
from tests.vm.observer import Observer
from tests.vm.pair import VmPair
from tests.waiting import pause, until

#: A checkpoint is in the standby's memory when it is acknowledged: then what is there is the newest committed state.
APPLIED = {"ack": "applied"}


class TakeOverTests(VmCase):
    """The primary dies, the standby takes over."""

    async def counting_pair(self, interval: str = "30ms") -> tuple[VmPair, Observer]:
        """A pair that is protected, with some of the counts seen outside."""
        machine = guest.counter(has_nic=True, delay=2_000_000)
        pair, observer = await self.observed_pair(machine, a_keys={"qemu-interval": interval}, b_keys=APPLIED)
        await pair.started()
        await self.until_seen(observer)
        return pair, observer

    async def until_seen(self, observer: Observer, more: int = 20) -> None:
        """Wait until so many counts more have come out."""
        target = len(observer.counts()) + more
        await until(lambda: len(observer.counts()) >= target, lambda: f"{target} counts; {observer.counts()[-5:]}")

    async def assert_goes_on(self, pair: VmPair, observer: Observer) -> None:
        """
        Promote, and see that the count goes on from the newest committed checkpoint, which all that came out is from.
        """
        committed, seen = pair.standby.count_in_memory(), observer.counts()
        self.assertLessEqual(seen[-1], committed)
        await pair.promote()
        await pair.standby.until_counting()
        await self.until_seen(observer)
        counts = pair.standby.counts()
        self.assertIn(counts[0], (committed, committed + 1))
        self.assertEqual(counts, list(range(counts[0], counts[0] + len(counts))))
        after = observer.counts()
        self.assertEqual(after[: len(seen)], seen)
        self.assertEqual(after, sorted(set(after)))
        self.assertGreaterEqual(after[len(seen)], committed)
        self.assertEqual((await pair.vm(pair.b))["status"], "promoted")

    async def test_after_two_hundred_checkpoints(self) -> None:
        pair, observer = await self.counting_pair("20ms")
        await pair.until_checkpoints(200)
        vm = await pair.vm(pair.a)
        self.assertEqual(vm["status"], "protected")
        self.assertGreaterEqual(vm["checkpoint"], 200)
        await pair.kill_primary()
        await self.assert_goes_on(pair, observer)

    async def test_killed_at_random(self) -> None:
        pair, observer = await self.counting_pair()
        await pause(random.uniform(0.0, 0.3))
        await pair.kill_primary()
        await self.assert_goes_on(pair, observer)

    test_killed_at_random_again = test_killed_at_random
    test_killed_at_random_once_more = test_killed_at_random

    async def test_killed_while_it_is_stopped(self) -> None:
        await self.assert_survives_kill_at(lambda event: event["event"] == "STOP")

    async def test_killed_while_its_device_state_is_read(self) -> None:
        await self.assert_survives_kill_at(
            lambda event: event["event"] == "MIGRATION" and event["data"]["status"] == "active"
        )

    async def assert_survives_kill_at(self, point: object) -> None:
        """The primary's QEMU is killed at the first event that is ``point``, and its daemon then."""
        assert callable(point)
        pair, observer = await self.counting_pair()
        monitor = await pair.monitor(pair.primary)

        def kill(event: Json) -> None:
            if point(event):
                pair.primary.kill()

        monitor.on_event(kill)
        await until(lambda: monitor.has_ended, "the primary is killed")
        await pair.kill_primary()
        await self.assert_goes_on(pair, observer)

    async def test_killed_with_a_transaction_on_the_wire(self) -> None:
        await self.assert_survives_kill_in_frame(CONTINUE, 1000)

    async def test_killed_in_the_middle_of_its_commit(self) -> None:
        await self.assert_survives_kill_in_frame(COMMIT, 5)

    async def test_killed_before_it_knows_of_the_ack(self) -> None:
        await self.assert_survives_kill_in_frame(ACK, 0)

    async def assert_survives_kill_in_frame(self, command: int, at: int) -> None:
        """The link stops in the middle of a frame, and then the primary is killed."""
        pair, observer = await self.counting_pair()
        await pair.proxy.do(command, at, Then.HOLD)
        pair.primary.kill()
        pair.a.kill()
        pair.proxy.cut_now()
        await pair.without_primary()
        await self.assert_goes_on(pair, observer)


class TakeOverOnQemu10Tests(OnQemu10, TakeOverTests):
    """The same on QEMU 10."""


class OrderTests(VmCase):
    """What is promoted when, and what is not."""

    async def test_not_while_the_primary_is_up(self) -> None:
        pair = await self.pair(guest.counter()).started()
        answer = await pair.post(pair.b, "promote")
        self.assertEqual(answer.status, 409, answer)
        self.assertIn(b"force", answer.body)
        await pair.primary.until_counting()
        self.assertEqual((await pair.vm(pair.a))["status"], "protected")
        self.assertEqual(pair.standby.serial(), "")

    async def test_by_force_the_old_primary_is_fenced(self) -> None:
        pair, observer = await self.observed_pair(guest.counter(has_nic=True, delay=2_000_000), b_keys=APPLIED)
        await pair.started()
        await pair.primary.until_counting()
        await pair.promote(force=True)
        await pair.until_vm(pair.a, status="fenced")
        monitor = await pair.monitor(pair.primary)

        async def is_stopped() -> bool:
            return await monitor.run_state() in ("paused", "postmigrate")

        await until(is_stopped, "the old primary's guest is stopped")
        last = pair.primary.last_count()
        await pair.standby.until_counting()
        self.assertEqual(pair.primary.last_count(), last)
        seen = observer.counts()
        self.assertEqual(seen, sorted(set(seen)))

    async def test_the_primary_is_demoted_and_nothing_is_lost(self) -> None:
        pair = await self.pair(guest.counter(), b_keys=APPLIED).started()
        await pair.primary.until_counting()
        answer = await pair.post(pair.a, "demote")
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual((await pair.vm(pair.a))["status"], "fenced")
        monitor = await pair.monitor(pair.primary)
        self.assertNotEqual(await monitor.run_state(), "running")
        self.assertEqual(pair.primary.ram.read_bytes(), pair.standby.ram.read_bytes())
        await pair.promote()
        await pair.standby.until_counting()
        self.assertIn(pair.standby.counts()[0] - pair.primary.last_count(), (0, 1))

    async def test_a_standby_that_ftd_starts(self) -> None:
        pair = await self.pair(guest.counter(), starts_standby=True).started()
        self.assertIsNotNone(pair.standby.pid)
        await pair.kill_primary()
        await pair.promote()
        await pair.standby.until_counting()
