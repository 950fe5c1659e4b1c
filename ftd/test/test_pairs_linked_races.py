"""The link of a protected VM is gone and back again while something else takes long."""

from __future__ import annotations

from ftd.status import VmState
from ftd.test.vm.linked_case import LinkedCase
from ftd.test.vm.primary_world import ModelGates
from ftd.vm.netgate import NetGateError


class LinkTests(LinkedCase):
    """A checkpoint belongs to the link on which it was begun."""

    def test_it_is_back_before_the_device_state_is_there(self) -> None:
        self.protect()
        self.next_checkpoint()
        frame = self.say()
        self.qemu.hold("migrate")
        self.until(lambda: bool(self.qemu.held))
        self.link.cut(clean=False)
        self.pass_time(0.4)
        self.assert_state(VmState.PROTECTED)
        self.qemu.release_all()
        self.pass_time(0.5)
        self.until_protected()
        self.assertTrue(self.was_seen(frame))
        self.assert_protects()


class StartTests(LinkedCase):
    """Other VMs of the daemon go on where one cannot be started."""

    def test_a_tap_that_is_not_there_yet(self) -> None:
        def start(_: ModelGates) -> None:
            raise NetGateError("there is no tap vm0; make it")

        patched = self.patch(ModelGates, "start", start)
        self.new_primary()
        self.pass_time(0.5)
        self.assert_state(VmState.UNPROTECTED, "there is no tap vm0")
        patched.restore()
        self.start_b()
        self.pass_time(6.0, 0.05)
        self.until_protected()
        self.assert_protects()

    def test_it_is_stopped_before_the_tap_is_there(self) -> None:
        def start(_: ModelGates) -> None:
            raise NetGateError("there is no tap vm0; make it")

        self.patch(ModelGates, "start", start)
        self.new_primary()
        # `PrimaryCase` sees to it that nothing is left.
