"""The two halves of a pair in two daemons, over TCP and over a unix socket."""

from __future__ import annotations

import os
import stat

from tests.case import EndToEndCase
from tests.daemon import Daemon, free_port, primary, problem, secondary, start_all
from tests.http_client import HttpClient
from tests.raw_peer import ACK, BEGIN, CANCEL, COMMIT, CONTINUE, Frame, frame
from tests.state import MIB, state_of
from tests.waiting import until


class TwoDaemonsTests(EndToEndCase):
    """Two configurations, two processes."""

    async def test_over_tcp(self) -> None:
        port = free_port()
        standby = self.daemon({"demo": secondary(port, ack="applied")}, ftd={"node": "host-b"})
        sender = self.daemon({"demo": primary(port)}, ftd={"node": "host-a"})
        await start_all(standby, sender)
        await sender.until_up()
        state = state_of(3 * MIB + 1)
        file = sender.directory / "state"
        file.write_bytes(state)
        commit = await self.curl_json("-T", str(file), f"{sender.url}/v1/pairs/demo/checkpoint")
        self.assertEqual(commit["bytes"], len(state))
        self.assertEqual((await self.curl(f"{standby.url}/v1/pairs/demo/checkpoints/latest")).out, state)
        for daemon, node, role in ((sender, "host-a", "primary"), (standby, "host-b", "secondary")):
            self.assertEqual((await daemon.http.json("/v1"))["node"], node)
            pair = await daemon.pair("demo")
            self.assertEqual((pair["role"], pair["peer"], pair["link_state"]), (role, "ftd", "up"))
            self.assertGreater(max(pair["bytes_sent"], pair["bytes_received"]), len(state))

    async def test_over_unix_sockets(self) -> None:
        directory = self.scratch()
        link, api = directory / "link.sock", directory / "api.sock"
        standby = self.daemon({"demo": secondary(f"unix:{link}:mode=600")}, api={"endpoint-2": f"unix:{api}:mode=600"})
        await standby.start()
        sender = await self.daemon({"demo": primary(f"unix:{link}")}).start()
        await sender.until_up()
        for socket in (link, api):
            self.assertEqual(stat.S_IMODE(os.stat(socket).st_mode), 0o600)
        state = state_of(2 * MIB)
        await sender.push("demo", state)
        latest = await self.curl("--unix-socket", str(api), "http://localhost/v1/pairs/demo/checkpoints/latest")
        self.assertEqual(latest.out, state)
        over_tcp = await standby.checkpoints("demo")
        self.assertEqual(
            (await HttpClient("http://localhost", str(api)).json("/v1/pairs/demo/checkpoints"))["checkpoints"], over_tcp
        )
        # The sockets of a daemon that was killed do not keep the next one from starting.
        standby.kill()
        await standby.start()
        await sender.until_up()
        await sender.push("demo", b"after kill -9")
        self.assertEqual(await standby.checkpoint("demo"), b"after kill -9")

    async def test_an_api_on_a_unix_socket_in_an_odd_place(self) -> None:
        directory = self.scratch() / "a b ü"
        directory.mkdir()
        daemon = self.daemon({}, api={"endpoint-2": f"unix:{directory}/api.sock"})
        await daemon.start()
        client = HttpClient("http://localhost", str(directory / "api.sock"))
        self.assertEqual(await client.json("/healthz"), {"status": "ok"})

    async def test_several_pairs_between_two_daemons(self) -> None:
        names = [f"pair-{number}" for number in range(8)]
        ports = {name: free_port() for name in names}
        standby = self.daemon({name: secondary(ports[name]) for name in names})
        sender = self.daemon({name: primary(ports[name]) for name in names})
        await start_all(standby, sender)
        await sender.until_up()
        for name in names:
            await sender.push(name, name.encode())
        for name in names:
            self.assertEqual(await standby.checkpoint(name), name.encode())
        self.assertEqual((await sender.http.request("GET", "/readyz")).status, 200)


class HeartbeatTests(EndToEndCase):
    """Signs of life, as many as there can be."""

    async def test_they_are_seen_nowhere_and_get_in_nobodys_way(self) -> None:
        port = free_port()
        standby = self.daemon({"demo": secondary(port, ack="applied", keep="1000")})
        sender = self.daemon({"demo": primary(port, heartbeat="10ms")})
        await start_all(standby, sender)
        await sender.until_up()
        await until(lambda: self.have_beaten(sender, standby), "there were heartbeats")
        for half in (sender, standby):
            self.assertEqual(await half.transactions("demo"), [])
        self.assertEqual(await standby.checkpoints("demo"), [])
        for number in range(100):
            await sender.push("demo", str(number).encode())
            await sender.http.request("POST", "/v1/pairs/demo/begin")
            await sender.http.request("POST", "/v1/pairs/demo/cancel")
        listed = await standby.checkpoints("demo")
        self.assertEqual([entry["number"] for entry in listed], list(range(1, 101)))
        self.assertEqual(await standby.checkpoint("demo", 50), b"49")
        self.assertGreater(listed[-1]["id"], 100)
        self.assertEqual((await sender.pair("demo"))["reconnects"], 0)

    async def have_beaten(self, *halves: Daemon) -> bool:
        return all([(await half.pair("demo"))["heartbeats"] > 10 for half in halves])


