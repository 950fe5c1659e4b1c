"""The event stream, as bytes and as a client follows it."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from ftd.bus import RING_SIZE, encode_sse
from ftd.client import ApiError, Event, EventStream, Unreachable
from ftd.client.events import LAST_RETRY, MAX_WAITING, SILENCE
from ftd.client.sse import MAX_LINE, Message, NotAnEventStream, SseReader
from ftd.status import LinkState, Outcome, to_json
from ftd.test.api_case import NOW
from ftd.test.client_case import ClientTestCase, ScriptedServer
from ftd.test.wire.profile import examples


class SseReaderTests(SynchronousTestCase):
    """The format, after the examples of the WHATWG's specification."""

    def messages(self, *chunks: bytes) -> list[Message]:
        """What comes out."""
        reader = SseReader()
        return [message for chunk in chunks for message in reader.feed(chunk)]

    def test_fields(self) -> None:
        """Id, kind and data; the space after the colon is no part of the value, a second one is."""
        found = self.messages(b"id: 7\nevent: pair\ndata: {}\n\ndata:a\ndata:  b\n\n")
        self.assertEqual(found, [Message("7", "pair", "{}"), Message("7", "message", "a\n b")])

    def test_line_ends(self) -> None:
        """All three, and a pair of them in two chunks is still one."""
        found = self.messages(b"data: a\r\ndata: b\rdata: c\n\r\r", b"\ndata: d\r", b"\n\r", b"\n", b"", b"data: e\n\n")
        self.assertEqual([message.data for message in found], ["a\nb\nc", "d", "e"])
        self.assertEqual(self.messages(b"data: a\r", b"\ndata: b\n\n"), [Message("", "message", "a\nb")])

    def test_comments_and_unknown_fields(self) -> None:
        """Mean nothing."""
        self.assertEqual(self.messages(b": still here\n\nretry: 5\ndata\nfoo: bar\n\n"), [Message("", "message", "")])

    def test_no_data(self) -> None:
        """Is no message, but its id counts."""
        self.assertEqual(self.messages(b"id: 3\nevent: x\n\ndata: a\n\n"), [Message("3", "message", "a")])

    def test_id_with_zero(self) -> None:
        """Is ignored."""
        self.assertEqual(self.messages(b"id: 3\nid: 4\0\ndata: a\n\n"), [Message("3", "message", "a")])

    def test_unfinished(self) -> None:
        """A message that is not ended is none yet."""
        self.assertEqual(self.messages(b"data: a\n"), [])
        self.assertEqual(self.messages(b"data: a\n\ndata: b"), [Message("", "message", "a")])

    def test_not_utf8(self) -> None:
        """Is no event stream."""
        self.assertRaises(NotAnEventStream, self.messages, b"data: \xff\n\n")

    def test_endless_line(self) -> None:
        """Is given up on before it fills the memory."""
        reader = SseReader()
        self.assertEqual(list(reader.feed(b"x" * MAX_LINE)), [])
        self.assertRaises(NotAnEventStream, list, reader.feed(b"x"))

    @examples(100)
    @given(
        st.lists(st.tuples(st.integers(0), st.sampled_from(["pair", "trace"]), st.dictionaries(st.text(), st.text()))),
        st.lists(st.integers(1, 30)),
    )
    def test_any_chunks(self, events: list[tuple[int, str, dict[str, str]]], sizes: list[int]) -> None:
        """However the daemon's bytes are cut, the same messages come out."""
        stream = b"".join(encode_sse(id, kind, data) for id, kind, data in events)
        chunks = []
        rest = stream
        for size in sizes:
            chunks.append(rest[:size])
            rest = rest[size:]
        found = self.messages(*chunks, rest)
        self.assertEqual(found, self.messages(stream))
        self.assertEqual([(int(message.id), message.event) for message in found], [event[:2] for event in events])


class EventsTestCase(ClientTestCase):
    """:ivar notices: what the stream told of its connection."""

    def setUp(self) -> None:
        super().setUp()
        self.notices: list[str] = []

    def follow(self, *args: Any, **kwargs: Any) -> EventStream:
        """A stream whose notices are noted: ``there``, or why not."""

        def notice(error: Unreachable | ApiError | None) -> None:
            self.notices.append("there" if error is None else getattr(error, "why", str(error)))

        return self.client.events(*args, notice=notice, **kwargs)

    def next(self, stream: EventStream) -> Event:
        """The next event, which has to be there."""
        return cast(Event, self.result(cast(Any, stream.__anext__())))

    def kinds(self, stream: EventStream, count: int) -> list[str]:
        """The kinds of the next events."""
        return [self.next(stream).kind for _ in range(count)]


