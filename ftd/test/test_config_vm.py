"""Tests of :mod:`ftd.config`: pairs that have a VM, in files, good and bad, and in the example of the shipped one."""

from __future__ import annotations

import re

from ftd.config import PAIR_KEYS, Dirty, Encoding, NetConfig, PairConfig, Role, SecondaryLoss, Sink, Source
from ftd.config_values import MIB
from ftd.test.test_config import NOT_A_SOURCE_TREE, PRIMARY, ROOT, SECONDARY, BadFiles, BadLines, FileCase

VM = PRIMARY + "source = qemu\nqemu-qmp = /vm.qmp\n"
STANDBY_VM = SECONDARY + "sink = qemu\nqemu-qmp = /standby.qmp\n"

BAD_FILES: BadFiles = [
    (
        SECONDARY.replace("tcp:8441:interface=127.0.0.1", "unix:/vm.qmp") + VM,
        ["[pair a] qemu-qmp: socket /vm.qmp is taken: [pair b] link listens there already (two pairs on one socket)"],
    ),
    (
        VM + VM.replace("a]", "c]"),
        ["[pair c] qemu-qmp: socket /vm.qmp is taken: [pair a] qemu-qmp uses it already (two pairs on one socket)"],
    ),
    (
        VM + "qemu-net-0 = unix:/0 uplink t\n" + STANDBY_VM + "qemu-net-0 = unix:/1 uplink tap:t\n",
        ["[pair b] qemu-net-0: tap device t is taken: [pair a] qemu-net-0 uses it already (two pairs on one tap dev"],
    ),
    (
        VM + "qemu-net-0 = unix:/0 uplink unix:/u\nqemu-net-1 = connect:/0 uplink unix:/u\n",
        ["[pair a] qemu-net-1: socket /0 is taken: [pair a] qemu-net-0 listens there already"],
    ),
    # VMs without what they need, and what is for VMs without one
    (PRIMARY + "source = qemu\n", ["[pair a] qemu-qmp: is missing, and source = qemu needs it; for example qemu-qmp"]),
    (SECONDARY + "sink = qemu\n", ["[pair b] qemu-qmp: is missing, and sink = qemu needs it; for example qemu-qmp ="]),
    (PRIMARY + "source = qemus\nqemu-time = 1s\n", ["[pair a] source: 'qemus' is not possible here"]),
    (
        VM + "".join(f"qemu-net-{n} = unix:/{n} uplink t{n}\n" for n in range(33)),
        ["[pair a] qemu-net-ID: there are 33 of them, 32 can be"],
    ),
]

BAD_LINES: BadLines = [
    (
        VM,
        "[pair a]",
        [
            ("qemu-interval = 0.9ms", "qemu-interval: '0.9ms' is out of bounds: it has to be 1ms to 1h, or 0 for chec"),
            ("qemu-interval = 2h", "qemu-interval: '2h' is out of bounds: it has to be 1ms to 1h, or 0 for checkpoint"),
            ("qemu-protect = maybe", "qemu-protect: 'maybe' is not possible here"),
            ("qemu-dirty = log", "qemu-dirty: 'log' is not possible here: it has to be auto or write-protect or soft-"),
            ("qemu-encoding = lz4", "qemu-encoding: 'lz4' is not possible here: it has to be auto or raw or zstd"),
            ("on-secondary-loss = stop", "on-secondary-loss: 'stop' is not possible here: it has to be continue or h"),
            ("qemu-staging-dir = /x", "qemu-staging-dir: is for a secondary, and this pair is a primary"),
            ("qemu-held-limit = 64KiB", "qemu-held-limit: '64KiB' is out of bounds: it has to be 128KiB to 64GiB"),
            ("qemu-rounds = 0", "qemu-rounds: '0' is out of bounds: it has to be 1 to 1000"),
            ("qemu-time = 0", "qemu-time: '0' is out of bounds: it has to be 100ms to 1h"),
            ("qemu-nets = x", "qemu-nets: there is no such key"),
            ("peer = kemari", "peer: has to be ftd where source = qemu: Kemari does not know its checkpoints"),
            ("qemu-net- = unix:/a uplink t", "qemu-net-: qemu-net-ID has an ID of 1 to 32 letters, digits, '_', '.'"),
            ("qemu-net-a/b = unix:/a uplink t", "qemu-net-a/b: qemu-net-ID has an ID of 1 to 32 letters"),
            ("qemu-net-0 = /a uplink t", "qemu-net-0: '/a uplink t' will not do: it has to be unix:SOCKET or connect:"),
            ("qemu-net-0 = unix:/a", "qemu-net-0: 'unix:/a' will not do: it has to be unix:SOCKET or connect:SOCKET,"),
            ("qemu-net-0 = unix:/a uplink tap:", "qemu-net-0: 'tap:' is not a tap device (1 to 15 letters, digits"),
            ("qemu-net-0 = unix:/a uplink tap0123456789abc", "qemu-net-0: 'tap0123456789abc' is not a tap device"),
            ("qemu-net-0 = unix:/a uplink tap:t%d", "qemu-net-0: 't%d' is not a tap device"),
            ("qemu-net-0 = unix:/a uplink t uplink u", "qemu-net-0: 'unix:/a uplink t uplink u' has more than one up"),
            ("qemu-net-0 = unix:/a uplink /x/../a", "qemu-net-0: the socket and the uplink are the same, '/a'"),
            (f"qemu-net-0 = unix:/{'x' * 107} uplink t", "qemu-net-0: the path of a socket can have 107 bytes, '/xx"),
        ],
    ),
    (
        STANDBY_VM,
        "[pair b]",
        [
            ("peer = kemari", "peer: has to be ftd where sink = qemu: Kemari does not know its checkpoints"),
            ("qemu-command = qemu 'a b", "qemu-command: 'qemu 'a b' is not a command line: no closing quotation"),
            ('qemu-command = ""', "qemu-command: '\"\"' has no command in it; for example qemu-command = /etc/ftd/"),
            ("qemu-protect = on", "qemu-protect: is for a primary, and this pair is a secondary"),
        ],
    ),
]


