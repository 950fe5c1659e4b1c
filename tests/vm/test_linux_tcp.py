"""A Linux guest is talked to over TCP while its host dies; who talks to it does not notice."""

from __future__ import annotations

from tests.vm import guest
from tests.vm.case import OnQemu10, VmCase
from tests.vm.network import Client
from tests.vm.pair import VmPair
from tests.waiting import until


class TcpCase(VmCase):
    """Connections that were made before the primary dies go on afterwards."""

    async def until_more(self, client: Client, more: int) -> None:
        """Wait until a client has got so many numbers more."""
        target = len(client.numbers()) + more
        await until(
            lambda: len(client.numbers()) >= target,
            lambda: f"{target} numbers; {client.numbers()[-3:]} {client.trouble()}",
            60,
        )

    async def booted_pair(self, **more: object) -> tuple[VmPair, Client, Client]:
        """A protected pair in a network, and the clients: of numbered lines, and of numbered answers."""
        network = self.network()
        pair = self.networked_pair(guest.linux(), network, **more)
        await pair.start()
        await pair.primary.until_printed(guest.READY)
        await pair.protected()
        lines, counts = self.client(network, "lines", 7000), self.client(network, "counts", 80)
        await self.until_more(lines, 100)
        await self.until_more(counts, 10)
        return pair, lines, counts

    def assert_undisturbed(self, lines: Client, counts: Client) -> None:
        """No line is lost, repeated or out of order, and no count went back."""
        found = lines.numbers()
        self.assertEqual(found, list(range(1, len(found) + 1)))
        self.assertEqual(lines.trouble(), "")
        found = counts.numbers()
        self.assertEqual(found, sorted(set(found)))
        self.assertEqual(counts.trouble(), "")


class TcpTests(TcpCase):
    """The usual way."""

    async def test_they_go_on(self) -> None:
        pair, lines, counts = await self.booted_pair()
        await pair.kill_primary()
        self.assert_undisturbed(lines, counts)
        await pair.promote()
        await self.until_more(lines, 100)
        await self.until_more(counts, 20)
        self.assert_undisturbed(lines, counts)
        self.assertEqual((await pair.vm(pair.b))["status"], "promoted")


class TcpOnQemu10Tests(OnQemu10, TcpTests):
    """The same on QEMU 10."""


class OtherTcpTests(TcpCase):
    """In other circumstances."""

    async def test_they_go_on_where_qemu_dials_the_gate(self) -> None:
        pair, lines, counts = await self.booted_pair(network_listens=False)
        await pair.kill_primary()
        await pair.promote()
        await self.until_more(lines, 100)
        await self.until_more(counts, 20)
        self.assert_undisturbed(lines, counts)

    async def test_they_go_on_when_the_standby_is_lost_and_comes_back(self) -> None:
        pair, lines, counts = await self.booted_pair()
        pair.b.kill()
        await pair.until_that(pair.a, lambda vm: vm["status"] != "protected", "the standby is missed")
        await self.until_more(lines, 50)
        await pair.b.start()
        await pair.protected()
        await self.until_more(lines, 50)
        await pair.kill_primary()
        await pair.promote()
        await self.until_more(lines, 100)
        await self.until_more(counts, 20)
        self.assert_undisturbed(lines, counts)
