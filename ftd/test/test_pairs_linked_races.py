"""The link of a protected VM is gone and back again while something else takes long."""

from __future__ import annotations

from ftd.status import VmState
from ftd.test.vm.linked_case import LinkedCase


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
