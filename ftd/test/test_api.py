"""What each route of the API does and answers."""

from __future__ import annotations

import json
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from ftd.errors import NoAck, PairFailed
from ftd.status import LinkState, to_json
from ftd.test.api_case import NOW, ApiTestCase
from ftd.wire.errors import ErrorCode


class DaemonTests(ApiTestCase):
    def test_entrance(self) -> None:
        self.clock.advance(12.5)
        answer = self.call("GET", "/v1").json()
        self.assertEqual(answer["uptime_seconds"], 12.5)
        self.assertEqual((answer["name"], answer["version"], answer["node"]), ("ftd", "1.2.3", "host-a"))
        self.assertEqual(answer["pairs"], ["demo", "demo-standby"])
        for link in answer["links"].values():
            self.assertEqual(self.call("HEAD", link).status, 200, link)

    def test_answers_are_lines_of_json_that_nobody_keeps(self) -> None:
        response = self.call("GET", "/v1/pairs")
        self.assertEqual(response.header("Content-Type"), "application/json")
        self.assertEqual(response.header("Cache-Control"), "no-store")
        self.assertTrue(response.body.endswith(b"}\n"))

    def test_head_is_get_without_the_body(self) -> None:
        client = self.connect()
        self.request(client, "HEAD", "/v1/pairs/demo")
        head = client.response("HEAD")
        self.assertEqual(client.received, b"")
        self.assertEqual(head.header("Content-Length"), str(len(self.call("GET", "/v1/pairs/demo").body)))

    def test_health(self) -> None:
        self.primary.show(link_state=LinkState.DOWN)
        self.assertEqual(self.call("GET", "/healthz").json(), {"status": "ok"})

    def test_ready(self) -> None:
        self.assertEqual(self.call("GET", "/readyz").json(), {"ready": True})

    def test_not_ready_says_which_and_why(self) -> None:
        self.primary.show(link_state=LinkState.CONNECTING, link_detail="connection refused")
        self.secondary.show(has_error=6, has_error_name="FLUSH", has_error_detail="disk full")
        response = self.call("GET", "/readyz")
        self.assertEqual(response.status, 503)
        self.assertEqual(
            response.json(),
            {
                "ready": False,
                "not_ready": [
                    {"pair": "demo", "why": "the link is connecting: connection refused"},
                    {"pair": "demo-standby", "why": "FLUSH: disk full"},
                ],
            },
        )

    def test_requests_follow_each_other_on_a_connection(self) -> None:
        client = self.connect()
        for _ in range(2):
            self.request(client, "POST", "/v1/pairs/demo/begin")
            self.request(client, "POST", "/v1/pairs/demo/data", b"state")
            self.request(client, "POST", "/v1/pairs/demo/commit")
            self.assertEqual([client.response().status for _ in range(3)], [200, 200, 200])
        self.assertFalse(client.is_closed)

    def test_a_connection_without_requests_is_closed_after_the_idle_time(self) -> None:
        client = self.connect()
        self.request(client, "GET", "/healthz")
        client.response()
        self.clock.advance(59)
        self.assertFalse(client.is_closed)
        self.clock.advance(2)
        self.assertTrue(client.is_closed)


