"""After a take-over: protection in the other direction, the way back, and a primary that comes back too late."""

from __future__ import annotations

import signal

from tests.daemon import Daemon, Json, Section
from tests.slowness import Slowness
from tests.vm import guest
from tests.vm.case import OnQemu10, VmCase
from tests.vm.observer import Observer
from tests.vm.pair import PAIR, SYNC_TIME, VmPair, told
from tests.vm.qemu import NETDEV, Qemu
from tests.waiting import pause, until

#: A checkpoint is in the standby's memory when it is acknowledged: then what is there is the newest committed state.
APPLIED = {"ack": "applied"}

#: Seconds; that of a `VmPair`.
DEAD_TIME = 2.0

#: Slow enough for every count to be seen.
COUNTER = guest.counter(has_nic=True, delay=2_000_000)


class FailbackCase(VmCase):
    """Tests that begin with a take-over."""

    async def protected_pair(self, **more: bool) -> tuple[VmPair, Observer]:
        """A pair that is protected, with some of the counts seen outside."""
        pair, observer = await self.observed_pair(COUNTER, b_keys=APPLIED, **more)
        await pair.started()
        await self.until_seen(observer)
        return pair, observer

    async def until_seen(self, observer: Observer, more: int = 20) -> None:
        """Wait until so many counts more have come out; none has come twice, or after a higher one."""
        target = len(observer.counts()) + more
        await until(lambda: len(observer.counts()) >= target, lambda: f"{target} counts; {observer.counts()[-5:]}")
        self.assert_seen_once(observer)

    def assert_seen_once(self, observer: Observer) -> None:
        """Of what has come out."""
        seen = observer.counts()
        self.assertEqual(seen, sorted(set(seen)))

    async def assert_paused(self, pair: VmPair, qemu: Qemu) -> None:
        """Its guest does not run."""
        monitor = await pair.monitor(qemu)
        self.assertNotEqual(await monitor.run_state(), "running")
        await monitor.abort()


class OtherDirectionTests(FailbackCase):
    """The half that has taken over becomes the primary, and the host that has died stands by."""

    def exchanged(self, pair: VmPair, observer: Observer, standby: Qemu) -> tuple[Section, Section]:
        """The sections of ``a`` and ``b`` in the other direction, with this standby beside ``a``."""
        link = f"unix:{self.scratch() / 'link'}"
        ours, theirs = dict(pair.a.pairs[PAIR]), dict(pair.b.pairs[PAIR])

        def beside(section: dict[str, str], qemu: Qemu) -> Section:
            net = f"connect:{qemu.network} uplink unix:{observer.path}"
            return {**section, "link": link, "qemu-qmp": str(qemu.monitor), f"qemu-net-{NETDEV}": net}

        theirs["qemu-staging-dir"] = str(self.memory())
        return beside(theirs, standby), beside(ours, pair.standby)

    async def assert_protected_in_the_other_direction(self, *, is_reloaded: bool) -> None:
        """The standby takes over and is protected, then it dies, and the first host takes over."""
        pair, observer = await self.protected_pair()
        await pair.kill_primary()
        await pair.promote()
        await self.until_seen(observer)

        standby = self.machine(COUNTER, "again", is_standby=True)
        section_a, section_b = self.exchanged(pair, observer, standby)
        pair.a.configure({PAIR: section_a})
        await pair.a.start()
        standby.start()
        pair.b.configure({PAIR: section_b})
        if is_reloaded:
            pair.b.send(signal.SIGHUP)
        else:
            await pair.b.stop()
            await pair.b.start()
        await pair.until_vm(pair.b, within=SYNC_TIME, status="protected", reason="")
        await self.until_seen(observer)

        pair.standby.kill()
        pair.b.kill()
        await pair.a.until_pair(PAIR, link_state="down")
        committed = standby.count_in_memory()
        self.assertLessEqual(observer.counts()[-1], committed)
        await self.promote(pair, pair.a)
        await standby.until_counting()
        self.assertIn(standby.counts()[0], (committed, committed + 1))
        await self.until_seen(observer)

    async def promote(self, pair: VmPair, daemon: Daemon, **body: bool) -> None:
        """Have a half run the VM, which has to go well."""
        answer = await pair.post(daemon, "promote", **body)
        self.assertEqual(answer.status, 200, f"{answer}\n{told(daemon)}")

    async def test_reloaded(self) -> None:
        await self.assert_protected_in_the_other_direction(is_reloaded=True)

    async def test_restarted(self) -> None:
        await self.assert_protected_in_the_other_direction(is_reloaded=False)


