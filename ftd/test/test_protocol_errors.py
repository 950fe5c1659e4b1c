"""Every way in which a link ends, and the code that each end has for it."""

from __future__ import annotations

from itertools import product

import attrs
from hypothesis import given
from hypothesis import strategies as st

from ftd.protocol import SenderProtocol
from ftd.sinks.sink import SinkError
from ftd.test.link_case import CAPACITY, FakeSenderOwner, LinkTestCase, ScriptedPeer, code_of
from ftd.test.wire.profile import examples
from ftd.test.wire.reaching import LIMITS, NO_DIGEST, frame, head, hello_frame
from ftd.testing.transport import TWISTED_BUFFER, Link
from ftd.wire.constants import DIGEST_SIZE, HEADER_SIZE, MAX_HELLO, Command
from ftd.wire.errors import CallRefused, ErrorCode
from ftd.wire.events import InFlight
from ftd.wire.hello import Hello
from ftd.wire.session import Limits
from ftd.wire.states import State

BEGIN = frame(Command.BEGIN)
STATE = frame(Command.CONTINUE, payload=b"state")


class SenderErrorTests(LinkTestCase):
    """What the sender makes of the end of its link."""

    def setUp(self) -> None:
        super().setUp()
        self.sender, self.peer, self.link = self.open_to_script()

    def assert_error(self, code: str, *words: str) -> None:
        self.link.pump()
        self.assertTrue(self.link.is_over)
        self.assertEqual(code_of(self.primary.lost_with), [code])
        (error,) = self.primary.lost_with
        for word in words:
            self.assertIn(word, error.detail if error is not None else "")

    def fill(self, size: int = CAPACITY) -> None:
        """Open a transaction and have the transport hold all of it."""
        self.sender.begin()
        self.sender.write(b"x" * (size - 2 * HEADER_SIZE))

    def meet_a_stranger(self) -> None:
        """A link on which nothing was said yet, in place of the open one."""
        self.peer = ScriptedPeer()
        self.link = Link(self.new_sender(), self.peer)

    def test_between_transactions_the_end_of_the_link_is_no_error(self) -> None:
        for clean in (True, False):
            self.setUp()
            self.link.cut(clean=clean)
            self.assert_error("none")

    def test_a_bandwidth_limit_that_is_used_up_with_nothing_to_send_is_none_either(self) -> None:
        self.sender.set_bandwidth(100)
        self.sender.begin()
        self.sender.cancel()
        self.assertTrue(self.sender.is_frozen)
        self.clock.advance(0.24)
        self.link.pump()
        self.assertEqual((self.sender.is_frozen, self.sender.buffered), (False, 0))
        self.link.cut(clean=True)
        self.assert_error("none")

    def test_send_hdr(self) -> None:
        self.fill()
        self.assertFalse(self.sender.is_frozen)
        self.sender.commit()
        self.assertTrue(self.sender.is_frozen)
        self.link.cut(clean=False)
        self.assert_error("SEND_HDR", "while a header was being sent", "lost")

    def test_send_payload(self) -> None:
        self.fill(CAPACITY + 1)
        self.link.cut(clean=False)
        self.assert_error("SEND_PAYLOAD", "while a payload was being sent", "lost")

    def test_flush(self) -> None:
        self.fill(CAPACITY + 1)
        self.sender.write(b"x" * 88)
        self.link.cut(clean=False)
        self.assert_error("FLUSH", "100 buffered bytes", "lost")

    def test_recv_hdr_inside_an_ack(self) -> None:
        self.sender.begin()
        self.sender.commit()
        self.peer.say(frame(Command.ACK)[:-1])
        self.peer.close()
        self.assert_error("RECV_HDR", "in the middle of a header")

    def test_recv_hdr_before_an_ack(self) -> None:
        self.sender.begin()
        self.sender.commit()
        self.link.pump()
        self.link.cut(clean=True)
        self.assert_error("RECV_HDR", "before the ACK of transaction 0")

    def test_recv_hdr_inside_a_transaction(self) -> None:
        self.sender.begin()
        self.sender.write(b"state")
        self.link.pump()
        self.link.cut(clean=True)
        self.assert_error("RECV_HDR", "before transaction 0 was committed")

    def test_recv_payload(self) -> None:
        self.meet_a_stranger()
        self.peer.say(hello_frame()[:-1])
        self.peer.close()
        self.assert_error("RECV_PAYLOAD", "inside a payload")

    def test_realloc_buf(self) -> None:
        self.meet_a_stranger()
        self.peer.say(head(Command.HELLO, payload_len=MAX_HELLO + 1))
        self.assert_error("REALLOC_BUF")

    def test_state_invalid(self) -> None:
        answers = {
            "not asked for": frame(Command.ACK),
            "unknown command": frame(0x4547),
            "second HELLO": hello_frame(),
            "other byte order": frame(0x0600),
        }
        for what, answer in answers.items():
            self.setUp()
            self.peer.say(answer)
            with self.subTest(what):
                self.assert_error("STATE_INVALID")

    def test_state_invalid_in_an_answer(self) -> None:
        for answer in (frame(Command.ACK, 1, 1), frame(Command.ACK, 0, 2), frame(Command.ACK, 0, 1, b"?")):
            self.setUp()
            self.sender.begin()
            self.sender.write(b"state")
            self.sender.commit()
            self.peer.say(answer)
            with self.subTest(answer):
                self.assert_error("STATE_INVALID")

    def test_after_an_error_nothing_more_is_sent_and_every_call_fails(self) -> None:
        self.peer.say(frame(0x4547), frame(Command.ACK))
        self.link.to_client.deliver()
        for call in (self.sender.begin, self.sender.commit, self.sender.cancel, lambda: self.sender.write(b"state")):
            self.assertRaises(CallRefused, call)
        self.sender.dataReceived(frame(Command.ACK))
        self.assert_error("STATE_INVALID")
        self.assertEqual(bytes(self.peer.heard), b"")

    def test_unknown_is_a_reason_that_nobody_knows(self) -> None:
        self.sender.begin()
        self.sender.commit()
        self.peer.say(frame(Command.NACK, 0, 0x55))
        self.link.pump()
        self.assertEqual(self.primary.events[-1], "transaction 0 refused: UNKNOWN")
        self.assertFalse(self.link.is_over)
        self.assertIs(self.sender.machine.state, State.NACK)


