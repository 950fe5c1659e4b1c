"""What docs/vm.md tells people to type is typed on two hosts, step by step, and a VM goes on all the time."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.daemon import TREE, Json, environment
from tests.vm import guest, programs
from tests.vm.case import VmCase
from tests.vm.host import Host
from tests.vm.network import Client, Network
from tests.waiting import pause, until

_GUIDE = (TREE / "docs" / "vm.md").read_text()

#: What the guide calls the pair, and where it has the hosts.
_PAIR, _ADDRESS_A, _ADDRESS_B = "vm1", "192.0.2.1", "192.0.2.2"

#: The directories of the guide that are on a host's own disk here, as no test writes to the machine's.
_MOVED = {"/etc/ftd/": "etc/", "/var/lib/ftd": "var"}


def blocks(tag: str) -> list[str]:
    """The guide's code blocks that are tagged so."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", _GUIDE, re.MULTILINE | re.DOTALL)
    return [text for tagged, text in found if tagged == tag]


def here(text: str) -> str:
    """A piece of the guide as it is to be typed on a `Host`."""
    for path, moved in _MOVED.items():
        text = text.replace(path, moved)
    return text


def other_way(configuration: str) -> str:
    """The configuration of the other host, once the pair has the other direction."""
    node, pair = configuration.split("[pair ")
    nodes = {"host-a": "host-b", "host-b": "host-a"}
    return f"{re.sub('host-[ab]', lambda found: nodes[found[0]], node)}[pair {pair.replace(_ADDRESS_B, _ADDRESS_A)}"


