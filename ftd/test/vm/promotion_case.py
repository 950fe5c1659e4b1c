"""What tests of a take-over stand on."""

from __future__ import annotations

from collections.abc import Callable

from ftd.status import VmState
from ftd.test.vm.standby_case import StandbyCase
from ftd.testing.fake_qmp import FakeQemu
from ftd.vm.standby import VmStandby

#: What a take-over does to QEMU and the gates, in order.
TAKE_OVER = ["migrate-incoming", "gates open", "cont", "announce-self"]


class PromotionCase(StandbyCase):
    """A standby that holds a checkpoint."""

    def holding(self, qemu_command: str = "") -> tuple[VmStandby, FakeQemu]:
        """Ready, with checkpoint 5 in RAM."""
        standby, qemu = self.ready(qemu_command=qemu_command)
        self.commit(standby, 5, pages={1: 11})
        return standby, qemu

    def check_is_standby(self, standby: VmStandby) -> None:
        """Nothing of a take-over is left, and what was committed is still there."""
        self.assertFalse(standby.is_promoted)
        self.assertFalse(self.marker.exists())
        self.assertFalse(self.gates.is_open)
        self.assertEqual([checkpoint.number for checkpoint in standby.checkpoints()], [5])

    def check_is_promoted(self, standby: VmStandby) -> None:
        """It is, and its guest runs."""
        self.assertTrue(standby.is_promoted)
        self.assertTrue(self.marker.exists())
        self.assertTrue(self.gates.is_open)
        status = standby.vm_status()
        self.assertEqual((status.status, status.reason, status.run_state), (VmState.PROMOTED, "", "running"))


def dies(_: str) -> None:
    raise RuntimeError("QEMU cannot load this")


def tells(qemu: FakeQemu, status: str) -> Callable[[object], object]:
    """A ``migrate-incoming`` of which nothing comes but an event."""

    def act(_: object) -> object:
        qemu.emit("MIGRATION", {"status": status})
        return {}

    return act


def fails(error: Exception) -> object:
    def act(*_: object) -> None:
        raise error

    return act
