"""Getting hold of the VM whenever QEMU is there: who is told what, in which order."""

from __future__ import annotations

import errno
import os

from twisted.internet.defer import Deferred

from ftd.test.vm.primary_case import PrimaryCase
from ftd.testing.threads import SteppedThread
from ftd.vm import guest as guest_module
from ftd.vm.guest import Guest
from ftd.vm.guest_keeper import GuestKeeper
from ftd.vm.stop_marker import StopMarker, Stopped
from ftd.vm.surroundings import VmSurroundings


class Owner:
    """
    Who wants the guest.

    :ivar log: what it was told.
    :ivar busy: somebody works with the guest that was there before.
    """

    def __init__(self) -> None:
        self.is_fenced = False
        self.log: list[str] = []
        self.busy: Deferred[None] | None = None

    def qemu_found(self, is_another: bool) -> None:
        self.log.append("another" if is_another else "found")

    def attached(self, guest: Guest) -> None:
        self.log.append(f"attached {guest.run_state}")

    def cannot_attach(self, why: str) -> None:
        self.log.append(f"cannot: {why}")

    def qemu_lost(self, why: str) -> None:
        del why
        self.log.append("lost")

    def qemu_ended(self) -> None:
        self.log.append("ended")

    async def idle(self) -> None:
        if self.busy is not None:
            await self.busy


class KeeperTests(PrimaryCase):
    """From the keeper's side."""

    def setUp(self) -> None:
        super().setUp()
        self.owner = Owner()
        self.stop_marker = StopMarker(self.state / "stopped")
        around = VmSurroundings(reactor=self.reactor, run_in_thread=self._in_thread, now=self.now)
        self.keeper = GuestKeeper(self.config, around, self.stop_marker, self.owner, self.processes)
        self.keeper.start()

    def tearDown(self) -> None:
        self.successResultOf(self.keeper.stop())
        self.run_threads()
        self.pass_time(0.1)
        self.stop_marker.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertIsNone(self.keeper.guest)
        self.assertTrue(all(tracker.is_closed for tracker in self.guest.trackers))
        super().tearDown()

    def hears(self) -> list[str]:
        """What the owner was told, since the last time."""
        self.pass_time(0.2)
        log = list(self.owner.log)
        self.owner.log.clear()
        return log

    def test_found_and_attached(self) -> None:
        self.assertEqual(self.hears(), ["found", "attached running"])
        self.assertEqual(self.keeper.version, "7.2.22")

    def test_there_is_none(self) -> None:
        self.reactor.qemus.clear()
        (why,) = self.hears()
        self.assertIn("there is no socket", why)
        self.assertIsNone(self.keeper.version)

    def test_qmp_breaks_and_it_lives(self) -> None:
        self.hears()
        self.break_qmp()
        self.assertIsNotNone(self.keeper.guest, "somebody may work with it")
        self.keeper.let_go()
        self.assertEqual(self.hears(), ["lost", "found", "attached running"])

    def test_the_one_before_is_not_given_up_by_itself(self) -> None:
        self.hears()
        self.owner.busy = Deferred()
        self.break_qmp()
        self.assertEqual(self.hears(), ["lost", "found"])
        self.keeper.let_go()
        self.owner.busy.callback(None)
        self.assertEqual(self.hears(), ["attached running"])

    def test_it_dies(self) -> None:
        self.hears()
        self.kill_qemu()
        self.assertEqual(self.hears(), ["lost", "ended"])

    def test_a_process_that_cannot_be_looked_at_has_not_ended(self) -> None:
        self.hears()

        def refuse(_: int) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        patched = self.patch(self.processes, "identity", refuse)
        self.kill_qemu()
        self.assertEqual(self.hears(), ["lost"])
        patched.restore()
        self.assertEqual(self.hears(), ["ended"])

    def test_it_takes_a_while_to_die(self) -> None:
        self.hears()
        del self.processes.living[4242]
        self.processes.living[4242] = None
        self.kill_qemu()
        self.assertEqual(self.hears(), ["lost"])
        del self.processes.living[4242]
        self.assertEqual(self.hears(), ["ended"])
        self.assertEqual(self.hears(), [], "once")

    def test_another_one(self) -> None:
        self.hears()
        self.kill_qemu()
        self.keeper.let_go()
        self.hears()
        self.new_qemu(5001)
        self.assertEqual(self.hears(), ["another", "attached running"])

    def test_it_cannot_be_protected_for_now(self) -> None:
        self.qemu.backends[0]["share"] = False
        _, why = self.hears()
        self.assertIn("share=on", why)
        self.qemu.backends[0]["share"] = True
        self.pass_time(5.0, 0.05)
        self.assertEqual(self.hears(), ["attached running"])

    def test_it_is_lost_while_it_is_looked_at_in_a_thread(self) -> None:
        self.thread = SteppedThread()
        self.assertEqual(self.hears(), ["found"])
        self.break_qmp()
        self.run_threads()
        self.thread = None
        self.assertEqual(self.hears(), ["lost", "found", "attached running"])
        self.assertEqual(sum(not tracker.is_closed for tracker in self.guest.trackers), 1)

    def test_fenced(self) -> None:
        self.owner.is_fenced = True
        self.assertEqual(self.hears(), ["found"])
        self.assertEqual(self.qemu.run_state, "paused")

    def test_fenced_while_it_is_looked_at(self) -> None:
        self.thread = SteppedThread()
        self.hears()
        self.owner.is_fenced = True
        self.run_threads()
        self.assertEqual(self.hears(), [])
        self.assertIsNone(self.keeper.guest)

    def test_kept_stopped(self) -> None:
        self.hears()
        self.stop_marker.value = Stopped.FOR_CHECKPOINT
        for _ in range(2):
            keeping = Deferred.fromCoroutine(self.keeper.keep_stopped())
            self.deliver()
            self.successResultOf(keeping)
        self.assertEqual(len(self.qemu.named("stop")), 1)
        self.assertIs(self.stop_marker.value, Stopped.NOT_BY_US, "no ftd lets it go on")

    def test_a_bug_is_told_and_logged(self) -> None:
        def discover(*_: object) -> object:
            raise ZeroDivisionError

        self.patch(guest_module, "discover", discover)
        self.assertEqual(self.hears(), ["found", "cannot: an error in ftd; the log says which"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