class ReceiverErrorTests(LinkTestCase):
    """What the receiver makes of bad input and of the end of its link."""

    def hear(
        self,
        *frames: bytes,
        closes: bool = False,
        features: frozenset[str] = NO_DIGEST,
        limits: Limits = LIMITS,
    ) -> str:
        """The code with which a new link ends after ``frames``."""
        self.setUp()
        receiver, peer, link = self.open_from_script(self.new_receiver(limits=limits), features=features)
        peer.say(*frames)
        if closes:
            peer.close()
        link.pump()
        self.assertTrue(link.is_over)
        self.assertEqual((self.sink.held, self.sink.kept, self.sink.producer), (None, [], None))
        self.assertFalse(receiver.is_open)
        (code,) = code_of(self.secondary.lost_with)
        return code

    def test_between_transactions_the_end_of_the_link_is_no_error(self) -> None:
        self.assertEqual(self.hear(closes=True), "none")
        self.assertEqual(self.hear(BEGIN, STATE, frame(Command.CANCEL, 0, 1), closes=True), "none")

    def test_recv_hdr(self) -> None:
        self.assertEqual(self.hear(BEGIN[:-1], closes=True), "RECV_HDR")
        self.assertEqual(self.hear(BEGIN, closes=True), "RECV_HDR")
        self.assertEqual(self.hear(BEGIN, STATE, closes=True), "RECV_HDR")

    def test_recv_payload(self) -> None:
        self.assertEqual(self.hear(BEGIN, STATE[:-1], closes=True), "RECV_PAYLOAD")

    def test_recv_payload_where_no_nack_is_agreed_for_a_wrong_digest(self) -> None:
        commit = frame(Command.COMMIT, 0, 1, bytes(DIGEST_SIZE))
        self.assertEqual(self.hear(BEGIN, STATE, commit, features=frozenset({"digest"})), "RECV_PAYLOAD")

    def test_state_invalid(self) -> None:
        bad = {
            "no transaction": (STATE,),
            "two at once": (BEGIN, STATE, BEGIN),
            "wrong id": (frame(Command.BEGIN, 1),),
            "wrong seq": (BEGIN, frame(Command.CONTINUE, 0, 1, b"state")),
            "COMMIT of another id": (BEGIN, STATE, frame(Command.COMMIT, 1, 1)),
            "COMMIT of more frames": (BEGIN, STATE, frame(Command.COMMIT, 0, 2)),
            "BEGIN with payload": (frame(Command.BEGIN, payload=b"?"),),
            "COMMIT with payload": (BEGIN, STATE, frame(Command.COMMIT, 0, 1, b"?")),
            "an answer": (frame(Command.ACK),),
            "no command": (frame(Command.INIT),),
            "unknown command": (frame(0x4547),),
            "a second HELLO": (hello_frame(),),
        }
        for what, frames in bad.items():
            with self.subTest(what):
                self.assertEqual(self.hear(*frames), "STATE_INVALID")

    def test_atomic_has_to_be_agreed(self) -> None:
        atomic = frame(Command.ATOMIC, payload=b"state")
        self.assertEqual(self.hear(atomic, features=frozenset({"nack"})), "STATE_INVALID")

    def test_realloc_buf(self) -> None:
        self.assertEqual(self.hear(BEGIN, head(Command.CONTINUE, payload_len=0xFFFFFFFF), b"x" * 50), "REALLOC_BUF")
        self.assertEqual(self.sink.writes, 0)

    def test_realloc_buf_for_a_transaction(self) -> None:
        frames = (frame(Command.CONTINUE, 0, seq, b"x" * 100) for seq in range(3))
        self.assertEqual(self.hear(BEGIN, *frames, limits=Limits(100, 250)), "REALLOC_BUF")
        self.assertEqual(self.sink.writes, 2)

    def test_flush_and_unknown_are_for_a_sink_that_fails_when_it_is_too_late_for_a_nack(self) -> None:
        failures = {"FLUSH": SinkError(ErrorCode.FLUSH, "disk full"), "UNKNOWN": ZeroDivisionError()}
        for code, failure in failures.items():
            with self.subTest(code):
                self.setUp()
                self.sink.is_slow = True
                _, peer, link = self.open_from_script(self.new_receiver(ack_first=True))
                peer.say(BEGIN, STATE, frame(Command.COMMIT, 0, 1))
                link.pump()
                self.sink.finish(failure)
                link.pump()
                self.assertEqual(code_of(self.secondary.lost_with), [code])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_reset_says_so(self) -> None:
        _, peer, link = self.open_from_script()
        peer.say(BEGIN, STATE)
        link.pump()
        link.cut(clean=False)
        link.pump()
        (error,) = self.secondary.lost_with
        assert error is not None
        self.assertEqual(error.code, ErrorCode.RECV_HDR)
        self.assertIn("lost", error.detail)

    def test_nothing_behind_an_error_is_looked_at(self) -> None:
        receiver, peer, link = self.open_from_script()
        whole = BEGIN + STATE + frame(Command.COMMIT, 0, 1)
        peer.say(frame(0x4547), whole)
        link.to_server.deliver()
        receiver.dataReceived(whole)
        link.pump()
        self.assertEqual((self.sink.kept, self.sink.writes, peer.commands()), ([], 0, []))