class DisagreementTests(EndToEndCase):
    """Two halves that are not set up for each other say so, and go on trying."""

    async def assert_disagree(self, sender_keys: dict[str, str], standby_keys: dict[str, str], why: str) -> None:
        port = free_port()
        standby = self.daemon({"demo": secondary(port, **standby_keys)})
        sender = self.daemon({"demo": primary(port, **sender_keys)})
        await start_all(standby, sender)
        await sender.until_pair("demo", has_error_name="STATE_INVALID")
        self.assertIn(why, str((await sender.pair("demo"))["has_error_detail"]))
        refused = problem(await sender.http.request("PUT", "/v1/pairs/demo/checkpoint", b"x"), 409)
        self.assertEqual((refused["has_error"], refused["has_error_name"]), (7, "STATE_INVALID"))
        self.assertEqual(await standby.checkpoints("demo"), [])

    async def test_other_names(self) -> None:
        await self.assert_disagree({"name": "theirs"}, {"name": "ours"}, "'ours'")

    async def test_other_byte_orders(self) -> None:
        await self.assert_disagree({"byte_order": "big"}, {"byte_order": "little"}, "byte order")


class KemariTests(EndToEndCase):
    """A peer that speaks the protocol of 2011 and knows nothing of ftd."""

    async def test_a_kemari_sender(self) -> None:
        port = free_port()
        standby = await self.daemon({"demo": secondary(port, peer="kemari", ack="applied")}).start()
        sender = await self.raw_sender(port)
        self.assertEqual(await sender.frame(), Frame(ACK, 0, 0))
        parts = [state_of(70_000, "first"), b"", state_of(10, "second")]
        sender.send(frame(BEGIN, 5) + b"".join(frame(CONTINUE, 5, seq, part) for seq, part in enumerate(parts)))
        sender.send(frame(COMMIT, 5, 3))
        self.assertEqual(await sender.frame(), Frame(ACK, 5, 3))
        sender.send(frame(BEGIN, 6) + frame(CONTINUE, 6, 0, b"dropped") + frame(CANCEL, 6, 1))
        sender.send(frame(BEGIN, 6) + frame(CONTINUE, 6, 0, b"kept") + frame(COMMIT, 6, 1))
        self.assertEqual(await sender.frame(), Frame(ACK, 6, 1))
        listed = await standby.checkpoints("demo")
        self.assertEqual(
            [(entry["number"], entry["id"], entry["generation"]) for entry in listed], [(1, 5, ""), (2, 6, "")]
        )
        self.assertEqual(await standby.checkpoint("demo", 1), b"".join(parts))
        self.assertEqual(await standby.checkpoint("demo", 2), b"kept")
        self.assertEqual((await standby.pair("demo"))["peer"], "kemari")

    async def test_an_ftd_sender_where_a_kemari_is_expected(self) -> None:
        """The sender finds out by itself that it is to speak as one."""
        port = free_port()
        standby = self.daemon({"demo": secondary(port, peer="kemari", ack="applied")})
        sender = self.daemon({"demo": primary(port)})
        await start_all(standby, sender)
        await sender.until_up()
        state = state_of(MIB)
        await sender.push("demo", state)
        await sender.push("demo", b"second")
        self.assertEqual(await standby.checkpoint("demo", 1), state)
        self.assertEqual(await standby.checkpoint("demo", 2), b"second")
        self.assertEqual((await sender.pair("demo"))["peer"], "kemari")

    async def test_a_kemari_receiver(self) -> None:
        port = free_port()
        standby = await self.raw_standby(port)
        daemon = await self.daemon({"demo": primary(port, peer="kemari", frame_size="1KiB", heartbeat="100ms")}).start()
        receiver = await standby.accept()
        receiver.send(frame(ACK))
        await daemon.until_up()
        state = state_of(2500)
        answer = self.in_background(daemon.push("demo", state))
        self.assertEqual(await receiver.frame(), Frame(BEGIN, 0, 0))
        for seq, part in enumerate((state[:1024], state[1024:2048], state[2048:])):
            self.assertEqual(await receiver.frame(), Frame(CONTINUE, 0, seq, part))
        # No digest, which was not agreed.
        self.assertEqual(await receiver.frame(), Frame(COMMIT, 0, 3))
        receiver.send(frame(ACK, 0, 3))
        self.assertEqual((await answer).json()["bytes"], 2500)
        self.assertEqual((await daemon.pair("demo"))["peer"], "kemari")
        # And no heartbeats, which it would take for checkpoints: the next frame is that of the next transaction.
        second = self.in_background(daemon.push("demo", b"next"))
        self.assertEqual(await receiver.frame(), Frame(BEGIN, 1, 0))
        self.assertEqual(await receiver.frame(), Frame(CONTINUE, 1, 0, b"next"))
        self.assertEqual(await receiver.frame(), Frame(COMMIT, 1, 1))
        receiver.send(frame(ACK, 1, 1))
        self.assertEqual((await second).status, 200)
