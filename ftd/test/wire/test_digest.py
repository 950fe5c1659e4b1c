"""The digest feature: what arrived is compared with what was sent before anything is committed."""

from __future__ import annotations

import xxhash
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.reaching import FIRST_ID, frame, head, open_receiver, open_sender
from ftd.wire.constants import FEATURES, Command
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import Begun, CommitRequested, DigestMismatch, Payload, ReceiverEvent
from ftd.wire.receiver import ReceiverMachine

STATE = b"the state, in two frames"

#: xxh3-64, little-endian.
DIGEST = xxhash.xxh3_64_intdigest(STATE).to_bytes(8, "little")

NO_NACK = FEATURES - {"nack"}

DAMAGED = f"transaction {FIRST_ID} arrived damaged: its digest does not match"


def in_frames(state: bytes, digest: bytes) -> bytes:
    """BEGIN, two CONTINUE and COMMIT."""
    return (
        frame(Command.BEGIN, FIRST_ID)
        + frame(Command.CONTINUE, FIRST_ID, 0, state[:9])
        + frame(Command.CONTINUE, FIRST_ID, 1, state[9:])
        + frame(Command.COMMIT, FIRST_ID, 2, digest)
    )


def in_one(state: bytes, digest: bytes) -> bytes:
    """ATOMIC."""
    return frame(Command.ATOMIC, FIRST_ID, 0, state + digest)


WAYS = (in_frames, in_one)


def read(machine: ReceiverMachine, *parts: bytes) -> tuple[bytes, list[ReceiverEvent]]:
    """The payload that was reported, and what else was."""
    payload = bytearray()
    others: list[ReceiverEvent] = []
    for part in parts:
        for event in machine.receive(part):
            if isinstance(event, Payload):
                payload += event.view
            else:
                others.append(event)
    return bytes(payload), others


