"""
The receiver's machine.

Payload goes through it in views, or never goes through it at all: it says where payload may be read to, and looks only
at the headers then.  It keeps of a transaction only its counters and its digest, so that there is nothing to allocate
and nothing to hand over too early.  What a transaction is worth is decided at COMMIT and by the caller's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import xxhash

from ftd.wire import placement
from ftd.wire.constants import (
    DIGEST_SIZE,
    FEATURE_ATOMIC,
    FEATURE_DIGEST,
    FEATURE_NACK,
    HEADER_SIZE,
    ID_MODULUS,
    MAX_SEQ,
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
from ftd.wire.placement import Placed, Placement, Room
from ftd.wire.session import NO_TRACE, Limits, Session, WireTrace
from ftd.wire.states import INSIDE, RECEIVER, Action, Call, State

_NOTHING = memoryview(b"")

# What is asked for at every frame is not looked for in its enum each time.
_CONTINUE: Final = Action.CONTINUE
_ATOMIC: Final = Action.ATOMIC
_INSIDE_FRAMES: Final = State.CONTINUE
_ACKNOWLEDGE: Final = Call.ACKNOWLEDGE
_ACK: Final = Command.ACK

_NO_ANSWER: frozenset[Call] = frozenset()
_EITHER_ANSWER = frozenset({Call.ACKNOWLEDGE, Call.REFUSE})

#: What may come of a transaction that is dropped.
_OF_A_TRANSACTION = frozenset({Command.BEGIN, Command.CONTINUE, Command.COMMIT, Command.CANCEL, Command.ATOMIC})


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
        #: Where payload may be put; ``None`` where it is only ever passed on.
        self.room: Room | None = None
        self._kemari = kemari
        self._plan = Placement(byte_order)
        # What is being received, and how much of it has been looked at.
        self._view = memoryview(b"")
        self._at = 0
        self._is_dropping = False
        # The number of the first frame that there may be room for in a run.
        self._no_run_before = 0
        self._digest = xxhash.xxh3_64()
        self._sent_digest = bytearray()
        self._current = Action.BEGIN
        self._last_was_empty = False
        # Nothing while a transaction is not whole yet, only a refusal where it arrived damaged.
        self._answers = _NO_ANSWER

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
        self._answer(_ACKNOWLEDGE)
        ack = self._frame(_ACK, self.id, self.seq, 0)
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
        self._is_dropping = self.window > 1
        return self._frame(Command.NACK, self.id, code, 0)

    def _answer(self, call: Call) -> None:
        if call not in self._answers and self.state is State.COMMIT:
            raise CallRefused(f"{call.value} is not possible: the transaction is not whole", self.state.value)
        self._call(call)
        self._answers = _NO_ANSWER

    # What the peer sent

    def receive(self, data: bytes | memoryview) -> Iterator[ReceiverEvent]:
        """
        Take the next bytes of the stream.  The generator is lazy: while the caller holds an event, nothing behind it
        has been looked at, so it may answer, or wait for as long as it likes, before it goes on.

        :raises WireError: while drained; the session is over then.
        """
        deframer = self._deframer
        partial = deframer.partial
        view = self._view = memoryview(data)
        size = len(view)
        at = 0
        try:
            while at < size:
                event: ReceiverEvent | None
                if deframer.payload_left:
                    piece = view[at : at + deframer.payload_left]
                    at += len(piece)
                    deframer.payload_left -= len(piece)
                    event = self._on_atomic_payload(piece) if self._current is _ATOMIC else self._on_payload(piece)
                elif partial or size - at < HEADER_SIZE:
                    end = at + HEADER_SIZE - len(partial)
                    partial += view[at:end]
                    if end > size:
                        return
                    at = end
                    header = Header._make(deframer.unpack(partial))
                    partial.clear()
                    deframer.payload_left = header.payload_len
                    event = self._on_header(header)
                elif self.state is _INSIDE_FRAMES and (placed := self._take_run(view, at)) is not None:
                    at += len(placed.view) + placed.frames * HEADER_SIZE
                    event = placed
                else:
                    header = Header._make(deframer.unpack(view, at))
                    at += HEADER_SIZE
                    deframer.payload_left = header.payload_len
                    event = self._on_header(header)
                while event is not None:
                    self._at = at
                    yield event
                    if self._view is not view:
                        view = self._view
                        size = len(view)
                        at = 0
                    event = self._behind_atomic() if self._current is _ATOMIC else None
        except WireError:
            self.close()
            raise
        finally:
            self._view = _NOTHING

    def keep_rest(self) -> None:
        """
        The bytes that are being received are about to go, and the one who takes the events will be back later: what has
        not been looked at is copied.
        """
        self._view = memoryview(bytes(self._view[self._at :]))
        self._at = 0

    def places(self) -> Sequence[memoryview]:
        """
        Where the next bytes of the stream may be read to instead of being received; empty if they have to be received.
        They are good until the next call of this object.
        """
        if self.state is not _INSIDE_FRAMES or self.room is None:
            return ()
        left = self._deframer.payload_left
        most = 0
        if self._plan.predicted >= placement.LEAST_PREDICTED and self.size >= placement.PREDICTED_FROM:
            most = self._most_predicted(left)
        if not most and left < placement.LEAST_REST:
            return ()
        return self._plan.plan(self.room, left, self._deframer.partial, most)

    def placed(self, size: int) -> tuple[int, bytes]:
        """
        The next ``size`` bytes of the stream are in the `places`.

        :return: how many payload bytes are in the room now, and bytes that have to be received behind that.
        """
        plan = self._plan
        deframer = self._deframer
        frames, payload, left, partial, rest = plan.sort(size, self.id, self.seq)
        if payload:
            if self._trace.ft_trans_recv_payload is not None:
                self._trace.ft_trans_recv_payload(payload, deframer.payload_left, self.size)
            for piece in plan.filled(payload):
                self._digest.update(piece)
            self.size += payload
        self.seq += frames
        deframer.payload_left = left
        if partial or frames:
            deframer.partial[:] = partial
        return payload, rest

    def end_of_stream(self) -> WireError | None:
        """The peer closed the link: what that cut short, ``None`` if nothing."""
        self._plan.forget()
        error = self._end_of_stream(f"transaction {self.id} was committed" if self.is_inside else "")
        self.close()
        return error

    def _most_predicted(self, left: int) -> int:
        """
        How many frames of the predicted length may follow behind ``left`` bytes without breaking a limit.  None where
        each header has to be looked at on its own.
        """
        trace = self._trace
        if self._kemari or trace.ft_trans_recv_header is not None or trace.ft_trans_recv_payload is not None:
            return 0
        length = self._plan.predicted
        return max(0, min((self.limits.max_transaction - self.size - left) // length, MAX_SEQ - self.seq))

    def _take_run(self, view: memoryview, at: int) -> Placed | None:
        """Put the payload of several frames, the first of which starts at ``at``, to where there is room for it."""
        plan = self._plan
        length = plan.predicted
        enough = placement.LEAST_RUN * length
        if not length or len(view) - at < enough or self.seq < self._no_run_before or self.room is None:
            return None
        frames = plan.run(view, at, self._most_predicted(0), self.id, self.seq)
        if not frames:
            return None
        room = self.room(frames * length)
        if not room or len(room[0]) < enough:
            # Looking at all of them again for each would cost more than looking at each.
            self._no_run_before = self.seq + (len(room[0]) // length + 1 if room else frames)
            return None
        frames = min(frames, len(room[0]) // length)
        filled = room[0][: frames * length]
        plan.copy_run(view, at, frames, filled)
        self._digest.update(filled)
        self.seq += frames
        self.size += frames * length
        return Placed(filled, frames)

    def _on_header(self, header: Header) -> ReceiverEvent | None:
        if self._is_dropping and header.id != self.id and self.state is State.NACK:
            self._drop(header)
            return None
        action = self._current = self._command(header)
        return _JUDGED[action](self, header)

    def _on_continue(self, header: Header) -> None:
        self._check_place(header)
        length = header.payload_len
        self._check_size(length)
        self._plan.note(length)
        self._last_was_empty = not length
        self.seq += 1

    def _on_hello(self, header: Header) -> None:
        self._expect_hello_payload(header)

    def _on_begin(self, header: Header) -> ReceiverEvent:
        self._expect_no_payload(header)
        self._start(header)
        return Begun(self.id)

    def _on_cancel(self, header: Header) -> ReceiverEvent:
        self._check_place(header)
        self._expect_no_payload(header)
        return Cancelled(self.id)

    def _on_commit(self, header: Header) -> ReceiverEvent | None:
        self._check_place(header)
        self._check_commit(header)
        if FEATURE_DIGEST not in self.features:
            return self._requested()
        self._sent_digest.clear()
        return None

    def _check_commit(self, header: Header) -> None:
        if FEATURE_DIGEST not in self.features:
            self._expect_no_payload(header)
        elif header.payload_len != DIGEST_SIZE:
            raise WireError(
                ErrorCode.STATE_INVALID, f"COMMIT carries {header.payload_len} bytes instead of the agreed digest's 8"
            )

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

    def _drop(self, header: Header) -> None:
        """
        A frame of a transaction that was in flight behind one that was refused.  Its sender did not know yet; as soon
        as it does it begins with the refused one's id.
        """
        if self._trace.ft_trans_recv_header is not None:
            self._trace.ft_trans_recv_header(header.cmd)
        behind = (header.id - self.id) % ID_MODULUS
        if header.cmd not in _OF_A_TRANSACTION:
            raise WireError(ErrorCode.STATE_INVALID, self._why_not(header))
        if behind >= self.window:
            raise WireError(
                ErrorCode.STATE_INVALID,
                f"{Command(header.cmd).name} of id {header.id}, expected id {self.id} again, or what may have been in"
                f" flight behind it, up to id {(self.id + self.window - 1) % ID_MODULUS}",
            )
        if header.cmd == Command.COMMIT:
            self._check_commit(header)
        elif header.cmd in (Command.BEGIN, Command.CANCEL):
            self._expect_no_payload(header)
        elif header.payload_len > self.limits.max_payload + DIGEST_SIZE:
            self._check_size(header.payload_len)
        self._current = Action.DROP

    def _on_payload(self, piece: memoryview) -> ReceiverEvent | None:
        self._expect_open()
        action = self._current
        if action is _CONTINUE:
            return self._absorb(piece)
        if action is Action.DROP:
            return None
        if action is Action.READ_HELLO:
            hello = self._take_hello(piece)
            return HelloReceived(hello) if hello is not None else None
        self._sent_digest += piece
        return None if self._deframer.payload_left else self._compared()

    def _on_atomic_payload(self, piece: memoryview) -> ReceiverEvent | None:
        """State, and behind it the digest where it is agreed; both may lie in one piece."""
        self._expect_open()
        tail = DIGEST_SIZE if FEATURE_DIGEST in self.features else 0
        state_left = max(0, self._deframer.payload_left + len(piece) - tail)
        self._sent_digest += piece[state_left:]
        return self._absorb(piece[:state_left]) if state_left else self._behind_atomic()

    def _behind_atomic(self) -> ReceiverEvent | None:
        """An ATOMIC that has arrived whole is a COMMIT as well, which is told of once what came before has been."""
        if self._current is not Action.ATOMIC or self._deframer.payload_left:
            return None
        event = self._compared() if FEATURE_DIGEST in self.features else self._requested()
        self._current = Action.RETIRE
        return event

    def _start(self, header: Header) -> None:
        self._is_dropping = False
        self._no_run_before = 0
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
        self._answers = _EITHER_ANSWER
        return CommitRequested(
            self.id, self.seq, self.size, self._digest.intdigest(), self.seq == 0 and self._current is Action.COMMIT
        )

    def _compared(self) -> ReceiverEvent:
        if int.from_bytes(self._sent_digest, "little") == self._digest.intdigest():
            return self._requested()
        detail = f"transaction {self.id} arrived damaged: its digest does not match"
        if not self.can_refuse:
            raise WireError(ErrorCode.RECV_PAYLOAD, detail)
        self._answers = frozenset({Call.REFUSE})
        return DigestMismatch(self.id, detail)


#: What a header has to pass, and what comes of it, by what it makes the machine do.
_JUDGED: dict[Action, Callable[[ReceiverMachine, Header], ReceiverEvent | None]] = {
    Action.READ_HELLO: ReceiverMachine._on_hello,
    Action.BEGIN: ReceiverMachine._on_begin,
    Action.CONTINUE: ReceiverMachine._on_continue,
    Action.ATOMIC: ReceiverMachine._on_atomic,
    Action.CANCEL: ReceiverMachine._on_cancel,
    Action.COMMIT: ReceiverMachine._on_commit,
}
