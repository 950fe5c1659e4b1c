"""What the tests of virtual machines stand on does what it says, without ftd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.vm import guest, leash
from tests.vm.case import TAPS, OnQemu10, VmCase
from tests.vm.monitor import connect
from tests.waiting import pause, until


class BootSectorTests(VmCase):
    """The guest that counts."""

    async def test_it_counts_in_memory_and_on_its_serial_port(self) -> None:
        qemu = self.machine(guest.counter())
        qemu.start()
        await qemu.until_counting()
        found = qemu.counts()
        self.assertEqual(found, list(range(1, len(found) + 1)))
        self.assertGreaterEqual(qemu.count_in_memory(), found[-1])

    async def test_it_is_killed_and_its_memory_stays(self) -> None:
        qemu = self.machine(guest.counter(pages=3))
        qemu.start()
        await qemu.until_counting()
        qemu.kill()
        self.assertIsNone(qemu.pid)
        count = qemu.count_in_memory()
        self.assertIn(count - qemu.last_count(), (0, 1))
        memory = qemu.ram.read_bytes()
        pages = [int.from_bytes(memory[at : at + 4], "little") for at in range(1 << 20, (1 << 20) + 4 * 4096, 4096)]
        self.assertIn(pages[0], (count, count + 1))
        self.assertIn(pages[2], (count, count + 1))
        self.assertEqual(pages[3], 0)

    async def test_a_lost_page_is_found(self) -> None:
        qemu = self.machine(guest.counter())
        qemu.start()
        await qemu.until_counting()
        with qemu.ram.open("r+b") as file:
            os.pwrite(file.fileno(), b"\0\0\0\0", (1 << 20) + 100 * 4096)
        await until(lambda: qemu.serial().endswith("!\n"), "the guest finds it")
        with self.assertRaises(AssertionError):
            qemu.counts()

    async def test_it_hangs_and_goes_on(self) -> None:
        qemu = self.machine(guest.counter())
        qemu.start()
        await qemu.until_counting()
        qemu.hang()
        count = qemu.count_in_memory()
        await pause(0.2)
        self.assertEqual(qemu.count_in_memory(), count)
        qemu.wake()
        await qemu.until_counting()

    async def test_it_stands_still_and_touches_nothing(self) -> None:
        qemu = self.machine(guest.counter(has_reins=True))
        qemu.start()
        await qemu.until_counting()
        await qemu.stand_still()
        memory = qemu.ram.read_bytes()
        await pause(0.2)
        self.assertEqual(qemu.ram.read_bytes(), memory)
        qemu.count_on()
        await qemu.until_counting()

    async def test_it_writes_all_over_its_memory(self) -> None:
        qemu = self.machine(guest.flood(ram=64))
        qemu.start()
        await qemu.until_counting()
        qemu.kill()
        self.assertGreaterEqual(qemu.ram.stat().st_blocks * 512, 60 << 20)

    async def test_its_monitor(self) -> None:
        qemu = self.machine(guest.counter())
        qemu.start()
        monitor = await connect(str(qemu.test_monitor))
        self.addCleanup(monitor.abort)
        await monitor.ask("stop")
        self.assertEqual(await monitor.run_state(), "paused")
        self.assertIn("STOP", [event["event"] for event in monitor.events])

    async def test_a_standby_waits(self) -> None:
        qemu = self.machine(guest.counter(), is_standby=True)
        qemu.start()
        monitor = await connect(str(qemu.test_monitor))
        self.addCleanup(monitor.abort)
        self.assertEqual(await monitor.run_state(), "inmigrate")
        self.assertEqual(qemu.serial(), "")


class BootSectorOnQemu10Tests(OnQemu10, BootSectorTests):
    """The same on QEMU 10."""


class LinuxTests(VmCase):
    """The Linux guest."""

    async def test_it_boots(self) -> None:
        qemu = self.machine(guest.linux())
        qemu.start()
        await qemu.until_printed(guest.READY)
        self.assertNotIn("no virtio", qemu.serial())


class LinuxOnQemu10Tests(OnQemu10, LinuxTests):
    """The same on QEMU 10."""


class LeashTests(VmCase):
    """No machine outlives what it is tied to."""

    async def test_it_ends_with_its_keeper(self) -> None:
        with subprocess.Popen(["sleep", "60"]) as keeper:
            command = [sys.executable, leash.__file__, str(keeper.pid), "sleep", "61"]
            tied = subprocess.Popen(command)
            await until(lambda: "61" in Path(f"/proc/{tied.pid}/cmdline").read_text(), "it has become the program")
            self.assertIsNone(tied.poll())
            keeper.kill()
        await until(lambda: tied.poll() is not None, "it ends")
        self.assertEqual(tied.returncode, -signal.SIGKILL)


class NetworkTests(VmCase):
    """A network of a test's own."""

    async def test_only_it_has_the_taps(self) -> None:
        network = self.network()
        listed = subprocess.run(network.inside("ip", "-br", "link"), capture_output=True, text=True, check=True).stdout
        for name in (*TAPS, "bridge"):
            self.assertIn(name, listed)
        outside = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        self.assertNotIn(TAPS[0], outside)