class FollowingTests(EventsTestCase):
    """The events of the real API."""

    def test_snapshot_and_changes(self) -> None:
        """First how things are, then what becomes of them."""
        stream = self.follow()
        first, second, sync = (self.next(stream) for _ in range(3))
        self.assertEqual((first.kind, first.pair, first.time), ("pair", "demo", NOW))
        self.assertEqual((first.data["initial"], first.pair_status()), (True, self.primary.shown))
        self.assertEqual(second.pair_status(), self.secondary.shown)
        self.assertEqual((sync.kind, sync.pair), ("sync", ""))
        waiting = self.start(cast(Any, stream.__anext__()))
        self.assertNoResult(waiting)
        self.primary.show(link_state=LinkState.DOWN)
        self.pump()
        event = cast(Event, self.successResultOf(waiting))
        self.assertEqual(event.pair_status().link_state, LinkState.DOWN)
        self.assertEqual(int(event.id), self.bus.last_id)
        self.assertEqual(self.notices, ["there"])

    def test_one_pair(self) -> None:
        """Nothing is heard of the others."""
        stream = self.follow("demo-standby")
        self.assertEqual(self.next(stream).pair, "demo-standby")
        self.assertEqual(self.next(stream).kind, "sync")
        self.primary.show(id=5)
        self.secondary.show(id=6)
        self.assertEqual(self.next(stream).data["id"], 6)

    def test_trace(self) -> None:
        """What is followed is on as long as it is followed."""
        stream = self.follow("demo", kinds=("trace",), names=("ft_trans_flush", "ft_trans_cb"))
        self.assertEqual(self.kinds(stream, 1), ["sync"])
        self.assertIsNotNone(self.primary.trace.ft_trans_flush)
        self.assertIsNone(self.primary.trace.ft_trans_append)
        assert self.primary.trace.ft_trans_flush is not None
        self.primary.trace.ft_trans_flush(7, 9)
        event = self.next(stream)
        self.assertEqual((event.data["name"], event.data["args"]), ("ft_trans_flush", {"size": 7, "req": 9}))
        stream.close()
        self.pump()
        self.assertIsNone(self.primary.trace.ft_trans_flush)

    def test_transactions(self) -> None:
        """As values."""
        stream = self.follow(kinds=("transaction",))
        self.next(stream)
        self.result(self.client.push("demo", b"state"))
        row = self.primary.history[0]
        self.bus.publish("transaction", "demo", {"action": "committed", **to_json(row)})
        event = self.next(stream)
        self.assertEqual(event.transaction_status().outcome, Outcome.COMMITTED)
        self.assertRaises(ValueError, event.pair_status)

    def test_async_for(self) -> None:
        """Ends when the stream is closed, also from elsewhere."""
        stream = self.follow()
        seen: list[str] = []

        async def follow() -> str:
            seen.extend([event.kind async for event in stream])
            return "ended"

        waiting = self.start(follow())
        self.assertNoResult(waiting)
        stream.close()
        self.assertEqual(self.successResultOf(waiting), "ended")
        self.assertEqual(seen, ["pair", "pair", "sync"])
        self.pump()
        self.assertTrue(self.links[0].transport.is_closed)
        self.assertEqual(self.notices, ["there"])

    def test_cancelled(self) -> None:
        """As anything else that is waited for; the stream can be read on."""
        stream = self.follow()
        self.kinds(stream, 3)
        waiting = self.start(cast(Any, stream.__anext__()))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.primary.show(id=9)
        self.pump()
        self.assertEqual(self.next(stream).data["id"], 9)

    def test_unknown_pair(self) -> None:
        """The first request fails as any other does."""
        self.assertEqual(self.error(cast(Any, self.follow("nope").__anext__()), ApiError).status, 404)

    def test_no_daemon(self) -> None:
        """Is not waited for."""
        self.stop_server()
        self.error(cast(Any, self.follow().__anext__()), Unreachable)
        self.assertEqual(self.notices, [])