class SessionOwner(FakeSenderOwner):
    """Commits one transaction and cancels the next one."""

    def opened(self, sender: SenderProtocol, hello: Hello | None, next_id: int) -> None:
        """See `SenderOwner`."""
        super().opened(sender, hello, next_id)
        self.sender = sender
        sender.begin()
        sender.write(b"some ")
        sender.write(b"state")
        sender.commit()

    def acknowledged(self, transaction: InFlight) -> None:
        """See `SenderOwner`."""
        super().acknowledged(transaction)
        self.sender.begin()
        self.sender.write(b"other state")
        self.sender.cancel()


@attrs.frozen
class Cut:
    """The link ends when ``at`` bytes have arrived at the receiver (``is_up``) or at the sender."""

    is_up: bool
    at: int
    is_clean: bool


@attrs.frozen
class Places:
    """Offsets of the bytes in one direction at which something is whole; ``total`` is all of it."""

    frames: list[tuple[int, int]]
    total: int

    @classmethod
    def of(cls, stream: bytes) -> Places:
        """Where each frame's header and payload end."""
        at, frames = 0, []
        while at < len(stream):
            header_end = at + HEADER_SIZE
            at = header_end + int.from_bytes(stream[at + 8 : header_end], "little")
            frames.append((header_end, at))
        return cls(frames, at)

    def inside(self, offset: int) -> str | None:
        """The code of an end inside a frame, ``None`` for one between frames."""
        begin = 0
        for header_end, end in self.frames:
            if begin < offset < header_end:
                return "RECV_HDR"
            if header_end <= offset < end:
                return "RECV_PAYLOAD"
            begin = end
        return None


