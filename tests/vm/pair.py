"""A virtual machine, its standby, and the two daemons that keep them together."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.daemon import Daemon, Json, start_all
from tests.http_client import Answer, NoAnswer
from tests.proxy import CuttingProxy
from tests.vm.guest import Guest
from tests.vm.monitor import Monitor, connect
from tests.vm.programs import QemuProgram
from tests.vm.qemu import NETDEV, Qemu
from tests.waiting import DEADLINE, until

#: The pair's name in both daemons.
PAIR = "vm"

#: Keys of both halves: a peer that is gone is noticed in a second or two.
_BOTH = {"heartbeat": "200ms", "dead-time": "2s"}

#: Seconds for a full checkpoint of a small guest on the slowest machine.
SYNC_TIME = 30.0


class VmPair:
    """
    Two daemons, ``a`` with the primary and ``b`` with the standby, each beside a QEMU; nothing runs at first.

    :param uplinks: what is behind the gates of ``a`` and ``b``, in the words of ``qemu-net-ID``; for a guest with a
        network.
    :param a_keys: keys of the primary's section, beside those that are needed.
    :param b_keys: keys of the standby's.
    :param starts_standby: ftd starts the standby QEMU and not the test.
    :param network_listens: whether each QEMU listens on its network's socket and ftd dials, or the other way.
    :param prefix: what the command lines of the daemons begin with.
    :ivar proxy: is between the two.
    """

    def __init__(
        self,
        program: QemuProgram,
        guest: Guest,
        *,
        directory: Path,
        memory: Path,
        logs: Callable[[], Path],
        uplinks: tuple[str, str] | None = None,
        a_keys: Mapping[str, str] | None = None,
        b_keys: Mapping[str, str] | None = None,
        starts_standby: bool = False,
        network_listens: bool = True,
        prefix: Sequence[str] = (),
    ) -> None:
        assert (uplinks is not None) == bool(guest.nic), "uplinks are for guests with a network, and needed there"

        def qemu(name: str, is_standby: bool) -> Qemu:
            return Qemu(
                name,
                program,
                guest,
                directory=directory,
                memory=memory,
                is_standby=is_standby,
                network_listens=network_listens,
            )

        self.primary, self.standby = qemu("primary", False), qemu("standby", True)
        self.starts_standby = starts_standby
        standby_link, self._link = directory / "b.link", directory / "a.link"
        self.proxy = CuttingProxy(standby_link)
        staging = memory / "staged"
        staging.mkdir()
        a_section = {
            **_BOTH,
            "role": "primary",
            "link": f"unix:{self._link}",
            "reconnect-max": "200ms",
            "source": "qemu",
            "qemu-qmp": str(self.primary.monitor),
            **(_net(self.primary, uplinks[0], network_listens) if uplinks else {}),
            **(a_keys or {}),
        }
        b_section = {
            **_BOTH,
            "role": "secondary",
            "link": f"unix:{standby_link}",
            "sink": "qemu",
            "qemu-qmp": str(self.standby.monitor),
            "qemu-staging-dir": str(staging),
            **({"qemu-command": shlex.join(self.standby.command)} if starts_standby else {}),
            **(_net(self.standby, uplinks[1], network_listens) if uplinks else {}),
            **(b_keys or {}),
        }

        def daemon(node: str, section: Mapping[str, str]) -> Daemon:
            return Daemon({PAIR: section}, ftd={"node": node}, prefix=prefix, has_socket=True, log_file=logs())

        self.a, self.b = daemon("host-a", a_section), daemon("host-b", b_section)
        self._monitors: list[Monitor] = []

    # Life

    async def start(self) -> None:
        """Start everything, in an order that works whoever dials whom."""
        await self.proxy.listen(self._link)
        await start_all(self.a, self.b)
        self.primary.start()
        if not self.starts_standby:
            self.standby.start()

    async def protected(self, within: float = SYNC_TIME) -> Json:
        """Wait until the guest runs, protected, and nothing is the matter; the ``vm`` of the primary."""
        return await self.until_vm(self.a, within=within, status="protected", run_state="running", reason="")

    async def started(self) -> VmPair:
        """Start everything, and wait until the guest is protected."""
        await self.start()
        await self.protected()
        return self

    async def remove(self) -> None:
        """End everything that there is."""
        for monitor in self._monitors:
            await monitor.abort()
        # The daemons first: one of them would start its QEMU again.
        self.a.remove()
        self.b.remove()
        self.primary.remove()
        self.standby.remove()
        await self.proxy.stop()

    async def monitor(self, qemu: Qemu) -> Monitor:
        """The test's own way into a QEMU."""
        monitor = await connect(str(qemu.test_monitor))
        self._monitors.append(monitor)
        return monitor

    # What is asked, and what is told

    async def vm(self, daemon: Daemon) -> Json:
        """What a daemon says of its VM."""
        found: Json = (await daemon.pair(PAIR))["vm"]
        return found

    async def until_vm(self, daemon: Daemon, within: float = DEADLINE, **fields: object) -> Json:
        """
        Wait until what a daemon says of its VM has these values; all that it says then.

        A daemon that does not answer at the moment is asked again.
        """

        def has_them(found: Json) -> bool:
            return all(found[field] == value for field, value in fields.items())

        return await self.until_that(daemon, has_them, str(fields), within)

    async def until_that(
        self, daemon: Daemon, condition: Callable[[Json], bool], what: str, within: float = DEADLINE
    ) -> Json:
        """Wait until a condition holds for what a daemon says of its VM; all that it says then."""
        last: Json = {}

        async def holds() -> bool:
            nonlocal last
            try:
                last = await self.vm(daemon)
            except NoAnswer:
                return False
            return condition(last)

        await until(holds, lambda: f"{what}; it is {last}\n{told(daemon)}", within)
        return last

    async def until_checkpoints(self, more: int = 3, within: float = DEADLINE) -> Json:
        """Wait until so many checkpoints more are committed; the ``vm`` of the primary."""
        target = (await self.vm(self.a))["checkpoint"] + more
        return await self.until_that(self.a, lambda vm: vm["checkpoint"] >= target, f"checkpoint {target}", within)

    async def post(self, daemon: Daemon, action: str, **body: Any) -> Answer:
        """Ask for an action on the pair."""
        return await daemon.http.send_json("POST", f"/v1/pairs/{PAIR}/{action}", body)

    async def promote(self, *, force: bool = False) -> None:
        """Have the standby take over, which has to go well."""
        answer = await self.post(self.b, "promote", **({"force": True} if force else {}))
        assert answer.status == 200, f"{answer}\n{told(self.b)}"

    async def kill_primary(self) -> None:
        """The primary's host dies: its QEMU and its daemon; return when the standby has noticed."""
        self.primary.kill()
        self.a.kill()
        await self.without_primary()

    async def without_primary(self) -> None:
        """Wait until the standby's link is down."""

        async def is_down() -> bool:
            return bool((await self.b.pair(PAIR))["link_state"] != "up")

        await until(is_down, "the standby has no primary")


def told(daemon: Daemon) -> str:
    """What a daemon has logged last, beside the requests that it answered."""
    return "\n".join([line for line in daemon.log().splitlines() if "[ftd.http.site#" not in line][-60:])


def _net(qemu: Qemu, uplink: str, network_listens: bool) -> dict[str, str]:
    way = "connect" if network_listens else "unix"
    return {f"qemu-net-{NETDEV}": f"{way}:{qemu.network} uplink {uplink}"}