class PairTests(ApiTestCase):
    def test_pair_is_its_status(self) -> None:
        self.primary.show(bytes_sent=17)
        self.assertEqual(self.call("GET", "/v1/pairs/demo").json(), to_json(self.primary.status()))

    def test_all_pairs(self) -> None:
        answer = self.call("GET", "/v1/pairs").json()
        self.assertEqual(answer, {"pairs": [to_json(self.primary.status()), to_json(self.secondary.status())]})

    def test_create(self) -> None:
        values = {"role": "primary", "link": "tcp:127.0.0.1:9000", "keep": 3, "rate-limit": False, "name": "wire"}
        response = self.call("POST", "/v1/pairs", {"pair": "new", **values})
        self.assertEqual(response.status, 201)
        self.assertEqual(response.header("Location"), "/v1/pairs/new")
        self.assertEqual(response.json()["name"], "new")
        self.assertEqual(self.daemon.created, [values])

    def test_create_with_a_name_only(self) -> None:
        response = self.call("POST", "/v1/pairs", {"name": "new", "role": "primary"})
        self.assertEqual(response.header("Location"), "/v1/pairs/new")
        self.assertEqual(self.daemon.created, [{"name": "new", "role": "primary"}])

    def test_create_with_no_name(self) -> None:
        response = self.call("POST", "/v1/pairs", {"role": "primary"})
        self.assert_problem(response, 400, "bad-request", field="pair")
        self.assert_problem(self.call("POST", "/v1/pairs", {"pair": 5}), 400, "bad-request", field="pair")

    def test_create_one_that_is_there(self) -> None:
        self.assert_problem(self.call("POST", "/v1/pairs", {"pair": "demo"}), 409, "already-exists")

    def test_create_with_a_key_that_is_wrong(self) -> None:
        response = self.call("POST", "/v1/pairs", {"pair": "new"})
        detail = self.assert_problem(response, 400, "config", field="role")
        self.assertEqual(detail, "role: is missing")

    def test_delete(self) -> None:
        response = self.call("DELETE", "/v1/pairs/demo")
        self.assertEqual((response.status, response.body), (204, b""))
        self.assertEqual(list(self.daemon.pairs()), ["demo-standby"])
        self.assert_problem(self.call("DELETE", "/v1/pairs/demo"), 404, "unknown")

    def test_delete_one_of_the_configuration_file(self) -> None:
        self.daemon.configured.add("demo")
        self.assert_problem(self.call("DELETE", "/v1/pairs/demo"), 409, "not-in-state", state="ACK")

    def test_reset(self) -> None:
        self.primary.show(has_error=7, has_error_name="STATE_INVALID")
        self.assertEqual(self.call("POST", "/v1/pairs/demo/reset").json(), {})
        self.assertEqual(self.primary.resets, 1)

    def test_unknown_pair(self) -> None:
        routes = [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/begin"),
            ("POST", "/data"),
            ("POST", "/commit"),
            ("POST", "/cancel"),
            ("POST", "/reset"),
            ("PUT", "/checkpoint"),
            ("GET", "/rate-limit"),
            ("GET", "/trace"),
            ("GET", "/events"),
            ("GET", "/transactions"),
            ("GET", "/checkpoints"),
            ("GET", "/checkpoints/latest"),
            ("GET", "/checkpoints/1"),
        ]
        for method, rest in routes:
            detail = self.assert_problem(self.call(method, f"/v1/pairs/nope{rest}"), 404, "unknown")
            self.assertIn("'nope'", detail)

    def test_each_half_refuses_what_is_for_the_other(self) -> None:
        routes = [
            ("POST", "demo-standby", "begin"),
            ("POST", "demo-standby", "data"),
            ("POST", "demo-standby", "commit"),
            ("POST", "demo-standby", "cancel"),
            ("PUT", "demo-standby", "checkpoint"),
            ("GET", "demo-standby", "rate-limit"),
            ("GET", "demo", "checkpoints"),
        ]
        for method, pair, what in routes:
            response = self.call(method, f"/v1/pairs/{pair}/{what}")
            detail = self.assert_problem(response, 409, "not-in-state", state="ACK")
            other = "primaries" if pair == "demo-standby" else "secondaries"
            is_are = "are" if what == "checkpoints" else "is"
            self.assertIn(f"{what} {is_are} for {other}", detail)


