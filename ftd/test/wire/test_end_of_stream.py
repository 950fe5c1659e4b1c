"""The peer closes the link: at every byte of a session, and what each end says of it."""

from __future__ import annotations

import attrs
import xxhash
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.reaching import (
    FIRST_ID,
    NO_DIGEST,
    fed,
    frame,
    hello,
    hello_frame,
    new_receiver,
    new_sender,
    receiver_in,
    sender_in,
    taken,
)
from ftd.wire.constants import FEATURES, HEADER_SIZE, Command
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import CommitRequested, HelloReceived
from ftd.wire.states import State

#: What `end_of_stream` returns: a code and a sentence, or nothing.
Ending = tuple[ErrorCode, str] | None

NOT_OPEN: Ending = (ErrorCode.RECV_HDR, "the peer closed the link before the session was open")
IN_HEADER: Ending = (ErrorCode.RECV_HDR, "the peer closed the link in the middle of a header")


def uncommitted(id: int) -> Ending:
    return ErrorCode.RECV_HDR, f"the peer closed the link before transaction {id} was committed"


def unanswered(id: int) -> Ending:
    return ErrorCode.RECV_HDR, f"the peer closed the link before the ACK of transaction {id}"


def in_payload(left: int) -> Ending:
    return ErrorCode.RECV_PAYLOAD, f"the peer closed the link inside a payload, {left} bytes before its end"


@attrs.frozen
class Sent:
    """A frame of the session, and what is said of a link that ends behind it."""

    data: bytes
    ending: Ending
    asks: bool = False


def endings(before: Ending, frames: list[Sent]) -> list[Ending]:
    """For each number of bytes that arrive, from none to all of them, what has to be said when no more come."""
    found = [before]
    for sent in frames:
        found += [IN_HEADER] * (HEADER_SIZE - 1)
        found += [in_payload(left) for left in range(len(sent.data) - HEADER_SIZE, 0, -1)]
        found.append(sent.ending)
    return found


def seen(error: WireError | None) -> Ending:
    return None if error is None else (error.code, error.detail)


class ReceiverTests(SynchronousTestCase):
    """The sender closes."""

    def session(self, features: frozenset[str]) -> list[Sent]:
        """All that a sender can say."""

        def digest(state: bytes) -> bytes:
            return xxhash.xxh3_64_intdigest(state).to_bytes(8, "little") if "digest" in features else b""

        first, second = FIRST_ID, FIRST_ID + 1
        return [
            Sent(hello_frame(features, "primary"), None),
            Sent(frame(Command.BEGIN, first), uncommitted(first)),
            Sent(frame(Command.CONTINUE, first, 0, b"abcde"), uncommitted(first)),
            Sent(frame(Command.CONTINUE, first, 1), uncommitted(first)),
            Sent(frame(Command.CANCEL, first, 2), None),
            Sent(frame(Command.BEGIN, first), uncommitted(first)),
            Sent(frame(Command.CONTINUE, first, 0, b"fghij"), uncommitted(first)),
            Sent(frame(Command.COMMIT, first, 1, digest(b"fghij")), None, asks=True),
            Sent(frame(Command.ATOMIC, second, 0, b"whole" + digest(b"whole")), None, asks=True),
        ]

    def test_at_every_byte(self) -> None:
        """Whatever is cut short is not asked to be committed, and cannot be any more."""
        for features in (FEATURES, NO_DIGEST):
            frames = self.session(features)
            data = b"".join(sent.data for sent in frames)
            expected = endings(NOT_OPEN, frames)
            self.assertEqual(len(expected), len(data) + 1)
            for length, ending in enumerate(expected):
                machine = new_receiver()
                machine.greet(hello(features=FEATURES))
                asked = 0
                for event in machine.receive(data[:length]):
                    if isinstance(event, HelloReceived):
                        machine.open()
                    elif isinstance(event, CommitRequested):
                        machine.acknowledge()
                        asked += 1
                self.assertEqual(asked, self.whole(frames, length), f"after {length} bytes")
                self.assertEqual(seen(machine.end_of_stream()), ending, f"after {length} bytes")
                self.assertIs(machine.state, State.CLOSED)
                self.assertRaises(CallRefused, machine.acknowledge)

    def whole(self, frames: list[Sent], length: int) -> int:
        """How many of the frames that ask for a commit are whole after ``length`` bytes."""
        count = 0
        for sent in frames:
            length -= len(sent.data)
            count += sent.asks and length >= 0
        return count

    def test_before_the_answer(self) -> None:
        """The sender has said all that it had to say; its transaction is not lost, but nobody waits for the answer."""
        machine = receiver_in(State.COMMIT)
        self.assertIsNone(machine.end_of_stream())
        self.assertRaises(CallRefused, machine.acknowledge)
        self.assertRaises(CallRefused, machine.refuse, ErrorCode.FLUSH)

    def test_in_every_state(self) -> None:
        expected: dict[State, Ending] = dict.fromkeys(State)
        expected |= dict.fromkeys((State.INIT, State.HELLO, State.GREETED), NOT_OPEN)
        expected |= dict.fromkeys((State.BEGIN, State.CONTINUE), uncommitted(FIRST_ID))
        self.assertEqual({state: seen(receiver_in(state).end_of_stream()) for state in State}, expected)

    def test_a_kemari_that_says_nothing(self) -> None:
        """Its session is open with the first ACK: going without a transaction is its right."""
        machine = new_receiver(kemari=True)
        machine.open()
        self.assertIsNone(machine.end_of_stream())

    def test_twice(self) -> None:
        machine = receiver_in(State.CONTINUE)
        self.assertIsNotNone(machine.end_of_stream())
        self.assertIsNone(machine.end_of_stream())

    def test_after_an_error(self) -> None:
        """The error is what broke the session, not the end that comes after it."""
        machine = receiver_in(State.CONTINUE)
        self.assertRaises(WireError, taken, machine, frame(Command.BEGIN, FIRST_ID)[:4] + bytes(7) + b"\xff")
        self.assertIsNone(machine.end_of_stream())


