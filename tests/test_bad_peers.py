"""What is done about peers on the link that do not keep to the protocol, and that nobody else feels it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tests.case import EndToEndCase, SharedDaemonCase
from tests.daemon import Daemon, Json, Section, free_port, primary, problem, secondary
from tests.raw_peer import (
    ACK,
    ATOMIC,
    BEGIN,
    CANCEL,
    COMMIT,
    CONTINUE,
    HELLO,
    NACK,
    Frame,
    RawReceiver,
    RawSender,
    digest,
    frame,
    header,
    hello,
)
from tests.state import MIB, state_of
from tests.waiting import pause, until

_BAD, _SPARE, _GOOD = free_port(), free_port(), free_port()

_RECV_HDR, _RECV_PAYLOAD, _STATE_INVALID, _REALLOC_BUF = 3, 5, 7, 8


class BadSenderTests(SharedDaemonCase):
    """
    Senders that a test plays, against a standby that has no other.

    A pair in the same daemon commits after each of them as it did before.
    """

    pairs: ClassVar[Mapping[str, Section]] = {
        "standby": secondary(_BAD, max_payload="1MiB", max_transaction="2MiB", handshake_time="1s", ack="applied"),
        # For tests that use up ids, which the others expect to be 0.
        "spare": secondary(_SPARE),
        "good": primary(_GOOD),
        "good-standby": secondary(_GOOD, name="good", sink="memory"),
    }

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        await super().setUp()
        self.resident = self.shared.resident()
        self.good = await self.shared.pair("good")
        self.addCleanup(self.assert_nobody_felt_it)

    async def assert_nobody_felt_it(self) -> None:
        """The other pair still has its link, and commits; nothing new is in the standby; memory did not grow."""
        await self.shared.push("good", b"goes on")
        self.assertEqual(await self.shared.checkpoint("good-standby"), b"goes on")
        self.assertEqual((await self.shared.pair("good"))["reconnects"], self.good["reconnects"])
        for standby in ("standby", "spare"):
            self.assertEqual(await self.shared.checkpoints(standby), [])
        self.assertLess(self.shared.resident() - self.resident, 16 * MIB)

    async def stranger(self) -> RawSender:
        """A connection to the standby's port."""
        return await self.raw_sender(_BAD)

    async def sender(self, **changes: Any) -> RawSender:
        """A sender whose session is open, and which has to begin with the id 0."""
        sender = await self.stranger()
        self.assertEqual(await sender.greet("standby", **changes), 0)
        await self.shared.until_pair("standby", link_state="up", has_error=0)
        return sender

    async def spare_sender(self, **changes: Any) -> tuple[RawSender, int]:
        """A sender whose session with the spare standby is open, and the id it has to begin with."""
        sender = await self.raw_sender(_SPARE)
        return sender, await sender.greet("spare", **changes)

    async def failed(self, code: int) -> Json:
        """The standby, once it shows an error; which has to be this one, with a sentence, and no transaction."""
        pair = await self.shared.until_pair("standby", has_error=code, link_state="down", transaction=None)
        self.assertGreater(len(pair["has_error_detail"]), 15)
        self.assertEqual(pair["ft_mode"], "FT_ERROR")
        return pair

    async def assert_ends_session(self, name: str, before: bytes, bad: bytes, code: int, says: str = "") -> None:
        """After ``before`` all is well, ``bad`` ends the session with an error."""
        sender = await self.sender()
        if before:
            sender.send(before)
            await self.shared.until_pair("standby", transaction={"id": 0, "seq": 0, "bytes": 0})
        sender.send(bad)
        await sender.until_closed()
        pair = await self.failed(code)
        self.assertIn(says, pair["has_error_detail"], name)

    async def test_commands_that_are_not_allowed(self) -> None:
        begin = frame(BEGIN, 0)
        for name, before, bad, says in (
            ("unknown command", b"", frame(0x1234, 0), "0x1234"),
            ("a state that never travels", b"", frame(0, 0), "INIT"),
            ("CONTINUE with no transaction", b"", frame(CONTINUE, 0, 0, b"state"), "CONTINUE"),
            ("COMMIT with no transaction", b"", frame(COMMIT, 0, 0, digest(b"")), "COMMIT"),
            ("CANCEL with no transaction", b"", frame(CANCEL, 0), "CANCEL"),
            ("BEGIN in one", begin, frame(BEGIN, 0), "BEGIN"),
            ("ATOMIC in one", begin, frame(ATOMIC, 0, 0, digest(b"")), "ATOMIC"),
            ("what a receiver says", begin, frame(ACK, 0), "ACK"),
            ("a refusal, which a receiver says", b"", frame(NACK, 0), "NACK"),
            ("a second HELLO", b"", hello("standby"), "HELLO"),
        ):
            await self.assert_ends_session(name, before, bad, _STATE_INVALID, says)

    async def test_places_that_are_wrong(self) -> None:
        begin = frame(BEGIN, 0)
        for name, before, bad in (
            ("BEGIN with a wrong id", b"", frame(BEGIN, 1)),
            ("BEGIN with a seq", b"", frame(BEGIN, 0, 1)),
            ("CONTINUE with a wrong id", begin, frame(CONTINUE, 1, 0, b"state")),
            ("CONTINUE with a wrong seq", begin, frame(CONTINUE, 0, 1, b"state")),
            ("COMMIT with a wrong seq", begin, frame(COMMIT, 0, 5, digest(b""))),
            ("CANCEL with a wrong id", begin, frame(CANCEL, 7)),
        ):
            await self.assert_ends_session(name, before, bad, _STATE_INVALID, "expected id 0 seq 0")

    async def test_payload_where_none_may_be(self) -> None:
        begin = frame(BEGIN, 0)
        for name, before, bad in (
            ("BEGIN", b"", frame(BEGIN, 0, 0, b"state")),
            ("CANCEL", begin, frame(CANCEL, 0, 0, b"state")),
            ("COMMIT", begin, frame(COMMIT, 0, 0, b"state")),
            ("COMMIT", begin, frame(COMMIT, 0, 0)),
        ):
            await self.assert_ends_session(name, before, bad, _STATE_INVALID, name)

    async def test_frames_over_the_limit(self) -> None:
        begin = frame(BEGIN, 0)
        for length in (MIB + 1, 2**32 - 1):
            await self.assert_ends_session(
                "too long", begin, header(CONTINUE, 0, 0, length) + b"x" * 1000, _REALLOC_BUF, str(length)
            )
        await self.assert_ends_session("ATOMIC", b"", header(ATOMIC, 0, 0, 2**32 - 1), _REALLOC_BUF, "max-payload")

    async def test_transactions_over_the_limit(self) -> None:
        half = b"".join(frame(CONTINUE, 0, seq, state_of(MIB)) for seq in range(2))
        bad = half + frame(CONTINUE, 0, 2, b"x")
        await self.assert_ends_session("too long", frame(BEGIN, 0), bad, _REALLOC_BUF, "max-transaction")

    async def test_the_end_of_the_stream(self) -> None:
        for data, code in (
            (header(BEGIN)[:5], _RECV_HDR),
            (frame(BEGIN) + header(CONTINUE, 0, 0, 100)[:11], _RECV_HDR),
            (frame(BEGIN) + header(CONTINUE, 0, 0, 100), _RECV_PAYLOAD),
            (frame(BEGIN) + header(CONTINUE, 0, 0, 100) + b"x" * 99, _RECV_PAYLOAD),
            (frame(BEGIN) + frame(CONTINUE, 0, 0, b"state"), _RECV_HDR),
            (frame(BEGIN) + frame(CONTINUE, 0, 0, b"state") + header(COMMIT, 0, 1, 8) + b"1234567", _RECV_PAYLOAD),
        ):
            sender = await self.sender()
            sender.send(data)
            sender.close()
            await sender.until_closed()
            self.assertIn("closed", (await self.failed(code))["has_error_detail"])

    async def test_a_close_between_transactions_is_no_error(self) -> None:
        sender = await self.sender()
        sender.close()
        pair = await self.shared.until_pair("standby", link_state="down")
        self.assertEqual(pair["has_error"], 0)

    async def test_a_wrong_digest_is_refused_and_the_session_goes_on(self) -> None:
        sender, id = await self.spare_sender()
        answer = await sender.transaction(id, b"some", b"state", sum=digest(b"other state"))
        self.assertEqual(answer, Frame(NACK, id, _RECV_PAYLOAD))
        pair = await self.shared.pair("spare")
        self.assertEqual((pair["link_state"], pair["has_error"], pair["state"]), ("up", 0, "NACK"))
        newest = (await self.shared.transactions("spare"))[-1]
        self.assertEqual((newest["outcome"], newest["number"]), ("nacked", None))
        self.assertIn("digest", newest["detail"])
        # The id is not used up.  This one has no frame, so that it is no checkpoint.
        self.assertEqual(await sender.transaction(id), Frame(ACK, id, 0))

    async def test_a_wrong_digest_where_no_refusal_was_agreed(self) -> None:
        sender = await self.sender(features=["digest"])
        sender.send(frame(BEGIN) + frame(CONTINUE, 0, 0, b"state") + frame(COMMIT, 0, 1, digest(b"other")))
        self.assertEqual(await sender.until_closed(), b"")
        await self.failed(_RECV_PAYLOAD)

    # Not even a session

    async def test_an_http_client(self) -> None:
        output = await self.curl("--max-time", "20", f"http://127.0.0.1:{_BAD}/")
        self.assertNotEqual(output.status, 0)
        self.assertIn("unknown command", (await self.failed(_STATE_INVALID))["has_error_detail"])

    async def test_random_bytes(self) -> None:
        for seed in range(20):
            stranger = await self.stranger()
            stranger.send(state_of(10_000, str(seed)))
            await stranger.until_closed()
        await self.failed((await self.shared.pair("standby"))["has_error"])

    async def test_a_byte_now_and_then(self) -> None:
        stranger = await self.stranger()
        for byte in hello("standby"):
            if stranger.has_ended:
                break
            stranger.send(bytes([byte]))
            await pause(0.1)
        await stranger.until_closed()
        self.assertIn("within 1 s", (await self.failed(_RECV_HDR))["has_error_detail"])

    async def test_silence(self) -> None:
        stranger = await self.stranger()
        said = await stranger.until_closed()
        self.assertIn(b'"pair":"standby"', said)
        self.assertIn("within 1 s", (await self.failed(_RECV_HDR))["has_error_detail"])

    async def test_hellos_that_cannot_be_used(self) -> None:
        for bad, code, says in (
            (hello("another"), _STATE_INVALID, "another"),
            (hello("standby", version=2), _STATE_INVALID, "version 2"),
            (hello("standby", features="all"), _STATE_INVALID, "features"),
            (hello("standby", max_payload="big"), _STATE_INVALID, "max_payload"),
            (frame(HELLO, 0, 0, b"{"), _STATE_INVALID, "not JSON"),
            (frame(HELLO, 0, 0, b"[]"), _STATE_INVALID, "object"),
            (frame(HELLO, 0, 0, b"[" * 60_000), _STATE_INVALID, "not JSON"),
            (frame(HELLO, 3, 0, b"{}"), _STATE_INVALID, "HELLO"),
            (header(HELLO, 0, 0, 64 * 1024 + 1), _REALLOC_BUF, "65537"),
            (header(HELLO, 0, 0, 2**32 - 1), _REALLOC_BUF, "65536"),
            (frame(BEGIN), _STATE_INVALID, "BEGIN"),
        ):
            stranger = await self.stranger()
            stranger.send(bad)
            await stranger.until_closed()
            self.assertIn(says, (await self.failed(code))["has_error_detail"])

    async def test_unknown_keys_in_a_hello_do_not_matter(self) -> None:
        sender, id = await self.spare_sender(colour="blue", features=["atomic", "digest", "nack", "telepathy"])
        self.assertEqual(await sender.transaction(id), Frame(ACK, id, 0))

    async def test_many_strangers_at_once(self) -> None:
        for _ in range(40):
            await self.stranger()
        # They leave after their time, and a sender is welcome again.
        await until(self.has_room, "there is room for a sender")

    async def has_room(self) -> bool:
        """Whether a sender gets a session."""
        stranger = await self.stranger()
        stranger.send(hello("standby", state="primary"))
        try:
            await stranger.hello()
            return (await stranger.frame()).cmd == ACK
        except Exception:
            return False


