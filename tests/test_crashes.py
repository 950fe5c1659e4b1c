"""``kill -9`` and links that break: each commit that was confirmed is there, once, and no other is."""

from __future__ import annotations

import json
import random

import xxhash
from twisted.internet.defer import Deferred

from tests.case import EndToEndCase
from tests.daemon import Daemon, free_port, primary, problem, secondary, start_all
from tests.http_client import Answer, NoAnswer
from tests.proxy import Then
from tests.raw_peer import ACK, COMMIT
from tests.state import MIB, state_of
from tests.waiting import pause, until


class CrashCase(EndToEndCase):
    """
    Two daemons with a proxy between them.

    :ivar sent: what was pushed and confirmed, in order.
    """

    async def start(self, **standby_keys: str) -> None:
        """Start both."""
        port = free_port()
        self.proxy_between, proxied = await self.proxy(port)
        keys = {"ack": "applied", "keep": "1000", **standby_keys}
        self.standby = self.daemon({"demo": secondary(port, **keys)})
        self.sender = self.daemon({"demo": primary(proxied, frame_size="64KiB")})
        await start_all(self.standby, self.sender)
        await self.sender.until_up()
        self.sent: list[bytes] = []

    async def push(self, state: bytes) -> None:
        """Push a checkpoint, which has to be confirmed."""
        await self.sender.push("demo", state)
        self.sent.append(state)

    def push_later(self, state: bytes) -> Deferred[Answer]:
        """Begin to push a checkpoint."""
        return self.in_background(self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state))

    async def begin_upload(self) -> None:
        """Have a transaction open of which the standby has some, and which goes on for as long as nobody ends it."""
        answer = await self.sender.http.request("POST", "/v1/pairs/demo/begin")
        self.assertEqual(answer.status, 200)
        await self.sender.http.request("POST", "/v1/pairs/demo/data", state_of(3 * MIB, "half of it"))
        await self.standby.until_pair("demo", state="CONTINUE")

    async def assert_whole(self) -> None:
        """The standby has what was confirmed, in order, whole, once, and nothing else, in its API and on its disk."""
        listed = await self.standby.checkpoints("demo")
        self.assertEqual([entry["number"] for entry in listed], list(range(1, len(self.sent) + 1)))
        for entry, state in zip(listed, self.sent, strict=True):
            self.assertEqual(await self.standby.checkpoint("demo", entry["number"]), state)
            self.assertEqual(entry["xxh3"], xxhash.xxh3_64_hexdigest(state))
        files = self.standby.stored_files("demo")
        self.assertEqual([file.suffix for file in files], [".checkpoint"] * len(self.sent))
        self.assertEqual([file.read_bytes() for file in files], self.sent)

    async def restart(self, daemon: Daemon) -> None:
        """Start a daemon that was killed; everything goes on by itself."""
        await daemon.start()
        await self.sender.until_up()
        await self.assert_whole()
        await self.push(f"after {len(self.sent)}".encode())
        await self.assert_whole()