class SenderTests(SynchronousTestCase):
    """The receiver closes."""

    def session(self) -> list[Sent]:
        """All that a receiver can say to a sender that commits a transaction as soon as it can, three times."""
        first, second = FIRST_ID, FIRST_ID + 1
        return [
            Sent(hello_frame(), NOT_OPEN),
            Sent(frame(Command.ACK, first), unanswered(first)),
            Sent(frame(Command.ACK, first, 1), unanswered(second)),
            Sent(frame(Command.NACK, second, ErrorCode.FLUSH), unanswered(second)),
            Sent(frame(Command.ACK, second, 1), None),
        ]

    def test_at_every_byte(self) -> None:
        frames = self.session()
        data = b"".join(sent.data for sent in frames)
        expected = endings(NOT_OPEN, frames)
        self.assertEqual(len(expected), len(data) + 1)
        for length, ending in enumerate(expected):
            machine = new_sender()
            begun = 0
            for event in machine.receive(data[:length]):
                if isinstance(event, HelloReceived):
                    machine.greet(hello(state="primary"))
                elif begun < 3:
                    begun += 1
                    machine.begin()
                    machine.continue_(b"abc")
                    machine.commit()
            in_flight = list(machine.in_flight)
            self.assertEqual(seen(machine.end_of_stream()), ending, f"after {length} bytes")
            self.assertIs(machine.state, State.CLOSED)
            # What became of it is learnt from the next link's opening ACK, so it is still known.
            self.assertEqual(list(machine.in_flight), in_flight)
            self.assertRaises(CallRefused, machine.begin)

    def test_in_every_state(self) -> None:
        expected: dict[State, Ending] = dict.fromkeys(State)
        expected |= dict.fromkeys((State.INIT, State.HELLO, State.GREETED), NOT_OPEN)
        expected |= dict.fromkeys((State.BEGIN, State.CONTINUE), uncommitted(FIRST_ID))
        expected[State.COMMIT] = unanswered(FIRST_ID)
        self.assertEqual({state: seen(sender_in(state).end_of_stream()) for state in State}, expected)

    def test_inside_a_header(self) -> None:
        """Where the stream broke comes before what was expected of it."""
        machine = sender_in(State.COMMIT)
        fed(machine, frame(Command.ACK, FIRST_ID, 1)[:5])
        self.assertEqual(seen(machine.end_of_stream()), IN_HEADER)

    def test_twice(self) -> None:
        machine = sender_in(State.COMMIT)
        self.assertIsNotNone(machine.end_of_stream())
        self.assertIsNone(machine.end_of_stream())
