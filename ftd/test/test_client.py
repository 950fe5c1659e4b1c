"""The calls of the client, against the real API."""

from __future__ import annotations

import errno
import re
from io import BytesIO

from twisted.internet import error
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import RequestGenerationFailed, ResponseNeverReceived

from ftd.client import (
    Accepted,
    ApiError,
    Client,
    NotReady,
    Protection,
    RateLimit,
    Readiness,
    Unreachable,
)
from ftd.client.errors import connection_error
from ftd.errors import LinkDown
from ftd.status import LinkState, Outcome, PauseStatus, SyncStatus, VmState
from ftd.test.api_case import NOW, openapi_document, operation_of
from ftd.test.client_case import URL, ClientTestCase
from ftd.trace import TRACE_EVENTS

BROKE = "the connection broke before the answer was through"


class DaemonTests(ClientTestCase):
    """What is asked of the daemon as a whole."""

    def test_info(self) -> None:
        """Name, version, node, uptime and the names of the pairs."""
        self.clock.advance(7)
        info = self.result(self.client.info())
        self.assertEqual((info.name, info.version, info.node, info.uptime_seconds), ("ftd", "1.2.3", "host-a", 7.0))
        self.assertEqual(info.pairs, ("demo", "demo-standby"))
        self.assertEqual(info.links["events"], "/v1/events")

    def test_health(self) -> None:
        """A daemon that answers is alive."""
        self.assertTrue(self.result(self.client.health()))

    def test_ready(self) -> None:
        """All pairs are up."""
        self.assertEqual(self.result(self.client.ready()), Readiness(ready=True))

    def test_not_ready(self) -> None:
        """An answer with status 503 that tells which pairs are not is no error of the call."""
        self.primary.show(link_state=LinkState.DOWN, link_detail="connection refused")
        unready = self.result(self.client.ready())
        self.assertFalse(unready.ready)
        self.assertEqual(unready.not_ready, (NotReady(pair="demo", why="the link is down: connection refused"),))

    def test_ready_fails_otherwise(self) -> None:
        """Any other 503 is an error."""
        servers = self.script()
        waiting = self.start(self.client.ready())
        servers.connections[0].answer("503 Busy", b"{}")
        self.pump()
        self.assertEqual(self.failureResultOf(waiting, ApiError).value.status, 503)

    def test_openapi(self) -> None:
        """The document that describes the API."""
        self.assertEqual(self.result(self.client.openapi())["openapi"], "3.1.0")

    def test_connection_is_kept(self) -> None:
        """One connection serves one call after the other, and ``close`` closes it."""
        for _ in range(3):
            self.result(self.client.info())
        self.assertEqual(len(self.links), 1)
        self.result(self.client.close())
        self.assertTrue(self.links[0].server.is_closed)

    def test_idle_connection_is_dropped(self) -> None:
        """It is not used again when the daemon may be about to close it."""
        self.result(self.client.info())
        self.pump(16)
        self.assertTrue(self.links[0].server.is_closed)
        self.result(self.client.info())
        self.assertEqual(len(self.links), 2)


