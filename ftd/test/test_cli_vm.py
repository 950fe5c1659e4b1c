"""``ftdctl`` and pairs that have a VM: protect, promote, demote, and what ``status`` and ``pair show`` tell of it."""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ftd.cli.vm_view import vm_lines
from ftd.cli.wording import milliseconds
from ftd.status import LinkState, PairStatus, PauseStatus, SyncStatus, VmState, VmStatus, to_json
from ftd.test.cli_case import CliTestCase
from ftd.testing.fake_pairs import fake_vm
from ftd.vm.errors import QmpTimeout

PAUSE = PauseStatus(last=9.83, p50=9.71, p99=14.2, stop=0.62, device=4.94, dirty=0.27, cont=3.47)


class VmCase(CliTestCase):
    """
    :ivar vm: the primary ``vm``.
    :ivar standby: the secondary ``vm-standby``.
    """

    def setUp(self) -> None:
        super().setUp()
        self.vm, self.standby = self.daemon.add_vms()


class ProtectTests(VmCase):
    """protect."""

    def test_protect(self) -> None:
        """On, off, and how often."""
        for arguments, shown in (
            (("--off",), "off"),
            ((), "on, a checkpoint every 50 ms"),
            (("--interval", "7.5ms"), "on, a checkpoint every 7.5 ms"),
            (("--interval", "0"), "on, checkpoints at begin and commit"),
            (("--off", "--interval", "2s"), "off"),
            ((), "on, a checkpoint every 2.0 s"),
        ):
            printed = self.ftdctl("protect", "vm", *arguments)
            self.assertEqual((printed.code, printed.out), (0, f"protection of vm is {shown}\n"), arguments)
        self.assertEqual(self.ftdctl("protect", "vm", "--json").json(), {"enabled": True, "interval_ms": 2000.0})

    def test_wrongly(self) -> None:
        """What is no time is wrong usage, what is too short the daemon's to refuse."""
        self.assertEqual(self.ftdctl("protect", "vm", "--interval", "often").code, 2)
        self.assertEqual(self.links, [])
        printed = self.ftdctl("protect", "vm", "--interval", "0.5ms")
        self.assertEqual((printed.code, "1 to 3600000" in printed.err), (1, True))

    def test_without_a_vm(self) -> None:
        """Is refused."""
        printed = self.ftdctl("protect", "demo")
        self.assertEqual((printed.code, "has no VM" in printed.err), (1, True))

    def test_qemu_hangs(self) -> None:
        """Says where to look."""
        self.vm.failing = QmpTimeout("QEMU did not answer stop in 5 s.")
        printed = self.ftdctl("protect", "vm")
        self.assertEqual(printed.code, 1)
        said = "ftdctl: QEMU did not answer stop in 5 s.\nto see what becomes of the VM: ftdctl pair show vm\n"
        self.assertEqual(printed.err, said)


class PromotionTests(VmCase):
    """promote, demote."""

    def test_promote(self) -> None:
        """While the primary is up, only by force."""
        printed = self.ftdctl("promote", "vm-standby")
        self.assertEqual((printed.code, "the primary is up" in printed.err), (1, True))
        printed = self.ftdctl("promote", "vm-standby", "--force")
        said = "the VM of vm-standby runs: promoted, checkpoint 12: it has no standby\n"
        self.assertEqual((printed.code, printed.out), (0, said))
        self.assertEqual(self.standby.promotions, [True])

    def test_they_are_waited_for(self) -> None:
        """As long as it takes."""
        for command in ("promote", "demote"):
            waiting: Deferred[None] = Deferred()
            self.patch(self.standby, command, lambda *_, waiting=waiting: waiting)
            self.ftdctl(command, "vm-standby")
            self.pump(600)
            self.assertFalse(self.running is None or self.running.called, command)
            waiting.callback(None)
            self.pump()
            self.assertTrue(self.running is not None and self.running.called, command)

    def test_demote(self) -> None:
        """Of a primary."""
        printed = self.ftdctl("demote", "vm")
        said = "the VM of vm is stopped for good; the pair is unprotected: it was demoted\n"
        self.assertEqual((printed.code, printed.out), (0, said))

    def test_json(self) -> None:
        """The VM, as the API has it."""
        self.standby.show(link_state=LinkState.DOWN)
        for command in ("promote", "demote"):
            answer = self.ftdctl(command, "vm-standby", "--json").json()
            self.assertEqual(answer, to_json(self.standby.status())["vm"])


