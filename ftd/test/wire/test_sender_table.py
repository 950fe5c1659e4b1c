"""Every state of the sender with every command and every call."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.reaching import (
    FIRST_ID,
    LIMITS,
    PAIR,
    UNKNOWN,
    RecordingTrace,
    fed,
    frame,
    head,
    hello,
    hello_frame,
    listing,
    new_sender,
    open_sender,
    sender_in,
    sender_in_window,
)
from ftd.wire.constants import FEATURES, MAX_SEQ, Command
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import Acknowledged, HelloReceived, InFlight, Opened, Refused
from ftd.wire.sender import SenderMachine
from ftd.wire.session import NO_TRACE, Limits
from ftd.wire.states import SENDER, Call, State

#: Written down without a look at the table: what is not here is an error.
EXPECTED = listing("""
    INIT                HELLO     GREETED
    INIT                ACK       ACK
    GREETED             greet     HELLO
    HELLO               HELLO     HELLO
    HELLO               ACK       ACK
    ACK CANCEL NACK     begin     BEGIN
    ACK CANCEL NACK     atomic    COMMIT
    BEGIN CONTINUE      continue  CONTINUE
    BEGIN CONTINUE      cancel    CANCEL
    BEGIN CONTINUE      commit    COMMIT
    COMMIT              ACK       ACK
    COMMIT              NACK      NACK
""")

#: The same for what else there is with a transaction in flight and room in the window.
IN_WINDOW = listing("""
    COMMIT                 begin  BEGIN
    COMMIT                 atomic COMMIT
    ACK                    ACK    ACK
    CANCEL                 ACK    CANCEL
    BEGIN                  ACK    BEGIN
    CONTINUE               ACK    CONTINUE
    ACK CANCEL             NACK   NACK
    BEGIN CONTINUE         NACK   CANCEL