class CutTests(LinkTestCase):
    """
    The link is cut at every byte of a whole session::

        sender     HELLO         BEGIN CONTINUE CONTINUE COMMIT         BEGIN CONTINUE CANCEL
        receiver   HELLO   ACK                                   ACK
    """

    def setUp(self) -> None:
        super().setUp()
        self.primary = SessionOwner()

    def session(self, cut: Cut | None, chunk: int = TWISTED_BUFFER, capacity: int = TWISTED_BUFFER) -> Link:
        """A whole session, or what a cut leaves of it."""
        self.setUp()
        link = self.connect(capacity=capacity).link
        if cut is not None:
            (link.to_server if cut.is_up else link.to_client).cut(cut.at, clean=cut.is_clean)
        link.pump(chunk)
        return link

    def uncut(self) -> tuple[Places, Places]:
        """The session as it is when nothing breaks."""
        link = self.session(None)
        up, down = Places.of(bytes(link.to_server.delivered)), Places.of(bytes(link.to_client.delivered))
        self.assertEqual((len(up.frames), len(down.frames)), (8, 3))
        return up, down

    def assert_ends(self, link: Link, sender_code: str, receiver_code: str, is_kept: bool) -> None:
        self.assertTrue(link.is_over)
        self.assertEqual(code_of(self.primary.lost_with), [sender_code])
        self.assertEqual(code_of(self.secondary.lost_with), [receiver_code])
        self.assertEqual(self.sink.kept, [b"some state"] if is_kept else [])
        self.assertEqual((self.sink.held, self.sink.producer), (None, None))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_on_the_way_to_the_receiver(self) -> None:
        up, _ = self.uncut()
        hello, commit, cancel = (up.frames[index][1] for index in (0, 4, 7))
        for at, clean in product(range(up.total + 1), (True, False)):
            link = self.session(Cut(True, at, clean))
            # Between frames nothing is missing where the receiver waits for a BEGIN.
            receiver_code = up.inside(at) or ("none" if at in (hello, commit, cancel) else "RECV_HDR")
            with self.subTest(at=at, clean=clean):
                self.assert_ends(link, "RECV_HDR" if at <= commit else "none", receiver_code, at >= commit)

    def test_on_the_way_to_the_sender(self) -> None:
        _, down = self.uncut()
        hello, opening, ack = (end for _, end in down.frames)
        for at, clean in product(range(down.total + 1), (True, False)):
            link = self.session(Cut(False, at, clean))
            sender_code = down.inside(at) or ("none" if at == ack else "RECV_HDR")
            with self.subTest(at=at, clean=clean):
                self.assert_ends(link, sender_code, "RECV_HDR" if at <= hello else "none", at > opening)

    @examples(150)
    @given(
        st.builds(Cut, is_up=st.booleans(), at=st.integers(0, 600), is_clean=st.booleans()),
        st.integers(1, 40),
        st.integers(1, 60),
    )
    def test_a_frozen_link_in_any_pieces(self, cut: Cut, chunk: int, capacity: int) -> None:
        link = self.session(cut, chunk, capacity)
        if not link.is_over:
            # The session was too short to be cut there.
            link.cut(clean=cut.is_clean)
            link.pump()
        self.assertTrue(link.is_over)
        (sender_code,), (receiver_code,) = code_of(self.primary.lost_with), code_of(self.secondary.lost_with)
        self.assertIn(sender_code, ("none", "RECV_HDR", "RECV_PAYLOAD", "SEND_HDR", "SEND_PAYLOAD", "FLUSH"))
        self.assertIn(receiver_code, ("none", "RECV_HDR", "RECV_PAYLOAD"))
        is_known = "transaction 0 acknowledged" in self.primary.events
        self.assertIn(self.sink.kept, ([b"some state"],) if is_known else ([], [b"some state"]))
        self.assertEqual((self.sink.held, self.sink.producer), (None, None))
        self.assertEqual(self.clock.getDelayedCalls(), [])