class StrangersTests(EndToEndCase):
    """Whoever else dials a standby that has its sender: the sender does not feel it."""

    async def start(self) -> tuple[Daemon, int]:
        port = free_port()
        daemon = self.daemon(
            {"demo": primary(port), "demo-standby": secondary(port, name="demo", ack="applied", handshake_time="1s")}
        )
        await daemon.start()
        await daemon.until_up()
        return daemon, port

    async def test_they_cost_their_own_connection_and_nothing_else(self) -> None:
        daemon, port = await self.start()
        await daemon.http.request("POST", "/v1/pairs/demo/begin")
        await daemon.http.request("POST", "/v1/pairs/demo/data", b"open all the while")
        for bad in (b"GET / HTTP/1.1\r\n\r\n", state_of(5000), header(HELLO, 0, 0, 2**32 - 1), frame(BEGIN), b""):
            stranger = await self.raw_sender(port)
            stranger.send(bad)
            await stranger.until_closed()
        pair = await daemon.pair("demo-standby")
        self.assertEqual((pair["link_state"], pair["has_error"], pair["state"]), ("up", 0, "CONTINUE"))
        self.assertEqual((await daemon.http.request("POST", "/v1/pairs/demo/commit")).status, 200)
        self.assertEqual(await daemon.checkpoint("demo-standby"), b"open all the while")
        self.assertEqual((await daemon.pair("demo"))["reconnects"], 0)

    async def test_a_second_sender_is_told_and_closed(self) -> None:
        daemon, port = await self.start()
        second = await self.raw_sender(port)
        await second.hello()
        second.send(hello("demo", state="primary"))
        told = await second.hello()
        self.assertIn("has a sender already", told["refused"])
        self.assertEqual(await second.until_closed(), b"")
        await daemon.push("demo", b"not hurt")
        self.assertEqual(await daemon.checkpoint("demo-standby"), b"not hurt")
        self.assertEqual((await daemon.pair("demo"))["reconnects"], 0)

    async def test_a_second_daemon_says_why_it_has_no_link(self) -> None:
        daemon, port = await self.start()
        second = await self.daemon({"demo": primary(port)}).start()
        await second.until_pair("demo", has_error_name="STATE_INVALID")
        self.assertIn("has a sender already", (await second.pair("demo"))["has_error_detail"])
        await daemon.push("demo", b"not hurt")
        # It takes over as soon as the first is gone.
        daemon.configure({"demo-standby": daemon.pairs["demo-standby"]})
        await daemon.stop()
        await daemon.start()
        await second.until_up()
        await second.push("demo", b"from the second")
        self.assertEqual(await daemon.checkpoint("demo-standby"), b"from the second")


