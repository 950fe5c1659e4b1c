"""The event stream: snapshot, changes, filters, going on, and readers that are slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs

from ftd.bus import KINDS, RING_SIZE
from ftd.http.sse import BATCH, HEARTBEAT
from ftd.status import to_json
from ftd.test.api_case import ApiTestCase
from ftd.testing.fake_pairs import FakePrimary
from ftd.testing.http_client import Connection
from ftd.trace import TRACE_EVENTS


@attrs.frozen
class Message:
    """One message of a stream."""

    id: int | None
    kind: str
    data: dict[str, Any]


class EventsTestCase(ApiTestCase):
    def follow(
        self, query: str = "", path: str = "/v1/events", capacity: int = 64 * 1024, **headers: str
    ) -> Connection:
        """A reader that has the headers of its stream, or the whole answer where there is no stream."""
        client = self.connect(capacity)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        client.send_head("GET", path + query, sent)
        return client

    def messages(self, client: Connection) -> list[Message]:
        """What came since the last call, read to the end; comments are left out."""
        text = ""
        self.clock.advance(0)
        while client.read():
            text += self.stream_of(client)
            self.clock.advance(0)
        self.assertTrue(text.endswith("\n\n") or not text, text[-100:])
        return [message for part in text.split("\n\n") if (message := parsed(part)) is not None]

    def stream_of(self, client: Connection) -> str:
        """The text that came since the last call, of a stream whose headers may be in front of it."""
        data = client.read()
        if data.startswith(b"HTTP/1.1 200"):
            data = data.partition(b"\r\n\r\n")[2]
        client.received = b""
        text = b""
        while data:
            size_line, _, rest = data.partition(b"\r\n")
            size = int(size_line, 16)
            text += rest[:size]
            data = rest[size + 2 :]
        return text.decode()

    def kinds(self, client: Connection) -> list[str]:
        """The kinds of the messages that came since the last call."""
        return [message.kind for message in self.messages(client)]

    def publish(self, count: int, kind: str = "transaction", pair: str = "demo") -> None:
        """Events, numbered."""
        for number in range(count):
            self.bus.publish(kind, pair, {"number": number})


def parsed(text: str) -> Message | None:
    """One message."""
    fields = dict(line.split(": ", 1) for line in text.split("\n") if line and not line.startswith(":"))
    if not fields:
        return None
    return Message(int(fields["id"]) if "id" in fields else None, fields["event"], json.loads(fields["data"]))


class SnapshotTests(EventsTestCase):
    def test_headers(self) -> None:
        client = self.follow()
        head = client.read().partition(b"\r\n\r\n")[0].decode()
        for line in (
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream",
            "Cache-Control: no-store",
            "X-Accel-Buffering: no",
            "Transfer-Encoding: chunked",
        ):
            self.assertIn(line, head.split("\r\n"))

    def test_headers_alone(self) -> None:
        response = self.call("HEAD", "/v1/events")
        self.assertEqual(response.header("Content-Type"), "text/event-stream")
        self.assertEqual(self.clock.getDelayedCalls()[1:], [], "only the connection's idle timer runs")

    def test_every_pair_comes_first(self) -> None:
        messages = self.messages(self.follow())
        self.assertEqual([message.kind for message in messages], ["pair", "pair", "sync"])
        now = self.clock.seconds()
        for message, pair in zip(messages, (self.primary, self.secondary), strict=False):
            expected = {"pair": pair.name, "time": now, **to_json(pair.status()), "initial": True}
            self.assertEqual((message.id, message.data), (None, expected))
        self.assertEqual(messages[-1].id, self.bus.last_id)

    def test_then_what_happens(self) -> None:
        client = self.follow()
        self.messages(client)
        self.primary.show(bytes_sent=5)
        self.bus.publish("transaction", "demo", {"action": "begun"})
        changed, begun = self.messages(client)
        self.assertEqual((changed.kind, changed.data["bytes_sent"]), ("pair", 5))
        self.assertNotIn("initial", changed.data)
        self.assertEqual(begun.data, {"pair": "demo", "time": self.clock.seconds(), "action": "begun"})
        self.assertEqual([changed.id, begun.id], [self.bus.last_id - 1, self.bus.last_id])

    def test_what_happens_while_the_snapshot_is_read_comes_after_it(self) -> None:
        for number in range(100):
            self.daemon.all[f"pair-{number}"] = FakePrimary(f"pair-{number}", self.bus)
        client = self.follow(capacity=1000)
        position = self.bus.last_id
        self.publish(1)
        messages = self.messages(client)
        self.assertEqual([message.kind for message in messages], ["pair"] * 102 + ["sync", "transaction"])
        self.assertEqual(messages[-2].id, position)

    def test_a_snapshot_is_written_at_the_reader_s_pace(self) -> None:
        for number in range(1000):
            self.daemon.all[f"pair-{number}"] = FakePrimary(f"pair-{number}", self.bus)
        client = self.follow(capacity=1000)
        self.clock.advance(0)
        self.assertLess(len(client.transport.value()), 2 * BATCH)
        self.assertEqual(len(self.messages(client)), 1003)

    def test_a_pair_that_goes_before_its_turn_is_left_out(self) -> None:
        for number in range(100):
            self.daemon.all[f"pair-{number}"] = FakePrimary(f"pair-{number}", self.bus)
        client = self.follow(capacity=1000)
        del self.daemon.all["pair-99"]
        self.assertEqual(len(self.messages(client)), 102)

    def test_one_pair(self) -> None:
        client = self.follow(path="/v1/pairs/demo/events")
        self.assertEqual([m.data.get("pair") for m in self.messages(client)], ["demo", None])
        self.secondary.show(bytes_received=1)
        self.primary.show(bytes_sent=1)
        self.assertEqual([m.data["pair"] for m in self.messages(client)], ["demo"])

    def test_a_new_pair_shows_up(self) -> None:
        client = self.follow()
        self.messages(client)
        self.call("POST", "/v1/pairs", {"pair": "new", "role": "primary"})
        (message,) = self.messages(client)
        self.assertEqual((message.kind, message.data["pair"]), ("pair", "new"))

    def test_the_stream_of_a_pair_ends_with_the_pair(self) -> None:
        client = self.follow(path="/v1/pairs/demo/events")
        everything = self.follow()
        self.primary.show(bytes_sent=1)
        self.call("DELETE", "/v1/pairs/demo")
        self.clock.advance(0)
        response = client.response()
        self.assertTrue(response.body.endswith(b"\n\n"))
        self.assertIn(b'"bytes_sent":1', response.body)
        self.request(client, "GET", "/healthz")
        self.assertEqual(client.response().status, 200)
        self.clock.advance(HEARTBEAT)
        self.assertIsNone(everything.response_if_any())

    def test_the_stream_of_a_pair_that_vanishes_by_itself_ends_with_the_next_heartbeat(self) -> None:
        client = self.follow(path="/v1/pairs/demo/events")
        del self.daemon.all["demo"]
        self.clock.advance(HEARTBEAT)
        self.assertEqual(client.response().status, 200)


class FilterTests(EventsTestCase):
    def test_kinds(self) -> None:
        for query, expected in (
            ("?kinds=transaction", ["transaction"]),
            ("?kinds=pair,trace", ["pair", "trace"]),
            ("?kinds=pair&kinds=trace", ["pair", "trace"]),
            ("", list(KINDS)),
        ):
            client = self.follow(query)
            snapshot = ["pair", "pair", "sync"] if "pair" in expected else ["sync"]
            self.assertEqual(self.kinds(client), snapshot)
            for kind in KINDS:
                self.bus.publish(kind, "demo", {})
            self.assertEqual(self.kinds(client), expected)
            client.disconnect()

    def test_names(self) -> None:
        client = self.follow("?names=ft_trans_flush,ft_trans_cb")
        self.messages(client)
        self.primary.set_trace_events({"ft_trans_close": True})
        assert self.primary.trace.ft_trans_flush is not None
        assert self.primary.trace.ft_trans_close is not None
        self.primary.trace.ft_trans_flush(1, 2)
        self.primary.trace.ft_trans_close()
        (message,) = self.messages(client)
        self.assertEqual(message.kind, "trace")
        self.assertEqual(message.data["args"], {"size": 1, "req": 2})
        self.assertEqual((message.data["pair"], message.data["name"]), ("demo", "ft_trans_flush"))

    def test_without_names_the_trace_events_that_are_on_anyway(self) -> None:
        client = self.follow()
        self.assertIsNone(self.primary.trace.ft_trans_cb)
        self.messages(client)
        self.primary.set_trace_events({"ft_trans_close": True})
        assert self.primary.trace.ft_trans_close is not None
        self.primary.trace.ft_trans_close()
        self.assertEqual(self.kinds(client), ["trace"])

    def test_names_are_on_as_long_as_the_reader_stays(self) -> None:
        first = self.follow("?names=ft_trans_cb")
        second = self.follow("?names=all")
        for pair in (self.primary, self.secondary):
            self.assertTrue(all(getattr(pair.trace, name) for name in TRACE_EVENTS))
            self.assertNotIn(True, pair.trace_events().values())
        second.disconnect()
        self.assertIsNotNone(self.primary.trace.ft_trans_cb)
        self.assertIsNone(self.primary.trace.ft_trans_flush)
        first.disconnect()
        self.assertIsNone(self.primary.trace.ft_trans_cb)

    def test_names_of_one_pair(self) -> None:
        self.follow("?names=ft_trans_cb", path="/v1/pairs/demo/events")
        self.assertIsNotNone(self.primary.trace.ft_trans_cb)
        self.assertIsNone(self.secondary.trace.ft_trans_cb)
        self.secondary.show(bytes_received=1)
        self.clock.advance(0)
        self.assertIsNone(self.secondary.trace.ft_trans_cb)

    def test_names_of_pairs_to_come(self) -> None:
        client = self.follow("?names=ft_trans_cb&kinds=trace")
        old = self.primary
        self.call("DELETE", "/v1/pairs/demo")
        self.call("POST", "/v1/pairs", {"pair": "demo", "role": "primary"})
        self.clock.advance(0)
        new = self.daemon.all["demo"]
        assert isinstance(new, FakePrimary)
        self.assertIsNot(new, old)
        self.assertIsNone(old.trace.ft_trans_cb)
        self.assertIsNotNone(new.trace.ft_trans_cb)
        client.disconnect()
        self.assertIsNone(new.trace.ft_trans_cb)

    def test_a_watched_pair_that_goes_is_forgotten(self) -> None:
        self.follow("?names=ft_trans_cb")
        self.call("DELETE", "/v1/pairs/demo")
        self.primary.show(bytes_sent=1)
        self.clock.advance(0)
        self.assertIsNone(self.primary.trace.ft_trans_cb)

    def test_filters_that_name_nothing(self) -> None:
        cases = {
            "?kinds=pairs": ("kinds", "'pairs'"),
            "?kinds=": ("kinds", "''"),
            "?kinds=pair,": ("kinds", "''"),
            "?names=ft_trans_flash": ("names", "'ft_trans_flash'"),
            "?names=ft_trans_cb&kinds=pair": ("names", "kinds"),
            "?last-event-id=x": ("last-event-id", "id"),
            "?name=ft_trans_cb": ("name", "names"),
        }
        for path in ("/v1/events", "/v1/pairs/demo/events"):
            for query, (field, said) in cases.items():
                response = self.call("GET", path + query)
                self.assertIn(said, self.assert_problem(response, 400, "bad-request", field=field))


class ResumeTests(EventsTestCase):
    def test_going_on_after_an_event(self) -> None:
        self.publish(5)
        seen = self.bus.last_id - 2
        by_header, by_query = self.follow(Last_Event_ID=str(seen)), self.follow(f"?last-event-id={seen}")
        for client in (by_header, by_query):
            messages = self.messages(client)
            self.assertEqual([(m.kind, m.id) for m in messages], [("transaction", seen + 1), ("transaction", seen + 2)])
        self.publish(1)
        self.assertEqual([self.kinds(by_header), self.kinds(by_query)], [["transaction"]] * 2)

    def test_going_on_after_the_newest(self) -> None:
        client = self.follow(Last_Event_ID=str(self.bus.last_id))
        self.assertEqual(self.messages(client), [])
        self.publish(1)
        self.assertEqual(self.kinds(client), ["transaction"])

    def test_going_on_with_a_filter(self) -> None:
        seen = self.bus.last_id
        self.publish(2)
        self.publish(1, pair="demo-standby")
        client = self.follow(path="/v1/pairs/demo-standby/events", Last_Event_ID=str(seen))
        self.assertEqual([m.id for m in self.messages(client)], [self.bus.last_id])

    def test_an_event_that_the_ring_has_no_more(self) -> None:
        seen = self.bus.last_id
        self.publish(RING_SIZE + 10)
        messages = self.messages(self.follow(Last_Event_ID=str(seen)))
        self.assertEqual([m.kind for m in messages], ["lagged", "pair", "pair", "sync"])
        self.assertEqual(messages[0].data["dropped"], RING_SIZE + 10)
        self.assertEqual((messages[0].id, messages[-1].id), (None, self.bus.last_id))

    def test_an_event_of_an_earlier_run(self) -> None:
        self.publish(RING_SIZE + 10)
        messages = self.messages(self.follow(Last_Event_ID="12345"))
        self.assertEqual([m.kind for m in messages], ["lagged", "pair", "pair", "sync"])
        self.assertEqual(messages[0].data["dropped"], RING_SIZE + 10, "what was before is not known")

    def test_an_event_of_the_future(self) -> None:
        messages = self.messages(self.follow(Last_Event_ID=str(self.bus.last_id + 1)))
        self.assertEqual([m.kind for m in messages], ["lagged", "pair", "pair", "sync"])
        self.assertEqual(messages[0].data["dropped"], 0)


class SlowReaderTests(EventsTestCase):
    def test_a_reader_that_does_not_read_costs_no_memory(self) -> None:
        client = self.follow(capacity=1000)
        self.clock.advance(0)
        for _ in range(20):
            self.publish(1000)
            self.clock.advance(0)
        self.assertLess(len(client.transport.value()), 2 * BATCH)

    def test_it_is_told_and_gets_a_new_picture(self) -> None:
        client = self.follow(capacity=1000)
        self.clock.advance(0)
        before = self.bus.last_id
        self.publish(RING_SIZE + 500)
        self.primary.show(bytes_sent=77)
        messages = self.messages(client)
        # What had been written before the reader was paused is there first.
        lag = [message.kind for message in messages].index("lagged")
        live = [message for message in messages[:lag] if message.kind == "transaction"]
        self.assertEqual(messages[lag].data["dropped"] + len(live), self.bus.last_id - before)
        self.assertEqual([m.kind for m in messages[lag + 1 :]], ["pair", "pair", "sync"])
        self.assertEqual(messages[lag + 1].data["bytes_sent"], 77)
        self.assertEqual(messages[-1].id, self.bus.last_id)
        self.publish(1)
        self.assertEqual(self.kinds(client), ["transaction"])

    def test_a_reader_that_catches_up_in_time_misses_nothing(self) -> None:
        client = self.follow(capacity=1000)
        self.messages(client)
        first = self.bus.last_id + 1
        self.publish(RING_SIZE)
        self.assertEqual([m.id for m in self.messages(client)], list(range(first, first + RING_SIZE)))

    def test_a_burst_is_one_wake_up(self) -> None:
        client = self.follow()
        self.messages(client)
        self.clock.advance(0)
        before = len(self.clock.getDelayedCalls())
        self.publish(100)
        self.assertEqual(len(self.clock.getDelayedCalls()), before + 1)
        self.clock.advance(0)
        data = client.read()
        size_line, _, rest = data.partition(b"\r\n")
        self.assertEqual(len(rest), int(size_line, 16) + len(b"\r\n"), "it is written in one piece")
        self.assertEqual(len(self.messages(client)), 100)

    def test_a_paused_reader_is_not_woken(self) -> None:
        client = self.follow(capacity=100)
        self.clock.advance(0)
        before = len(self.clock.getDelayedCalls())
        self.publish(1)
        self.assertEqual(len(self.clock.getDelayedCalls()), before)
        self.assertEqual(self.kinds(client)[-1], "transaction")


class StayTests(EventsTestCase):
    def test_a_comment_keeps_a_quiet_stream_open(self) -> None:
        client = self.follow()
        self.messages(client)
        for _ in range(3):
            self.clock.advance(HEARTBEAT)
            self.assertEqual(self.stream_of(client), ": still here\n\n")
        self.assertEqual(HEARTBEAT, 15)

    def test_a_paused_reader_gets_no_comments(self) -> None:
        client = self.follow(capacity=100)
        self.clock.advance(0)
        size = len(client.transport.value())
        self.clock.pump([HEARTBEAT] * 10)
        self.assertEqual(len(client.transport.value()), size)

    def test_there_is_room_for_so_many(self) -> None:
        clients = [self.follow() for _ in range(3)]
        response = self.call("GET", "/v1/events")
        detail = self.assert_problem(response, 503, "too-many-readers")
        self.assertEqual(detail, "There are 3 readers already (event-readers of [api]).")
        self.assertEqual(response.header("Retry-After"), "5")
        clients[0].disconnect()
        self.assertEqual(self.kinds(self.follow()), ["pair", "pair", "sync"])

    def test_nothing_is_left_of_a_reader_that_went(self) -> None:
        stopped: list[None] = []
        wake_on_publish = self.bus.wake_on_publish

        def watched(wake: Callable[[], None]) -> Callable[[], None]:
            stop_waking = wake_on_publish(wake)

            def stop() -> None:
                stopped.append(None)
                stop_waking()

            return stop

        self.patch(self.bus, "wake_on_publish", watched)
        client = self.follow("?names=all")
        self.publish(1)
        client.disconnect()
        self.assertEqual(len(stopped), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.publish(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_nothing_is_left_of_a_stream_that_ended(self) -> None:
        client = self.follow("?names=all", path="/v1/pairs/demo/events")
        self.call("DELETE", "/v1/pairs/demo")
        self.clock.advance(0)
        client.response()
        client.disconnect()
        self.publish(1)
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.getTime() < HEARTBEAT], [])
        self.assertIsNone(self.primary.trace.ft_trans_cb)

    def test_a_fault_in_the_middle_breaks_the_stream(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        self.patch(self.secondary, "status", fail)
        client = self.connect()
        aborts: list[None] = []
        # As with a socket: the protocol is told in a later turn of the reactor.
        self.patch(client.transport, "abortConnection", lambda: aborts.append(None))
        client.send_head("GET", "/v1/events")
        self.assertEqual(len(aborts), 1)
        self.assertFalse(client.read().endswith(b"0\r\n\r\n"), "that would be the end of a whole answer")
        client.disconnect()
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
