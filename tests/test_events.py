"""The event stream: what it tells and when, and that a reader who does not read costs nobody anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tests.case import EndToEndCase, SharedDaemonCase
from tests.daemon import Daemon, Section, free_port, primary, problem, secondary
from tests.event_reader import Event, EventReader
from tests.raw_peer import PeerClosed, connect
from tests.state import MIB, state_of
from tests.waiting import until

_LINK = free_port()


def _is(kind: str, **data: Any) -> Any:
    """Whether an event is of a kind and has these data."""
    return lambda event: event.kind == kind and data.items() <= event.data.items()


class EventCase(EndToEndCase):
    """A case with readers."""

    async def reader(self, daemon: Daemon) -> EventReader:
        """A connection of this test."""
        peer = await connect(daemon.port)
        self.addCleanup(peer.abort)
        return EventReader(peer)

    async def events(self, daemon: Daemon, path: str = "/v1/events", **headers: str) -> EventReader:
        """A stream that is open."""
        return await (await self.reader(daemon)).open(path, **headers)


class StreamTests(SharedDaemonCase, EventCase):
    """What readers get to read."""

    pairs: ClassVar[Mapping[str, Section]] = {
        "demo": primary(_LINK, frame_size="64KiB", heartbeat="1h", dead_time="2h"),
        "demo-standby": secondary(_LINK, name="demo", sink="memory", heartbeat="1h", dead_time="2h"),
    }

    async def test_first_the_state_of_all_pairs_then_what_changes(self) -> None:
        stream = await self.events(self.shared)
        snapshot = await stream.snapshot()
        self.assertEqual([event.kind for event in snapshot], ["pair", "pair"])
        self.assertEqual([event.data["pair"] for event in snapshot], ["demo", "demo-standby"])
        for event in snapshot:
            self.assertTrue(event.data["initial"])
            state = await self.shared.pair(event.data["pair"])
            self.assertEqual({key: event.data[key] for key in state}, state)
        commit = (await self.shared.push("demo", state_of(100_000))).json()
        seen = await stream.until(_is("transaction", pair="demo", action="committed"))
        self.assertNotIn(True, [event.data.get("initial") for event in seen])
        told = [event.data for event in seen if event.kind == "transaction" and event.data["pair"] == "demo"]
        self.assertEqual([data["action"] for data in told], ["begun", "committed"])
        self.assertEqual((told[1]["id"], told[1]["bytes"]), (commit["id"], 100_000))
        ids = [event.id for event in seen]
        self.assertEqual(ids, sorted(ids, key=lambda id: id or 0))
        changed = (await stream.until(_is("pair", pair="demo", transaction=None)))[-1]
        self.assertEqual(changed.data["last_committed"]["id"], commit["id"])
        self.assertGreater(changed.data["time"], 1_700_000_000)

    async def test_every_end_of_a_transaction_is_told(self) -> None:
        stream = await self.events(self.shared, "/v1/pairs/demo/events?kinds=transaction")
        self.assertEqual(await stream.snapshot(), [])
        await self.shared.http.request("POST", "/v1/pairs/demo/begin")
        await self.shared.http.request("POST", "/v1/pairs/demo/cancel")
        await self.shared.push("demo", b"x")
        actions = [(await stream.next()).data["action"] for _ in range(4)]
        self.assertEqual(actions, ["begun", "cancelled", "begun", "committed"])

    async def test_only_the_pair_that_was_asked_for(self) -> None:
        stream = await self.events(self.shared, "/v1/pairs/demo-standby/events")
        self.assertEqual([event.data["pair"] for event in await stream.snapshot()], ["demo-standby"])
        await self.shared.push("demo", b"x")
        seen = await stream.until(_is("transaction", action="committed"))
        self.assertEqual({event.data["pair"] for event in seen}, {"demo-standby"})

    async def test_trace_events_are_on_while_somebody_reads_them(self) -> None:
        names = "ft_trans_send_header,ft_trans_put_buffer"
        stream = await self.events(self.shared, f"/v1/pairs/demo/events?kinds=trace&names={names}")
        await stream.snapshot()
        await self.shared.push("demo", state_of(65_536 + 5))
        seen = [await stream.next() for _ in range(4 + 2)]
        self.assertEqual({event.kind for event in seen}, {"trace"})
        headers = [event.data["args"]["cmd"] for event in seen if event.data["name"] == "ft_trans_send_header"]
        self.assertEqual(headers, [1, 2, 2, 3])
        puts = [event.data["args"] for event in seen if event.data["name"] == "ft_trans_put_buffer"]
        self.assertEqual([args["size"] for args in puts], [65_536, 5])
        # They do not show as switched on, and are off when the reader has gone.
        switches = (await self.shared.http.json("/v1/pairs/demo/trace"))["events"]
        self.assertEqual(set(switches.values()), {False})
        await stream.peer.abort()
        listener = await self.events(self.shared, "/v1/pairs/demo/events?kinds=trace,transaction")
        await listener.snapshot()
        await until(lambda: self.is_silent(listener), "trace events are off")

    async def is_silent(self, listener: EventReader) -> bool:
        """Whether a transaction is told without a trace event."""
        await self.shared.push("demo", b"x")
        seen = await listener.until(_is("transaction", action="committed"))
        return not [event for event in seen if event.kind == "trace"]

    async def test_trace_events_that_are_switched_on_reach_everybody(self) -> None:
        stream = await self.events(self.shared, "/v1/events?kinds=trace")
        await stream.snapshot()
        path = "/v1/pairs/demo-standby/trace"
        await self.shared.http.send_json("PUT", path, {"events": {"ft_trans_recv_header": True}})
        await self.shared.push("demo", b"x")
        seen = [await stream.next() for _ in range(3)]
        await self.shared.http.send_json("PUT", path, {"events": {"ft_trans_recv_header": False}})
        self.assertEqual(
            {(event.data["pair"], event.data["name"]) for event in seen}, {("demo-standby", "ft_trans_recv_header")}
        )
        self.assertEqual([event.data["args"] for event in seen], [{"cmd": 1}, {"cmd": 2}, {"cmd": 3}])

    async def test_a_reader_goes_on_where_it_was(self) -> None:
        stream = await self.events(self.shared, "/v1/events?kinds=transaction")
        await stream.snapshot()
        await self.shared.push("demo", b"seen")
        last = (await stream.until(_is("transaction", pair="demo", action="committed")))[-1]
        await stream.peer.abort()
        missed = (await self.shared.push("demo", b"missed")).json()["id"]
        resumed = await self.events(self.shared, "/v1/events?kinds=transaction", **{"Last-Event-ID": str(last.id)})
        seen = await resumed.until(_is("transaction", pair="demo", action="committed"))
        self.assertEqual(seen[-1].data["id"], missed)
        self.assertNotIn("sync", [event.kind for event in seen])
        self.assertGreater(seen[0].id or 0, last.id or 0)

    async def test_curl_shows_it_live(self) -> None:
        url = f"{self.shared.url}/v1/pairs/demo/events"
        output = await self.curl("--no-buffer", "--max-time", "1", url)
        self.assertEqual(output.status, 28, "it does not end by itself")
        self.assertIn(b"event: pair\ndata: {", output.out)
        self.assertIn(b"event: sync\n", output.out)


class LimitTests(EventCase):
    """Readers that are too many or too slow."""

    async def start(self, **api: str) -> Daemon:
        port = free_port()
        daemon = self.daemon(
            {"demo": primary(port, frame_size="1KiB", trace="all"), "standby": secondary(port, name="demo", keep="1")},
            api=api,
        )
        await daemon.start()
        await daemon.until_up()
        return daemon

    async def test_a_reader_who_never_reads_costs_nothing(self) -> None:
        daemon = await self.start()
        await daemon.push("demo", state_of(MIB))
        before = daemon.resident()
        reader = await self.reader(daemon)
        reader.peer.stop_reading()
        reader.ask("/v1/events")
        # 32,768 frames, each with two trace events: sixteen times what the ring holds.
        for number in range(8):
            await daemon.push("demo", state_of(4 * MIB, str(number)))
        self.assertEqual((await daemon.pair("demo"))["transactions_committed"], 9)
        self.assertEqual(await daemon.checkpoint("standby"), state_of(4 * MIB, "7"))
        self.assertLess(daemon.peak_resident() - before, 24 * MIB)
        # When it reads after all, it is told that it missed something, then how things are now.
        reader.peer.go_on_reading()
        await reader.read_head()
        lagged = (await reader.until(_is("lagged")))[-1]
        self.assertGreater(lagged.data["dropped"], 4096)
        snapshot = await reader.snapshot()
        self.assertEqual({event.data["pair"] for event in snapshot}, {"demo", "standby"})
        self.assertTrue(all(event.data["initial"] for event in snapshot))
        await daemon.push("demo", b"live again")
        await reader.until(_is("transaction", pair="demo", action="committed", bytes=10))

    async def test_a_reader_who_comes_back_too_late(self) -> None:
        daemon = await self.start()
        stream = await self.events(daemon)
        await stream.snapshot()
        await daemon.push("demo", b"x")
        last = await stream.next()
        await stream.peer.abort()
        for _ in range(3):
            await daemon.push("demo", state_of(4 * MIB))
        resumed = await self.events(daemon, "/v1/events", **{"Last-Event-ID": str(last.id)})
        first = await resumed.next()
        self.assertEqual(first.kind, "lagged")
        self.assertGreater(first.data["dropped"], 4096)
        self.assertEqual(len(await resumed.snapshot()), 2)

    async def test_there_is_room_for_so_many(self) -> None:
        daemon = await self.start(**{"event-readers": "2"})
        first, _second = await self.events(daemon), await self.events(daemon)
        refused = await daemon.http.request("GET", "/v1/events")
        problem(refused, 503)
        self.assertGreaterEqual(int(refused.header("Retry-After") or 0), 1)
        await first.peer.abort()
        await until(lambda: self.is_welcome(daemon), "there is room again")

    async def is_welcome(self, daemon: Daemon) -> bool:
        """Whether one more reader gets a stream."""
        reader = await self.reader(daemon)
        reader.ask("/v1/events")
        return b" 200 " in await reader.peer.read(16)

    async def test_it_ends_when_the_pair_goes(self) -> None:
        daemon = await self.start()
        created = {"pair": "extra", "role": "secondary", "link": f"tcp:{free_port()}:interface=127.0.0.1"}
        everything = await self.events(daemon, "/v1/events?kinds=pair")
        await everything.snapshot()
        self.assertEqual((await daemon.http.send_json("POST", "/v1/pairs", created)).status, 201)
        await everything.until(_is("pair", pair="extra"))
        stream = await self.events(daemon, "/v1/pairs/extra/events")
        await stream.snapshot()
        self.assertEqual((await daemon.http.request("DELETE", "/v1/pairs/extra")).status, 204)
        with self.assertRaises(PeerClosed):
            while True:
                self.assertIsInstance(await stream.next(), Event)