""")

#: The states that a sender can be in with a transaction in flight.
WAITING = (State.ACK, State.CANCEL, State.BEGIN, State.CONTINUE, State.COMMIT)

#: What the sender offers for each call that concerns it.
CALLS: dict[Call, Callable[[SenderMachine], object]] = {
    Call.GREET: lambda machine: machine.greet(hello(state="primary")),
    Call.BEGIN: lambda machine: machine.begin(),
    Call.CONTINUE: lambda machine: machine.continue_(b"more"),
    Call.COMMIT: lambda machine: machine.commit(),
    Call.CANCEL: lambda machine: machine.cancel(),
    Call.ATOMIC: lambda machine: machine.atomic(b"whole"),
}


def command_frame(machine: SenderMachine, cmd: int) -> bytes:
    """``cmd`` with the id, seq and payload that would be right for it."""
    if cmd == Command.HELLO:
        return hello_frame()
    if machine.in_flight:
        transaction = machine.in_flight[0]
        return frame(cmd, transaction.id, ErrorCode.FLUSH if cmd == Command.NACK else transaction.seq)
    return frame(cmd, FIRST_ID)


def snapshot(machine: SenderMachine) -> tuple[object, ...]:
    """All that a caller can see of a sender."""
    counters = machine.id, machine.seq, machine.size, tuple(machine.in_flight)
    return machine.state, counters, machine.features, machine.limits, machine.peer_hello


def go_on(machine: SenderMachine) -> list[object]:
    """Bring a sender from wherever it stands to the end of a transaction and of one more: all it says and reports."""
    said: list[object] = []
    while machine.state is not State.CLOSED and len(said) < 30:
        if machine.state is State.INIT:
            said += fed(machine, hello_frame())
        elif machine.state is State.GREETED:
            said.append(machine.greet(hello(state="primary")))
        elif machine.state in (State.BEGIN, State.CONTINUE) and machine.seq < 3:
            said.append(machine.continue_(b"a frame"))
        elif machine.state in (State.BEGIN, State.CONTINUE):
            said.append(machine.commit())
        elif machine.state in (State.HELLO, State.COMMIT):
            said += fed(machine, command_frame(machine, Command.ACK))
        else:
            said.append(machine.begin())
    return said


class TableTests(SynchronousTestCase):
    """The table is the list above, and the machine is the table."""

    def test_table(self) -> None:
        table = {
            (state, key.name if isinstance(key, Command) else key.value): following
            for state, row in SENDER.items()
            for key, (following, _action) in row.items()
        }
        self.assertEqual(table, EXPECTED | IN_WINDOW)
        self.assertEqual(set(SENDER), set(State))

    def test_every_command_in_every_state(self) -> None:
        """What the list does not have is STATE_INVALID, and the session is over."""
        for state in State:
            for cmd in (*Command, *UNKNOWN):
                name = Command(cmd).name if cmd in set(Command) else hex(cmd)
                where = f"{name} in {state.name}"
                if (state, name) == (State.HELLO, "HELLO"):
                    continue  # SecondHelloTests
                machine = sender_in(state)
                data = command_frame(machine, cmd)
                if (state, name) in EXPECTED:
                    self.assertEqual(len(fed(machine, data)), 1, where)
                    self.assertIs(machine.state, EXPECTED[state, name], where)
                else:
                    error = self.assertRaises(WireError, fed, machine, data)
                    self.assertIs(error.code, ErrorCode.STATE_INVALID, where)
                    self.assertIs(machine.state, State.CLOSED, where)

    def test_an_error_says_what_came_when(self) -> None:
        error = self.assertRaises(WireError, fed, sender_in(State.CONTINUE), frame(Command.ACK, FIRST_ID))
        self.assertEqual(error.detail, "ACK is not allowed in state CONTINUE")
        error = self.assertRaises(WireError, fed, sender_in(State.COMMIT), frame(0x1234))
        self.assertEqual(error.detail, "unknown command 0x1234 in state COMMIT")
        error = self.assertRaises(WireError, fed, sender_in(State.INIT), frame(0x0700))
        self.assertEqual(
            error.detail, "unknown command 0x0700 in state INIT; the peer seems to use the other byte order"
        )

    def test_every_number(self) -> None:
        """All 16 bits of ``cmd``, before the session is open."""
        allowed = []
        for cmd in range(1 << 16):
            machine = new_sender()
            try:
                list(machine.receive(head(cmd, payload_len=50 if cmd == Command.HELLO else 0)))
            except WireError:
                self.assertIs(machine.state, State.CLOSED)
            else:
                allowed.append(cmd)
        self.assertEqual(allowed, [Command.ACK, Command.HELLO])

    def test_every_call_in_every_state(self) -> None:
        """What the list does not have is refused, says nothing and changes nothing, now or later."""
        for state in State:
            for call, ask in CALLS.items():
                where = f"{call.value} in {state.name}"
                trace = RecordingTrace()
                machine = sender_in(state, trace)
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
                self.assertEqual(go_on(machine), go_on(sender_in(state)), where)

    def test_heartbeat(self) -> None:
        """A heartbeat is possible where a transaction is; elsewhere it is refused and changes nothing."""
        for state in State:
            machine = sender_in(state)
            before = snapshot(machine)
            if (state, "begin") in EXPECTED:
                machine.heartbeat()
                self.assertIs(machine.state, State.COMMIT, state)
                self.assertTrue(machine.in_flight[0].is_heartbeat)
            else:
                self.assertRaises(CallRefused, machine.heartbeat)
                self.assertEqual(snapshot(machine), before, state)

    def test_calls_of_the_receiver(self) -> None:
        """What a sender never does it does not offer."""
        for call in set(Call) - set(CALLS):
            self.assertFalse(any(call in row for row in SENDER.values()), call)
            self.assertFalse(hasattr(SenderMachine, call.value), call)

    def test_is_inside(self) -> None:
        inside = {state for state in State if sender_in(state).is_inside}
        self.assertEqual(inside, {State.BEGIN, State.CONTINUE})


class WindowTests(SynchronousTestCase):
    """More than one transaction in flight."""

    def test_every_command_in_every_state(self) -> None:
        for state in WAITING:
            for cmd in (*Command, *UNKNOWN):
                name = Command(cmd).name if cmd in set(Command) else hex(cmd)
                where = f"{name} in {state.name}"
                machine = sender_in_window(state)
                following = {**EXPECTED, **IN_WINDOW}.get((state, name))
                if following is not None:
                    self.assertEqual(len(fed(machine, command_frame(machine, cmd))), 1, where)
                    self.assertIs(machine.state, following, where)
                else:
                    error = self.assertRaises(WireError, fed, machine, command_frame(machine, cmd))
                    self.assertIs(error.code, ErrorCode.STATE_INVALID, where)

    def test_every_call_in_every_state(self) -> None:
        for state in WAITING:
            for call, ask in CALLS.items():
                where = f"{call.value} in {state.name}"
                trace = RecordingTrace()
                machine = sender_in_window(state, trace)
                following = {**EXPECTED, **IN_WINDOW}.get((state, call.value))
                if following is not None:
                    self.assertTrue(ask(machine), where)
                    self.assertIs(machine.state, following, where)
                    continue
                before = snapshot(machine)
                trace.lines.clear()
                self.assertRaises(CallRefused, ask, machine)
                self.assertEqual(snapshot(machine), before, where)
                self.assertEqual(trace.lines, [], where)

    def test_as_many_as_the_window_says(self) -> None:
        machine = open_sender(window=3)
        for _ in range(3):
            machine.heartbeat()
        before = snapshot(machine)
        for ask in (SenderMachine.begin, SenderMachine.atomic, SenderMachine.heartbeat):
            error = self.assertRaises(CallRefused, ask, machine)
            self.assertIn("3 transactions await their ACK", str(error))
        self.assertEqual(snapshot(machine), before)
        fed(machine, frame(Command.ACK, FIRST_ID))
        self.assertEqual(machine.begin(), frame(Command.BEGIN, FIRST_ID + 3))

    def test_the_smaller_window_counts(self) -> None:
        for ours, theirs in ((2, 5), (5, 2)):
            machine = new_sender()
            fed(machine, frame(Command.HELLO, payload=hello(window=theirs).encode()))
            self.assertEqual(machine.window, 1)
            machine.greet(hello(window=ours))
            self.assertEqual(machine.window, 2)

    def test_a_window_that_was_not_agreed(self) -> None:
        kemari = new_sender()
        fed(kemari, frame(Command.ACK, FIRST_ID))
        for machine in (kemari, open_sender(FEATURES - {"window"}, window=4)):
            machine.heartbeat()
            self.assertRaises(CallRefused, machine.begin)

    def test_an_answer_does_not_disturb_the_open_transaction(self) -> None:
        """Neither its id, nor its counters, nor its digest."""
        quiet, disturbed = (open_sender(FEATURES, window=2) for _ in range(2))
        for machine in (quiet, disturbed):
            machine.heartbeat()
            machine.begin()
            machine.continue_(b"one")
        (acknowledged,) = fed(disturbed, frame(Command.ACK, FIRST_ID))
        self.assertEqual(acknowledged, Acknowledged(InFlight(FIRST_ID, 0, 0, is_heartbeat=True)))
        for machine in (quiet, disturbed):
            machine.continue_(b"two")
        self.assertEqual(disturbed.commit(), quiet.commit())
        self.assertEqual([transaction.id for transaction in disturbed.in_flight], [FIRST_ID + 1])

    def test_acks_come_in_order(self) -> None:
        machine = open_sender(window=3)
        for _ in range(3):
            machine.heartbeat()
        fed(machine, frame(Command.ACK, FIRST_ID))
        error = self.assertRaises(WireError, fed, machine, frame(Command.ACK, FIRST_ID + 2))
        self.assertEqual(error.detail, f"ACK of id 9 seq 0, expected for id {FIRST_ID + 1} seq 0")

    def test_a_nack_drops_all_that_is_behind_it(self) -> None:
        machine = open_sender(window=4)
        for _ in range(3):
            machine.begin()
            machine.continue_(b"abc")
            machine.commit()
        fed(machine, frame(Command.ACK, FIRST_ID, 1))
        machine.begin()
        machine.continue_(b"a")
        machine.continue_(b"b")
        (refused,) = fed(machine, frame(Command.NACK, FIRST_ID + 1, ErrorCode.FLUSH))
        first, second = (InFlight(FIRST_ID + at, 1, 3, is_heartbeat=False) for at in (1, 2))
        cancel = frame(Command.CANCEL, FIRST_ID + 3, 2)
        self.assertEqual(refused, Refused(first, ErrorCode.FLUSH, (second,), cancel))
        self.assertEqual((machine.seq, machine.size), (2, 2), "of the one that was open")
        self.assertFalse(machine.in_flight)
        self.assertRaises(CallRefused, machine.continue_, b"c")
        self.assertEqual(machine.begin(), frame(Command.BEGIN, FIRST_ID + 1))

    def test_a_nack_with_none_open(self) -> None:
        machine = sender_in_window(State.COMMIT)
        (refused,) = fed(machine, frame(Command.NACK, FIRST_ID, ErrorCode.FLUSH))
        assert isinstance(refused, Refused)
        self.assertEqual((len(refused.behind), refused.cancel), (1, b""))

    def test_a_nack_over_the_end_of_the_ids(self) -> None:
        machine = open_sender(next_id=65535, window=4)
        machine.heartbeat()
        machine.heartbeat()
        (refused,) = fed(machine, frame(Command.NACK, 65535, ErrorCode.FLUSH))
        assert isinstance(refused, Refused)
        self.assertEqual([transaction.id for transaction in refused.behind], [0])
        self.assertEqual(machine.begin(), frame(Command.BEGIN, 65535))

    def test_cancel_of_the_open_one_leaves_the_others_alone(self) -> None:
        machine = sender_in_window(State.CONTINUE)
        self.assertEqual(machine.cancel(), frame(Command.CANCEL, FIRST_ID + 1, 1))
        self.assertEqual([transaction.id for transaction in machine.in_flight], [FIRST_ID])
        self.assertEqual(machine.begin(), frame(Command.BEGIN, FIRST_ID + 1))
        self.assertEqual(len(fed(machine, frame(Command.ACK, FIRST_ID))), 1)

    def test_the_end_of_the_stream_names_the_oldest(self) -> None:
        for state in WAITING:
            machine = sender_in_window(state)
            error = machine.end_of_stream()
            assert error is not None
            self.assertEqual(error.detail, f"the peer closed the link before the ACK of transaction {FIRST_ID}")


class RunTests(SynchronousTestCase):
    """Many frames by one call."""

    def test_it_is_the_frames_one_by_one(self) -> None:
        data = bytes(range(256)) * 300
        for frame_size in (1, 100, 1024, 4096, 5000, 32768, len(data), len(data) + 1):
            size = min(len(data), frame_size * 700)
            view = memoryview(data)[:size]
            traces = RecordingTrace(), RecordingTrace()
            at_once, one_by_one = (open_sender(FEATURES, trace=trace) for trace in traces)
            expected = b""
            for machine in (at_once, one_by_one):
                machine.begin()
                machine.continue_(b"before")
            for at in range(0, size, frame_size):
                expected += one_by_one.continue_(view[at : at + frame_size]) + view[at : at + frame_size]
            self.assertEqual(b"".join(at_once.continue_run(view, frame_size)), expected, frame_size)
            self.assertEqual(snapshot(at_once), snapshot(one_by_one))
            self.assertEqual(traces[0].lines, traces[1].lines)
            self.assertEqual(at_once.commit(), one_by_one.commit())

    def test_without_the_trace_it_says_the_same(self) -> None:
        data = memoryview(bytes(range(256)) * 300)
        for frame_size in (1000, 5000, 70000):
            traced, quiet = (open_sender(FEATURES, trace=trace) for trace in (RecordingTrace(), NO_TRACE))
            for machine in (traced, quiet):
                machine.begin()
            self.assertEqual(
                b"".join(quiet.continue_run(data, frame_size)), b"".join(traced.continue_run(data, frame_size))
            )
            self.assertEqual(quiet.commit(), traced.commit())

    def test_nothing_is_no_frame(self) -> None:
        machine = sender_in(State.BEGIN)
        self.assertEqual(machine.continue_run(memoryview(b""), 10), [])
        self.assertEqual(snapshot(machine)[0], State.BEGIN)

    def test_only_inside(self) -> None:
        for state in set(State) - {State.BEGIN, State.CONTINUE}:
            machine = sender_in(state)
            self.assertRaises(CallRefused, machine.continue_run, memoryview(b"state"), 2)

    def test_over_a_limit(self) -> None:
        """Nothing of the run is added."""
        limits = Limits(max_payload=100, max_transaction=1000)
        machine = open_sender(limits=limits)
        machine.begin()
        machine.continue_(bytes(100))
        before = snapshot(machine)
        for size, frame_size in ((901, 100), (101, 101), (500, 101)):
            self.assertRaises(CallRefused, machine.continue_run, memoryview(bytes(size)), frame_size)
            self.assertEqual(snapshot(machine), before)
        self.assertEqual(len(b"".join(machine.continue_run(memoryview(bytes(900)), 100))), 9 * 112)
        self.assertEqual(len(b"".join(open_in(limits).continue_run(memoryview(bytes(7)), 101))), 19)

    def test_at_the_last_seq(self) -> None:
        machine = sender_in(State.BEGIN)
        machine.seq = MAX_SEQ - 2
        self.assertRaises(CallRefused, machine.continue_run, memoryview(b"abc"), 1)
        machine.continue_run(memoryview(b"abcd"), 2)
        self.assertEqual(machine.seq, MAX_SEQ)
        self.assertRaises(CallRefused, machine.continue_run, memoryview(b"a"), 2)

    def test_big_endian(self) -> None:
        machine = SenderMachine(LIMITS, pair=PAIR, byte_order="big")
        fed(machine, frame(Command.ACK, byte_order="big"))
        machine.begin()
        expected = b"".join(frame(2, 0, seq, b"ab", "big") for seq in range(100))
        self.assertEqual(b"".join(machine.continue_run(memoryview(b"ab" * 100), 2)), expected)


def open_in(limits: Limits) -> SenderMachine:
    """A sender inside a transaction."""
    machine = open_sender(limits=limits)
    machine.begin()
    return machine


class AfterAnErrorTests(SynchronousTestCase):
    """Once closed, a machine says nothing and takes nothing."""

    def assert_over(self, machine: SenderMachine) -> None:
        for ask in (*CALLS.values(), SenderMachine.heartbeat):
            self.assertRaises(CallRefused, ask, machine)
        for cmd in (*Command, *UNKNOWN):
            error = self.assertRaises(WireError, fed, machine, frame(cmd))
            self.assertIs(error.code, ErrorCode.STATE_INVALID)
        self.assertIs(machine.state, State.CLOSED)
        self.assertIsNone(machine.end_of_stream())

    def test_after_a_bad_command(self) -> None:
        for state in State:
            machine = sender_in(state)
            self.assertRaises(WireError, fed, machine, frame(UNKNOWN[0]))
            self.assert_over(machine)

    def test_after_close(self) -> None:
        for state in State:
            machine = sender_in(state)
            machine.close()
            self.assert_over(machine)

    def test_what_stands_behind_the_error_is_not_looked_at(self) -> None:
        machine = new_sender()
        data = frame(Command.BEGIN) + hello_frame() + frame(Command.ACK)
        self.assertRaises(WireError, fed, machine, data)
        self.assertIsNone(machine.peer_hello)

    def test_payload_behind_the_error(self) -> None:
        """A HELLO that is refused by its header is not read when its payload comes all the same."""
        machine = new_sender()
        data = hello_frame()
        self.assertRaises(WireError, fed, machine, data[:2] + b"\1" + data[3:12])
        self.assertRaises(WireError, fed, machine, data[12:])
        self.assertIsNone(machine.peer_hello)

    def test_closed_while_the_events_are_drained(self) -> None:
        machine = sender_in(State.COMMIT)
        events = machine.receive(command_frame(machine, Command.ACK) + frame(Command.ACK))
        self.assertIsInstance(next(events), Acknowledged)
        machine.close()
        self.assertRaises(WireError, next, events)


class SecondHelloTests(SynchronousTestCase):
    """In HELLO the table lets a second one through, to hear why the receiver will not open the session."""

    def test_with_a_reason(self) -> None:
        machine = sender_in(State.HELLO)
        payload = b'{"refused":"the standby was promoted"}'
        error = self.assertRaises(WireError, fed, machine, frame(Command.HELLO, payload=payload))
        self.assertIs(error.code, ErrorCode.STATE_INVALID)
        self.assertEqual(error.detail, "the peer refused the session: the standby was promoted")
        self.assertIs(machine.state, State.CLOSED)

    def test_without_one(self) -> None:
        machine = sender_in(State.HELLO)
        error = self.assertRaises(WireError, fed, machine, hello_frame())
        self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, "the peer sent a second HELLO"))
        self.assertIs(machine.state, State.CLOSED)


class EventTests(SynchronousTestCase):
    """What a sender reports, and what it sends."""

    def test_opening_with_an_ftd(self) -> None:
        machine = new_sender()
        self.assertEqual(fed(machine, hello_frame()), [HelloReceived(hello())])
        self.assertEqual(machine.greet(hello(state="primary")), hello_frame(state="primary"))
        self.assertEqual(fed(machine, frame(Command.ACK, 41)), [Opened(41)])
        self.assertFalse(machine.peer_is_kemari)
        self.assertEqual(machine.begin(), frame(Command.BEGIN, 41))

    def test_opening_with_a_kemari(self) -> None:
        machine = new_sender()
        self.assertEqual(fed(machine, frame(Command.ACK)), [Opened(0)])
        self.assertTrue(machine.peer_is_kemari)
        self.assertEqual(machine.features, frozenset())

    def test_a_transaction(self) -> None:
        machine = open_sender()
        self.assertEqual(machine.begin(), frame(Command.BEGIN, FIRST_ID))
        self.assertEqual(machine.continue_(b"ab", bytearray(b"c")), head(Command.CONTINUE, FIRST_ID, 0, 3))
        self.assertEqual(machine.continue_(), head(Command.CONTINUE, FIRST_ID, 1, 0))
        self.assertEqual(machine.continue_(memoryview(b"defg")), head(Command.CONTINUE, FIRST_ID, 2, 4))
        self.assertEqual((machine.seq, machine.size), (3, 7))
        self.assertEqual(machine.commit(), frame(Command.COMMIT, FIRST_ID, 3))
        transaction = InFlight(FIRST_ID, 3, 7, is_heartbeat=False)
        self.assertEqual(list(machine.in_flight), [transaction])
        self.assertEqual(fed(machine, frame(Command.ACK, FIRST_ID, 3)), [Acknowledged(transaction)])
        self.assertFalse(machine.in_flight)
        self.assertEqual(machine.begin(), frame(Command.BEGIN, FIRST_ID + 1))

    def test_cancel_keeps_the_id(self) -> None:
        machine = sender_in(State.CONTINUE)
        self.assertEqual(machine.cancel(), frame(Command.CANCEL, FIRST_ID, 1))
        self.assertEqual(machine.begin(), frame(Command.BEGIN, FIRST_ID))
        self.assertEqual((machine.seq, machine.size), (0, 0))

    def test_nack_keeps_the_id(self) -> None:
        machine = sender_in(State.COMMIT)
        refused = fed(machine, frame(Command.NACK, FIRST_ID, ErrorCode.FLUSH))
        self.assertEqual(refused, [Refused(InFlight(FIRST_ID, 1, 3, is_heartbeat=False), ErrorCode.FLUSH)])
        self.assertEqual(machine.begin(), frame(Command.BEGIN, FIRST_ID))

    def test_nack_for_an_unheard_of_reason(self) -> None:
        for number in (0, 9, 0xFFFFFFFF):
            (refused,) = fed(sender_in(State.COMMIT), frame(Command.NACK, FIRST_ID, number))
            assert isinstance(refused, Refused)
            self.assertIs(refused.code, ErrorCode.UNKNOWN)

    def test_nack_that_was_not_agreed(self) -> None:
        """A peer that did not offer NACK does not send one, and a Kemari never does."""
        kemari = new_sender()
        fed(kemari, frame(Command.ACK, FIRST_ID))
        for machine in (kemari, open_sender(FEATURES - {"nack"})):
            machine.begin()
            machine.commit()
            error = self.assertRaises(WireError, fed, machine, frame(Command.NACK, FIRST_ID, ErrorCode.FLUSH))
            self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, "NACK was not agreed"))
            self.assertEqual(len(machine.in_flight), 1)

    def test_atomic(self) -> None:
        machine = open_sender()
        before, after = machine.atomic(b"ab", b"cde")
        self.assertEqual((before, after), (head(Command.ATOMIC, FIRST_ID, 0, 5), b""))
        transaction = InFlight(FIRST_ID, 0, 5, is_heartbeat=False)
        self.assertEqual(fed(machine, frame(Command.ACK, FIRST_ID)), [Acknowledged(transaction)])

    def test_empty_atomic_is_no_heartbeat(self) -> None:
        machine = open_sender()
        self.assertEqual(machine.atomic(), (frame(Command.ATOMIC, FIRST_ID), b""))
        self.assertFalse(machine.in_flight[0].is_heartbeat)

    def test_heartbeat_bytes(self) -> None:
        self.assertEqual(open_sender().heartbeat(), frame(Command.BEGIN, FIRST_ID) + frame(Command.COMMIT, FIRST_ID))

    def test_an_empty_frame_makes_it_a_checkpoint(self) -> None:
        machine = open_sender()
        machine.begin()
        machine.continue_()
        machine.commit()
        self.assertEqual(list(machine.in_flight), [InFlight(FIRST_ID, 1, 0, is_heartbeat=False)])

    def test_ids_wrap(self) -> None:
        machine = open_sender(next_id=65535)
        self.assertEqual(machine.heartbeat()[:12], frame(Command.BEGIN, 65535))
        fed(machine, frame(Command.ACK, 65535))
        self.assertEqual(machine.begin(), frame(Command.BEGIN, 0))


class WrongHeaderTests(SynchronousTestCase):
    """A command that the state allows, with something else wrong."""

    def assert_invalid(self, state: State, data: bytes, detail: str) -> None:
        machine = sender_in(state)
        error = self.assertRaises(WireError, fed, machine, data)
        self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, detail))
        self.assertIs(machine.state, State.CLOSED)

    def test_opening_ack(self) -> None:
        for state in (State.INIT, State.HELLO):
            self.assert_invalid(state, frame(Command.ACK, 0, 1), "the opening ACK has seq 1, not 0")
            self.assert_invalid(state, head(Command.ACK, 0, 0, 9), "ACK carries 9 bytes of payload where none may be")

    def test_ack(self) -> None:
        expected = f"expected for id {FIRST_ID} seq 1"
        commit = State.COMMIT
        self.assert_invalid(commit, frame(Command.ACK, 8, 1), f"ACK of id 8 seq 1, {expected}")
        self.assert_invalid(commit, frame(Command.ACK, 7, 0), f"ACK of id 7 seq 0, {expected}")
        self.assert_invalid(commit, frame(Command.NACK, 6, 6), f"NACK of id 6 seq 6, {expected}")
        for cmd in (Command.ACK, Command.NACK):
            self.assert_invalid(
                commit, head(cmd, FIRST_ID, 1, 1), f"{cmd.name} carries 1 bytes of payload where none may be"
            )


class TraceTests(SynchronousTestCase):
    """The events of the trace that belong to a sender."""

    def test_a_session(self) -> None:
        trace = RecordingTrace()
        machine = sender_in(State.CONTINUE, trace)
        machine.continue_(b"more")
        machine.commit()
        fed(machine, command_frame(machine, Command.ACK))
        self.assertEqual(
            trace.lines,
            [
                ("recv_header", 7),
                ("send_header", 7),
                ("recv_header", 6),
                ("send_header", 1),
                ("put_buffer", 3, 0),
                ("send_header", 2),
                ("put_buffer", 4, 3),
                ("send_header", 2),
                ("send_header", 3),
                ("recv_header", 6),
            ],
        )
