"""Transactions by hand and a pair's switches: begin, data, commit, cancel and the rest, with ``curl``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.case import EndToEndCase, SharedDaemonCase
from tests.daemon import Section, free_port, primary, problem, secondary, start_all
from tests.proxy import Then
from tests.raw_peer import ACK
from tests.state import MIB, state_of
from tests.waiting import until

_LINK = free_port()


class ByHandTests(SharedDaemonCase):
    """Transactions, step by step."""

    pairs: ClassVar[Mapping[str, Section]] = {
        "demo": primary(_LINK, frame_size="64KiB"),
        "demo-standby": secondary(_LINK, name="demo", ack="applied"),
    }

    async def post(self, step: str, *arguments: str) -> Any:
        """``curl -X POST`` to a step of a transaction; the answer's JSON."""
        return await self.curl_json("-X", "POST", *arguments, f"{self.shared.url}/v1/pairs/demo/{step}")

    def file(self, state: bytes) -> str:
        """A file that holds ``state``, as ``curl --data-binary`` takes it."""
        path = Path(self.mktemp())
        path.write_bytes(state)
        return f"@{path.absolute()}"

    async def test_begin_data_commit(self) -> None:
        parts = [state_of(size, seed=str(size)) for size in (200_000, 1, 65_536)]
        begun = await self.post("begin")
        self.assertEqual((await self.shared.pair("demo"))["transaction"], {"id": begun["id"], "seq": 0, "bytes": 0})
        for part in parts:
            taken = await self.post("data", "--data-binary", self.file(part))
            self.assertEqual(taken["accepted"], len(part))
            self.assertIsInstance(taken["frozen"], bool)
        shown = await self.shared.pair("demo")
        self.assertEqual((shown["state"], shown["ft_mode"]), ("CONTINUE", "FT_TRANSACTION_ITER"))
        self.assertEqual(shown["transaction"]["bytes"], 265_537)
        commit = await self.post("commit")
        self.assertEqual((commit["id"], commit["bytes"]), (begun["id"], 265_537))
        self.assertGreaterEqual(commit["seq"], 4 + 1 + 1)
        self.assertGreaterEqual(commit["seconds"], 0)
        self.assertEqual(await self.shared.checkpoint("demo-standby"), b"".join(parts))
        self.assertIsNone((await self.shared.pair("demo"))["transaction"])

    async def test_a_transaction_without_data_is_an_empty_checkpoint(self) -> None:
        await self.post("begin")
        self.assertEqual((await self.post("commit"))["bytes"], 0)
        self.assertEqual(await self.shared.checkpoint("demo-standby"), b"")

    async def test_cancel(self) -> None:
        await self.shared.push("demo", b"what was committed")
        held = await self.shared.checkpoints("demo-standby")
        cancelled_before = (await self.shared.pair("demo-standby"))["transactions_cancelled"]
        begun = await self.post("begin")
        await self.post("data", "--data-binary", self.file(state_of(MIB)))
        self.assertEqual(await self.post("cancel"), begun)
        await self.shared.until_pair("demo-standby", transactions_cancelled=cancelled_before + 1, transaction=None)
        self.assertEqual(await self.shared.checkpoints("demo-standby"), held)
        for half in ("demo", "demo-standby"):
            newest = (await self.shared.transactions(half))[-1]
            self.assertEqual((newest["outcome"], newest["bytes"], newest["number"]), ("cancelled", MIB, None))
        await until(lambda: len(self.shared.stored_files("demo-standby")) == len(held), "what was received is gone")
        self.assertEqual(await self.shared.checkpoint("demo-standby"), b"what was committed")

    async def test_the_id_of_a_cancelled_one_is_used_again(self) -> None:
        begun = await self.post("begin")
        await self.post("cancel")
        commit = (await self.shared.push("demo", b"again")).json()
        # Nothing but heartbeats may come in between.
        self.assertLess(commit["id"] - begun["id"], 5)

    async def test_commit_without_waiting(self) -> None:
        begun = await self.post("begin")
        await self.post("data", "--data-binary", "state")
        output = await self.curl(
            "-X", "POST", "-w", "%{http_code}", f"{self.shared.url}/v1/pairs/demo/commit?wait=false"
        )
        self.assertTrue(output.out.endswith(b"202"), output)
        await until(lambda: self.is_committed(begun["id"]), "it is committed")
        self.assertEqual(await self.shared.checkpoint("demo-standby"), b"state")

    async def is_committed(self, id: int) -> bool:
        """Whether the newest transaction of the primary has this id and is committed."""
        newest = (await self.shared.transactions("demo"))[-1]
        return (newest["id"], newest["outcome"]) == (id, "committed")

    async def test_the_history_tells_when_everything_happened(self) -> None:
        begun = await self.post("begin")
        await self.post("data", "--data-binary", self.file(state_of(130_000)))
        await self.post("commit")
        row = (await self.curl_json(f"{self.shared.url}/v1/pairs/demo/transactions"))["transactions"][-1]
        self.assertEqual((row["id"], row["seq"], row["bytes"]), (begun["id"], 2, 130_000))
        self.assertEqual((row["outcome"], row["detail"]), ("committed", ""))
        times = [row["timeline"][step] for step in ("begun", "first_data", "commit", "ended")]
        self.assertEqual(times, sorted(times))
        standby = (await self.shared.transactions("demo-standby"))[-1]
        self.assertEqual((standby["id"], standby["number"], standby["bytes"]), (row["id"], row["number"], row["bytes"]))

    async def test_the_history_keeps_256(self) -> None:
        for _ in range(260):
            await self.shared.http.request("POST", "/v1/pairs/demo/begin")
            await self.shared.http.request("POST", "/v1/pairs/demo/cancel")
        self.assertEqual(len(await self.shared.transactions("demo")), 256)

    async def test_rate_limit(self) -> None:
        url = f"{self.shared.url}/v1/pairs/demo/rate-limit"
        try:
            self.assertEqual(await self.curl_json(url), {"enabled": True, "bandwidth": 0})
            off = await self.curl_json("-X", "PUT", "-d", '{"enabled": false}', url)
            self.assertEqual(off, {"enabled": False, "bandwidth": 0})
            self.assertFalse((await self.shared.pair("demo"))["rate_limit"])
            state = state_of(MIB, seed="not limited")
            await self.shared.push("demo", state)
            self.assertEqual(await self.shared.checkpoint("demo-standby"), state)
            limited = await self.curl_json("-X", "PUT", "-d", '{"enabled": true, "bandwidth": 4194304}', url)
            self.assertEqual(limited, {"enabled": True, "bandwidth": 4 * MIB})
            self.assertEqual(await self.curl_json(url), limited)
            self.assertEqual((await self.shared.pair("demo"))["bandwidth_limit"], 4 * MIB)
            await self.shared.push("demo", state_of(MIB, seed="limited"))
            self.assertEqual(await self.shared.checkpoint("demo-standby"), state_of(MIB, seed="limited"))
        finally:
            await self.curl("-X", "PUT", "-d", '{"enabled": true, "bandwidth": 0}', url)

    async def test_a_bandwidth_limit_holds_the_source_back(self) -> None:
        url = "/v1/pairs/demo/rate-limit"
        await self.shared.http.send_json("PUT", url, {"bandwidth": 64 * 1024})
        state = state_of(16 * MIB)
        push = self.in_background(self.shared.push("demo", state))
        await self.shared.until_pair("demo", state="CONTINUE", freeze_output=True)
        slowed = (await self.shared.pair("demo"))["transaction"]["bytes"]
        self.assertLess(slowed, 4 * MIB)
        self.assertFalse(push.called)
        await self.shared.http.send_json("PUT", url, {"bandwidth": 0})
        await push
        self.assertEqual(await self.shared.checkpoint("demo-standby"), state)

    async def test_trace(self) -> None:
        url = f"{self.shared.url}/v1/pairs/demo/trace"
        switches = (await self.curl_json(url))["events"]
        self.assertEqual((len(switches), set(switches.values())), (13, {False}))
        changed = await self.curl_json("-X", "PUT", "-d", '{"events": {"ft_trans_send_header": true}}', url)
        self.assertEqual([name for name, on in changed["events"].items() if on], ["ft_trans_send_header"])
        self.assertEqual(await self.curl_json(url), changed)
        await self.curl("-X", "PUT", "-d", '{"events": {"ft_trans_send_header": false}}', url)
        self.assertEqual((await self.curl_json(url))["events"], switches)

    async def test_healthz_and_readyz(self) -> None:
        self.assertEqual(await self.curl_json(f"{self.shared.url}/healthz"), {"status": "ok"})
        self.assertEqual(await self.curl_json(f"{self.shared.url}/readyz"), {"ready": True})

    async def test_reset_opens_the_link_anew(self) -> None:
        for half in ("demo", "demo-standby"):
            before = (await self.shared.pair("demo"))["reconnects"]
            answer = await self.curl_json("-X", "POST", f"{self.shared.url}/v1/pairs/{half}/reset")
            self.assertEqual(answer, {})
            await self.shared.until_pair("demo", reconnects=before + 1, link_state="up", has_error=0)
            await self.shared.push("demo", half.encode())
            self.assertEqual(await self.shared.checkpoint("demo-standby"), half.encode())

    async def test_the_entrance_and_the_description(self) -> None:
        entrance = await self.curl_json(f"{self.shared.url}/v1")
        description = await self.curl_json(self.shared.url + entrance["links"]["openapi"])
        self.assertTrue(description["openapi"].startswith("3.1"))
        self.assertIn("put", description["paths"]["/v1/pairs/{pair}/checkpoint"])
        self.assertEqual(entrance["pairs"], list(self.pairs))


