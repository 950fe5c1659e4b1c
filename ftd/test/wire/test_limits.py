"""Limits are checked when a header arrives or is about to be made: before its payload costs anything."""

from __future__ import annotations

import tracemalloc

import attrs
import xxhash
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.reaching import (
    FIRST_ID,
    NO_DIGEST,
    fed,
    frame,
    head,
    hello,
    new_receiver,
    new_sender,
    open_receiver,
    open_sender,
    taken,
)
from ftd.wire.constants import FEATURES, MAX_SEQ, Command
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import CommitRequested, Payload
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.session import Limits
from ftd.wire.states import State

FOUR_GIB = 1 << 32
MIB = 1 << 20


class ReceiverTests(SynchronousTestCase):
    """REALLOC_BUF, and what is still let through."""

    def assert_over(self, machine: ReceiverMachine, data: bytes, detail: str) -> None:
        tracemalloc.start()
        try:
            before, _peak = tracemalloc.get_traced_memory()
            error = self.assertRaises(WireError, taken, machine, data)
            _now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertEqual((error.code, error.detail), (ErrorCode.REALLOC_BUF, detail))
        self.assertIs(machine.state, State.CLOSED)
        self.assertLess(peak - before, 64 * 1024)

    def test_four_gib_in_one_header(self) -> None:
        limits = Limits(max_payload=64 * MIB, max_transaction=1 << 40)
        detail = "a frame of 4294967295 bytes; max-payload allows 67108864"
        machine = open_receiver(limits=limits)
        begin = frame(Command.BEGIN, FIRST_ID)
        self.assert_over(machine, begin + head(Command.CONTINUE, FIRST_ID, 0, FOUR_GIB - 1), detail)
        self.assert_over(open_receiver(limits=limits), head(Command.ATOMIC, FIRST_ID, 0, FOUR_GIB - 1), detail)
        kemari = new_receiver(limits, kemari=True)
        kemari.open()
        self.assert_over(kemari, frame(Command.BEGIN) + head(Command.CONTINUE, 0, 0, FOUR_GIB - 1), detail)

    def test_a_frame_at_its_limit(self) -> None:
        for features in (NO_DIGEST, FEATURES):
            extra = 8 if "digest" in features else 0
            for length, is_over in ((10, False), (11, True)):
                machine = open_receiver(features, Limits(10, 100))
                data = frame(Command.BEGIN, FIRST_ID) + head(Command.CONTINUE, FIRST_ID, 0, length)
                atomic = open_receiver(features, Limits(10, 100))
                whole = head(Command.ATOMIC, FIRST_ID, 0, length + extra)
                if is_over:
                    self.assert_over(machine, data, "a frame of 11 bytes; max-payload allows 10")
                    self.assert_over(atomic, whole, "a frame of 11 bytes; max-payload allows 10")
                else:
                    taken(machine, data)
                    taken(atomic, whole)

    def test_a_transaction_at_its_limit(self) -> None:
        detail = "a transaction of more than 25 bytes; that is what max-transaction allows"
        for last, is_over in ((5, False), (6, True)):
            machine = open_receiver(limits=Limits(10, 25))
            data = frame(Command.BEGIN, FIRST_ID)
            for seq in range(2):
                data += frame(Command.CONTINUE, FIRST_ID, seq, bytes(10))
            taken(machine, data)
            if is_over:
                self.assert_over(machine, head(Command.CONTINUE, FIRST_ID, 2, last), detail)
            else:
                taken(machine, frame(Command.CONTINUE, FIRST_ID, 2, bytes(last)) + frame(Command.CONTINUE, FIRST_ID, 3))
                self.assertEqual(machine.size, 25)
        self.assert_over(open_receiver(limits=Limits(100, 25)), head(Command.ATOMIC, FIRST_ID, 0, 26), detail)

    def test_each_transaction_has_the_whole_limit(self) -> None:
        machine = open_receiver(limits=Limits(10, 10))
        for id in (FIRST_ID, FIRST_ID + 1):
            data = frame(Command.BEGIN, id) + frame(Command.CONTINUE, id, 0, bytes(10))
            taken(machine, data + frame(Command.COMMIT, id, 1))
            machine.acknowledge()
        # What was cancelled does not count either.
        for _ in range(2):
            taken(machine, frame(Command.BEGIN, id + 1) + frame(Command.CONTINUE, id + 1, 0, bytes(10)))
            taken(machine, frame(Command.CANCEL, id + 1, 1))