class ConfigurationTests(SynchronousTestCase):
    """Needs neither QEMU nor anything else."""

    def test_its_configurations_are_well(self) -> None:
        texts = blocks("ini")
        self.assertEqual(len(texts), 2)
        for text in (*texts, *map(other_way, texts)):
            file = Path(self.mktemp())
            file.write_text(text)
            done = subprocess.run(
                [sys.executable, "-m", "ftd.cli", "check", str(file)],
                env=environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertEqual(done.returncode, 0, done)

    def test_the_standby_has_the_primarys_command_line(self) -> None:
        (primary,) = blocks("sh primary")
        standby = re.search(r"^qemu-command = (.*?)^\S", f"{blocks('ini')[0]}[", re.MULTILINE | re.DOTALL)
        assert standby is not None
        self.assertEqual(shlex.split(standby[1]), [*shlex.split(primary.replace("\\\n", " ")), "-incoming", "defer"])


class GuideTests(VmCase):
    """Everything as it stands there; only where the hosts have their disks is another place."""

    def setUp(self) -> None:
        super().setUp()
        for needed in ("unshare", "nsenter", "curl"):
            programs.program(needed)
        self.lan = Network(())
        self.addCleanup(self.lan.remove)
        self.hosts: list[Host] = []

    def host(self, name: str, address: str) -> Host:
        """A host of this test, which is off."""
        kernel, _ = programs.kernel()
        files = {"vmlinuz": kernel, "initrd.gz": guest.initramfs()}
        host = Host(name, self.lan, f"{address}/24", self.scratch(), files, self.program)
        self.addCleanup(host.remove)
        self.addCleanup(self.assert_no_fault_on, host)
        self.hosts.append(host)
        (host.disk / "etc").mkdir()
        return host

    def log(self) -> str:
        """What the hosts have said last."""
        return "\n".join(f"{host.name}:\n{host.said()[-6000:]}" for host in self.hosts)

    async def up(self, host: Host) -> None:
        """Switch a host on, and give it its tap device."""
        await host.boot()
        (taps,) = (block for block in blocks("sh") if block.startswith("ip tuntap"))
        await host.succeed(taps)

    async def start_ftd(self, host: Host, configuration: str) -> None:
        """Start the daemon, and wait until it answers."""
        (host.disk / "etc" / "ftd.conf").write_text(here(configuration))
        (commands,) = (block for block in blocks("sh") if block.startswith("twistd"))
        command, self.watch = here(commands).splitlines()
        host.start(command)

        async def answers() -> bool:
            return bool(await host.pair(_PAIR))

        await until(answers, lambda: f"ftd of {host.name} answers\n{self.log()}")

    def assert_no_fault_on(self, host: Host) -> None:
        """Nothing that happened was a surprise to its ftd."""
        self.assertNotIn("Traceback", host.said())

    async def reload(self, host: Host, configuration: str) -> None:
        """Have the daemon take another configuration."""
        (host.disk / "etc" / "ftd.conf").write_text(here(configuration))
        (command,) = (block for block in blocks("sh") if block.startswith("kill -HUP "))
        await host.succeed(command)

    async def until_vm(self, host: Host, within: float = 60.0, **fields: object) -> Json:
        """Wait until a host says this of the VM."""
        last: Json = {}

        async def has_them() -> bool:
            nonlocal last
            await pause(0.2)
            last = (await host.pair(_PAIR)).get("vm", {})
            return all(last.get(field) == value for field, value in fields.items())

        await until(has_them, lambda: f"{fields} of {host.name}; it is {last}\n{self.log()}", within)
        return last

    async def until_more(self, lines: Client, more: int = 60) -> None:
        """Wait until a connection to the guest has brought more, and nothing that it should not."""
        target = len(lines.numbers()) + more

        def told() -> str:
            return f"{target}; {lines.numbers()[-3:]} {lines.trouble()}\n{self.log()}"

        await until(lambda: len(lines.numbers()) >= target, told, 60)
        found = lines.numbers()
        self.assertEqual(found, list(range(1, len(found) + 1)))
        self.assertEqual(lines.trouble(), "")

    async def test_step_by_step(self) -> None:
        conf_b, conf_a = blocks("ini")
        host_a, host_b = self.host("host-a", _ADDRESS_A), self.host("host-b", _ADDRESS_B)
        await self.up(host_a)
        await self.up(host_b)

        # Steps 1 to 3.
        (qemu,) = blocks("sh primary")
        host_a.start(qemu)
        await self.start_ftd(host_b, conf_b)
        await self.start_ftd(host_a, conf_a)
        watch = host_a.start(self.watch, on_terminal=True)
        await watch.until_out("protected")
        await until(
            lambda: guest.READY in (host_a.disk / "console.txt").read_text(), "the guest is up", guest.BOOT_TIME
        )
        lines = Client(self.lan, "lines", "10.0.2.15", 7000, self.scratch())
        self.addCleanup(lines.end)
        await self.until_more(lines)
        await self.until_vm(host_a, status="protected", reason="")

        # Step 4: the host dies.
        promote, move = (block for block in blocks("sh") if block.startswith("ftdctl "))
        refused = await host_b.sh(promote)
        self.assertEqual(refused.status, 1, refused)
        await host_a.unplug()
        host_a.cut_power()
        await self.until_promoted(host_b, promote)
        await self.until_more(lines)

        # Step 5: protected again, by the host that has died.
        await self.up(host_a)
        await self.start_ftd(host_a, other_way(conf_b))
        await self.reload(host_b, other_way(conf_a))
        await self.until_vm(host_b, status="protected", reason="")
        await self.until_more(lines)

        # Step 4 once more: moved back.
        demote, promote = move.splitlines()
        await host_b.succeed(demote)
        await host_a.succeed(promote)
        await self.until_more(lines)

        # Step 5 once more: it is as it was in the beginning.
        await host_b.end_qemu()
        await self.reload(host_b, conf_b)
        await self.reload(host_a, conf_a)
        await self.until_vm(host_a, status="protected", reason="")
        await self.until_more(lines)

    async def until_promoted(self, host: Host, promote: str) -> None:
        """Ask until it is done: how long a silence is one decides `dead-time`."""

        async def is_done() -> bool:
            return (await host.sh(promote)).status == 0

        await until(is_done, lambda: f"it is promoted\n{self.log()}")