class ReceiverTests(SynchronousTestCase):
    """Whole or damaged, in frames or in one, in two reads that meet at any byte."""

    def test_right(self) -> None:
        for way in WAYS:
            data = way(STATE, DIGEST)
            for at in range(len(data)):
                machine = open_receiver(FEATURES)
                payload, (begun, request) = read(machine, data[:at], data[at:])
                self.assertEqual((payload, begun), (STATE, Begun(FIRST_ID)), at)
                assert isinstance(request, CommitRequested)
                self.assertEqual((request.size, request.xxh3), (len(STATE), xxhash.xxh3_64_intdigest(STATE)))
                self.assertEqual(machine.acknowledge()[:4], frame(Command.ACK, FIRST_ID)[:4])

    def test_wrong(self) -> None:
        """With NACK: the transaction is dropped, the sender told, and the next one goes through."""
        for way in WAYS:
            data = way(STATE.replace(b"two", b"tvo"), DIGEST)
            for at in range(len(data)):
                machine = open_receiver(FEATURES)
                _payload, (_begun, mismatch) = read(machine, data[:at], data[at:])
                self.assertEqual(mismatch, DigestMismatch(FIRST_ID, DAMAGED), at)
                self.assertRaises(CallRefused, machine.acknowledge)
                reason = ErrorCode.RECV_PAYLOAD
                self.assertEqual(machine.refuse(reason), frame(Command.NACK, FIRST_ID, reason))
                payload, (_begun, request) = read(machine, way(STATE, DIGEST))
                self.assertEqual(payload, STATE)
                self.assertIsInstance(request, CommitRequested)

    def test_wrong_without_nack(self) -> None:
        """Without NACK the link is all that can be dropped."""
        for way in WAYS:
            data = way(STATE.replace(b"two", b"tvo"), DIGEST)
            for at in range(len(data)):
                machine = open_receiver(NO_NACK)
                error = self.assertRaises(WireError, read, machine, data[:at], data[at:])
                self.assertEqual((error.code, error.detail), (ErrorCode.RECV_PAYLOAD, DAMAGED), at)
                self.assertRaises(CallRefused, machine.acknowledge)

    def test_every_bit_counts(self) -> None:
        """Of the payload as of the digest."""
        for way in WAYS:
            for at in range(len(STATE + DIGEST) * 8):
                damaged = bytearray(STATE + DIGEST)
                damaged[at // 8] ^= 1 << at % 8
                state, digest = bytes(damaged[: len(STATE)]), bytes(damaged[len(STATE) :])
                _payload, (*_begun, last) = read(open_receiver(FEATURES), way(state, digest))
                self.assertIsInstance(last, DigestMismatch)

    def test_byte_by_byte(self) -> None:
        for way in WAYS:
            data = way(STATE, DIGEST)
            payload, (*_begun, request) = read(open_receiver(FEATURES), *(data[at : at + 1] for at in range(len(data))))
            self.assertEqual(payload, STATE)
            self.assertIsInstance(request, CommitRequested)

    def test_of_nothing(self) -> None:
        nothing = xxhash.xxh3_64_intdigest(b"").to_bytes(8, "little")
        heartbeat = frame(Command.BEGIN, FIRST_ID) + frame(Command.COMMIT, FIRST_ID, 0, nothing)
        for data, is_heartbeat in ((heartbeat, True), (in_one(b"", nothing), False)):
            payload, (_begun, request) = read(open_receiver(FEATURES), data)
            self.assertEqual(payload, b"")
            assert isinstance(request, CommitRequested)
            self.assertEqual((request.size, request.is_heartbeat), (0, is_heartbeat))

    def test_the_digest_is_no_payload(self) -> None:
        """Of an ATOMIC the last eight bytes are not state, however the reads divide them from it."""
        data = in_one(STATE, DIGEST)
        for at in range(12, len(data)):
            payload, _others = read(open_receiver(FEATURES), data[:at], data[at:])
            self.assertEqual(payload, STATE)

    def test_the_digest_of_one_transaction_only(self) -> None:
        """What was cancelled, refused or committed before is not in it."""
        machine = open_receiver(FEATURES)
        read(machine, frame(Command.BEGIN, FIRST_ID) + frame(Command.CONTINUE, FIRST_ID, 0, b"cancelled"))
        read(machine, frame(Command.CANCEL, FIRST_ID, 1))
        read(machine, in_frames(b"refused, not a match", DIGEST))
        machine.refuse(ErrorCode.RECV_PAYLOAD)
        _payload, (_begun, request) = read(machine, in_frames(STATE, DIGEST))
        self.assertIsInstance(request, CommitRequested)

    def test_wrong_length(self) -> None:
        for length in (0, 7, 9, 0xFFFFFFFF):
            machine = open_receiver(FEATURES)
            begin = frame(Command.BEGIN, FIRST_ID)
            error = self.assertRaises(WireError, read, machine, begin + head(Command.COMMIT, FIRST_ID, 0, length))
            detail = f"COMMIT carries {length} bytes instead of the agreed digest's 8"
            self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, detail))
        for length in (0, 7):
            error = self.assertRaises(
                WireError, read, open_receiver(FEATURES), head(Command.ATOMIC, FIRST_ID, 0, length)
            )
            detail = "ATOMIC is too short for the agreed digest"
            self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, detail))

    def test_where_it_was_not_agreed(self) -> None:
        machine = open_receiver(FEATURES - {"digest"})
        error = self.assertRaises(WireError, read, machine, in_frames(STATE, DIGEST))
        self.assertEqual(error.detail, "COMMIT carries 8 bytes of payload where none may be")


class SenderTests(SynchronousTestCase):
    """The digest goes out behind COMMIT and at the end of ATOMIC."""

    def test_in_frames(self) -> None:
        machine = open_sender(FEATURES)
        sent = machine.begin()
        for part in (STATE[:9], STATE[9:]):
            sent += machine.continue_(part) + part
        self.assertEqual(sent + machine.commit(), in_frames(STATE, DIGEST))

    def test_in_one(self) -> None:
        before, after = open_sender(FEATURES).atomic(STATE[:5], memoryview(STATE)[5:])
        self.assertEqual(before + STATE + after, in_one(STATE, DIGEST))

    def test_not_of_what_was_cancelled(self) -> None:
        machine = open_sender(FEATURES)
        machine.begin()
        machine.continue_(b"cancelled")
        machine.cancel()
        before, after = machine.atomic(STATE)
        self.assertEqual(before + STATE + after, in_one(STATE, DIGEST))