class PairTests(ClientTestCase):
    """What is asked of a pair."""

    def test_pairs(self) -> None:
        """All of them, as the values that the daemon has."""
        self.assertEqual(self.result(self.client.pairs()), [self.primary.shown, self.secondary.shown])

    def test_pair(self) -> None:
        """One."""
        self.primary.show(has_error=6, has_error_name="FLUSH", has_error_detail="disk full", id=65535)
        self.assertEqual(self.result(self.client.pair("demo")), self.primary.shown)

    def test_name_is_quoted(self) -> None:
        """A name with a slash in it is one name, and not another path."""
        self.error(self.client.pair("demo/../demo"), ApiError)
        self.assertIn(b"GET /v1/pairs/demo%2F..%2Fdemo HTTP/1.1\r\n", self.links[0].sent)

    def test_create(self) -> None:
        """The settings are those of a section; the pair that comes back is the new one."""
        created = self.result(self.client.create_pair("new", {"role": "primary", "link": "unix:x", "keep": 3}))
        self.assertEqual(created.name, "new")
        self.assertEqual(self.daemon.created, [{"role": "primary", "link": "unix:x", "keep": 3}])

    def test_create_what_is_there(self) -> None:
        """Is refused."""
        refused = self.error(self.client.create_pair("demo", {}), ApiError)
        self.assertEqual((refused.status, refused.kind), (409, "already-exists"))

    def test_create_wrongly(self) -> None:
        """The problem names the field."""
        refused = self.error(self.client.create_pair("new", {"link": "unix:x"}), ApiError)
        self.assertEqual((refused.status, refused.problem["field"]), (400, "role"))

    def test_delete(self) -> None:
        """It is gone."""
        self.result(self.client.delete_pair("demo"))
        self.assertNotIn("demo", self.daemon.all)

    def test_unknown(self) -> None:
        """The exception's text is the daemon's sentence."""
        refused = self.error(self.client.pair("nope"), ApiError)
        self.assertEqual((refused.status, refused.kind), (404, "unknown"))
        self.assertEqual(str(refused), "There is no pair 'nope'.")

    def test_reset(self) -> None:
        """The pair is reset, once."""
        self.result(self.client.reset("demo"))
        self.assertEqual(self.primary.resets, 1)

    def test_transactions(self) -> None:
        """The history, with times and outcomes."""
        self.result(self.client.push("demo", b"state"))
        (row,) = self.result(self.client.transactions("demo"))
        self.assertEqual((row.outcome, row.bytes, row.timeline.begun), (Outcome.COMMITTED, 5, NOW))

    def test_rate_limit(self) -> None:
        """Each part changes by itself."""
        self.assertEqual(self.result(self.client.rate_limit("demo")), RateLimit(enabled=True, bandwidth=0))
        changed = self.result(self.client.set_rate_limit("demo", enabled=False))
        self.assertEqual(changed, RateLimit(enabled=False, bandwidth=0))
        changed = self.result(self.client.set_rate_limit("demo", bandwidth=2000))
        self.assertEqual(changed, RateLimit(enabled=False, bandwidth=2000))

    def test_protection(self) -> None:
        """Each part changes by itself."""
        self.daemon.add_vms()
        self.assertEqual(self.result(self.client.protection("vm")), Protection(enabled=True, interval_ms=50.0))
        changed = self.result(self.client.set_protection("vm", enabled=False))
        self.assertEqual(changed, Protection(enabled=False, interval_ms=50.0))
        changed = self.result(self.client.set_protection("vm", interval_ms=0))
        self.assertEqual(changed, Protection(enabled=False, interval_ms=0.0))

    def test_promote_and_demote(self) -> None:
        """Answer with the VM; force is said where it is meant."""
        vm, standby = self.daemon.add_vms()
        self.assertEqual(self.error(self.client.promote("vm-standby"), ApiError).kind, "not-in-state")
        promoted = self.result(self.client.promote("vm-standby", force=True))
        self.assertEqual((promoted, promoted.status), (standby.status().vm, VmState.PROMOTED))
        self.assertEqual(self.result(self.client.demote("vm")), vm.status().vm)
        self.assertEqual((standby.promotions, vm.demotions), ([True], 1))

    def test_vm(self) -> None:
        """All of a pair's VM arrives, to the steps of a pause."""
        vm, _standby = self.daemon.add_vms()
        pause = PauseStatus(last=9.5, p50=9.0, p99=12.0, stop=0.5, device=5.0, dirty=0.25, cont=3.5)
        vm.show_vm(pause_ms=pause, sync=SyncStatus(done_bytes=1, total_bytes=2))
        self.assertEqual(self.result(self.client.pair("vm")), vm.status())
        self.assertIsNone(self.result(self.client.pair("demo")).vm)

    def test_trace(self) -> None:
        """Events that are not named stay as they are."""
        self.primary.trace.switch({"ft_trans_cb": True})
        self.assertEqual(set(self.result(self.client.trace("demo"))), set(TRACE_EVENTS))
        changed = self.result(self.client.set_trace("demo", {"ft_trans_flush": True, "ft_trans_close": False}))
        self.assertEqual({name for name, is_on in changed.items() if is_on}, {"ft_trans_cb", "ft_trans_flush"})

    def test_unknown_trace_event(self) -> None:
        """Is refused by the daemon, which names it."""
        refused = self.error(self.client.set_trace("demo", {"ft_trans_x": True}), ApiError)
        self.assertEqual((refused.status, refused.problem["field"]), (400, "events.ft_trans_x"))