class StatusTests(VmCase):
    """status, status --watch, pair show."""

    def show_all(self) -> None:
        """Have everything that there is to show."""
        self.vm.show_vm(pause_ms=PAUSE, dirty_pages=256, checkpoint_bytes=1_300_000, lag_ms=40.0)
        self.vm.show_vm(held_frames=12, held_bytes=3500)
        self.standby.show_vm(checkpoint_bytes=1_300_000, lag_ms=55.0)

    def test_status(self) -> None:
        """Underneath the pair, in 80 columns."""
        self.show_all()
        lines = self.ftdctl("status").lines
        self.assertEqual(
            lines[6:],
            [
                "vm              up          ACK       none yet                      0",
                "  primary → 127.0.0.1:8441",
                "  VM protected, every 50 ms, 128.0 MiB RAM, write-protect",
                "    pause 9.8 ms (p50 9.7 ms, p99 14 ms), 256 dirty pages",
                "    checkpoint 12 of 1.2 MiB, lag 40 ms, held 12 frames, 3.4 KiB",
                "vm-standby      up          ACK       none yet                      0",
                "  secondary ← 127.0.0.1:8441",
                "  VM protected, 128.0 MiB RAM",
                "    checkpoint 12 of 1.2 MiB, lag 55 ms",
            ],
        )
        self.assertLessEqual(max(map(len, lines)), 80)

    def test_show(self) -> None:
        """Every field of the VM by its name."""
        self.show_all()
        lines = self.ftdctl("pair", "show", "vm").lines
        self.assertEqual(len(lines), len(attrs.fields(PairStatus)) + len(attrs.fields(VmStatus)) + 5)
        for line in (
            "vm.status               protected",
            "vm.interval_ms          50",
            "vm.protection           yes",
            "vm.pause_ms.p99         14.2",
            "vm.sync                 -",
            "vm.held_frames          12",
        ):
            self.assertTrue(any(shown.startswith(line) for shown in lines), (line, lines))

    def test_watch_goes_on(self) -> None:
        """A checkpoint is news; that time passes, or that a frame waits, is none."""
        self.show_all()
        self.ftdctl("status", "--watch")
        self.printed()
        self.vm.show_vm(lag_ms=90.0, held_frames=13, held_bytes=4000)
        self.pump()
        self.pump(0.5)
        self.assertEqual(self.printed(), [])
        self.vm.show_vm(checkpoint=13, lag_ms=10.0)
        self.pump()
        self.pump(0.5)
        self.assertIn("    checkpoint 13 of 1.2 MiB, lag 510 ms, held 13 frames, 3.9 KiB", self.printed())
        self.assertEqual(self.interrupt(), 130)


class LiveTests(VmCase):
    """status --watch on a terminal."""

    is_terminal = True

    def test_lag_grows_between_events(self) -> None:
        """Nothing comes, and yet more would be lost with every second."""
        self.vm.show_vm(lag_ms=40.0, checkpoint_bytes=4096)
        self.ftdctl("status", "--watch")
        self.assertIn("checkpoint 12 of 4.0 KiB, lag 40 ms", self.out.getvalue())
        self.pump(2)
        self.assertIn("checkpoint 12 of 4.0 KiB, lag 2.0 s", self.out.getvalue())
        self.vm.show_vm(lag_ms=30.0, checkpoint=13)
        self.pump()
        self.pump(0.5)
        self.assertIn("checkpoint 13 of 4.0 KiB, lag 530 ms", self.out.getvalue())
        self.assertEqual(self.interrupt(), 130)


class ViewTests(SynchronousTestCase):
    """What is said of a VM in each state."""

    def lines(self, vm: VmStatus, age: float = 0.0, is_primary: bool = True) -> list[str]:
        """As on a terminal."""
        return [line.plain for line in vm_lines(vm, age, is_primary)]

    def test_sync(self) -> None:
        """How far it is."""
        vm = attrs.evolve(
            fake_vm("primary"),
            status=VmState.SYNCING,
            checkpoint=0,
            sync=SyncStatus(done_bytes=55 * 1024**2, total_bytes=128 * 1024**2),
        )
        self.assertEqual(
            self.lines(vm),
            [
                "  VM syncing, every 50 ms, 128.0 MiB RAM, write-protect",
                "    sync: 55.0 MiB of 128.0 MiB (42 %)",
                "    no checkpoint yet, held 0 frames, 0 B",
            ],
        )
        nothing = attrs.evolve(vm, sync=SyncStatus(done_bytes=0, total_bytes=0))
        self.assertIn("    sync: 0 B of 0 B", self.lines(nothing))

    def test_no_qemu(self) -> None:
        """Why not, and with foreign text made harmless."""
        vm = VmStatus(status=VmState.UNPROTECTED, interval_ms=0.0, protection=True, reason="no\x1b socket")
        self.assertEqual(
            self.lines(vm),
            [
                "  VM unprotected, no QEMU, at begin and commit",
                "    no checkpoint yet, held 0 frames, 0 B",
                "    no\\x1b socket",
            ],
        )

    def test_off(self) -> None:
        """Is no alarm."""
        vm = attrs.evolve(fake_vm("primary"), status=VmState.UNPROTECTED, protection=False, run_state="paused")
        first = next(vm_lines(vm, 0.0, True))
        self.assertEqual(first.plain, "  VM unprotected, paused, protection off, 128.0 MiB RAM, write-protect")
        self.assertEqual([str(span.style) for span in first.spans if span.style], [])

    def test_a_clock_that_is_behind(self) -> None:
        """Makes no lag smaller than it was."""
        vm = attrs.evolve(fake_vm("secondary"), lag_ms=20.0)
        self.assertIn("lag 20 ms", self.lines(vm, -3.0, is_primary=False)[1])

    def test_every_state_has_a_style(self) -> None:
        """And none is missing."""
        for state in VmState:
            self.assertIn(state.value, self.lines(attrs.evolve(fake_vm("primary"), status=state))[0])

    def test_milliseconds(self) -> None:
        """With a tenth where that counts."""
        for count, shown in ((-1, "0.0 ms"), (0.44, "0.4 ms"), (9.94, "9.9 ms"), (12.6, "13 ms"), (1500, "1.5 s")):
            self.assertEqual(milliseconds(count), shown)
