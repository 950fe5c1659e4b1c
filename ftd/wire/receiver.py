"""
The receiver's machine.

Payload goes through it in views; it keeps of a transaction only its counters and its digest, so that there is
nothing to allocate and nothing to hand over too early.  What a transaction is worth is decided at COMMIT and by the
caller's answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import xxhash

from ftd.wire.constants import (
    DIGEST_SIZE,
    FEATURE_ATOMIC,
    FEATURE_DIGEST,
    FEATURE_NACK,
    ID_MODULUS,
    ByteOrder,
    Command,
)
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import (
    Begun,
    Cancelled,
    CommitRequested,
    DigestMismatch,
    HelloReceived,
    Payload,
    ReceiverEvent,
)
from ftd.wire.framing import Header
from ftd.wire.session import NO_TRACE, Limits, Session, WireTrace
from ftd.wire.states import INSIDE, RECEIVER, Action, Call, State


class ReceiverMachine(Session):
    """
    The receiving end of one link.

    :param limits: checked when a header arrives, before its payload is looked at.
    :param next_id: the id the first transaction has to carry, between two ftd.
    :param kemari: the sender is a Kemari: no HELLO, no features, and ids are taken as they come.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        pair: str,
        next_id: int = 0,
        kemari: bool = False,
        byte_order: ByteOrder = "little",
        trace: WireTrace = NO_TRACE,
    ) -> None:
        super().__init__(RECEIVER, limits, pair, byte_order, trace)
        #: The id of the open transaction, or the one expected next.
        self.id = next_id
        #: CONTINUE frames and payload bytes of the open transaction so far.
        self.seq = 0
        self.size = 0
        self._kemari = kemari
        self._digest = xxhash.xxh3_64()
        self._sent_digest = bytearray()
        self._current = Action.BEGIN
        self._last_was_empty = False
        # Nothing while a transaction is not whole yet, only a refusal where it arrived damaged.
        self._answers: frozenset[Call] = frozenset()

    @property
    def is_inside(self) -> bool:
        """Whether a transaction is open."""
        return self.state in INSIDE

    @property
    def can_refuse(self) -> bool:
        """Whether the sender understands a NACK."""
        return FEATURE_NACK in self.features

    # What this side wants

    def open(self) -> bytes:
        """The opening ACK: the sender may begin, with the id it carries."""
        self._call(Call.OPEN)
        return self._frame(Command.ACK, 0 if self._kemari else self.id, 0, 0)

    def acknowledge(self) -> bytes:
        """Answer a `CommitRequested`: the transaction is committed."""
        self._answer(Call.ACKNOWLEDGE)
        ack = self._frame(Command.ACK, self.id, self.seq, 0)
        self.id = (self.id + 1) % ID_MODULUS
        return ack

    def refuse(self, code: ErrorCode) -> bytes:
        """
        Answer a `CommitRequested` or `DigestMismatch`: the transaction is dropped.

        :raises CallRefused: where the sender does not understand a NACK; the link has to be closed instead.
        """
        if not self.can_refuse:
            raise CallRefused("the sender does not understand a NACK", self.state.value)
        self._answer(Call.REFUSE)
        return self._frame(Command.NACK, self.id, code, 0)

    def _answer(self, call: Call) -> None:
        if self.state is State.COMMIT and call not in self._answers:
            raise CallRefused(f"{call.value} is not possible: the transaction is not whole", self.state.value)
        self._call(call)
        self._answers = frozenset()

    # What the peer sent

    def receive(self, data: bytes | memoryview) -> Iterator[ReceiverEvent]:
        """
        Take the next bytes of the stream.  The generator is lazy: while the caller holds an event, nothing behind it
        has been looked at, so it may answer, or wait for as long as it likes, before it goes on.

        :raises WireError: while drained; the session is over then.
        """
        try:
            for piece in self._deframer.feed(data):
                if self._current is Action.ATOMIC and not isinstance(piece, Header):
                    yield from self._on_atomic_payload(piece)
                    continue
                event = self._on_header(piece) if isinstance(piece, Header) else self._on_payload(piece)
                if event is not None:
                    yield event
                if self._current is Action.ATOMIC and not self._deframer.payload_left:
                    yield self._requested()
        except WireError:
            self.close()
            raise

    def end_of_stream(self) -> WireError | None:
        """The peer closed the link: what that cut short, ``None`` if nothing."""
        error = self._end_of_stream(f"transaction {self.id} was committed" if self.is_inside else "")
        self.close()
        return error

    def _on_header(self, header: Header) -> ReceiverEvent | None:
        action = self._current = self._command(header)
        if action is Action.CONTINUE:
            self._check_place(header)
            self._check_size(header.payload_len)
            self._last_was_empty = not header.payload_len
            self.seq += 1
            return None
        if action is Action.READ_HELLO:
            self._expect_hello_payload(header)
            return None
        if action is Action.BEGIN:
            self._expect_no_payload(header)
            self._start(header)
            return Begun(self.id)
        if action is Action.ATOMIC:
            return self._on_atomic(header)
        self._check_place(header)
        if action is Action.CANCEL:
            self._expect_no_payload(header)
            return Cancelled(self.id)
        return self._on_commit(header)

    def _on_commit(self, header: Header) -> ReceiverEvent | None:
        if FEATURE_DIGEST not in self.features:
            self._expect_no_payload(header)
            return self._requested()
        if header.payload_len != DIGEST_SIZE:
            raise WireError(
                ErrorCode.STATE_INVALID, f"COMMIT carries {header.payload_len} bytes instead of the agreed digest's 8"
            )
        self._sent_digest.clear()
        return None

    def _on_atomic(self, header: Header) -> ReceiverEvent | None:
        if FEATURE_ATOMIC not in self.features:
            raise WireError(ErrorCode.STATE_INVALID, "ATOMIC was not agreed")
        length = header.payload_len - (DIGEST_SIZE if FEATURE_DIGEST in self.features else 0)
        if length < 0:
            raise WireError(ErrorCode.STATE_INVALID, "ATOMIC is too short for the agreed digest")
        self._start(header)
        self._check_size(length)
        self._sent_digest.clear()
        return Begun(self.id)

    def _on_payload(self, piece: memoryview) -> ReceiverEvent | None:
        self._expect_open()
        action = self._current
        if action is Action.CONTINUE:
            return self._absorb(piece)
        if action is Action.READ_HELLO:
            hello = self._take_hello(piece)
            return HelloReceived(hello) if hello is not None else None
        self._sent_digest += piece
        return None if self._deframer.payload_left else self._compared()

    def _on_atomic_payload(self, piece: memoryview) -> Iterator[ReceiverEvent]:
        """State, and behind it the digest where it is agreed; both may lie in one piece."""
        self._expect_open()
        tail = DIGEST_SIZE if FEATURE_DIGEST in self.features else 0
        state_left = max(0, self._deframer.payload_left + len(piece) - tail)
        if state_left:
            yield self._absorb(piece[:state_left])
        self._sent_digest += piece[state_left:]
        if not self._deframer.payload_left:
            yield self._compared() if tail else self._requested()

    def _start(self, header: Header) -> None:
        self.seq = 0
        self.size = 0
        self._digest.reset()
        self._check_place(header)

    def _check_place(self, header: Header) -> None:
        """
        Id and seq.  A Kemari sender's id may move on inside a transaction, and it need not count a CONTINUE without
        payload (see ``docs/protocol.md``).
        """
        if self._kemari:
            self.id = header.id
            if self._last_was_empty and header.seq == self.seq - 1:
                self.seq = header.seq
        if header.id != self.id or header.seq != self.seq:
            raise WireError(
                ErrorCode.STATE_INVALID,
                f"{Command(header.cmd).name} of id {header.id} seq {header.seq}, expected id {self.id} seq {self.seq}",
            )

    def _check_size(self, length: int) -> None:
        if length > self.limits.max_payload:
            raise WireError(
                ErrorCode.REALLOC_BUF,
                f"a frame of {length} bytes; max-payload allows {self.limits.max_payload}",
            )
        if self.size + length > self.limits.max_transaction:
            raise WireError(
                ErrorCode.REALLOC_BUF,
                f"a transaction of more than {self.limits.max_transaction} bytes; that is what max-transaction allows",
            )

    def _absorb(self, piece: memoryview) -> Payload:
        if self._trace.ft_trans_recv_payload is not None:
            self._trace.ft_trans_recv_payload(len(piece), self._deframer.payload_left + len(piece), self.size)
        self.size += len(piece)
        self._digest.update(piece)
        return Payload(piece)

    def _requested(self) -> CommitRequested:
        self._answers = frozenset({Call.ACKNOWLEDGE, Call.REFUSE})
        return CommitRequested(
            self.id, self.seq, self.size, self._digest.intdigest(), self._current is Action.COMMIT and self.seq == 0
        )

    def _compared(self) -> ReceiverEvent:
        if int.from_bytes(self._sent_digest, "little") == self._digest.intdigest():
            return self._requested()
        detail = f"transaction {self.id} arrived damaged: its digest does not match"
        if not self.can_refuse:
            raise WireError(ErrorCode.RECV_PAYLOAD, detail)
        self._answers = frozenset({Call.REFUSE})
        return DigestMismatch(self.id, detail)
