"""Memory stays bounded, whatever the size of a transaction and however slow the other side is."""

from __future__ import annotations

import sys

import xxhash

from tests.case import EndToEndCase
from tests.daemon import Daemon, Json, free_port, primary, problem, secondary, start_all
from tests.raw_peer import ACK, BEGIN, COMMIT, CONTINUE, HEADER, RawReceiver, frame
from tests.state import MIB, LongState
from tests.waiting import pause, until

#: What a daemon may need beside its buffers.
_SLACK = 32 * MIB

#: The most that a transaction of any size may cost a daemon.
_MOST_GROWTH = 64 * MIB


class MemoryCase(EndToEndCase):
    """A case that looks at the memory of daemons, which is a thing of Linux."""

    if not sys.platform.startswith("linux"):
        skip = "the memory of a process is read from /proc"


class StalledPeerTests(MemoryCase):
    """A standby, played by the test, stops reading for a while in the middle of a transaction."""

    #: MiB; more than all buffers of daemon and kernel together.
    size = 160
    #: MiB.
    buffer_limit = 24

    async def start(self, rate_limit: str) -> None:
        port = free_port()
        standby = await self.raw_standby(port)
        self.sender = self.daemon(
            {
                "demo": primary(
                    port,
                    rate_limit=rate_limit,
                    buffer_limit=f"{self.buffer_limit}MiB",
                    dead_time="10min",
                    ack_time="10min",
                )
            },
            api={"idle-time": "10min"},
        )
        await self.sender.start()
        self.receiver = await standby.accept()
        await self.receiver.greet("demo")
        await self.sender.until_up()

    async def until_still(self, state: LongState, buffered: int = 0) -> Json:
        """Wait until so much is buffered and nothing is read of the state any more; the pair then."""
        await until(lambda: self.is_frozen(buffered), f"{buffered} bytes are buffered")
        seen = -1
        while state.at > seen:
            seen = state.at
            for _ in range(20):
                await self.sender.pair("demo")
                await pause()
        return await self.sender.pair("demo")

    async def is_frozen(self, buffered: int) -> bool:
        """Whether the link takes no more, and so many bytes wait for it."""
        pair = await self.sender.pair("demo")
        return bool(pair["freeze_output"] and pair["buffered_bytes"] >= buffered)

    async def stall(self, rate_limit: str, buffered: int) -> Json:
        """Push while the standby does not read, then read; the pair, while everything stood still."""
        await self.start(rate_limit)
        before = self.sender.resident()
        state = LongState(self.size)
        self.receiver.stop_reading()
        push = self.in_background(
            self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state.body(), deadline=100)
        )
        stalled = await self.until_still(state, buffered)
        self.assertFalse(push.called)
        self.assertLess(state.at, self.size * MIB, "the source was not paused")
        self.assertTrue(stalled["freeze_output"])
        self.assertEqual(stalled["link_state"], "up")
        self.assertLess(self.sender.peak_resident() - before, self.buffer_limit * MIB + _SLACK)
        # Nothing is lost, nothing changes its place.
        received = await self.take_all(self.receiver)
        self.assertEqual(received, state.digest.digest())
        commit = await push
        self.assertEqual((commit.status, commit.json()["bytes"]), (200, self.size * MIB))
        self.assertLess(self.sender.peak_resident() - before, self.buffer_limit * MIB + _SLACK)
        return stalled

    async def take_all(self, receiver: RawReceiver) -> bytes:
        """Read the whole transaction and confirm it; the digest of what was in it."""
        receiver.go_on_reading()
        digest = xxhash.xxh3_64()
        first = await receiver.skip_heartbeats()
        id, seq = first.id, 1
        digest.update(first.payload)
        while True:
            found = await receiver.frame()
            self.assertEqual((found.id, found.seq), (id, seq))
            if found.cmd == COMMIT:
                break
            self.assertEqual(found.cmd, CONTINUE)
            digest.update(found.payload)
            seq += 1
        self.assertEqual(found.payload, digest.intdigest().to_bytes(8, "little"))
        receiver.send(frame(ACK, id, seq))
        return digest.digest()

    async def test_with_the_rate_limit_the_source_waits_at_once(self) -> None:
        stalled = await self.stall("on", 0)
        self.assertLess(stalled["buffered_bytes"], 4 * MIB)

    async def test_without_it_the_source_runs_on_to_the_limit_of_the_buffer(self) -> None:
        stalled = await self.stall("off", self.buffer_limit * MIB)
        self.assertLess(stalled["buffered_bytes"], (self.buffer_limit + 2) * MIB)

    async def test_the_switch_works_while_it_is_frozen(self) -> None:
        await self.start("on")
        state = LongState(self.size)
        self.receiver.stop_reading()
        push = self.in_background(
            self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state.body(), deadline=100)
        )
        waited_at = (await self.until_still(state))["transaction"]["bytes"]
        await self.sender.http.send_json("PUT", "/v1/pairs/demo/rate-limit", {"enabled": False})
        stalled = await self.until_still(state, self.buffer_limit * MIB)
        self.assertGreater(stalled["transaction"]["bytes"], waited_at + (self.buffer_limit - 4) * MIB)
        self.assertEqual(await self.take_all(self.receiver), state.digest.digest())
        self.assertEqual((await push).status, 200)

    async def test_other_requests_are_answered_meanwhile(self) -> None:
        await self.start("on")
        self.receiver.stop_reading()
        state = LongState(self.size)
        push = self.in_background(
            self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state.body(), deadline=100)
        )
        await self.until_still(state)
        cancel = await self.sender.http.request("POST", "/v1/pairs/demo/cancel")
        self.assertEqual(cancel.status, 200)
        problem(await push, 409)
        self.assertIsNone((await self.sender.pair("demo"))["transaction"])