class TransactionTests(ApiTestCase):
    def test_a_transaction_in_steps(self) -> None:
        self.assertEqual(self.call("POST", "/v1/pairs/demo/begin").json(), {"id": 0})
        for part in (b"some ", b"state"):
            answer = self.call("POST", "/v1/pairs/demo/data", part).json()
            self.assertEqual(answer, {"accepted": 5, "frozen": False})
        committed = self.call("POST", "/v1/pairs/demo/commit").json()
        self.assertEqual(committed, {"id": 0, "seq": 2, "bytes": 10, "seconds": 0.25})
        self.assertEqual([upload.data for upload in self.primary.uploads], [b"some ", b"state"])

    def test_data_says_that_the_pair_is_frozen(self) -> None:
        self.call("POST", "/v1/pairs/demo/begin")
        client = self.connect()
        client.send_head("POST", "/v1/pairs/demo/data", {"Content-Length": "1"})
        self.primary.show(freeze_output=True)
        client.send(b"x")
        self.assertEqual(client.response().json(), {"accepted": 1, "frozen": True})

    def test_begin_twice(self) -> None:
        self.call("POST", "/v1/pairs/demo/begin")
        self.assert_problem(self.call("POST", "/v1/pairs/demo/begin"), 409, "not-in-state", state="BEGIN")

    def test_nothing_is_open(self) -> None:
        for what in ("data", "commit", "cancel"):
            response = self.call("POST", f"/v1/pairs/demo/{what}")
            self.assert_problem(response, 409, "not-in-state", state="ACK")

    def test_cancel_answers_with_the_id_that_is_free_again(self) -> None:
        self.call("POST", "/v1/pairs/demo/begin")
        self.assertEqual(self.call("POST", "/v1/pairs/demo/cancel").json(), {"id": 0})
        self.assertIsNone(self.primary.status().transaction)

    def test_link_down(self) -> None:
        self.primary.lose_link()
        response = self.call("POST", "/v1/pairs/demo/begin")
        self.assert_problem(response, 503, "link-down")
        self.assertEqual(response.header("Retry-After"), "3")

    def test_a_pair_with_an_error(self) -> None:
        self.primary.failing = PairFailed("demo has STATE_INVALID.", ErrorCode.STATE_INVALID)
        response = self.call("POST", "/v1/pairs/demo/begin")
        self.assert_problem(response, 409, "pair-failed", has_error=7, has_error_name="STATE_INVALID")

    def test_commit_answers_on_the_acknowledgement(self) -> None:
        self.primary.acknowledges = False
        self.call("POST", "/v1/pairs/demo/begin")
        client = self.connect()
        self.request(client, "POST", "/v1/pairs/demo/commit")
        self.clock.advance(3600)
        self.assertIsNone(client.response_if_any())
        self.primary.acknowledge()
        self.assertEqual(client.response().json()["id"], 0)

    def test_no_acknowledgement_in_time(self) -> None:
        self.primary.acknowledges = False
        self.call("POST", "/v1/pairs/demo/begin")
        client = self.connect()
        self.request(client, "POST", "/v1/pairs/demo/commit?timeout=1.5")
        self.assertEqual(self.primary.timeouts, [1.5])
        self.primary.time_out()
        self.assert_problem(client.response(), 504, "no-ack")

    def test_commit_goes_on_without_its_client(self) -> None:
        self.primary.acknowledges = False
        self.call("POST", "/v1/pairs/demo/begin")
        client = self.connect()
        self.request(client, "POST", "/v1/pairs/demo/commit")
        client.disconnect()
        self.primary.acknowledge()
        self.assertEqual(self.primary.status().transactions_committed, 1)

    def test_a_failure_that_nobody_waits_for_any_more_is_not_logged_unless_it_is_ours(self) -> None:
        for error, logged in ((NoAck("too late"), 0), (ZeroDivisionError(), 1)):
            self.primary.acknowledges = False
            self.call("POST", "/v1/pairs/demo/begin")
            client = self.connect()
            committed = self.patched_commit()
            self.request(client, "POST", "/v1/pairs/demo/commit")
            client.disconnect()
            committed.errback(error)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), logged)
            self.primary.cancel()

    def test_commit_without_waiting(self) -> None:
        self.primary.acknowledges = False
        self.call("POST", "/v1/pairs/demo/begin")
        response = self.call("POST", "/v1/pairs/demo/commit?wait=false&timeout=9")
        self.assertEqual((response.status, response.json()), (202, {"id": 0}))
        self.assertEqual(self.primary.timeouts, [9.0])
        self.primary.acknowledge()

    def test_commit_without_waiting_that_fails_later(self) -> None:
        self.primary.acknowledges = False
        self.call("POST", "/v1/pairs/demo/begin")
        self.assertEqual(self.call("POST", "/v1/pairs/demo/commit?wait=false").status, 202)
        self.primary.time_out()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_commit_without_waiting_that_fails_at_once(self) -> None:
        response = self.call("POST", "/v1/pairs/demo/commit?wait=false")
        self.assert_problem(response, 409, "not-in-state", state="ACK")
        self.call("POST", "/v1/pairs/demo/begin")
        self.patched_commit().errback(NoAck("at once"))
        self.assert_problem(self.call("POST", "/v1/pairs/demo/commit?wait=false"), 504, "no-ack")

    def test_commit_without_waiting_that_fails_for_a_fault_of_ours(self) -> None:
        self.call("POST", "/v1/pairs/demo/begin")
        committed = self.patched_commit()
        self.assertEqual(self.call("POST", "/v1/pairs/demo/commit?wait=false").status, 202)
        committed.errback(ZeroDivisionError())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_commit_with_wait_true(self) -> None:
        self.call("POST", "/v1/pairs/demo/begin")
        self.assertEqual(self.call("POST", "/v1/pairs/demo/commit?wait=true").status, 200)

    def test_commit_with_arguments_that_make_no_sense(self) -> None:
        self.call("POST", "/v1/pairs/demo/begin")
        cases = {
            "wait": ("maybe", "", "False", "1"),
            "timeout": ("0", "-1", "soon", "nan", "inf", "", "%ff"),
        }
        for name, values in cases.items():
            for value in values:
                response = self.call("POST", f"/v1/pairs/demo/commit?{name}={value}")
                self.assert_problem(response, 400, "bad-request", field=name)
        twice = self.call("POST", "/v1/pairs/demo/commit?timeout=1&timeout=2")
        self.assert_problem(twice, 400, "bad-request", field="timeout")
        self.assertEqual(self.primary.timeouts, [])

    def test_transactions(self) -> None:
        self.call("PUT", "/v1/pairs/demo/checkpoint", b"state")
        rows = self.call("GET", "/v1/pairs/demo/transactions").json()["transactions"]
        self.assertEqual([(row["id"], row["bytes"], row["outcome"]) for row in rows], [(0, 5, "committed")])
        self.assertEqual(rows[0]["timeline"]["begun"], NOW)

    def patched_commit(self) -> Deferred[Any]:
        """What the next commit of the primary gives."""
        committed: Deferred[Any] = Deferred()
        self.patch(self.primary, "commit", lambda _: committed)
        return committed


