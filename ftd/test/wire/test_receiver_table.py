"""Every state of the receiver with every command and every call."""

from __future__ import annotations

from collections.abc import Callable

import xxhash
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.reaching import (
    FIRST_ID,
    LIMITS,
    UNKNOWN,
    RecordingTrace,
    frame,
    head,
    hello,
    hello_frame,
    listing,
    new_receiver,
    open_receiver,
    receiver_in,
    taken,
)
from ftd.wire.constants import FEATURES, Command
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import Begun, Cancelled, CommitRequested, HelloReceived, Payload
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.states import RECEIVER, Call, State

#: Written down without a look at the table: what is not here is an error.
EXPECTED = listing("""
    INIT                greet        HELLO
    INIT                open         ACK
    HELLO               HELLO        GREETED
    GREETED             open         ACK
    ACK CANCEL NACK     BEGIN        BEGIN
    ACK CANCEL NACK     ATOMIC       COMMIT
    BEGIN CONTINUE      CONTINUE     CONTINUE
    BEGIN CONTINUE      CANCEL       CANCEL
    BEGIN CONTINUE      COMMIT       COMMIT
    COMMIT              acknowledge  ACK
    COMMIT              refuse       NACK
""")

#: What the receiver offers for each call that concerns it.
CALLS: dict[Call, Callable[[ReceiverMachine], object]] = {
    Call.GREET: lambda machine: machine.greet(hello()),
    Call.OPEN: lambda machine: machine.open(),
    Call.ACKNOWLEDGE: lambda machine: machine.acknowledge(),
    Call.REFUSE: lambda machine: machine.refuse(ErrorCode.FLUSH),
}


def command_frame(machine: ReceiverMachine, cmd: int) -> bytes:
    """``cmd`` with the id, seq and payload that would be right for it."""
    if cmd == Command.HELLO:
        return hello_frame(state="primary")
    return frame(cmd, machine.id, machine.seq if machine.is_inside else 0)


def snapshot(machine: ReceiverMachine) -> tuple[object, ...]:
    """All that a caller can see of a receiver."""
    counters = machine.id, machine.seq, machine.size
    return machine.state, counters, machine.features, machine.limits, machine.peer_hello, machine.can_refuse


def go_on(machine: ReceiverMachine) -> list[object]:
    """Bring a receiver from wherever it stands to the end of a transaction and of one more: all it says and reports."""
    said: list[object] = []
    while machine.state is not State.CLOSED and len(said) < 30:
        if machine.state is State.INIT:
            said.append(machine.greet(hello()))
        elif machine.state is State.HELLO:
            said += taken(machine, hello_frame(state="primary"))
        elif machine.state is State.GREETED:
            said.append(machine.open())
        elif machine.is_inside and machine.seq < 3:
            said += taken(machine, frame(Command.CONTINUE, machine.id, machine.seq, b"a frame"))
        elif machine.is_inside:
            said += taken(machine, command_frame(machine, Command.COMMIT))
        elif machine.state is State.COMMIT:
            said.append(machine.acknowledge())
        else:
            said += taken(machine, command_frame(machine, Command.BEGIN))
    return said