class LongTransactionTests(MemoryCase):
    """A GiB through both halves, into a directory."""

    async def test_a_gibibyte(self) -> None:
        port = free_port()
        standby = self.daemon({"demo": secondary(port, ack="applied", keep="1")})
        sender = self.daemon({"demo": primary(port)})
        await start_all(standby, sender)
        await sender.until_up()
        # What the first transaction needs for good is not what grows.
        await sender.push("demo", b"\0" * 4 * MIB)
        before = {daemon: daemon.resident() for daemon in (sender, standby)}
        state = LongState(1024)
        commit = await sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state.body(), deadline=100)
        self.assertEqual((commit.status, commit.json()["bytes"]), (200, 1024 * MIB))
        self.assert_grew_little(before)
        (checkpoint,) = await standby.checkpoints("demo")
        self.assertEqual((checkpoint["bytes"], checkpoint["xxh3"]), (1024 * MIB, state.digest.hexdigest()))
        (file,) = standby.stored_files("demo")
        self.assertEqual(file.stat().st_size, 1024 * MIB)
        digest = xxhash.xxh3_64()
        with file.open("rb") as stored:
            while block := stored.read(MIB):
                digest.update(block)
        self.assertEqual(digest.hexdigest(), checkpoint["xxh3"])
        self.assert_grew_little(before)

    def assert_grew_little(self, before: dict[Daemon, int]) -> None:
        for daemon, resident in before.items():
            self.assertLess(daemon.peak_resident() - resident, _MOST_GROWTH)


class StalledReaderTests(MemoryCase):
    """A client asks for a checkpoint and does not read it."""

    async def test_a_download_waits_for_its_reader(self) -> None:
        port = free_port()
        daemon = self.daemon({"demo": primary(port), "standby": secondary(port, name="demo", ack="applied", keep="1")})
        await daemon.start()
        await daemon.until_up()
        state = LongState(64)
        await daemon.http.request("PUT", "/v1/pairs/demo/checkpoint", state.body())
        before = daemon.resident()
        client = await self.raw_sender(daemon.port)
        client.stop_reading()
        client.send(b"GET /v1/pairs/standby/checkpoints/1 HTTP/1.0\r\n\r\n")
        # The checkpoint that is being read is pruned meanwhile, and is sent to its end all the same.
        for _ in range(3):
            await daemon.push("demo", b"x" * MIB)
        self.assertEqual([entry["number"] for entry in await daemon.checkpoints("standby")], [4])
        self.assertLess(daemon.peak_resident() - before, _SLACK)
        client.go_on_reading()
        _head, _, body = (await client.until_closed()).partition(b"\r\n\r\n")
        self.assertEqual(xxhash.xxh3_64_hexdigest(body), state.digest.hexdigest())
        self.assertLess(daemon.peak_resident() - before, _SLACK)


class AllocationTests(MemoryCase):
    """A header that announces 4 GiB costs nothing."""

    async def test_four_gibibytes_in_a_header(self) -> None:
        port = free_port()
        standby = await self.daemon({"demo": secondary(port, max_payload="4294967295")}).start()
        before = standby.resident()
        sender = await self.raw_sender(port)
        await sender.greet("demo")
        sender.send(frame(BEGIN) + HEADER.pack(CONTINUE, 0, 0, 2**32 - 1) + b"x" * MIB)
        await standby.until_pair("demo", transaction={"id": 0, "seq": 1, "bytes": MIB})
        self.assertLess(standby.peak_resident() - before, _SLACK)