class TransactionTests(ClientTestCase):
    """Begin, data, commit, cancel."""

    def test_whole_transaction(self) -> None:
        """In steps, from bytes and from a file."""
        self.assertEqual(self.result(self.client.begin("demo")), 0)
        self.assertEqual(self.result(self.client.data("demo", b"abc")), Accepted(accepted=3, frozen=False))
        file = BytesIO(b"--defg")
        file.seek(2)
        self.assertEqual(self.result(self.client.data("demo", file)).accepted, 4)
        committed = self.result(self.client.commit("demo"))
        self.assertEqual((committed.id, committed.seq, committed.bytes, committed.seconds), (0, 2, 7, 0.25))
        self.assertEqual([upload.data for upload in self.primary.uploads], [b"abc", b"defg"])

    def test_no_data(self) -> None:
        """An upload of nothing is one."""
        self.result(self.client.begin("demo"))
        self.assertEqual(self.result(self.client.data("demo", b"")).accepted, 0)

    def test_commit_timeout(self) -> None:
        """It goes to the daemon, which is the one that gives up."""
        self.primary.acknowledges = False
        self.result(self.client.begin("demo"))
        waiting = self.start(self.client.commit("demo", timeout=0.5))
        self.assertEqual(self.primary.timeouts, [0.5])
        self.primary.time_out()
        self.pump()
        refused = self.failureResultOf(waiting, ApiError).value
        self.assertEqual((refused.status, refused.kind), (504, "no-ack"))

    def test_commit_waits_as_long_as_it_takes(self) -> None:
        """The time limit for answers is not for what takes as long as the pair takes."""
        self.primary.acknowledges = False
        self.result(self.client.begin("demo"))
        waiting = self.start(self.client.commit("demo"))
        self.pump(1000)
        self.assertNoResult(waiting)
        self.primary.acknowledge()
        self.pump()
        self.assertEqual(self.successResultOf(waiting).id, 0)

    def test_commit_without_waiting(self) -> None:
        """The id, before the ACK."""
        self.primary.acknowledges = False
        self.result(self.client.begin("demo"))
        self.assertEqual(self.result(self.client.commit_without_waiting("demo")), 0)
        self.assertEqual(self.primary.shown.state, "COMMIT")

    def test_cancel(self) -> None:
        """The transaction is gone."""
        self.result(self.client.begin("demo"))
        self.assertEqual(self.result(self.client.cancel("demo")), 0)
        self.assertIsNone(self.primary.shown.transaction)

    def test_begin_twice(self) -> None:
        """Refused, with the state that the pair is in."""
        self.result(self.client.begin("demo"))
        refused = self.error(self.client.begin("demo"), ApiError)
        self.assertEqual((refused.status, refused.kind, refused.problem["state"]), (409, "not-in-state", "BEGIN"))

    def test_retry_after(self) -> None:
        """The time after which the daemon would have one try again."""
        self.primary.failing = LinkDown("No link.", retry_after=2.5)
        refused = self.error(self.client.begin("demo"), ApiError)
        self.assertEqual((refused.status, refused.retry_after), (503, 3.0))


class UnreachableTests(ClientTestCase):
    """No daemon, or what is none."""

    def test_refused(self) -> None:
        """The exception has the URL and what happened."""
        self.stop_server()
        unreachable = self.error(self.client.info(), Unreachable)
        self.assertEqual((unreachable.url, unreachable.why), (URL, "the connection was refused"))
        self.assertEqual(str(unreachable), f"{URL}: the connection was refused")

    def test_connection_breaks(self) -> None:
        """Before the answer, at the end of its headers, in its body."""
        for answer in (
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        ):
            servers = self.script()
            waiting = self.start(self.client.info())
            servers.connections[0].transport.write(answer)
            servers.connections[0].transport.loseConnection()
            self.pump()
            unreachable = self.failureResultOf(waiting, Unreachable).value
            self.assertEqual(unreachable.why, BROKE, answer)

    def test_not_http(self) -> None:
        """The port of something else, a link's for one."""
        servers = self.script()
        waiting = self.start(self.client.info())
        servers.connections[0].transport.write(b"\x07\0\0\0\r\n\r\n")
        self.pump()
        self.assertIn("does not speak HTTP", self.failureResultOf(waiting, Unreachable).value.why)

    def test_not_ftd(self) -> None:
        """A web server that is no ftd."""
        for body in (b"<html>", b"[]", b"{}", b'{"name":"x","version":"1","node":"n","uptime_seconds":"y","pairs":[]}'):
            servers = self.script()
            waiting = self.start(self.client.info())
            servers.connections[0].answer("200 OK", body)
            self.pump()
            self.assertIn("does not seem to be an ftd", self.failureResultOf(waiting, Unreachable).value.why)
            self.result(self.client.close())

    def test_error_that_is_no_problem_document(self) -> None:
        """Of a proxy, say: the status line has to do."""
        servers = self.script()
        waiting = self.start(self.client.info())
        servers.connections[0].answer("502 Bad Gateway\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT", b"<html>")
        self.pump()
        refused = self.failureResultOf(waiting, ApiError).value
        self.assertEqual((refused.status, str(refused), refused.kind), (502, "the answer was 502 Bad Gateway", ""))
        self.assertIsNone(refused.retry_after)

    def test_redirection_is_an_error(self) -> None:
        """No request goes where it was not sent."""
        servers = self.script()
        waiting = self.start(self.client.info())
        servers.connections[0].answer("302 Found\r\nLocation: http://elsewhere/", b"x")
        self.pump()
        self.assertEqual(self.failureResultOf(waiting, ApiError).value.status, 302)

    def test_no_answer_in_time(self) -> None:
        """The call ends, and its connection."""
        self.client = Client.for_url(URL, self.reactor, answer_time=5)
        servers = self.script()
        waiting = self.start(self.client.info())
        self.pump(4.9)
        self.assertNoResult(waiting)
        self.pump(0.2)
        self.assertEqual(self.failureResultOf(waiting, Unreachable).value.why, "no answer in 5 s")
        self.assertTrue(servers.connections[0].transport.is_closed)

    def test_cancelled(self) -> None:
        """The connection is closed, and the exception is the usual one."""
        servers = self.script()
        waiting = self.start(self.client.info())
        waiting.cancel()
        self.pump()
        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(servers.connections[0].transport.is_closed)

    def test_newer_daemon(self) -> None:
        """Keys that this client does not know are ignored."""
        servers = self.script()
        waiting = self.start(self.client.rate_limit("demo"))
        servers.connections[0].answer("200 OK", b'{"enabled":true,"bandwidth":5,"burst":7}')
        self.pump()
        self.assertEqual(self.successResultOf(waiting), RateLimit(enabled=True, bandwidth=5))