class VmTests(FileCase):
    """Pairs that have a VM."""

    def test_bad_files(self) -> None:
        """Everything that is wrong is told with its key."""
        self.assert_problems(BAD_FILES, BAD_LINES)

    def test_all_keys_of_vms(self) -> None:
        """Every key of a VM gets where it belongs; its NICs come in the order of their IDs."""
        config = self.loaded(
            VM + "qemu-interval = 0\nqemu-protect = off\nqemu-dirty = soft-dirty\nqemu-encoding = zstd\n"
            "on-secondary-loss = hold\nqemu-net-n1 = connect:/n1 uplink /switch\n"
            "qemu-net-n0 = unix:/n0  uplink tap:vm0\nqemu-staging-limit = 1MiB\nqemu-held-limit = 2MiB\n"
            "qemu-device-limit = 3MiB\nqemu-time = 4s\nqemu-rounds = 5\n"
            + STANDBY_VM
            + "qemu-net-n0 = unix:/m0 uplink m\n"
            "qemu-command = /qemu -name 'a b'\nqemu-staging-dir = /x\n"
        )
        primary = PairConfig(
            section="a",
            role=Role.PRIMARY,
            link="tcp:127.0.0.1:8441",
            source=Source.QEMU,
            qemu_qmp="/vm.qmp",
            qemu_interval=0.0,
            qemu_protect=False,
            qemu_dirty=Dirty.SOFT_DIRTY,
            qemu_encoding=Encoding.ZSTD,
            on_secondary_loss=SecondaryLoss.HOLD,
            qemu_nets=(
                NetConfig(id="n0", socket="/n0", connect=False, uplink_kind="tap", uplink="vm0"),
                NetConfig(id="n1", socket="/n1", connect=True, uplink_kind="unix", uplink="/switch"),
            ),
            qemu_staging_limit=MIB,
            qemu_held_limit=2 * MIB,
            qemu_device_limit=3 * MIB,
            qemu_time=4.0,
            qemu_rounds=5,
        )
        secondary = PairConfig(
            section="b",
            role=Role.SECONDARY,
            link="tcp:8441:interface=127.0.0.1",
            sink=Sink.QEMU,
            qemu_qmp="/standby.qmp",
            qemu_nets=(NetConfig(id="n0", socket="/m0", connect=False, uplink_kind="tap", uplink="m"),),
            qemu_command="/qemu -name 'a b'",
            qemu_staging_dir="/x",
        )
        self.assertEqual(config.pairs, {"a": primary, "b": secondary})
        self.assertEqual((primary.has_vm, secondary.has_vm), (True, True))
        self.assertFalse(any(pair.has_vm for pair in self.loaded(PRIMARY + SECONDARY).pairs.values()))

    def test_two_nics_can_dial_one_uplink(self) -> None:
        """A switch takes any number of them."""
        config = self.loaded(VM + "qemu-net-0 = unix:/0 uplink /u\nqemu-net-1 = unix:/1 uplink /u\n")
        self.assertEqual([net.uplink for net in config.pairs["a"].qemu_nets], ["/u", "/u"])


class ShippedFileTests(FileCase):
    """``etc/ftd.conf``."""

    skip = NOT_A_SOURCE_TREE
    path = ROOT / "etc" / "ftd.conf"

    def test_the_example_of_a_vm(self) -> None:
        """The end of the file, without its number signs, is both halves of a VM, at their defaults where it says so."""
        text = self.path.read_text(encoding="utf-8")
        example = re.sub(r"(?m)^# ?", "", text[text.index("# [pair vm]") :])
        spelled_out = re.sub(r"(?m)^;(?=[a-z-]+ = )", "", example)
        config, plain = self.loaded(spelled_out), self.loaded(example)
        self.assertEqual([pair.has_vm for pair in config.pairs.values()], [True, True])
        self.assertEqual([pair.name for pair in config.pairs.values()], ["vm", "vm"])
        for pair, other in zip(config.pairs.values(), plain.pairs.values(), strict=True):
            for key in PAIR_KEYS.values():
                if key.has_plain_default:
                    self.assertEqual(getattr(pair, key.attribute), getattr(other, key.attribute), key.name)
            self.assertEqual([net.id for net in pair.qemu_nets], ["n0"])