class TableTests(SynchronousTestCase):
    """The table is the list above, and the machine is the table."""

    def test_table(self) -> None:
        table = {
            (state, key.name if isinstance(key, Command) else key.value): following
            for state, row in RECEIVER.items()
            for key, (following, _action) in row.items()
        }
        self.assertEqual(table, EXPECTED)
        self.assertEqual(set(RECEIVER), set(State))

    def test_every_command_in_every_state(self) -> None:
        """What the list does not have is STATE_INVALID, and the session is over."""
        for state in State:
            for cmd in (*Command, *UNKNOWN):
                name = Command(cmd).name if cmd in set(Command) else hex(cmd)
                where = f"{name} in {state.name}"
                machine = receiver_in(state)
                data = command_frame(machine, cmd)
                if (state, name) in EXPECTED:
                    taken(machine, data)
                    self.assertIs(machine.state, EXPECTED[state, name], where)
                else:
                    error = self.assertRaises(WireError, taken, machine, data)
                    self.assertIs(error.code, ErrorCode.STATE_INVALID, where)
                    self.assertIs(machine.state, State.CLOSED, where)

    def test_an_error_says_what_came_when(self) -> None:
        error = self.assertRaises(WireError, taken, receiver_in(State.BEGIN), frame(Command.BEGIN, FIRST_ID))
        self.assertEqual(error.detail, "BEGIN is not allowed in state BEGIN")
        error = self.assertRaises(WireError, taken, receiver_in(State.ACK), b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(error.detail, "unknown command 0x4547 in state ACK")
        error = self.assertRaises(WireError, taken, receiver_in(State.ACK), frame(0x0100))
        self.assertEqual(
            error.detail, "unknown command 0x0100 in state ACK; the peer seems to use the other byte order"
        )

    def test_a_peer_that_speaks_tls(self) -> None:
        """Its first bytes are those of a handshake; those of an alert come from one that was answered."""
        for start in (b"\x16\x03\x01\x02\x00", b"\x15\x03\x01\x00\x02"):
            error = self.assertRaises(WireError, taken, new_receiver(), start.ljust(12, b"\0"))
            self.assertIn("; the peer speaks TLS: both halves need link-certificate", error.detail)

    def test_every_number(self) -> None:
        """All 16 bits of ``cmd``, before the peer may say anything."""
        for cmd in range(1 << 16):
            machine = new_receiver()
            self.assertRaises(WireError, taken, machine, head(cmd))
            self.assertIs(machine.state, State.CLOSED)

    def test_every_call_in_every_state(self) -> None:
        """What the list does not have is refused, says nothing and changes nothing, now or later."""
        for state in State:
            for call, ask in CALLS.items():
                where = f"{call.value} in {state.name}"
                trace = RecordingTrace()
                machine = receiver_in(state, trace)
                if (state, call.value) in EXPECTED:
                    self.assertTrue(ask(machine), where)
                    self.assertIs(machine.state, EXPECTED[state, call.value], where)
                    continue
                before = snapshot(machine)
                trace.lines.clear()
                error = self.assertRaises(CallRefused, ask, machine)
                self.assertEqual(error.state, state.value, where)
                self.assertEqual(snapshot(machine), before, where)
                self.assertEqual(trace.lines, [], where)
                self.assertEqual(go_on(machine), go_on(receiver_in(state)), where)

    def test_calls_of_the_sender(self) -> None:
        """What a receiver never does it does not offer."""
        for call in set(Call) - set(CALLS):
            self.assertFalse(any(call in row for row in RECEIVER.values()), call)
            self.assertFalse(hasattr(ReceiverMachine, call.value), call)

    def test_is_inside(self) -> None:
        inside = {state for state in State if receiver_in(state).is_inside}
        self.assertEqual(inside, {State.BEGIN, State.CONTINUE})


class AfterAnErrorTests(SynchronousTestCase):
    """Once closed, a machine says nothing and takes nothing."""

    def assert_over(self, machine: ReceiverMachine) -> None:
        for ask in CALLS.values():
            self.assertRaises(CallRefused, ask, machine)
        for cmd in (*Command, *UNKNOWN):
            error = self.assertRaises(WireError, taken, machine, frame(cmd))
            self.assertIs(error.code, ErrorCode.STATE_INVALID)
        self.assertIs(machine.state, State.CLOSED)
        self.assertIsNone(machine.end_of_stream())

    def test_after_a_bad_command(self) -> None:
        for state in State:
            machine = receiver_in(state)
            self.assertRaises(WireError, taken, machine, frame(UNKNOWN[0]))
            self.assert_over(machine)

    def test_after_close(self) -> None:
        for state in State:
            machine = receiver_in(state)
            machine.close()
            self.assert_over(machine)

    def test_what_stands_behind_the_error_is_not_looked_at(self) -> None:
        machine = receiver_in(State.ACK)
        events = machine.receive(frame(Command.BEGIN, FIRST_ID) + frame(Command.BEGIN, FIRST_ID) + bytes(100))
        self.assertEqual(next(events), Begun(FIRST_ID))
        self.assertRaises(WireError, next, events)
        self.assertEqual(list(events), [])

    def test_payload_behind_the_error(self) -> None:
        """The payload of a frame that was refused by its header is nobody's when it comes all the same."""
        for refused in (
            head(Command.CONTINUE, FIRST_ID, 5, 100),
            head(Command.CONTINUE, FIRST_ID, 0, LIMITS.max_payload + 1),
        ):
            machine = receiver_in(State.BEGIN)
            self.assertRaises(WireError, taken, machine, refused)
            self.assertRaises(WireError, taken, machine, b"payload")
            self.assertEqual(machine.size, 0)
            self.assertIsNone(machine.end_of_stream())
        for refused in (head(Command.ATOMIC, 3, 0, 100), head(Command.ATOMIC, FIRST_ID, 0, LIMITS.max_payload + 1)):
            machine = receiver_in(State.ACK)
            self.assertRaises(WireError, taken, machine, refused)
            self.assertRaises(WireError, taken, machine, b"payload")
            self.assertEqual(machine.size, 0)

    def test_closed_while_the_events_are_drained(self) -> None:
        for data in (
            frame(Command.CONTINUE, FIRST_ID, 1, b"payload") + frame(Command.CONTINUE, FIRST_ID, 2, b"payload"),
            frame(Command.CANCEL, FIRST_ID, 1) + frame(Command.ATOMIC, FIRST_ID, 0, b"payload"),
        ):
            machine = receiver_in(State.CONTINUE)
            events = machine.receive(data)
            next(events)
            machine.close()
            self.assertRaises(WireError, next, events)


class EventTests(SynchronousTestCase):
    """What a receiver reports, and what it sends."""

    def test_opening_with_an_ftd(self) -> None:
        machine = new_receiver()
        self.assertEqual(machine.greet(hello()), hello_frame())
        self.assertEqual(taken(machine, hello_frame(state="primary")), [HelloReceived(hello(state="primary"))])
        self.assertEqual(machine.open(), frame(Command.ACK, FIRST_ID))

    def test_opening_with_a_kemari(self) -> None:
        """A Kemari sender's ids begin at 0 whatever this side expects."""
        machine = new_receiver(kemari=True)
        self.assertEqual(machine.open(), frame(Command.ACK))
        self.assertEqual(machine.features, frozenset())
        self.assertFalse(machine.can_refuse)

    def test_a_transaction(self) -> None:
        machine = open_receiver()
        self.assertEqual(taken(machine, frame(Command.BEGIN, FIRST_ID)), [Begun(FIRST_ID)])
        data = frame(Command.CONTINUE, FIRST_ID, 0, b"abc") + frame(Command.CONTINUE, FIRST_ID, 1)
        self.assertEqual(taken(machine, data), [Payload(memoryview(b"abc"))])
        self.assertEqual(taken(machine, frame(Command.CONTINUE, FIRST_ID, 2, b"d")), [Payload(memoryview(b"d"))])
        self.assertEqual((machine.seq, machine.size), (3, 4))
        request = CommitRequested(FIRST_ID, 3, 4, xxhash.xxh3_64_intdigest(b"abcd"), is_heartbeat=False)
        self.assertEqual(taken(machine, frame(Command.COMMIT, FIRST_ID, 3)), [request])
        self.assertEqual(machine.acknowledge(), frame(Command.ACK, FIRST_ID, 3))
        self.assertEqual(taken(machine, frame(Command.BEGIN, FIRST_ID + 1)), [Begun(FIRST_ID + 1)])
        self.assertEqual((machine.seq, machine.size), (0, 0))

    def test_nothing_behind_a_question_is_looked_at(self) -> None:
        """While the commit is not answered the receiver stands still, even inside a chunk."""
        machine = receiver_in(State.CONTINUE)
        events = machine.receive(frame(Command.COMMIT, FIRST_ID, 1) + frame(Command.BEGIN, FIRST_ID + 1))
        self.assertIsInstance(next(events), CommitRequested)
        self.assertIs(machine.state, State.COMMIT)
        machine.acknowledge()
        self.assertEqual(list(events), [Begun(FIRST_ID + 1)])

    def test_going_on_without_an_answer(self) -> None:
        machine = receiver_in(State.CONTINUE)
        events = machine.receive(frame(Command.COMMIT, FIRST_ID, 1) + frame(Command.BEGIN, FIRST_ID + 1))
        next(events)
        error = self.assertRaises(WireError, next, events)
        self.assertEqual(error.detail, "BEGIN is not allowed in state COMMIT")

    def test_cancel(self) -> None:
        """The id is not used up, and there is no reply."""
        machine = receiver_in(State.CONTINUE)
        self.assertEqual(taken(machine, frame(Command.CANCEL, FIRST_ID, 1)), [Cancelled(FIRST_ID)])
        self.assertEqual(taken(machine, frame(Command.BEGIN, FIRST_ID)), [Begun(FIRST_ID)])
        self.assertEqual((machine.seq, machine.size), (0, 0))

    def test_nothing_of_a_cancelled_transaction_is_left(self) -> None:
        machine = receiver_in(State.CANCEL)
        taken(machine, frame(Command.BEGIN, FIRST_ID) + frame(Command.CONTINUE, FIRST_ID, 0, b"new"))
        (request,) = taken(machine, frame(Command.COMMIT, FIRST_ID, 1))
        self.assertEqual(request, CommitRequested(FIRST_ID, 1, 3, xxhash.xxh3_64_intdigest(b"new"), is_heartbeat=False))

    def test_refuse(self) -> None:
        for code in ErrorCode:
            machine = receiver_in(State.COMMIT)
            self.assertEqual(machine.refuse(code), frame(Command.NACK, FIRST_ID, code))
            self.assertEqual(taken(machine, frame(Command.BEGIN, FIRST_ID)), [Begun(FIRST_ID)])

    def test_refuse_what_the_sender_would_not_understand(self) -> None:
        machine = open_receiver(FEATURES - {"nack", "digest"})
        taken(machine, frame(Command.BEGIN, FIRST_ID) + frame(Command.COMMIT, FIRST_ID))
        self.assertRaises(CallRefused, machine.refuse, ErrorCode.FLUSH)
        self.assertIs(machine.state, State.COMMIT)
        self.assertEqual(machine.acknowledge(), frame(Command.ACK, FIRST_ID))

    def test_atomic(self) -> None:
        machine = open_receiver()
        begun, *payload, request = taken(machine, frame(Command.ATOMIC, FIRST_ID, 0, b"whole"))
        self.assertEqual((begun, payload), (Begun(FIRST_ID), [Payload(memoryview(b"whole"))]))
        self.assertEqual(
            request, CommitRequested(FIRST_ID, 0, 5, xxhash.xxh3_64_intdigest(b"whole"), is_heartbeat=False)
        )
        self.assertEqual(machine.acknowledge(), frame(Command.ACK, FIRST_ID))

    def test_empty_atomic_is_no_heartbeat(self) -> None:
        begun, request = taken(open_receiver(), frame(Command.ATOMIC, FIRST_ID))
        self.assertEqual(begun, Begun(FIRST_ID))
        self.assertEqual(request, CommitRequested(FIRST_ID, 0, 0, xxhash.xxh3_64_intdigest(b""), is_heartbeat=False))

    def test_heartbeat(self) -> None:
        """Without a single frame it is a sign of life; with an empty one it is somebody's empty checkpoint."""
        for frames in (0, 1):
            machine = receiver_in(State.BEGIN)
            for seq in range(frames):
                self.assertEqual(taken(machine, frame(Command.CONTINUE, FIRST_ID, seq)), [])
            (request,) = taken(machine, frame(Command.COMMIT, FIRST_ID, frames))
            assert isinstance(request, CommitRequested)
            self.assertEqual((request.size, request.is_heartbeat), (0, frames == 0))

    def test_ids_wrap(self) -> None:
        machine = ReceiverMachine(LIMITS, pair="demo", next_id=65535)
        self.assertEqual(machine.open(), frame(Command.ACK, 65535))
        taken(machine, frame(Command.BEGIN, 65535) + frame(Command.COMMIT, 65535))
        machine.acknowledge()
        self.assertEqual(taken(machine, frame(Command.BEGIN, 0)), [Begun(0)])


class AnswerTests(SynchronousTestCase):
    """COMMIT is where the table allows an answer; there has to be a question too."""

    def test_before_the_whole_transaction_is_there(self) -> None:
        """The header of an ATOMIC, or of a COMMIT with a digest, is not the transaction."""
        for machine, data in (
            (open_receiver(), head(Command.ATOMIC, FIRST_ID, 0, 5) + b"whol"),
            (open_receiver(FEATURES), frame(Command.BEGIN, FIRST_ID) + head(Command.COMMIT, FIRST_ID, 0, 8)),
        ):
            taken(machine, data)
            self.assertIs(machine.state, State.COMMIT)
            before = snapshot(machine)
            self.assertRaises(CallRefused, machine.acknowledge)
            self.assertRaises(CallRefused, machine.refuse, ErrorCode.FLUSH)
            self.assertEqual(snapshot(machine), before)

    def test_an_earlier_question_is_no_question(self) -> None:
        """What one transaction was asked for does not let the next one be answered early."""
        machine = receiver_in(State.COMMIT)
        machine.acknowledge()
        taken(machine, head(Command.ATOMIC, FIRST_ID + 1, 0, 5) + b"whol")
        self.assertRaises(CallRefused, machine.acknowledge)

    def test_twice(self) -> None:
        machine = receiver_in(State.COMMIT)
        machine.acknowledge()
        self.assertRaises(CallRefused, machine.acknowledge)
        self.assertRaises(CallRefused, machine.refuse, ErrorCode.FLUSH)


class WrongHeaderTests(SynchronousTestCase):
    """A command that the state allows, with something else wrong."""

    def assert_invalid(self, state: State, data: bytes, detail: str) -> None:
        machine = receiver_in(state)
        error = self.assertRaises(WireError, taken, machine, data)
        self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, detail))
        self.assertIs(machine.state, State.CLOSED)

    def test_id_and_seq(self) -> None:
        inside = (State.CONTINUE, 1, (Command.CONTINUE, Command.COMMIT, Command.CANCEL))
        between = (State.ACK, 0, (Command.BEGIN, Command.ATOMIC))
        for state, right, commands in (inside, between):
            for cmd in commands:
                for id, seq in ((FIRST_ID + 1, right), (FIRST_ID - 1, right), (FIRST_ID, right + 1), (FIRST_ID, 9)):
                    self.assert_invalid(
                        state,
                        frame(cmd, id, seq),
                        f"{cmd.name} of id {id} seq {seq}, expected id {FIRST_ID} seq {right}",
                    )

    def test_payload_where_none_may_be(self) -> None:
        for state, seq, cmd in (
            (State.ACK, 0, Command.BEGIN),
            (State.CONTINUE, 1, Command.COMMIT),
            (State.CONTINUE, 1, Command.CANCEL),
        ):
            detail = f"{cmd.name} carries 3 bytes of payload where none may be"
            self.assert_invalid(state, head(cmd, FIRST_ID, seq, 3), detail)

    def test_atomic_that_was_not_agreed(self) -> None:
        machine = open_receiver(FEATURES - {"atomic"})
        error = self.assertRaises(WireError, taken, machine, frame(Command.ATOMIC, FIRST_ID, 0, b"whole"))
        self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, "ATOMIC was not agreed"))


