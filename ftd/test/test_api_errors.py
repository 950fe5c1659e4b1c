"""Errors of the API that no single route is about: what is not routed, limits, and faults of ftd itself."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ftd import errors
from ftd.errors import FtdError, TooLarge
from ftd.http.problems import STATUS_BY_ERROR
from ftd.http.site import LINGER_SILENCE
from ftd.test.api_case import ApiTestCase


class RoutingTests(ApiTestCase):
    def test_nothing_there(self) -> None:
        for path in (
            "/",
            "/v2",
            "/v1/",
            "/v1/pairs/",
            "/v1/pairs/demo/",
            "/v1/pairs/demo/begin/",
            "/v1/pairs//begin",
            "/v1/pairs/demo/nope",
            "/v1/pairs/demo-standby/checkpoints/",
            "/v1/pairs/demo-standby/checkpoints/newest",
            "/v1/pairs/demo-standby/checkpoints/-1",
            "/metrics",
            "/favicon.ico",
        ):
            self.assertIn(path, self.assert_problem(self.call("GET", path), 404, "not-found"))

    def test_method_not_allowed(self) -> None:
        cases = [
            ("PUT", "/v1", "GET, HEAD"),
            ("DELETE", "/v1/pairs", "GET, HEAD, POST"),
            ("GET", "/v1/pairs/demo/begin", "POST"),
            ("GET", "/v1/pairs/demo/checkpoint", "PUT"),
            ("PUT", "/v1/pairs/demo/data", "POST"),
            ("POST", "/v1/pairs/demo/rate-limit", "GET, HEAD, PUT"),
            ("OPTIONS", "/v1/pairs/demo", "DELETE, GET, HEAD"),
        ]
        for method, path, allowed in cases:
            response = self.call(method, path)
            self.assert_problem(response, 405, "method-not-allowed")
            self.assertEqual(response.header("Allow"), allowed)

    def test_paths_that_are_not_text(self) -> None:
        self.assert_problem(self.call("GET", "/v1/pairs/%ff"), 400, "bad-request", field="path")
        self.assert_problem(self.call("PUT", "/v1/pairs/%ff/checkpoint", b"x"), 400, "bad-request", field="path")

    def test_the_connection_goes_on_after_that(self) -> None:
        client = self.connect()
        for path, status in (("/v1/pairs/%ff", 400), ("/healthz", 200)):
            self.request(client, "GET", path)
            self.assertEqual(client.response().status, status)

    def test_names_are_decoded(self) -> None:
        self.assertEqual(self.call("GET", "/v1/pairs/d%65mo").status, 200)

    def test_the_host_does_not_matter(self) -> None:
        for host in ("a..b", "x" * 100, "\xff", ""):
            client = self.connect()
            client.send(b"GET /healthz HTTP/1.1\r\nHost: " + host.encode("latin-1") + b"\r\n\r\n")
            self.assertEqual(client.response().status, 200, host)

    def test_query_arguments_that_the_route_does_not_have(self) -> None:
        for path, field in (("/v1/pairs?a=1", "a"), ("/v1/pairs/demo/begin?wait=false", "wait")):
            response = self.call("POST" if "begin" in path else "GET", path)
            self.assert_problem(response, 400, "bad-request", field=field)
        self.call("POST", "/v1/pairs/demo/begin")
        response = self.call("POST", "/v1/pairs/demo/commit?wiat=false")
        detail = self.assert_problem(response, 400, "bad-request", field="wiat")
        self.assertIn("wait, timeout", detail)

    def test_a_body_where_none_is_read(self) -> None:
        for method, path in (("POST", "/v1/pairs/demo/begin"), ("DELETE", "/v1/pairs/demo")):
            response = self.call(method, path, {"wait": False})
            self.assert_problem(response, 400, "bad-request", field="body")
        self.assertIsNone(self.primary.status().transaction)
        self.assertEqual(self.call("POST", "/v1/pairs/demo/begin", {}).status, 200)

    def test_what_is_not_http(self) -> None:
        client = self.connect()
        client.send(b"\x00\x01\x02\r\n\r\n")
        self.assertTrue(client.read().startswith(b"HTTP/1.1 400 "))
        self.assertTrue(client.is_closed)

    def test_two_lengths(self) -> None:
        client = self.connect()
        client.send(
            b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n12345"
        )
        self.assertTrue(client.read().startswith(b"HTTP/1.1 400 "))
        self.assertEqual(self.primary.uploads, [])


class LimitTests(ApiTestCase):
    """The bodies of all routes but the two that take state: at most 1000 bytes here."""

    def test_a_body_of_the_limit(self) -> None:
        body = b'{"enabled": true}'.ljust(1000)
        self.assertEqual(self.call("PUT", "/v1/pairs/demo/rate-limit", body).status, 200)

    def test_a_body_over_the_limit_is_refused_before_it_arrives(self) -> None:
        for method, path in (
            ("PUT", "/v1/pairs/demo/rate-limit"),
            ("POST", "/v1/pairs"),
            ("POST", "/v1/pairs/demo/begin"),
            ("GET", "/v1/pairs"),
        ):
            client = self.connect()
            client.send_head(method, path, {"Content-Length": "1001"})
            response = client.response()
            detail = self.assert_problem(response, 413, "too-large")
            self.check_documented(method, path, response)
            self.assertIn("1000", detail)
            self.assertEqual(response.header("Connection"), "close")
        self.assertIsNone(self.primary.status().transaction)

    def test_a_chunked_body_is_refused_where_it_passes_the_limit(self) -> None:
        client = self.connect()
        client.send_head("PUT", "/v1/pairs/demo/rate-limit", {"Transfer-Encoding": "chunked"})
        client.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        self.assertIsNone(client.response_if_any())
        client.send(b"1\r\n \r\n")
        self.assert_problem(client.response(), 413, "too-large")

    def test_a_chunked_body_that_ends_in_the_read_in_which_it_passes_the_limit(self) -> None:
        client = self.connect()
        client.send_head("PUT", "/v1/pairs/demo/rate-limit", {"Transfer-Encoding": "chunked"})
        client.send(b"3e9\r\n" + b" " * 1001 + b"\r\n0\r\n\r\n")
        self.assert_problem(client.response(), 413, "too-large")
        self.clock.advance(LINGER_SILENCE)
        self.assertTrue(client.is_closed)

    def test_what_is_not_routed_is_said_first(self) -> None:
        client = self.connect()
        client.send_head("PUT", "/v1/pairs/demo/checkpiont", {"Content-Length": "1000000"})
        self.assert_problem(client.response(), 404, "not-found")
        client = self.connect()
        client.send_head("PUT", "/v1/pairs/demo/data", {"Content-Length": "1000000"})
        self.assert_problem(client.response(), 405, "method-not-allowed")

    def test_instead_of_100_continue(self) -> None:
        client = self.connect()
        client.send_head("PUT", "/v1/pairs/demo/trace", {"Content-Length": "1001", "Expect": "100-continue"})
        self.assert_problem(client.response(), 413, "too-large")

    def test_100_continue(self) -> None:
        client = self.connect()
        client.send_head("PUT", "/v1/pairs/demo/rate-limit", {"Content-Length": "16", "Expect": "100-continue"})
        self.assertEqual(client.response().status, 100)
        client.send(b'{"enabled":true}')
        self.assertEqual(client.response().status, 200)


class FaultTests(ApiTestCase):
    def test_a_fault_is_an_incident(self) -> None:
        self.primary.failing = ZeroDivisionError("what nobody outside is to see")
        response = self.call("POST", "/v1/pairs/demo/begin")
        incident = response.json()["incident"]
        detail = self.assert_problem(response, 500, "internal", incident=incident)
        self.assertIn(incident, detail)
        self.assertNotIn(b"nobody", response.body)
        self.assertRegex(incident, "^[0-9a-f]{32}$")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_every_incident_has_its_own_id(self) -> None:
        incidents = set()
        for _ in range(2):
            self.primary.failing = ZeroDivisionError()
            incidents.add(self.call("POST", "/v1/pairs/demo/begin").json()["incident"])
        self.assertEqual(len(incidents), 2)
        self.flushLoggedErrors(ZeroDivisionError)

    def test_a_fault_before_the_route(self) -> None:
        def fail(_: object) -> None:
            raise ZeroDivisionError

        self.patch(self.site, "getResourceFor", fail)
        response = self.call("GET", "/v1")
        self.assert_problem(response, 500, "internal", incident=response.json()["incident"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_headers_of_the_answer_that_failed_do_not_stay(self) -> None:
        self.secondary.kept.add(b"state", 0)

        def fail(_: int) -> None:
            raise ZeroDivisionError

        self.patch(self.secondary.kept, "open", fail)
        response = self.call("GET", "/v1/pairs/demo-standby/checkpoints/1")
        self.assertEqual(response.status, 500)
        for name in ("ETag", "Last-Modified", "Content-Disposition", "Accept-Ranges", "Cache-Control"):
            self.assertIsNone(response.header(name), name)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_limit_of_the_pair(self) -> None:
        self.primary.failing = TooLarge("16GiB is all there may be.")
        response = self.call("POST", "/v1/pairs/demo/begin")
        self.assertIn("16GiB", self.assert_problem(response, 413, "too-large"))


class TableTests(SynchronousTestCase):
    def test_every_error_has_a_status(self) -> None:
        of_errors = {
            error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, FtdError)
        }
        self.assertEqual(of_errors - {FtdError} - set(STATUS_BY_ERROR), set())