class SettingsTests(ApiTestCase):
    def test_rate_limit(self) -> None:
        path = "/v1/pairs/demo/rate-limit"
        self.assertEqual(self.call("GET", path).json(), {"enabled": True, "bandwidth": 0})
        self.assertEqual(self.call("PUT", path, {"enabled": False}).json(), {"enabled": False, "bandwidth": 0})
        self.assertEqual(self.call("PUT", path, {"bandwidth": 4096}).json(), {"enabled": False, "bandwidth": 4096})
        both = {"enabled": True, "bandwidth": 0}
        self.assertEqual(self.call("PUT", path, both).json(), both)
        self.assertEqual(self.call("GET", path).json(), both)

    def test_rate_limit_bodies_that_are_wrong(self) -> None:
        cases: list[tuple[object, str]] = [
            ({"enabled": "true"}, "enabled"),
            ({"enabled": 1}, "enabled"),
            ({"enabled": None}, "enabled"),
            ({"bandwidth": "4096"}, "bandwidth"),
            ({"bandwidth": True}, "bandwidth"),
            ({"bandwidth": 4096.0}, "bandwidth"),
            ({"bandwidth": -1}, "bandwidth"),
            ({"bandwidth": 2**70}, "bandwidth"),
            ({"enabled": True, "bandwith": 1}, "bandwith"),
            ({}, "body"),
            ([], "body"),
            (b"", "body"),
            (b"{", "body"),
            (b"null", "body"),
            (b'{"bandwidth": NaN}', "body"),
            (b"\xff", "body"),
            (b"[" * 900, "body"),
        ]
        for body, field in cases:
            response = self.call("PUT", "/v1/pairs/demo/rate-limit", body)
            detail = self.assert_problem(response, 400, "bad-request", field=field)
            self.assertTrue(detail.startswith(f"{field}: "), detail)
        self.assertEqual(self.call("GET", "/v1/pairs/demo/rate-limit").json(), {"enabled": True, "bandwidth": 0})

    def test_trace(self) -> None:
        path = "/v1/pairs/demo/trace"
        before = self.call("GET", path).json()["events"]
        self.assertEqual(set(before.values()), {False})
        self.assertEqual(len(before), 13)
        after = self.call("PUT", path, {"events": {"ft_trans_flush": True}}).json()["events"]
        self.assertEqual(after, {**before, "ft_trans_flush": True})
        self.assertEqual(self.call("GET", path).json()["events"], after)
        self.assertEqual(self.call("PUT", path, {"events": {"ft_trans_flush": False}}).json()["events"], before)

    def test_trace_bodies_that_are_wrong(self) -> None:
        cases: list[tuple[object, str]] = [
            ({}, "events"),
            ({"events": ["ft_trans_flush"]}, "events"),
            ({"events": {"ft_trans_flash": True}}, "events.ft_trans_flash"),
            ({"events": {"ft_trans_flush": "on"}}, "events.ft_trans_flush"),
            ({"events": {}, "names": 1}, "names"),
        ]
        for body, field in cases:
            response = self.call("PUT", "/v1/pairs/demo/trace", body)
            self.assert_problem(response, 400, "bad-request", field=field)
        self.assertNotIn(True, self.primary.trace_events().values())