class KemariTests(SynchronousTestCase):
    """With a Kemari sender the id is taken as it comes, and seq is what the frames are counted by."""

    def opened(self) -> ReceiverMachine:
        machine = new_receiver(kemari=True)
        machine.open()
        return machine

    def test_ids_as_they_come(self) -> None:
        """The id repeats, jumps, or moves on inside a transaction; the ACK echoes the one of the COMMIT."""
        for ids in ((0, 0, 0), (0, 0, 1), (9, 9, 9), (0, 1, 1), (65535, 65535, 0)):
            machine = self.opened()
            for cmd, seq, id in zip((Command.BEGIN, Command.CONTINUE, Command.COMMIT), (0, 0, 1), ids, strict=True):
                taken(machine, frame(cmd, id, seq))
            self.assertEqual(machine.acknowledge(), frame(Command.ACK, ids[-1], 1))

    def test_wrong_seq(self) -> None:
        for cmd in (Command.CONTINUE, Command.COMMIT, Command.CANCEL):
            for seq in (0, 2):
                machine = self.opened()
                taken(machine, frame(Command.BEGIN) + frame(Command.CONTINUE, 0, 0, b"abc"))
                error = self.assertRaises(WireError, taken, machine, frame(cmd, 0, seq))
                self.assertIs(error.code, ErrorCode.STATE_INVALID)

    def test_empty_frames_counted_or_not(self) -> None:
        for counted in (True, False):
            machine = self.opened()
            taken(machine, frame(Command.BEGIN) + frame(Command.CONTINUE, 0, 0, b"abc"))
            seq = 1
            for _ in range(3):
                taken(machine, frame(Command.CONTINUE, 0, seq))
                seq += counted
            taken(machine, frame(Command.CONTINUE, 0, seq, b"def"))
            (request,) = taken(machine, frame(Command.COMMIT, 0, seq + 1))
            assert isinstance(request, CommitRequested)
            self.assertEqual((request.seq, request.size), (seq + 1, 6))
            self.assertEqual(machine.acknowledge(), frame(Command.ACK, 0, seq + 1))

    def test_only_an_empty_frame_may_go_uncounted(self) -> None:
        """Not one with payload, and not an empty one before that."""
        machine = self.opened()
        taken(machine, frame(Command.BEGIN) + frame(Command.CONTINUE, 0, 0) + frame(Command.CONTINUE, 0, 1, b"abc"))
        error = self.assertRaises(WireError, taken, machine, frame(Command.COMMIT, 0, 1))
        self.assertIs(error.code, ErrorCode.STATE_INVALID)

    def test_between_two_ftd_every_frame_counts(self) -> None:
        machine = receiver_in(State.BEGIN)
        taken(machine, frame(Command.CONTINUE, FIRST_ID, 0))
        self.assertRaises(WireError, taken, machine, frame(Command.CONTINUE, FIRST_ID, 0, b"abc"))


class TraceTests(SynchronousTestCase):
    """The events of the trace that belong to a receiver."""

    def test_a_session(self) -> None:
        trace = RecordingTrace()
        machine = receiver_in(State.BEGIN, trace)
        data = frame(Command.CONTINUE, FIRST_ID, 0, b"abcdefg")
        taken(machine, data[:15])
        taken(machine, data[15:])
        taken(machine, frame(Command.COMMIT, FIRST_ID, 1))
        machine.acknowledge()
        self.assertEqual(
            trace.lines,
            [
                ("send_header", 7),
                ("recv_header", 7),
                ("send_header", 6),
                ("recv_header", 1),
                ("recv_header", 2),
                ("recv_payload", 3, 7, 0),
                ("recv_payload", 4, 4, 3),
                ("recv_header", 3),
                ("send_header", 6),
            ],
        )