class SenderTests(SynchronousTestCase):
    """The sender refuses what the receiver would, and the transaction goes on without it."""

    def test_a_frame(self) -> None:
        machine = open_sender(limits=Limits(10, 100))
        machine.begin()
        error = self.assertRaises(CallRefused, machine.continue_, bytes(6), bytes(5))
        self.assertEqual(error.state, "BEGIN")
        self.assertEqual((machine.seq, machine.size, machine.state), (0, 0, State.BEGIN))
        self.assertEqual(machine.continue_(bytes(5), bytes(5)), head(Command.CONTINUE, FIRST_ID, 0, 10))

    def test_a_transaction(self) -> None:
        machine = open_sender(limits=Limits(10, 25))
        machine.begin()
        machine.continue_(bytes(10))
        machine.continue_(bytes(10))
        self.assertRaises(CallRefused, machine.continue_, bytes(6))
        self.assertEqual((machine.seq, machine.size, machine.state), (2, 20, State.CONTINUE))
        machine.continue_(bytes(5))
        self.assertRaises(CallRefused, machine.continue_, b"a")
        machine.continue_()
        self.assertEqual(machine.commit(), frame(Command.COMMIT, FIRST_ID, 4))

    def test_the_refused_bytes_are_not_in_the_digest(self) -> None:
        machine = open_sender(FEATURES, Limits(10, 100))
        machine.begin()
        self.assertRaises(CallRefused, machine.continue_, bytes(11))
        machine.continue_(b"abc")
        self.assertEqual(machine.commit()[12:], xxhash.xxh3_64_intdigest(b"abc").to_bytes(8, "little"))

    def test_atomic(self) -> None:
        for limits in (Limits(10, 100), Limits(100, 10)):
            machine = open_sender(limits=limits)
            self.assertRaises(CallRefused, machine.atomic, bytes(5), bytes(6))
            self.assertIs(machine.state, State.ACK)
            self.assertFalse(machine.in_flight)
            self.assertEqual(machine.atomic(bytes(10))[0], head(Command.ATOMIC, FIRST_ID, 0, 10))

    def test_what_a_header_cannot_say(self) -> None:
        """Whatever is configured, a frame's length has 32 bits; in an ATOMIC the digest takes a share of them."""
        limits = Limits(1 << 40, 1 << 50)
        mib = bytes(MIB)
        four_gib = [mib] * (FOUR_GIB // MIB)
        machine = new_sender(limits)
        spoken = attrs.evolve(hello(), max_payload=limits.max_payload)
        fed(machine, frame(Command.HELLO, payload=spoken.encode()))
        machine.greet(hello(state="primary"))
        fed(machine, frame(Command.ACK, FIRST_ID))
        machine.begin()
        self.assertRaises(CallRefused, machine.continue_, *four_gib)
        self.assertIs(machine.state, State.BEGIN)
        header = machine.continue_(*four_gib[:-1], mib[1:])
        self.assertEqual(header, head(Command.CONTINUE, FIRST_ID, 0, FOUR_GIB - 1))
        machine.cancel()
        self.assertRaises(CallRefused, machine.atomic, *four_gib[:-1], mib[8:])
        self.assertIs(machine.state, State.CANCEL)

    def test_seq_does_not_wrap(self) -> None:
        machine = open_sender()
        machine.begin()
        # 2**32 frames would take an hour.
        machine.seq = MAX_SEQ - 1
        machine.continue_(b"a")
        self.assertRaises(CallRefused, machine.continue_, b"a")
        self.assertEqual(machine.commit(), frame(Command.COMMIT, FIRST_ID, MAX_SEQ))


class PastFourGiBTests(SynchronousTestCase):
    """A transaction is longer than 32 bits can count, and only its frames are not."""

    def test_counted_right(self) -> None:
        limits = Limits(64 * MIB, 1 << 40)
        sender, receiver = open_sender(FEATURES, limits), open_receiver(FEATURES, limits)
        payload = memoryview(bytes(64 * MIB))
        frames = FOUR_GIB // len(payload) + 1
        self.assertEqual(len(taken(receiver, sender.begin())), 1)
        for _ in range(frames):
            taken(receiver, sender.continue_(payload))
            (event,) = receiver.receive(payload)
            assert isinstance(event, Payload)
            self.assertIs(event.view.obj, payload.obj)
        (request,) = taken(receiver, sender.commit())
        assert isinstance(request, CommitRequested)
        size = FOUR_GIB + len(payload)
        self.assertEqual((request.seq, request.size, sender.size), (frames, size, size))