class ResumingTests(EventsTestCase):
    """The stream breaks."""

    def test_resumes_after_the_last_event(self) -> None:
        """Nothing is missed and nothing comes twice."""
        stream = self.follow()
        self.kinds(stream, 3)
        self.primary.show(id=1)
        self.assertEqual(self.next(stream).data["id"], 1)
        self.stop_server()
        self.primary.show(id=2)
        self.primary.show(id=3)
        self.start_server()
        waiting = self.start(cast(Any, stream.__anext__()))
        self.assertNoResult(waiting)
        self.pump(0.5)
        self.assertEqual(cast(Event, self.successResultOf(waiting)).data["id"], 2)
        self.assertEqual(self.next(stream).data["id"], 3)
        self.assertEqual(self.notices, ["there", "the connection broke", "there"])

    def test_events_that_had_arrived_are_not_lost(self) -> None:
        """They come first, whatever has become of the connection."""
        stream = self.follow()
        self.next(stream)
        self.stop_server()
        self.assertEqual(self.kinds(stream, 2), ["pair", "sync"])

    def test_keeps_trying(self) -> None:
        """With pauses that grow up to a bound, and start anew once something has come."""
        stream = self.follow()
        self.kinds(stream, 3)
        self.stop_server()
        waiting = self.start(cast(Any, stream.__anext__()))
        pauses = []
        for _ in range(8):
            (call,) = self.retries()
            pauses.append(call.getTime() - self.reactor.seconds())
            self.pump(pauses[-1])
        self.assertEqual(pauses, [0.5, 1, 2, 4, 8, 8, 8, LAST_RETRY])
        self.assertEqual(self.notices, ["there", "the connection broke", *["the connection was refused"] * 8])
        self.start_server()
        self.primary.show(id=5)
        self.pump(8)
        self.assertEqual(cast(Event, self.successResultOf(waiting)).data["id"], 5)
        self.stop_server()
        self.start(cast(Any, stream.__anext__())).addErrback(lambda _: None)
        (call,) = self.retries()
        self.assertEqual(call.getTime() - self.reactor.seconds(), 0.5)

    def retries(self) -> list[Any]:
        """The pauses that are going on."""
        return list(self.reactor.getDelayedCalls())

    def test_new_daemon(self) -> None:
        """A restarted daemon does not know the old events: it says so and begins with how things are."""
        stream = self.follow()
        self.kinds(stream, 3)
        self.primary.show(id=1)
        self.next(stream)
        self.stop_server()
        for count in range(RING_SIZE + 1):
            self.secondary.show(id=count)
        self.start_server()
        self.start(cast(Any, stream.__anext__())).addErrback(lambda _: None)
        self.pump(0.5)
        self.assertEqual(self.kinds(stream, 2), ["pair", "pair"])

    def test_pair_is_gone(self) -> None:
        """The stream of a pair that was removed ends with the daemon's answer."""
        stream = self.follow("demo")
        self.kinds(stream, 2)
        self.result(self.client.delete_pair("demo"))
        waiting = self.start(cast(Any, stream.__anext__()))
        self.pump(0.5)
        self.assertEqual(self.failureResultOf(waiting, ApiError).value.status, 404)
        self.assertEqual(self.notices, ["there", "the event stream ended"])

    def test_busy_daemon(self) -> None:
        """An answer that says "later" is one to wait for."""
        stream = self.follow()
        self.kinds(stream, 3)
        self.stop_server()
        self.start_server()
        others = [self.client.events() for _ in range(3)]
        for other in others:
            self.next(other)
        waiting = self.start(cast(Any, stream.__anext__()))
        self.pump(0.5)
        self.assertIn("readers already", self.notices[-1])
        others[0].close()
        self.primary.show(id=4)
        self.pump(1)
        self.assertEqual(cast(Event, self.successResultOf(waiting)).data["id"], 4)

    def test_closed_while_waiting_to_try_again(self) -> None:
        """It ends, and leaves no connection behind."""
        stream = self.follow()
        self.kinds(stream, 3)
        self.stop_server()
        waiting = self.start(cast(Any, stream.__anext__()))
        stream.close()
        self.start_server()
        self.pump(0.5)
        self.failureResultOf(waiting, StopAsyncIteration)
        self.assertTrue(all(link.transport.is_closed for link in self.links))


