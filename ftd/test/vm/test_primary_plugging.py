"""What is plugged into a protected VM is noticed, and what is told of a guest that is stopped for a checkpoint."""

from __future__ import annotations

from ftd.config import SecondaryLoss
from ftd.status import VmState
from ftd.test.vm.primary_case import PrimaryCase


class PluggingTests(PrimaryCase):
    """A standby has been started with what the VM had then."""

    def plug(self) -> None:
        """A device is plugged in, and ftd looks."""
        self.qemu.add_device("nic1", "virtio-net-pci")
        self.pass_time(11.0, 0.05)

    def test_it_is_told_and_protected_anew(self) -> None:
        self.protected()
        self.next_checkpoint()
        generation = self.standby.headers[-1].generation
        self.plug()
        self.assertIn(
            (
                VmState.UNPROTECTED,
                "devices were plugged in or out (nic1 virtio-net-pci); start the standby with the same ones",
            ),
            self.told,
        )
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        # What the standby makes of the other fingerprint is its business; it is told of it in a full checkpoint.
        full = [header for header in self.standby.headers if header.base is None]
        self.assertEqual(len({header.fingerprint for header in full}), 2)
        self.assertNotEqual(full[-1].generation, generation)
        self.assert_protects()

    def test_on_hold_the_guest_waits_for_it(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.plug()
        self.assertIn(VmState.HOLDING, [state for state, _reason in self.told])
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assertEqual(self.qemu.run_state, "running")

    def test_a_vm_that_stays_what_it_is_goes_on(self) -> None:
        self.protected()
        self.pass_time(25.0, 0.05)
        self.assertEqual(len([header for header in self.standby.headers if header.base is None]), 1)
        self.assertIs(self.told[-1][0], VmState.PROTECTED)


class RunStateTests(PrimaryCase):
    """The moments in which a checkpoint is taken are not worth telling."""

    def shown(self) -> str | None:
        """What the API shows."""
        assert self.vm is not None
        return self.vm.status().run_state

    def test_the_guest_runs_while_a_checkpoint_is_taken(self) -> None:
        self.protected()
        self.qemu.hold("migrate")
        self.until(lambda: "migrate" in self.qemu.held)
        self.assertEqual((self.qemu.run_state, self.shown()), ("paused", "running"))
        self.qemu.release_all()

    def test_one_that_somebody_has_stopped_does_not(self) -> None:
        self.protected()
        self.qemu._do_stop({})
        self.deliver()
        self.assertEqual(self.shown(), "paused")
        self.guest_stands_still = True
