"""Whatever fails beside the guest, the guest goes on, is protected again by itself, and the API tells what is."""

from __future__ import annotations

import signal

from tests.daemon import Json
from tests.slowness import Slowness
from tests.vm import guest
from tests.vm.case import VmCase
from tests.vm.monitor import Json as Event
from tests.vm.pair import VmPair
from tests.waiting import pause, until

#: As `qemu-time`: a QEMU that hangs is noticed soon.
PATIENCE = {"qemu-time": "1s"}


class FailureTests(VmCase):
    """One thing at a time."""

    async def protected_pair(self, **more: object) -> VmPair:
        """A pair that is protected, with a guest that counts."""
        pair = await self.pair(guest.counter(), **more).started()  # type: ignore[arg-type]  # as `VmPair` has them
        await pair.primary.until_counting()
        return pair

    async def until_unprotected(self, pair: VmPair) -> Json:
        """Wait until the primary says that its guest is not protected; it says why."""
        vm = await pair.until_vm(pair.a, status="unprotected")
        self.assertNotEqual(vm["reason"], "")
        return vm

    async def assert_protected_again(self, pair: VmPair) -> None:
        """The guest counts, is protected without anybody's doing, and can be taken over."""
        await pair.primary.until_counting()
        await pair.until_checkpoints()
        await pair.protected()
        await pair.kill_primary()
        last = pair.primary.last_count()
        await pair.promote()
        await pair.standby.until_counting()
        # What was lost is what was counted in the time between two checkpoints, and not more.
        self.assertLess(pair.standby.counts()[0], last + 2)
        self.assertGreater(pair.standby.counts()[0], 1)

    async def test_the_standby_is_killed(self) -> None:
        pair = await self.protected_pair()
        pair.b.kill()
        pair.standby.remove()
        await self.until_unprotected(pair)
        await pair.primary.until_counting()
        pair.standby.start()
        await pair.b.start()
        await self.assert_protected_again(pair)

    async def test_the_standby_is_killed_on_hold(self) -> None:
        pair = await self.protected_pair(a_keys={"on-secondary-loss": "hold"})
        pair.b.kill()
        vm = await pair.until_vm(pair.a, status="holding")
        self.assertNotEqual(vm["reason"], "")
        count = pair.primary.count_in_memory()
        await pause(0.3)
        self.assertEqual(pair.primary.count_in_memory(), count)
        await pair.b.start()
        await self.assert_protected_again(pair)

    async def test_the_standbys_qemu_is_killed(self) -> None:
        pair = await self.protected_pair(starts_standby=True)
        before = pair.standby.pid
        pair.standby.kill()
        await until(lambda: pair.standby.pid not in (None, before), "ftd starts another")
        await pair.protected()
        await self.assert_protected_again(pair)

    async def test_the_standbys_daemon_is_killed(self) -> None:
        pair = await self.protected_pair()
        pair.b.kill()
        await pair.b.start()
        await self.assert_protected_again(pair)

    async def test_the_primarys_daemon_is_killed(self) -> None:
        pair = await self.protected_pair()
        pair.a.kill()
        await pair.primary.until_counting()
        await pair.a.start()
        await self.assert_protected_again(pair)

    async def test_the_primarys_daemon_is_killed_in_a_checkpoint(self) -> None:
        pair = await self.protected_pair()
        monitor = await pair.monitor(pair.primary)
        is_frozen = False

        def freeze(event: Event) -> None:
            nonlocal is_frozen
            if event["event"] == "STOP" and not is_frozen:
                is_frozen = True
                pair.a.send(signal.SIGSTOP)

        monitor.on_event(freeze)

        async def is_caught() -> bool:
            """A checkpoint is over in milliseconds: it may have been when the daemon froze."""
            nonlocal is_frozen
            if not is_frozen:
                return False
            # What it had said before is done by then.
            await pause(0.2)
            if await monitor.run_state() in ("paused", "postmigrate"):
                return True
            is_frozen = False
            pair.a.send(signal.SIGCONT)
            return False

        await until(is_caught, "the daemon stands still in the middle of a checkpoint")
        pair.a.kill()
        await monitor.abort()
        await pair.a.start()
        await self.assert_protected_again(pair)

    async def test_the_link_is_cut(self) -> None:
        pair = await self.protected_pair()
        for _ in range(3):
            pair.proxy.cut_now()
            await pair.primary.until_counting()
            await pair.protected()
            await pair.until_checkpoints()
        await self.assert_protected_again(pair)

    async def test_the_link_is_slow(self) -> None:
        pair = self.pair(guest.counter(pages=64))
        pair.proxy.slowness = Slowness(delay=0.02, rate=10e6 / 8)
        await pair.started()
        vm = await pair.until_checkpoints(20)
        self.assertEqual(vm["status"], "protected")
        self.assertGreater(vm["lag_ms"], 20.0)
        await self.assert_protected_again(pair)

    async def test_the_primarys_qemu_hangs(self) -> None:
        pair = await self.protected_pair(a_keys=PATIENCE)
        pair.primary.hang()
        vm = await self.until_unprotected(pair)
        self.assertIn("answer", vm["reason"])
        pair.primary.wake()
        await self.assert_protected_again(pair)

    async def test_the_standbys_qemu_hangs(self) -> None:
        pair = await self.protected_pair(b_keys=PATIENCE)
        pair.standby.hang()
        await pair.primary.until_counting()
        await pause(1.5)
        pair.standby.wake()
        await self.assert_protected_again(pair)

    async def test_the_primarys_qemu_dies(self) -> None:
        pair = await self.protected_pair()
        pair.primary.kill()
        await self.until_unprotected(pair)
        await pair.promote(force=True)
        await pair.standby.until_counting()

    async def test_both_daemons_are_stopped_and_the_guest_runs_on(self) -> None:
        pair = await self.protected_pair()
        self.assertEqual((await pair.a.stop(), await pair.b.stop()), (-signal.SIGTERM, -signal.SIGTERM))
        await pair.primary.until_counting()
        await pair.b.start()
        await pair.a.start()
        await self.assert_protected_again(pair)


class ManagedTests(VmCase):
    """The checkpoints are the cluster manager's."""

    async def test_one_is_taken_when_it_says_so(self) -> None:
        keys = {"qemu-interval": "0"}
        pair = await self.pair(guest.counter(), a_keys=keys, b_keys={"ack": "applied"}).started()
        number = (await pair.vm(pair.a))["checkpoint"]
        await pause(0.5)
        self.assertEqual((await pair.vm(pair.a))["checkpoint"], number)
        before = pair.primary.count_in_memory()
        for action in ("begin", "commit"):
            answer = await pair.post(pair.a, action)
            self.assertEqual(answer.status, 200, answer)
        self.assertEqual((await pair.vm(pair.a))["checkpoint"], number + 1)
        self.assertGreaterEqual(pair.standby.count_in_memory(), before)

    async def test_protection_is_turned_off_and_on(self) -> None:
        pair = await self.pair(guest.counter()).started()
        answer = await pair.a.http.send_json("PUT", "/v1/pairs/vm/protection", {"enabled": False})
        self.assertEqual(answer.status, 200, answer)
        await pair.until_vm(pair.a, status="unprotected", protection=False)
        await pair.primary.until_counting()
        answer = await pair.a.http.send_json("PUT", "/v1/pairs/vm/protection", {"enabled": True, "interval_ms": 100})
        self.assertEqual(answer.status, 200, answer)
        vm = await pair.protected()
        self.assertEqual(vm["interval_ms"], 100)