class OtherDirectionOnQemu10Tests(OnQemu10, OtherDirectionTests):
    """The same on QEMU 10: one that has loaded a state is to write its own."""


class WayBackTests(FailbackCase):
    """The VM is to run where it has run before."""

    async def test_the_fence_is_lifted(self) -> None:
        pair, observer = await self.protected_pair(starts_standby=True)
        await pair.promote(force=True)
        await pair.until_vm(pair.a, status="fenced")
        await pair.standby.until_counting()
        await self.assert_paused(pair, pair.primary)

        # Not while the VM runs on the other host: it is fenced again.
        answer = await pair.post(pair.a, "promote", force=True)
        self.assertEqual(answer.status, 200, answer)
        await pair.until_vm(pair.a, status="fenced")
        await self.until_seen(observer)

        taken_over = pair.standby.pid
        answer = await pair.post(pair.b, "demote")
        self.assertEqual(answer.status, 200, answer)
        await until(lambda: pair.standby.pid not in (None, taken_over), "a fresh QEMU stands by")
        answer = await pair.post(pair.a, "promote", force=True)
        self.assertEqual(answer.status, 200, answer)
        await pair.protected()
        await pair.primary.until_counting()
        await pair.kill_primary()
        await pair.promote()
        await pair.until_vm(pair.b, status="promoted", run_state="running", reason="")

    async def test_a_virtual_machine_that_is_started_anew(self) -> None:
        pair, _observer = await self.protected_pair(starts_standby=True)
        await pair.kill_primary()
        await pair.promote()
        answer = await pair.post(pair.b, "demote")
        self.assertEqual(answer.status, 200, answer)
        pair.primary.start()
        await pair.a.start()
        await pair.protected()


class TooLateTests(FailbackCase):
    """The host of the old primary boots when its standby has taken over."""

    async def test_it_is_fenced(self) -> None:
        pair, observer = await self.protected_pair()
        await pair.kill_primary()
        await pair.promote()
        await self.until_seen(observer)
        # Its guest sends already when ftd comes, and it takes a while to hear of what has happened.
        before = pair.primary.last_count()
        pair.primary.start()
        await until(lambda: pair.primary.last_count() < before, "it has begun anew")
        await pair.primary.until_counting()
        pair.proxy.slowness = Slowness(delay=0.3, rate=1e9)
        await pair.a.start()
        await self.assert_fenced(pair)
        for end in (self.kill, self.stop):
            await end(pair.a)
            # Somebody lets it go on while nobody looks.
            monitor = await pair.monitor(pair.primary)
            await monitor.ask("cont")
            await monitor.abort()
            await pair.a.start()
            await self.assert_fenced(pair)
        # Another reboot, and nobody is there to tell it, for longer than it would wait for that.
        pair.a.kill()
        pair.primary.kill()
        pair.b.kill()
        await pair.a.start()
        pair.primary.start()
        await self.assert_fenced(pair)
        await pause(DEAD_TIME + 0.5)
        await self.assert_fenced(pair)
        await pair.b.start()
        # Of all that its guest has sent meanwhile nothing was seen: it has counted from 1 on.
        await self.until_seen(observer)
        self.assertGreater(pair.primary.last_count(), 0)

    async def kill(self, daemon: Daemon) -> None:
        """At once."""
        daemon.kill()

    async def stop(self, daemon: Daemon) -> None:
        """Politely."""
        await daemon.stop()

    async def assert_fenced(self, pair: VmPair) -> None:
        """The old primary says so, and its guest stands still."""
        vm: Json = await pair.until_vm(pair.a, status="fenced")
        self.assertIn("host-b has taken over", vm["reason"])
        monitor = await pair.monitor(pair.primary)

        async def is_paused() -> bool:
            return await monitor.run_state() == "paused"

        await until(is_paused, lambda: f"the old primary is paused\n{told(pair.a)}")
        await monitor.abort()
        count = pair.primary.count_in_memory()
        await pause(0.2)
        self.assertEqual(pair.primary.count_in_memory(), count)