class KillTests(CrashCase):
    """One of the two is killed, and started again."""

    async def test_the_receiver_while_idle(self) -> None:
        await self.start()
        for number in range(3):
            await self.push(state_of(100_000, str(number)))
        self.standby.kill()
        await self.sender.until_pair("demo", link_state="down")
        refused = await self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", b"nobody there")
        self.assertIn(refused.status, (409, 503))
        await self.restart(self.standby)
        pair = await self.sender.pair("demo")
        self.assertEqual((pair["has_error"], pair["last_committed"]["number"]), (0, 4))

    async def test_the_sender_while_idle(self) -> None:
        await self.start()
        await self.push(state_of(100_000))
        generation = (await self.sender.pair("demo"))["generation"]
        self.sender.kill()
        await self.standby.until_pair("demo", link_state="down")
        await self.assert_whole()
        await self.restart(self.sender)
        self.assertEqual((await self.sender.pair("demo"))["generation"], generation)

    async def test_both_at_once(self) -> None:
        await self.start()
        await self.push(state_of(100_000))
        await self.begin_upload()
        self.sender.kill()
        self.standby.kill()
        await self.sender.start()
        await self.restart(self.standby)

    async def test_the_receiver_in_the_middle_of_an_upload(self) -> None:
        await self.start()
        await self.push(state_of(100_000))
        await self.begin_upload()
        await until(
            lambda: ".partial" in [file.suffix for file in self.standby.stored_files("demo")],
            "the crash leaves something that has to be cleaned up",
        )
        self.standby.kill()
        await self.sender.until_pair("demo", link_state="down", transaction=None)
        newest = (await self.sender.transactions("demo"))[-1]
        self.assertEqual((newest["outcome"], newest["number"]), ("failed", None))
        await self.restart(self.standby)

    async def test_an_upload_is_told_that_the_receiver_is_gone(self) -> None:
        await self.start()
        await self.push(b"before")
        uploader = await self.raw_sender(self.sender.port)
        uploader.send(b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n")
        uploader.send(state_of(2 * MIB))
        await self.standby.until_pair("demo", state="CONTINUE")
        self.standby.kill()
        said = await uploader.until_closed()
        head, _, body = said.partition(b"\r\n\r\n")
        self.assertIn(b" 503 ", head)
        self.assertIn(b"Retry-After: ", head)
        self.assertIn("nothing of the open transaction was committed", json.loads(body)["detail"])
        await self.restart(self.standby)

    async def test_the_sender_in_the_middle_of_an_upload(self) -> None:
        await self.start()
        await self.push(state_of(100_000))
        await self.begin_upload()
        self.sender.kill()
        await self.standby.until_pair("demo", link_state="down", transaction=None)
        newest = (await self.standby.transactions("demo"))[-1]
        self.assertEqual((newest["outcome"], newest["number"]), ("failed", None))
        await self.assert_whole()
        await self.restart(self.sender)

    async def test_the_receiver_before_it_has_the_commit(self) -> None:
        await self.start()
        await self.push(b"before")
        held = self.proxy_between.do(COMMIT, 19, Then.HOLD)
        answer = self.push_later(state_of(200_000))
        await held
        self.standby.kill()
        await self.standby.start()
        self.assertIn("is not committed", str(problem(await answer, 503)["detail"]))
        await self.sender.until_up()
        await self.assert_whole()
        newest = (await self.sender.transactions("demo"))[-1]
        self.assertEqual((newest["outcome"], newest["bytes"]), ("failed", 200_000))
        await self.push(b"after")
        await self.assert_whole()

    async def test_the_receiver_after_it_has_the_commit(self) -> None:
        await self.start()
        await self.push(b"before")
        held = self.proxy_between.do(ACK, 0, Then.HOLD)
        state = state_of(200_000)
        answer = self.push_later(state)
        await held
        self.standby.kill()
        await self.standby.start()
        # Its caller has waited all the while, and is told what the new session says of the commit.
        commit = await answer
        self.assertEqual((commit.status, commit.json()["bytes"]), (200, 200_000))
        self.sent.append(state)
        await self.sender.until_up()
        await self.assert_whole()
        self.assertEqual((await self.sender.pair("demo"))["last_committed"]["number"], 2)
        await self.push(b"after")
        await self.assert_whole()

    async def test_the_sender_before_the_receiver_has_the_commit(self) -> None:
        await self.start()
        await self.push(b"before")
        held = self.proxy_between.do(COMMIT, 0, Then.HOLD)
        answer = self.push_later(state_of(200_000))
        await held
        self.sender.kill()
        await self.assertFailure(answer, NoAnswer)
        await self.standby.until_pair("demo", link_state="down")
        await self.assert_whole()
        await self.restart(self.sender)

    async def test_the_sender_after_the_receiver_has_the_commit(self) -> None:
        await self.start()
        await self.push(b"before")
        held = self.proxy_between.do(ACK, 0, Then.HOLD)
        state = state_of(200_000)
        answer = self.push_later(state)
        await held
        self.sender.kill()
        await self.assertFailure(answer, NoAnswer)
        # Nobody was told, but it is committed.
        self.sent.append(state)
        await self.standby.until_pair("demo", link_state="down")
        await self.assert_whole()
        await self.restart(self.sender)

    async def test_a_receiver_that_keeps_nothing(self) -> None:
        await self.start(sink="memory")
        await self.push(b"in memory only")
        self.assertEqual((await self.sender.pair("demo"))["last_committed"]["bytes"], 14)
        held = self.proxy_between.do(ACK, 0, Then.HOLD)
        answer = self.push_later(b"in doubt")
        await held
        self.standby.kill()
        await self.standby.start()
        # It says in its HELLO that it has nothing, so the commit in doubt is gone, and so is the one before.
        self.assertIn("does not have it", str(problem(await answer, 503)["detail"]))
        await self.sender.until_up()
        self.assertIsNone((await self.sender.pair("demo"))["last_committed"])
        self.assertEqual(await self.standby.checkpoints("demo"), [])
        await self.sender.push("demo", b"from the beginning")
        self.assertEqual(await self.standby.checkpoint("demo", 1), b"from the beginning")
        self.assertEqual((await self.sender.pair("demo"))["last_committed"]["number"], 1)

    async def test_again_and_again(self) -> None:
        """Either of the two at any moment of a stream of checkpoints."""
        await self.start()
        chance = random.Random(2011)
        serial = 0
        for round in range(4):
            crash = self.in_background(self.crash((self.standby, self.sender)[round % 2], chance.random() * 0.1))
            while not crash.called:
                serial += 1
                await self.push_anyhow(state_of(chance.randrange(200_000), str(serial)), crash)
            await crash
            await self.sender.until_up()
            await self.assert_whole()

    async def crash(self, daemon: Daemon, seconds: float) -> None:
        """Kill a daemon after a while, and start it again."""
        await pause(seconds)
        daemon.kill()
        await daemon.start()

    async def push_anyhow(self, state: bytes, crash: Deferred[None]) -> None:
        """Push a checkpoint at a moment when everything may happen, and find out what did."""
        before = len(self.sent)
        try:
            answer = await self.push_later(state)
        except NoAnswer:
            # The sender is dead: only the standby knows, once it has a new session.
            await crash
            await self.sender.until_up()
            now = len(await self.standby.checkpoints("demo"))
            self.assertIn(now, (before, before + 1))
            if now > before:
                self.sent.append(state)
            return
        if answer.status == 200:
            self.sent.append(state)
        else:
            self.assertIn(answer.status, (409, 503))
            await pause()


class CutTests(CrashCase):
    """The link is cut at every byte of a COMMIT and of its ACK."""

    async def cut(self, command: int, at: int) -> None:
        """Push a checkpoint whose commit meets a cut; what the caller is told is what is the case."""
        state = f"cut at {at} of {command}".encode() * 100
        cut = self.proxy_between.do(command, at, Then.CUT)
        answer = self.push_later(state)
        await cut
        result = await answer
        if result.status == 200:
            self.sent.append(state)
        else:
            problem(result, 503)
        # A COMMIT that is not whole cannot be one, and an ACK comes after the fact.
        expected = 200 if command == ACK else 503
        if (command, at) != (COMMIT, 20):
            self.assertEqual(result.status, expected, f"cut at {at} of {command}")
        await self.sender.until_up()

    async def cut_everywhere(self) -> None:
        for at in range(21):
            await self.cut(COMMIT, at)
        for at in range(13):
            await self.cut(ACK, at)
        await self.push(b"at the end")

    async def test_where_the_standby_writes_first(self) -> None:
        await self.start()
        await self.cut_everywhere()
        await self.assert_whole()
        counted = await self.sender.pair("demo")
        self.assertEqual(counted["transactions_committed"], len(self.sent))
        self.assertEqual(counted["transactions_committed"] + counted["transactions_failed"], 35)

    async def test_where_the_standby_answers_first(self) -> None:
        await self.start(ack="received")
        await self.cut_everywhere()
        await self.assert_whole()

    async def test_the_ids_of_both_sides_agree_afterwards(self) -> None:
        await self.start(sink="memory")
        for command, at in ((COMMIT, 0), (COMMIT, 19), (COMMIT, 20), (ACK, 0), (ACK, 11), (ACK, 12)):
            await self.cut(command, at)
        await self.push(b"at the end")
        await self.standby.until_pair("demo", id=(await self.sender.pair("demo"))["id"])
        listed = await self.standby.checkpoints("demo")
        self.assertEqual([await self.standby.checkpoint("demo", entry["number"]) for entry in listed], self.sent)