class LateAckTests(EndToEndCase):
    """A commit whose ACK takes its time."""

    async def test_it_is_told_that_it_may_still_come(self) -> None:
        port = free_port()
        proxy, proxied = await self.proxy(port)
        standby = self.daemon({"demo": secondary(port, ack="applied")})
        sender = self.daemon({"demo": primary(proxied, dead_time="1min", ack_time="100ms")})
        await start_all(standby, sender)
        await sender.until_up()
        for query in ("", "?timeout=0.05"):
            await sender.http.request("POST", "/v1/pairs/demo/begin")
            await sender.http.request("POST", "/v1/pairs/demo/data", b"late")
            held = proxy.do(ACK, 3, Then.HOLD)
            late = await sender.http.request("POST", f"/v1/pairs/demo/commit{query}")
            self.assertIn("may still be committed", problem(late, 504)["detail"])
            await held
            pair = await sender.pair("demo")
            self.assertEqual((pair["state"], pair["has_error"]), ("COMMIT", 0))
            # Nothing else can be begun before it is known.
            self.assertEqual(problem(await sender.http.request("POST", "/v1/pairs/demo/begin"), 409)["state"], "COMMIT")
            proxy.release()
            await sender.until_pair("demo", state="ACK")
            self.assertEqual((await sender.transactions("demo"))[-1]["outcome"], "committed")
        self.assertEqual(len(await standby.checkpoints("demo")), 2)


