"""After every checkpoint the standby's memory is the primary's, byte for byte."""

from __future__ import annotations

import random

from tests.vm import guest
from tests.vm.case import OnQemu10, VmCase
from tests.vm.qemu import Qemu
from tests.waiting import pause

ROUNDS = 50


class EqualTests(VmCase):
    """
    A guest that writes is told to stand still, touching nothing, now and then.

    Its memory is then what the next checkpoint finds, and it stays so until it is told to go on.
    """

    async def test_with_the_best_tracking(self) -> None:
        await self.assert_equal_after_rounds("auto")

    async def test_with_comparison(self) -> None:
        await self.assert_equal_after_rounds("compare")

    async def assert_equal_after_rounds(self, dirty: str) -> None:
        """The two memories after each of many checkpoints, with the guest as busy as it can be between them."""
        machine = guest.counter(pages=2000, delay=0, has_reins=True)
        keys = {"qemu-interval": "20ms", "qemu-dirty": dirty}
        pair = await self.pair(machine, a_keys=keys, b_keys={"ack": "applied"}).started()
        for round_number in range(ROUNDS):
            await pair.until_checkpoints(1)
            await pause(random.uniform(0.0, 0.04))
            await pair.primary.stand_still()
            # One may have been under way when it stopped; the next is of the memory as it is now.
            await pair.until_checkpoints(2)
            self.assert_same_memory(pair.primary, pair.standby, f"round {round_number}")
            pair.primary.count_on()
        vm = await pair.vm(pair.a)
        self.assertEqual(vm["status"], "protected")
        self.assertGreaterEqual(vm["checkpoint"], ROUNDS)
        self.assertNotEqual(pair.primary.counts(), [])

    def assert_same_memory(self, primary: Qemu, standby: Qemu, when: str) -> None:
        """Byte for byte."""
        expected, found = primary.ram.read_bytes(), standby.ram.read_bytes()
        if expected != found:
            pages = [
                at >> 12 for at in range(0, len(expected), 4096) if expected[at : at + 4096] != found[at : at + 4096]
            ]
            self.fail(f"{when}: {len(pages)} pages differ, such as {pages[:10]}")


class EqualOnQemu10Tests(OnQemu10, EqualTests):
    """The same on QEMU 10."""