class BadReceiverTests(EndToEndCase):
    """Receivers that a test plays, against a primary."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        bad, good = free_port(), free_port()
        self.standby = await self.raw_standby(bad)
        # It dials the bad one again only when it is told to, so that an error can be looked at.
        self.sender = self.daemon(
            {
                "demo": primary(bad, reconnect_max="1h", handshake_time="1s", heartbeat="50ms", dead_time="1s"),
                "good": primary(good),
                "good-standby": secondary(good, name="good", sink="memory"),
            }
        )
        await self.sender.start()
        await self.sender.until_up("good")

    async def next(self) -> RawReceiver:
        """The next connection of the primary, which is made to come now."""
        await self.sender.http.request("POST", "/v1/pairs/demo/reset")
        return await self.standby.accept()

    async def assert_failed(self, code: int, says: str) -> None:
        """The primary has this error, and refuses what it is asked; the other pair goes on."""
        pair = await self.sender.until_pair("demo", has_error=code)
        self.assertIn(says, pair["has_error_detail"])
        refused = problem(await self.sender.http.request("POST", "/v1/pairs/demo/begin"), 409)
        self.assertEqual((refused["has_error"], refused["has_error_name"]), (code, pair["has_error_name"]))
        self.assertIn(says, str(refused["detail"]))
        await self.sender.push("good", says.encode())
        self.assertEqual(await self.sender.checkpoint("good-standby"), says.encode())

    async def test_what_it_says_before_the_session_is_open(self) -> None:
        receiver = await self.standby.accept()
        for bad, code, says in (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", _STATE_INVALID, "unknown command"),
            (frame(BEGIN), _STATE_INVALID, "BEGIN"),
            (frame(NACK), _STATE_INVALID, "NACK"),
            (hello("another"), _STATE_INVALID, "another"),
            (hello("demo", version=7), _STATE_INVALID, "version 7"),
            (hello("demo", refused="there is a war on"), _STATE_INVALID, "there is a war on"),
            (header(HELLO, 0, 0, 2**32 - 1), _REALLOC_BUF, "65536"),
            (hello("demo") + hello("demo"), _STATE_INVALID, "second HELLO"),
            (b"", _RECV_HDR, "within 1 s"),
        ):
            receiver.send(bad)
            await receiver.until_closed()
            await self.assert_failed(code, says)
            receiver = await self.next()
        receiver.close()
        await self.assert_failed(_RECV_HDR, "before the session was open")

    async def test_what_it_says_when_nothing_was_asked(self) -> None:
        receiver = await self.standby.accept()
        for bad, says in (
            (frame(ACK, 0), "ACK"),
            (frame(NACK, 0, 6), "NACK"),
            (frame(CONTINUE, 0, 0, b"state"), "CONTINUE"),
        ):
            await receiver.greet("demo")
            await self.sender.until_up("demo")
            receiver.send(bad)
            await receiver.until_closed()
            await self.assert_failed(_STATE_INVALID, says)
            receiver = await self.next()

    async def test_answers_that_do_not_fit(self) -> None:
        receiver = await self.standby.accept()
        for cmd, id, seq in ((ACK, 9, 1), (ACK, 0, 2), (NACK, 9, 6), (HELLO, 0, 1)):
            await receiver.greet("demo")
            push = self.in_background(self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", b"state"))
            found = await receiver.skip_heartbeats()
            self.assertEqual((found.cmd, found.payload), (CONTINUE, b"state"))
            commit = await receiver.frame()
            self.assertEqual((commit.cmd, commit.payload), (COMMIT, digest(b"state")))
            receiver.send(frame(cmd, id, seq))
            await receiver.until_closed()
            await self.assert_failed(_STATE_INVALID, "")
            # The commit is in doubt, until the next session says that it is not there.
            receiver = await self.next()
            await receiver.greet("demo")
            self.assertIn("not committed", str(problem(await push, 503)["detail"]))
            receiver = await self.next()

    async def test_a_refusal(self) -> None:
        receiver = await self.standby.accept()
        await receiver.greet("demo")
        push = self.in_background(self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", b"state"))
        id = (await receiver.skip_heartbeats()).id
        await receiver.frame()
        receiver.send(frame(NACK, id, 6))
        refused = problem(await push, 409)
        self.assertEqual((refused["has_error"], refused["has_error_name"]), (6, "FLUSH"))
        pair = await self.sender.pair("demo")
        self.assertEqual((pair["transactions_nacked"], pair["has_error"], pair["last_committed"]), (1, 0, None))
        self.assertEqual(pair["link_state"], "up")

    async def test_one_that_falls_silent(self) -> None:
        receiver = await self.standby.accept()
        await receiver.greet("demo")
        await receiver.until_closed()
        await self.assert_failed(_RECV_HDR, "no sign of life")
