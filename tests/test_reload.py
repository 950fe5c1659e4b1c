"""SIGHUP: the file is read again; what did not change in it goes on as if nothing had been."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from tests.case import EndToEndCase
from tests.daemon import Daemon, Section, free_port, primary, problem, secondary, start_all
from tests.state import MIB
from tests.waiting import pause, until


def _pair(name: str, port: int, **keys: str) -> Mapping[str, Section]:
    """Both halves, in one daemon."""
    return {name: primary(port, **keys), f"{name}-standby": secondary(port, name=name, ack="applied")}


class ReloadTests(EndToEndCase):
    """Changes of the file while the daemon runs."""

    async def start(self) -> Daemon:
        """A daemon with the pairs ``stays`` and ``goes``."""
        self.stays, self.goes = free_port(), free_port()
        daemon = self.daemon({**_pair("stays", self.stays), **_pair("goes", self.goes)})
        await daemon.start()
        await daemon.until_up()
        return daemon

    async def reload(self, daemon: Daemon, says: str) -> None:
        """Send SIGHUP and wait for what the log says of it."""
        so_far = daemon.log().count(says)
        daemon.send(signal.SIGHUP)
        await until(lambda: daemon.log().count(says) > so_far, lambda: f"{says!r} in {daemon.log()[-3000:]}")

    async def names(self, daemon: Daemon) -> list[str]:
        names: list[str] = (await daemon.http.json("/v1"))["pairs"]
        return names

    async def test_pairs_come_and_go_and_the_others_stay(self) -> None:
        daemon = await self.start()
        await daemon.push("stays", b"before")
        # A transaction is open all the while.
        begun = (await daemon.http.request("POST", "/v1/pairs/stays/begin")).json()
        await daemon.http.request("POST", "/v1/pairs/stays/data", b"open ")
        before = await daemon.pair("stays")
        daemon.configure({**_pair("stays", self.stays), **_pair("comes", free_port())})
        await self.reload(daemon, "reloaded")
        self.assertEqual(await self.names(daemon), ["stays", "stays-standby", "comes", "comes-standby"])
        problem(await daemon.http.request("GET", "/v1/pairs/goes"), 404)
        await daemon.until_up()
        await daemon.push("comes", b"is here")
        self.assertEqual(await daemon.checkpoint("comes-standby"), b"is here")
        after = await daemon.pair("stays")
        for field in ("reconnects", "link_peer", "generation", "transactions_committed"):
            self.assertEqual(after[field], before[field], field)
        self.assertEqual(after["transaction"]["id"], begun["id"])
        await daemon.http.request("POST", "/v1/pairs/stays/data", b"all the while")
        self.assertEqual((await daemon.http.request("POST", "/v1/pairs/stays/commit")).status, 200)
        self.assertEqual(await daemon.checkpoint("stays-standby"), b"open all the while")

    async def test_a_pair_that_was_removed_has_left_its_port_and_keeps_its_state(self) -> None:
        daemon = await self.start()
        await daemon.push("goes", b"kept")
        daemon.configure(_pair("stays", self.stays))
        await self.reload(daemon, "reloaded")
        daemon.configure({**_pair("stays", self.stays), **_pair("goes", self.goes)})
        await self.reload(daemon, "reloaded")
        await daemon.until_up()
        self.assertEqual(await daemon.checkpoint("goes-standby"), b"kept")
        await daemon.push("goes", b"and goes on")
        self.assertEqual([entry["number"] for entry in await daemon.checkpoints("goes-standby")], [1, 2])

    async def test_a_pair_that_changed_starts_anew(self) -> None:
        daemon = await self.start()
        await daemon.push("goes", b"before")
        daemon.configure({**_pair("stays", self.stays), **_pair("goes", self.goes, bandwidth_limit="1GiB")})
        await self.reload(daemon, "reloaded")
        await daemon.until_pair("goes", link_state="up", bandwidth_limit=1024**3)
        await daemon.push("goes", b"after")
        self.assertEqual(await daemon.checkpoint("goes-standby"), b"after")
        self.assertEqual((await daemon.pair("stays"))["reconnects"], 0)

    async def test_an_error_in_the_file_changes_nothing(self) -> None:
        daemon = await self.start()
        before = await daemon.pair("stays")
        for bad, says in (
            ({**_pair("stays", self.stays), "bad": {"role": "primary"}}, "[pair bad] link"),
            ({"stays": primary(self.stays, frame_size="64MB")}, "[pair stays] frame-size"),
            ({**_pair("a", self.goes), **_pair("b", self.goes)}, "[pair b-standby] link"),
        ):
            daemon.configure(bad)
            await self.reload(daemon, says)
            self.assertIn("nothing was changed", daemon.log())
            self.assertEqual(await self.names(daemon), ["stays", "stays-standby", "goes", "goes-standby"])
        daemon.configuration.unlink()
        await self.reload(daemon, "cannot be read")
        self.assertNotIn("Traceback", daemon.log())
        self.assertEqual((await daemon.pair("stays"))["link_peer"], before["link_peer"])
        await daemon.push("stays", b"goes on")
        await daemon.push("goes", b"goes on")

    async def test_many_at_once_end_with_the_last(self) -> None:
        daemon = await self.start()
        await daemon.push("goes", b"kept")
        for limit in ("2MiB", "3MiB", "4MiB", "5MiB"):
            daemon.configure(
                {**_pair("stays", self.stays), **_pair("goes", self.goes, bandwidth_limit=limit)}
                if limit != "4MiB"
                else _pair("stays", self.stays)
            )
            daemon.send(signal.SIGHUP)
            await pause(0.01)
        await until(lambda: self.has_limit(daemon, 5 * MIB), "the last is what counts")
        await daemon.until_up()
        await daemon.push("goes", b"goes on")
        self.assertEqual([entry["number"] for entry in await daemon.checkpoints("goes-standby")], [1, 2])
        self.assertEqual((await daemon.pair("stays"))["reconnects"], 0)

    async def has_limit(self, daemon: Daemon, limit: int) -> bool:
        """Whether the pair that comes and goes is there, with this limit."""
        pairs = (await daemon.http.json("/v1/pairs"))["pairs"]
        return any((pair["name"], pair["bandwidth_limit"]) == ("goes", limit) for pair in pairs)

    async def test_a_port_that_is_taken_costs_the_pair_that_wants_it(self) -> None:
        daemon = await self.start()
        other = await self.daemon({}).start()
        daemon.configure({**_pair("stays", self.stays), "new": secondary(other.port)})
        await self.reload(daemon, "[pair new] link")
        await daemon.push("stays", b"goes on")
        self.assertEqual(await self.names(daemon), ["stays", "stays-standby"])

    async def test_pairs_that_were_created_stay(self) -> None:
        daemon = await self.start()
        created = {"pair": "created", "role": "primary", "link": f"tcp:127.0.0.1:{free_port()}"}
        self.assertEqual((await daemon.http.send_json("POST", "/v1/pairs", created)).status, 201)
        daemon.configure(_pair("stays", self.stays))
        await self.reload(daemon, "reloaded")
        self.assertEqual(sorted(await self.names(daemon)), ["created", "stays", "stays-standby"])
        daemon.configure({**_pair("stays", self.stays), "created": primary(free_port())})
        await self.reload(daemon, "[pair created]")
        self.assertIn("nothing was changed", daemon.log())


class CreatedPairsTests(EndToEndCase):
    """``POST /v1/pairs`` and ``DELETE /v1/pairs/{pair}``."""

    async def test_a_pair_is_created_used_kept_and_removed(self) -> None:
        daemon = await self.daemon({}).start()
        port = free_port()
        halves = (
            {
                "pair": "vm-standby",
                "name": "vm",
                "role": "secondary",
                "link": f"tcp:{port}:interface=127.0.0.1",
                "keep": 2,
                "ack": "applied",
            },
            {
                "name": "vm",
                "role": "primary",
                "link": f"tcp:127.0.0.1:{port}",
                "frame-size": "64KiB",
                "rate-limit": False,
                "reconnect-max": 0.2,
            },
        )
        for half in halves:
            answer = await daemon.http.send_json("POST", "/v1/pairs", half)
            self.assertEqual(answer.status, 201, answer)
            name = half.get("pair", half["name"])
            self.assertEqual(answer.header("Location"), f"/v1/pairs/{name}")
            self.assertEqual(answer.json()["name"], name)
        await daemon.until_up("vm")
        self.assertFalse((await daemon.pair("vm"))["rate_limit"])
        for state in (b"one", b"two", b"three"):
            await daemon.push("vm", state)
        self.assertEqual(len(await daemon.checkpoints("vm-standby")), 2)
        problem(await daemon.http.send_json("POST", "/v1/pairs", halves[0]), 409)
        # It is there after a restart, also after an unfriendly one.
        daemon.kill()
        await daemon.start()
        await daemon.until_up("vm")
        self.assertEqual(await daemon.checkpoint("vm-standby"), b"three")
        self.assertFalse((await daemon.pair("vm"))["rate_limit"])
        await daemon.push("vm", b"four")
        # And it stays away once it is removed.
        for name in ("vm", "vm-standby"):
            self.assertEqual((await daemon.http.request("DELETE", f"/v1/pairs/{name}")).status, 204)
            problem(await daemon.http.request("GET", f"/v1/pairs/{name}"), 404)
        await daemon.stop()
        await daemon.start()
        self.assertEqual((await daemon.http.json("/v1/pairs"))["pairs"], [])

    async def test_a_port_that_is_taken_is_a_conflict_or_a_bad_link(self) -> None:
        daemon = self.daemon({})
        other = self.daemon({})
        await start_all(daemon, other)
        for port in (daemon.port, other.port):
            section = {"pair": "new", "role": "secondary", "link": f"tcp:{port}:interface=127.0.0.1"}
            refused = problem(await daemon.http.send_json("POST", "/v1/pairs", section), 400)
            self.assertEqual(refused["field"], "link")
        self.assertEqual((await daemon.http.json("/v1"))["pairs"], [])

    async def test_removing_one_cancels_what_is_open(self) -> None:
        port = free_port()
        standby = self.daemon({"vm": secondary(port)})
        daemon = self.daemon({})
        await start_all(standby, daemon)
        section = {"pair": "vm", "role": "primary", "link": f"tcp:127.0.0.1:{port}"}
        await daemon.http.send_json("POST", "/v1/pairs", section)
        await daemon.until_up("vm")
        await daemon.http.request("POST", "/v1/pairs/vm/begin")
        await daemon.http.request("POST", "/v1/pairs/vm/data", b"open")
        await standby.until_pair("vm", state="CONTINUE")
        self.assertEqual((await daemon.http.request("DELETE", "/v1/pairs/vm")).status, 204)
        pair = await standby.until_pair("vm", link_state="down", transaction=None)
        self.assertEqual((pair["transactions_cancelled"], pair["transactions_failed"], pair["has_error"]), (1, 0, 0))

    async def test_there_may_be_so_many(self) -> None:
        daemon = await self.daemon({"one": primary(free_port())}, ftd={"pairs-limit": "2"}).start()
        for name, status in (("two", 201), ("three", 409)):
            section = {"pair": name, "role": "primary", "link": f"tcp:127.0.0.1:{free_port()}"}
            self.assertEqual((await daemon.http.send_json("POST", "/v1/pairs", section)).status, status)