class SilenceTests(EventsTestCase):
    """A connection that has died without a word; a daemon says something every 15 s."""

    def test_live_stream_is_quiet(self) -> None:
        """Comments are signs of life, and no events."""
        stream = self.follow()
        self.kinds(stream, 3)
        waiting = self.start(cast(Any, stream.__anext__()))
        for _ in range(20):
            self.pump(5)
        self.assertNoResult(waiting)
        self.assertEqual(self.notices, ["there"])

    def test_dead_connection(self) -> None:
        """Is given up on, and another one made."""
        stream, server = self.scripted()
        self.pump(SILENCE - 1)
        server.transport.write(b":\n\n")
        self.pump()
        self.pump(SILENCE - 1)
        self.assertEqual(self.notices, ["there"])
        self.pump(1)
        self.assertEqual(self.notices, ["there", "nothing came for 45 s"])
        self.assertTrue(server.transport.is_closed)
        self.start(cast(Any, stream.__anext__())).addErrback(lambda _: None)
        self.pump(1)
        self.assertEqual(len(self.links), 2)

    def scripted(self, body: bytes = b"") -> tuple[EventStream, ScriptedServer]:
        """A stream from a server that the test speaks for, with its first event read."""
        servers = self.script()
        stream = self.follow()
        waiting = self.start(cast(Any, stream.__anext__()))
        (server,) = servers.connections
        server.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + encode_sse(1, "sync", {})
        )
        server.transport.write(body)
        self.pump()
        self.assertEqual(cast(Event, self.successResultOf(waiting)).kind, "sync")
        return stream, server

    def test_not_an_event_stream(self) -> None:
        """Of the wrong type: not what was asked for."""
        servers = self.script()
        waiting = self.start(cast(Any, self.follow().__anext__()))
        servers.connections[0].answer("200 OK\r\nContent-Type: text/html", b"<html>")
        self.pump()
        self.assertIn("not an event stream", self.failureResultOf(waiting, Unreachable).value.why)

    def test_nonsense_in_the_stream(self) -> None:
        """The connection is given up on; what came before counts."""
        for nonsense, why in (
            (b"data: [1]\n\n", "the data of an event is not a JSON object"),
            (b"data: {\n\n", "the data of an event is not a JSON object"),
            (b"data: \xff\n\n", "the event stream is not UTF-8"),
        ):
            self.notices.clear()
            _, server = self.scripted(nonsense)
            self.assertEqual(self.notices, ["there", why])
            self.assertTrue(server.transport.is_closed)

    def test_slow_reader(self) -> None:
        """Reads no more than it can hold, for however long, and goes on where it was."""
        stream, server = self.scripted()
        link = self.links[0]
        count = 0
        while link.transport.producerState == "producing":
            count += 1
            server.transport.write(encode_sse(count, "pair", {"n": count}))
            self.pump()
            self.assertLessEqual(count, MAX_WAITING)
        self.assertEqual(count, MAX_WAITING)
        server.transport.write(encode_sse(count + 1, "pair", {"n": count + 1}))
        self.pump(10 * SILENCE)
        self.assertEqual(self.notices, ["there"])
        self.assertEqual([self.next(stream).data["n"] for _ in range(count + 1)], list(range(1, count + 2)))

    def test_slow_reader_after_an_upload(self) -> None:
        """A connection that has carried an upload is paused as any other."""
        servers = self.script()
        uploading = self.start(self.client.push("demo", b"state"))
        servers.connections[0].answer("200 OK", b'{"id":0,"seq":1,"bytes":5,"seconds":1}')
        self.pump()
        self.assertEqual(self.successResultOf(uploading).bytes, 5)
        self.start(cast(Any, self.follow().__anext__()))
        events = b"".join(encode_sse(count, "pair", {"n": count}) for count in range(2 * MAX_WAITING))
        servers.connections[0].transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + events)
        self.pump()
        self.assertEqual((len(self.links), self.links[0].transport.producerState), (1, "paused"))

    def test_many_events_in_the_first_read(self) -> None:
        """They are more than it holds, and come before it could have paused."""
        events = b"".join(encode_sse(count, "pair", {"n": count}) for count in range(2 * MAX_WAITING))
        stream, server = self.scripted(events)
        self.assertEqual(self.links[0].transport.producerState, "paused")
        self.assertEqual([self.next(stream).data["n"] for _ in range(2 * MAX_WAITING)], list(range(2 * MAX_WAITING)))
        server.transport.write(encode_sse(9999, "pair", {"n": 9999}))
        self.pump()
        self.assertEqual(self.next(stream).data["n"], 9999)