class ConfiguredTests(EndToEndCase):
    """What the file says of a pair's switches is in force from the start."""

    async def test_limits(self) -> None:
        port = free_port()
        daemon = self.daemon(
            {
                "demo": primary(port, bandwidth_limit="64KiB", rate_limit="off", trace="ft_trans_cb"),
                "standby": secondary(port, name="demo"),
            }
        )
        await daemon.start()
        await daemon.until_up()
        self.assertEqual(
            await daemon.http.json("/v1/pairs/demo/rate-limit"), {"enabled": False, "bandwidth": 64 * 1024}
        )
        switches = (await daemon.http.json("/v1/pairs/demo/trace"))["events"]
        self.assertEqual([name for name, on in switches.items() if on], ["ft_trans_cb"])
        push = self.in_background(daemon.push("demo", state_of(4 * MIB)))
        held_back = await daemon.until_pair("demo", state="COMMIT", freeze_output=True)
        self.assertGreater(held_back["buffered_bytes"], 2 * MIB)
        self.assertFalse(push.called)
        await daemon.http.send_json("PUT", "/v1/pairs/demo/rate-limit", {"bandwidth": 0})
        await push


class WithoutLinkTests(EndToEndCase):
    """What a primary says when there is nobody to talk to."""

    async def test_everything_that_needs_the_link_is_refused(self) -> None:
        daemon = await self.daemon({"demo": primary(free_port(), reconnect_max="5s")}).start()
        for method, step in (("POST", "begin"), ("POST", "commit"), ("POST", "cancel"), ("PUT", "checkpoint")):
            answer = await daemon.http.request(method, f"/v1/pairs/demo/{step}", b"x" if method == "PUT" else None)
            self.assertIn("link", problem(answer, 503)["detail"])
            self.assertGreaterEqual(int(answer.header("Retry-After") or 0), 1)
        ready = await daemon.http.request("GET", "/readyz")
        self.assertEqual((ready.status, ready.json()["ready"]), (503, False))
        self.assertEqual([entry["pair"] for entry in ready.json()["not_ready"]], ["demo"])
        self.assertEqual((await daemon.http.request("GET", "/healthz")).status, 200)

    async def test_it_goes_on_when_the_standby_comes(self) -> None:
        port = free_port()
        alone = self.daemon({"demo": primary(port)})
        standby = self.daemon({"demo": secondary(port)})
        await start_all(alone, standby)
        await alone.until_up()
        await alone.push("demo", b"at last")
        self.assertEqual(await standby.checkpoint("demo"), b"at last")
