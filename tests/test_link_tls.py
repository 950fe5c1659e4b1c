"""The two halves of a pair in two daemons over TLS: who is let in, and what an operator is told otherwise."""

from __future__ import annotations

import shutil
from datetime import timedelta
from functools import partial

from ftd.testing.certificates import Authority, Identity
from tests.case import EndToEndCase
from tests.daemon import Daemon, Section, free_port, primary, secondary, start_all
from tests.state import MIB, state_of
from tests.waiting import until

DAY = timedelta(days=1)


class TlsLinkTests(EndToEndCase):
    """Two configurations, two processes, and a CA."""

    def setUp(self) -> None:
        """A CA, and what it has signed for each half."""
        self.directory = self.scratch()
        self.authority = Authority(self.directory)
        self.first = self.authority.sign("first", ["host-a"])
        self.second = self.authority.sign("second", ["127.0.0.1", "host-b"])

    def keys(self, own: Identity, *, ca: str = "", **more: str) -> dict[str, str]:
        """The keys of a half that has this certificate."""
        return {"link_certificate": own.certificate, "link_key": own.key, "link_ca": ca or self.authority.ca, **more}

    async def start(self, primary_keys: dict[str, str], secondary_keys: dict[str, str]) -> tuple[Daemon, Daemon]:
        """Both daemons, the secondary's first."""
        port = free_port()
        standby = self.daemon({"demo": secondary(port, **secondary_keys)})
        sender = self.daemon({"demo": primary(port, **primary_keys)})
        await start_all(standby, sender)
        return sender, standby

    async def assert_refused(self, sender: Daemon, standby: Daemon, here: str, there: str) -> None:
        """There is no link, and this is what both daemons show for it."""
        for daemon, says in ((sender, here), (standby, there)):
            await until(partial(self.is_told, daemon, says), daemon.log, 10.0)

    async def is_told(self, daemon: Daemon, says: str) -> bool:
        """Whether a daemon shows this as its error; it never has a link."""
        pair = await daemon.pair("demo")
        self.assertNotEqual(pair["link_state"], "up")
        return says in (pair["has_error_detail"] or "")

    async def test_state_and_its_acknowledgement(self) -> None:
        sender, standby = await self.start(
            self.keys(self.first), self.keys(self.second, link_peer_name="host-a", ack="applied")
        )
        await sender.until_up()
        for size in (1, 3 * MIB + 1, 40 * MIB):
            state = state_of(size)
            await sender.push("demo", state)
            self.assertEqual(await standby.checkpoint("demo"), state)
        # A link that is cut without a word is made again, as any is.
        standby.kill()
        await standby.start()
        await sender.until_up()
        await sender.push("demo", b"after kill -9")
        self.assertEqual(await standby.checkpoint("demo"), b"after kill -9")
        for daemon in (sender, standby):
            self.assertIsNone((await daemon.pair("demo"))["has_error_name"])

    async def test_over_a_unix_socket(self) -> None:
        link = f"unix:{self.directory / 'link.sock'}"
        keys: Section = self.keys(self.first, link_peer_name="host-b")
        standby = self.daemon({"demo": secondary(link, **self.keys(self.second))})
        sender = self.daemon({"demo": primary(link, **keys)})
        await start_all(standby, sender)
        await sender.until_up()
        await sender.push("demo", b"x" * MIB)
        self.assertEqual(await standby.checkpoint("demo"), b"x" * MIB)

    async def test_a_ca_that_the_other_does_not_know(self) -> None:
        other = Authority(self.directory / "other", "other")
        sender, standby = await self.start(
            self.keys(other.sign("a", ["host-a"])), self.keys(self.second, link_peer_name="host-a")
        )
        await self.assert_refused(
            sender,
            standby,
            "the peer does not know the CA of this side's link-certificate",
            f"the peer's certificate is not signed by a CA in {self.authority.ca} (link-ca)",
        )

    async def test_somebody_else(self) -> None:
        sender, standby = await self.start(self.keys(self.first), self.keys(self.second, link_peer_name="host-c"))
        await self.assert_refused(
            sender,
            standby,
            "the peer does not take this side's link-certificate, maybe because of the name in it",
            "the peer's certificate is not for host-c, which is what link-peer-name asks for",
        )

    async def test_a_certificate_that_is_renewed(self) -> None:
        """It was forgotten; new files are enough, nobody has to restart anything."""
        old = self.authority.sign("old", ["127.0.0.1"], since=-3 * DAY, until=-DAY)
        sender, standby = await self.start(self.keys(self.first), self.keys(old))
        await self.assert_refused(
            sender,
            standby,
            "the peer's certificate is not valid any more: renew it there",
            "this side's link-certificate is not valid any more: renew it",
        )
        shutil.copy(self.second.key, old.key)
        shutil.copy(self.second.certificate, old.certificate)
        await sender.until_up()
        await sender.push("demo", b"in time")
        self.assertEqual(await standby.checkpoint("demo"), b"in time")

    async def test_a_primary_without_tls(self) -> None:
        sender, standby = await self.start({"handshake_time": "1s"}, self.keys(self.second, handshake_time="1s"))
        await self.assert_refused(sender, standby, "the peer may want TLS", "the peer may not speak TLS")

    async def test_a_secondary_without_tls(self) -> None:
        sender, standby = await self.start(self.keys(self.first), {})
        await self.assert_refused(
            sender, standby, "the peer does not speak TLS: both halves of a pair", "the peer speaks TLS"
        )

    async def test_files_that_cannot_be_used(self) -> None:
        """Through the API they are tried too."""
        daemon = await self.daemon({}).start()
        pair = {"pair": "late", **primary(free_port()), **_dashed(self.keys(self.first))}
        answer = await daemon.http.send_json("POST", "/v1/pairs", {**pair, "link-key": self.second.key})
        self.assertEqual(answer.status, 400, answer)
        detail = answer.json()["detail"]
        self.assertIn(f"link-key: {self.second.key} is not the key of {self.first.certificate}", detail)
        self.assertEqual((await daemon.http.send_json("POST", "/v1/pairs", pair)).status, 201)


def _dashed(keys: dict[str, str]) -> dict[str, str]:
    return {key.replace("_", "-"): value for key, value in keys.items()}