class CheckpointListTests(ApiTestCase):
    def test_list(self) -> None:
        held = [self.secondary.kept.add(data, NOW) for data in (b"one", b"three")]
        answer = self.call("GET", "/v1/pairs/demo-standby/checkpoints").json()
        self.assertEqual(answer, {"checkpoints": [attrs.asdict(checkpoint) for checkpoint in held]})

    def test_none_yet(self) -> None:
        self.assertEqual(self.call("GET", "/v1/pairs/demo-standby/checkpoints").json(), {"checkpoints": []})
        self.assert_problem(self.call("GET", "/v1/pairs/demo-standby/checkpoints/latest"), 404, "unknown")

    def test_what_was_acknowledged_is_waited_for(self) -> None:
        for path in ("checkpoints", "checkpoints/latest", "checkpoints/1"):
            self.secondary.settling = Deferred()
            client = self.connect()
            self.request(client, "GET", f"/v1/pairs/demo-standby/{path}")
            self.assertIsNone(client.response_if_any(), path)
            self.secondary.kept.add(b"state", NOW)
            self.secondary.settling.callback(None)
            response = client.response()
            self.assertEqual(response.status, 200, path)
            self.assertIn(b"state" if "/" in path else b"xxh3", response.body)


class ContentTypeTests(ApiTestCase):
    def test_json_by_any_of_its_names(self) -> None:
        body = json.dumps({"enabled": False}).encode()
        for content_type in (
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON",
            "application/x-www-form-urlencoded",
        ):
            response = self.call("PUT", "/v1/pairs/demo/rate-limit", body, {"Content-Type": content_type})
            self.assertEqual(response.status, 200, content_type)

    def test_another_type(self) -> None:
        for content_type in ("text/plain", "multipart/form-data; boundary=x", "application/xml", "nonsense"):
            response = self.call("PUT", "/v1/pairs/demo/rate-limit", b"{}", {"Content-Type": content_type})
            detail = self.assert_problem(response, 415, "unsupported-media-type")
            self.assertIn(content_type.partition(";")[0], detail)

    def test_a_form_is_not_parsed(self) -> None:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        response = self.call("POST", "/v1/pairs", b"pair=new&role=primary", headers)
        self.assert_problem(response, 400, "bad-request", field="body")

    def test_state_may_be_of_any_type(self) -> None:
        body = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"
        for content_type in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain"):
            response = self.call("PUT", "/v1/pairs/demo/checkpoint", body, {"Content-Type": content_type})
            self.assertEqual(response.json()["bytes"], len(body), content_type)
            self.assertEqual(self.primary.uploads[-1].data, body)