class ConnectionErrorTests(SynchronousTestCase):
    """What is said of the ways in which connecting can fail."""

    def test_reasons(self) -> None:
        """In words that say what to look at."""
        for failed, why in (
            (error.ConnectionRefusedError(), "the connection was refused"),
            (error.TimeoutError(), "no connection in time"),
            (error.DNSLookupError("x"), "the host's name cannot be resolved"),
            (error.ConnectError(errno.ENOENT, "x"), "No such file or directory"),
            (error.ConnectError(None, "odd"), "An error occurred while connecting: odd."),
            (
                ResponseNeverReceived([Failure(error.ConnectionLost())]),
                BROKE,
            ),
        ):
            found = connection_error(failed, "unix:x")
            self.assertIsInstance(found, Unreachable)
            self.assertEqual(str(found), f"unix:x: {why}")

    def test_cancelled(self) -> None:
        """Comes out as what it is, however Twisted wraps it."""
        for failed in (
            CancelledError(),
            error.ConnectingCancelledError(None),
            RequestGenerationFailed([Failure(CancelledError())]),
            ResponseNeverReceived([Failure(CancelledError())]),
        ):
            self.assertIsInstance(connection_error(failed, "unix:x"), CancelledError)


class CompletenessTests(ClientTestCase):
    """The client against the document that describes the API."""

    def test_every_route_has_a_call(self) -> None:
        """Each operation of the document is asked for by some method of the client, and nothing else is."""
        checkpoint = self.secondary.kept.add(b"state", NOW)
        self.daemon.add_vms()
        client = self.client
        for call in (
            client.info(),
            client.health(),
            client.ready(),
            client.openapi(),
            client.pairs(),
            client.pair("demo"),
            client.create_pair("new", {"role": "primary"}),
            client.delete_pair("new"),
            client.reset("demo"),
            client.transactions("demo"),
            client.begin("demo"),
            client.data("demo", b"x"),
            client.cancel("demo"),
            client.begin("demo"),
            client.commit("demo"),
            client.push("demo", b"x"),
            client.rate_limit("demo"),
            client.set_rate_limit("demo", enabled=True),
            client.trace("demo"),
            client.set_trace("demo", {}),
            client.protection("vm"),
            client.set_protection("vm", enabled=True),
            client.promote("vm-standby", force=True),
            client.demote("vm"),
            client.checkpoints("demo-standby"),
            client.fetch("demo-standby", "latest", BytesIO()),
            client.fetch("demo-standby", checkpoint.number, BytesIO()),
            client.events().__anext__(),
            client.events("demo").__anext__(),
        ):
            self.result(call)
        document = openapi_document()
        asked = set()
        for link in self.links:
            for method, path in re.findall(r"(GET|PUT|POST|DELETE) (/\S*) HTTP/1.1", link.sent.decode()):
                operation = operation_of(document, method, path)
                assert operation is not None, (method, path)
                asked.add(operation["operationId"])
        described = {
            operation["operationId"]
            for item in document["paths"].values()
            for method, operation in item.items()
            if method in ("get", "put", "post", "delete")
        }
        self.assertEqual(asked, described)
