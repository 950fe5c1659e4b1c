"""What was in flight behind a transaction that was refused is read and dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.test.wire.reaching import FIRST_ID, LIMITS, NO_DIGEST, frame, head, taken
from ftd.test.wire.test_placement import opened
from ftd.wire.constants import FEATURES, ID_MODULUS, Command
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.events import Begun, CommitRequested, ReceiverEvent
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.states import State

WINDOW = 4


def whole(id: int, *payloads: bytes) -> bytes:
    """A transaction without a digest."""
    frames = [frame(Command.CONTINUE, id, seq, payload) for seq, payload in enumerate(payloads)]
    return b"".join((frame(Command.BEGIN, id), *frames, frame(Command.COMMIT, id, len(payloads))))


def refused(window: int = WINDOW, features: frozenset[str] = NO_DIGEST, id: int = FIRST_ID) -> ReceiverMachine:
    """A receiver that has refused the transaction ``id``."""
    machine = opened(features, LIMITS, window=window)
    machine.id = id
    taken(machine, frame(Command.BEGIN, id) + frame(Command.CONTINUE, id, 0, b"state"))
    list(machine.receive(frame(Command.COMMIT, id, 1, bytes(8) if "digest" in features else b"")))
    assert machine.refuse(ErrorCode.FLUSH) == frame(Command.NACK, id, ErrorCode.FLUSH)
    return machine


class DroppingTests(SynchronousTestCase):
    """Behind a NACK, with a window."""

    def assert_refuses(self, machine: ReceiverMachine, data: bytes, code: ErrorCode, why: str) -> None:
        error = self.assertRaises(WireError, taken, machine, data)
        self.assertEqual(error.code, code)
        self.assertIn(why, error.detail)
        self.assertIs(machine.state, State.CLOSED)
        self.assertRaises(WireError, taken, machine, frame(Command.BEGIN, FIRST_ID))

    def test_whole_ones_open_ones_and_signs_of_life(self) -> None:
        behind = [
            whole(FIRST_ID + 1, b"a", b"", b"bcd"),
            whole(FIRST_ID + 2),
            frame(Command.ATOMIC, FIRST_ID + 2, 0, b"atomic"),
            frame(Command.BEGIN, FIRST_ID + 3) + frame(Command.CONTINUE, FIRST_ID + 3, 0, b"abc"),
            frame(Command.CANCEL, FIRST_ID + 3, 1),
        ]
        machine = refused()
        self.assertEqual(taken(machine, b"".join(behind)), [])
        self.assertIs(machine.state, State.NACK)
        self.assertFalse(machine.is_inside)
        events = taken(machine, whole(FIRST_ID, b"again"))
        self.assertEqual(events[0], Begun(FIRST_ID))
        self.assertIsInstance(events[-1], CommitRequested)
        self.assertEqual(machine.acknowledge(), frame(Command.ACK, FIRST_ID, 1))
        # From here on it is a session like any other.
        self.assert_refuses(machine, frame(Command.BEGIN, FIRST_ID + 2), ErrorCode.STATE_INVALID, "expected id")

    def test_an_atomic_one_ends_it_too(self) -> None:
        machine = refused()
        self.assertEqual(taken(machine, whole(FIRST_ID + 1, b"dropped")), [])
        self.assertIsInstance(taken(machine, frame(Command.ATOMIC, FIRST_ID, 0, b"again"))[-1], CommitRequested)

    def test_ids_wrap(self) -> None:
        last = ID_MODULUS - 1
        machine = refused(id=last)
        self.assertEqual(taken(machine, whole(0, b"a") + whole(1, b"b") + whole(2, b"c")), [])
        self.assertEqual(taken(machine, frame(Command.BEGIN, last)), [Begun(last)])

    def test_twice(self) -> None:
        machine = refused()
        taken(machine, whole(FIRST_ID + 1, b"dropped"))
        taken(machine, whole(FIRST_ID, b"again"))
        machine.refuse(ErrorCode.FLUSH)
        self.assertEqual(taken(machine, whole(FIRST_ID + 1, b"dropped") + whole(FIRST_ID + 3, b"dropped")), [])
        self.assertEqual(taken(machine, frame(Command.BEGIN, FIRST_ID)), [Begun(FIRST_ID)])

    def test_after_a_digest_that_was_wrong(self) -> None:
        machine = refused(features=FEATURES)
        commit = frame(Command.COMMIT, FIRST_ID + 1, 0, bytes(8))
        self.assertEqual(taken(machine, frame(Command.BEGIN, FIRST_ID + 1) + commit), [])
        self.assert_refuses(machine, head(Command.COMMIT, FIRST_ID + 1, 0, 7), ErrorCode.STATE_INVALID, "digest")

    def test_not_without_a_window(self) -> None:
        for machine in (refused(window=1), refused(features=NO_DIGEST - {"window"})):
            self.assert_refuses(machine, frame(Command.BEGIN, FIRST_ID + 1), ErrorCode.STATE_INVALID, "expected id")

    def test_what_cannot_have_been_in_flight(self) -> None:
        for id in (FIRST_ID + WINDOW, FIRST_ID - 1):
            self.assert_refuses(refused(), frame(Command.BEGIN, id), ErrorCode.STATE_INVALID, f"BEGIN of id {id}")
        for command in (Command.CONTINUE, Command.COMMIT, Command.CANCEL):
            self.assert_refuses(refused(), frame(command, FIRST_ID), ErrorCode.STATE_INVALID, "is not allowed in state")

    def test_what_is_not_of_a_transaction(self) -> None:
        for command in (Command.INIT, Command.ACK, Command.HELLO, Command.NACK):
            self.assert_refuses(refused(), frame(command, FIRST_ID + 1), ErrorCode.STATE_INVALID, "is not allowed")
        self.assert_refuses(refused(), head(99, FIRST_ID + 1), ErrorCode.STATE_INVALID, "unknown command")

    def test_payload_that_may_not_be(self) -> None:
        for command in (Command.BEGIN, Command.CANCEL, Command.COMMIT):
            data = head(command, FIRST_ID + 1, 0, 3)
            self.assert_refuses(refused(), data, ErrorCode.STATE_INVALID, "where none may be")
        data = head(Command.CONTINUE, FIRST_ID + 1, 0, LIMITS.max_payload + 9)
        self.assert_refuses(refused(), data, ErrorCode.REALLOC_BUF, "max-payload")

    def test_the_end_of_the_stream(self) -> None:
        for data, code in ((b"", ""), (b"x", "RECV_HDR"), (head(Command.CONTINUE, FIRST_ID + 1, 0, 3), "RECV_PAYLOAD")):
            machine = refused()
            taken(machine, data)
            error = machine.end_of_stream()
            self.assertEqual(error.code.name if error is not None else "", code)

    @examples(100)
    @given(st.data())
    def test_wherever_it_is_cut(self, data: st.DataObject) -> None:
        stream = b"".join(
            whole(
                FIRST_ID + data.draw(st.integers(1, WINDOW - 1)),
                *data.draw(st.lists(st.binary(max_size=30), max_size=3)),
            )
            for _ in range(data.draw(st.integers(0, 4)))
        )
        stream += whole(FIRST_ID, b"again")
        machine = refused()
        events: list[ReceiverEvent] = []
        at = 0
        while at < len(stream):
            size = data.draw(st.integers(1, 40))
            events += taken(machine, stream[at : at + size])
            at += size
        self.assertEqual(events[0], Begun(FIRST_ID))
        self.assertIsInstance(events[-1], CommitRequested)
        self.assertEqual((machine.seq, machine.size), (1, 5))
