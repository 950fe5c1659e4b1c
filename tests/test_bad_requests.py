"""What HTTP clients get who ask for what cannot be, and that nothing comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tests.case import SharedDaemonCase
from tests.daemon import Json, Section, free_port, primary, problem, secondary
from tests.http_client import Answer
from tests.state import MIB, LongState, state_of

_LINK = free_port()


class BadRequestTests(SharedDaemonCase):
    """Everything is asked of one daemon, which is none the worse for it."""

    pairs: ClassVar[Mapping[str, Section]] = {
        "demo": primary(_LINK, max_transaction="8MiB"),
        "demo-standby": secondary(_LINK, name="demo", ack="applied"),
    }

    settings: ClassVar[Mapping[str, Any]] = {"api": {"idle-time": "2s"}}

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        await super().setUp()
        await self.shared.push("demo", b"whole")
        self.held = await self.shared.checkpoints("demo-standby")
        self.addCleanup(self.assert_unharmed)

    async def assert_unharmed(self) -> None:
        """Nothing has reached the standby, and the pair goes on as before."""
        self.assertEqual(await self.shared.checkpoints("demo-standby"), self.held)
        self.assertEqual(await self.shared.checkpoint("demo-standby"), b"whole")
        pair = await self.shared.pair("demo")
        self.assertEqual((pair["has_error"], pair["transaction"], pair["link_state"]), (0, None, "up"))
        await self.shared.push("demo", b"goes on")

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """A request; ``path`` goes on after ``/v1/pairs/``, unless it begins with a slash."""
        whole = path if path.startswith("/") else f"/v1/pairs/{path}"
        return await self.shared.http.request(method, whole, body, headers)

    # Uploads

    async def assert_cancelled(self, before: Json) -> None:
        """Both halves have dropped one transaction more than before."""
        for half in ("demo", "demo-standby"):
            await self.shared.until_pair(half, transactions_cancelled=before[half] + 1, transaction=None)
            newest = (await self.shared.transactions(half))[-1]
            self.assertEqual((newest["outcome"], newest["number"]), ("cancelled", None))

    async def cancelled_so_far(self) -> Json:
        return {half: (await self.shared.pair(half))["transactions_cancelled"] for half in ("demo", "demo-standby")}

    async def test_an_upload_cut_short_is_cancelled(self) -> None:
        before = await self.cancelled_so_far()
        client = await self.raw_sender(self.shared.port)
        client.send(b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n")
        client.send(state_of(2 * MIB))
        await self.shared.until_pair("demo-standby", state="CONTINUE")
        client.close()
        await self.assert_cancelled(before)

    async def test_a_chunked_upload_cut_short_is_cancelled(self) -> None:
        before = await self.cancelled_so_far()
        client = await self.raw_sender(self.shared.port)
        client.send(b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"100000\r\n" + state_of(MIB) + b"\r\n")
        await self.shared.until_pair("demo-standby", state="CONTINUE")
        await client.abort()
        await self.assert_cancelled(before)

    async def test_an_upload_that_falls_silent_is_cancelled(self) -> None:
        before = await self.cancelled_so_far()
        client = await self.raw_sender(self.shared.port)
        client.send(b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n")
        client.send(state_of(MIB))
        await self.assert_cancelled(before)
        await client.until_closed()

    async def test_data_cut_short_cancels_the_open_transaction(self) -> None:
        before = await self.cancelled_so_far()
        await self.ask("POST", "demo/begin")
        await self.ask("POST", "demo/data", state_of(MIB))
        client = await self.raw_sender(self.shared.port)
        client.send(b"POST /v1/pairs/demo/data HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n")
        client.send(state_of(MIB))
        await self.shared.until_pair("demo-standby", state="CONTINUE")
        client.close()
        await self.assert_cancelled(before)
        problem(await self.ask("POST", "demo/commit"), 409)

    async def test_a_body_over_the_limit_of_a_transaction(self) -> None:
        before = await self.cancelled_so_far()
        answer = await self.shared.http.request("PUT", "/v1/pairs/demo/checkpoint", LongState(9).body())
        self.assertIn("max-transaction", problem(answer, 413)["detail"])
        await self.assert_cancelled(before)

    async def test_a_transaction_that_grows_over_its_limit(self) -> None:
        before = await self.cancelled_so_far()
        await self.ask("POST", "demo/begin")
        self.assertEqual((await self.ask("POST", "demo/data", state_of(6 * MIB))).status, 200)
        problem(await self.ask("POST", "demo/data", state_of(3 * MIB)), 413)
        await self.assert_cancelled(before)
        problem(await self.ask("POST", "demo/commit"), 409)

    async def test_a_transaction_at_its_limit_is_well(self) -> None:
        state = state_of(8 * MIB)
        await self.shared.push("demo", state)
        self.assertEqual(await self.shared.checkpoint("demo-standby"), state)
        # What comes after each test looks for this one.
        await self.shared.push("demo", b"whole")
        self.held = await self.shared.checkpoints("demo-standby")

    async def test_two_uploads_at_once(self) -> None:
        client = await self.raw_sender(self.shared.port)
        client.send(b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 2097152\r\n\r\n")
        client.send(state_of(MIB))
        await self.shared.until_pair("demo-standby", state="CONTINUE")
        for method, step, body in (
            ("PUT", "checkpoint", b"another"),
            ("POST", "data", b"another"),
            ("POST", "begin", None),
            ("POST", "commit", None),
        ):
            refused = problem(await self.ask(method, f"demo/{step}", body), 409)
            self.assertEqual(refused["state"], "CONTINUE")
        client.close()
        await self.shared.until_pair("demo", transaction=None)

    # States

    async def test_begin_twice(self) -> None:
        first = (await self.ask("POST", "demo/begin")).json()["id"]
        for method, path in (("POST", "demo/begin"), ("PUT", "demo/checkpoint")):
            refused = problem(await self.ask(method, path, b""), 409)
            self.assertEqual((refused["state"], refused["type"]), ("BEGIN", "urn:ftd:problem:not-in-state"))
            self.assertIn(str(first), refused["detail"])
        await self.ask("POST", "demo/cancel")

    async def test_nothing_is_open(self) -> None:
        for step in ("commit", "cancel", "data"):
            refused = problem(await self.ask("POST", f"demo/{step}", b"x" if step == "data" else None), 409)
            self.assertIn(refused["state"], ("ACK", "CANCEL", "COMMIT"))

    async def test_an_unknown_pair(self) -> None:
        for method, rest in (
            ("GET", ""),
            ("POST", "/begin"),
            ("POST", "/data"),
            ("POST", "/commit"),
            ("POST", "/cancel"),
            ("PUT", "/checkpoint"),
            ("GET", "/rate-limit"),
            ("GET", "/trace"),
            ("GET", "/events"),
            ("GET", "/transactions"),
            ("GET", "/checkpoints"),
            ("GET", "/checkpoints/latest"),
            ("POST", "/reset"),
            ("DELETE", ""),
        ):
            answer = await self.ask(method, f"nobody{rest}", b"x" if rest in ("/data", "/checkpoint") else None)
            self.assertIn("nobody", problem(answer, 404)["detail"])

    async def test_what_is_not_routed(self) -> None:
        for path in ("/", "/metrics", "/v2", "/v1/pairs/demo/other"):
            problem(await self.ask("GET", path), 404)
        wrong = await self.ask("DELETE", "demo/checkpoint")
        problem(wrong, 405)
        self.assertEqual(wrong.header("Allow"), "PUT")
        problem(await self.ask("GET", "demo-standby/checkpoints/one"), 404)

    async def test_what_is_for_vms(self) -> None:
        for method, what in (("PUT", "protection"), ("POST", "promote"), ("POST", "demote")):
            self.assertIn("has no VM", problem(await self.ask(method, f"demo/{what}", b"{}"), 409)["detail"])

    async def test_a_pair_of_the_file_cannot_be_deleted(self) -> None:
        self.assertIn("SIGHUP", problem(await self.ask("DELETE", "demo"), 409)["detail"])

    # Bodies

    async def assert_refused_body(self, path: str, body: bytes, field: str) -> None:
        method = "POST" if path == "/v1/pairs" else "PUT"
        refused = problem(await self.ask(method, path, body, **{"Content-Type": "application/json"}), 400)
        self.assertEqual(refused["field"], field, refused)

    async def test_wrong_json(self) -> None:
        for path in ("demo/rate-limit", "demo/trace", "/v1/pairs"):
            for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"enabled": NaN}', b"[" * 60_000):
                await self.assert_refused_body(path, body, "body")

    async def test_unknown_keys_and_wrong_types(self) -> None:
        for path, body, field in (
            ("demo/rate-limit", b'{"enable": true}', "enable"),
            ("demo/rate-limit", b"{}", "body"),
            ("demo/rate-limit", b'{"enabled": "yes"}', "enabled"),
            ("demo/rate-limit", b'{"enabled": 1}', "enabled"),
            ("demo/rate-limit", b'{"bandwidth": -1}', "bandwidth"),
            ("demo/rate-limit", b'{"bandwidth": 1.5}', "bandwidth"),
            ("demo/trace", b'{"events": {"ft_trans_nothing": true}}', "events.ft_trans_nothing"),
            ("demo/trace", b'{"events": {"ft_trans_cb": "on"}}', "events.ft_trans_cb"),
            ("demo/trace", b'{"events": []}', "events"),
            ("demo/trace", b'{"ft_trans_cb": true}', "ft_trans_cb"),
            ("/v1/pairs", b"{}", "pair"),
            ("/v1/pairs", b'{"pair": 5}', "pair"),
            ("/v1/pairs", b'{"pair": "new"}', "role"),
            ("/v1/pairs", b'{"pair": "new", "role": "primary"}', "link"),
            ("/v1/pairs", b'{"pair": "new", "role": "primary", "link": "nowhere"}', "link"),
            ("/v1/pairs", b'{"pair": "new", "role": "primary", "link": "tcp:127.0.0.1:1", "rolle": 1}', "rolle"),
            ("/v1/pairs", b'{"pair": "new", "role": "primary", "link": "tcp:127.0.0.1:1", "keep": 1}', "keep"),
            ("/v1/pairs", b'{"pair": "a/b", "role": "primary", "link": "tcp:127.0.0.1:1"}', "pair"),
        ):
            await self.assert_refused_body(path, body, field)
        self.assertEqual(list((await self.shared.http.json("/v1"))["pairs"]), list(self.pairs))

    async def test_a_json_body_over_its_limit(self) -> None:
        body = b'{"enabled": true, "x": "' + b"x" * 70_000 + b'"}'
        problem(await self.ask("PUT", "demo/rate-limit", body, **{"Content-Type": "application/json"}), 413)

    async def test_a_body_of_another_type(self) -> None:
        answer = await self.ask("PUT", "demo/rate-limit", b"<enabled/>", **{"Content-Type": "text/xml"})
        problem(answer, 415)

    async def test_bad_arguments(self) -> None:
        await self.ask("POST", "demo/begin")
        for path, field in (
            ("demo/commit?timeout=soon", "timeout"),
            ("demo/commit?timeout=-1", "timeout"),
            ("demo/commit?wait=perhaps", "wait"),
        ):
            self.assertEqual(problem(await self.ask("POST", path), 400)["field"], field)
        await self.ask("POST", "demo/cancel")
        for path, field in (
            ("/v1/events?kinds=everything", "kinds"),
            ("/v1/events?names=ft_trans_nothing", "names"),
            ("demo/events?last-event-id=x", "last-event-id"),
        ):
            self.assertEqual(problem(await self.ask("GET", path), 400)["field"], field)

    # Not HTTP

    async def test_something_else_than_http(self) -> None:
        for request in (b"\x00" * 5000, state_of(100_000), b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000):
            client = await self.raw_sender(self.shared.port)
            client.send(request)
            said = await client.until_closed()
            self.assertNotIn(b"Traceback", said)

    async def test_the_length_of_a_body_is_a_lie(self) -> None:
        client = await self.raw_sender(self.shared.port)
        client.send(b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: lots\r\n\r\n")
        self.assertIn(b" 400 ", await client.until_closed())
