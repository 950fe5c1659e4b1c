"""
The sender's machine.

Its calls return the bytes to send.  Payload is never copied: a call that takes payload returns the header that goes
before it, and the caller sends the payload's own memory after that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from struct import Struct
from typing import Any

import numpy as np
import xxhash

from ftd.wire.constants import (
    DIGEST_SIZE,
    FEATURE_ATOMIC,
    FEATURE_DIGEST,
    FEATURE_NACK,
    HEADER_SIZE,
    ID_MODULUS,
    MAX_PAYLOAD_LEN,
    MAX_SEQ,
    ByteOrder,
    Command,
)
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import Acknowledged, HelloReceived, InFlight, Opened, Refused, SenderEvent
from ftd.wire.framing import Header
from ftd.wire.session import NO_TRACE, Limits, Session, WireTrace
from ftd.wire.states import INSIDE, ON_ACK, SENDER, Action, Call, State

Buffer = bytes | bytearray | memoryview

#: A header as numpy has it.
_HEADER = [("cmd", "u2"), ("id", "u2"), ("seq", "u4"), ("payload_len", "u4")]

#: Frames from which on a run is more than one frame after the other.
_RUN = 8

#: Bytes of a frame up to which a copy of it costs less than sending it as a piece of its own.
_SMALL = 8 * 1024

#: Bytes of a run up to which its frames are copied at all.
_MOST_JOINED = 16 * 1024 * 1024


class SenderMachine(Session):
    """
    The sending end of one link.

    :param limits: what this side puts into a frame and a transaction at most; the peer's HELLO may lower both.
    :param pair: the pair's name on the wire.
    """

    def __init__(
        self, limits: Limits, *, pair: str, byte_order: ByteOrder = "little", trace: WireTrace = NO_TRACE
    ) -> None:
        super().__init__(SENDER, limits, pair, byte_order, trace)
        #: The id of the open transaction, or of the next one.
        self.id = 0
        #: CONTINUE frames and payload bytes of the open transaction so far.
        self.seq = 0
        self.size = 0
        #: Transactions that await their ACK, oldest first.
        self.in_flight: deque[InFlight] = deque()
        self._digest = xxhash.xxh3_64()
        self._header_type = np.dtype(_HEADER).newbyteorder("<" if byte_order == "little" else ">")
        self._unpack = Struct("<HHII" if byte_order == "little" else ">HHII").unpack_from

    @property
    def is_inside(self) -> bool:
        """Whether a transaction is open."""
        return self.state in INSIDE

    @property
    def peer_is_kemari(self) -> bool:
        """Whether the session was opened without a HELLO.  Not known before it is open."""
        return self.peer_hello is None

    # What this side wants

    def begin(self) -> bytes:
        """Open a transaction."""
        self._call_in_window(Call.BEGIN)
        self._start()
        return self._frame(Command.BEGIN, self.id, 0, 0)

    def continue_(self, *payload: Buffer) -> bytes:
        """
        Add one frame to the open transaction.

        :param payload: the frame's bytes, in as many pieces as they lie in.
        :return: the header; the pieces are to be sent after it.
        :raises CallRefused: outside a transaction, or for a frame or transaction over its limit.
        """
        length = len(payload[0]) if len(payload) == 1 else sum(map(len, payload))
        limits, seq, size = self.limits, self.seq, self.size
        if (
            length > limits.max_payload
            or length > limits.max_transaction - size
            or length > MAX_PAYLOAD_LEN
            or seq == MAX_SEQ
        ):
            raise CallRefused("the frame or the transaction would be over its limit", self.state.value)
        self._call(Call.CONTINUE)
        if self._trace.ft_trans_put_buffer is not None:
            self._trace.ft_trans_put_buffer(length, size)
        header = self._frame(Command.CONTINUE, self.id, seq, length)
        self._absorb(payload, length)
        self.seq = seq + 1
        return header

    def continue_run(self, payload: memoryview, frame_size: int) -> list[Buffer]:
        """
        Add a run of frames to the open transaction, at the price of one.

        :param payload: a view of bytes, which is cut into frames of ``frame_size``; the last one may be shorter.
        :return: what is to be sent: headers, and views of the payload's own memory.
        :raises CallRefused: as `continue_` would for one of the frames; nothing is added then.
        """
        length = len(payload)
        count = -(-length // frame_size)
        if (
            length > self.limits.max_transaction - self.size
            or min(frame_size, length) > min(self.limits.max_payload, MAX_PAYLOAD_LEN)
            or count > MAX_SEQ - self.seq
        ):
            raise CallRefused("a frame or the transaction would be over its limit", self.state.value)
        if self._trace.ft_trans_put_buffer is not None or self._trace.ft_trans_send_header is not None or count < _RUN:
            pieces: list[Buffer] = []
            for at in range(0, length, frame_size):
                piece = payload[at : at + frame_size]
                pieces += (self.continue_(piece), piece)
            return pieces
        self._call(Call.CONTINUE)
        headers = np.empty(count, self._header_type)
        headers["cmd"] = Command.CONTINUE
        headers["id"] = self.id
        headers["seq"] = np.arange(self.seq, self.seq + count)
        headers["payload_len"] = frame_size
        headers["payload_len"][-1] = length - (count - 1) * frame_size
        self._absorb((payload,), length)
        self.seq += count
        return _interleaved(headers, payload, frame_size)

    def commit(self) -> bytes:
        """Ask for the open transaction to be committed; `Acknowledged` or `Refused` will follow."""
        self._call(Call.COMMIT)
        return self._finish(Command.COMMIT, is_heartbeat=self.seq == 0)

    def cancel(self) -> bytes:
        """Drop the open transaction; its id is used again."""
        self._call(Call.CANCEL)
        return self._frame(Command.CANCEL, self.id, self.seq, 0)

    def heartbeat(self) -> bytes:
        """A sign of life: a transaction without a frame, which is acknowledged but reaches no sink."""
        return self.begin() + self.commit()

    def atomic(self, *payload: Buffer) -> tuple[bytes, bytes]:
        """
        A whole transaction as one frame.

        :return: what is to be sent before the payload and what after it.
        :raises CallRefused: inside a transaction, where the peer did not agree to it, or over a limit.
        """
        length = sum(map(len, payload))
        if FEATURE_ATOMIC not in self.features:
            raise CallRefused("the peer does not take ATOMIC", self.state.value)
        if length > min(self.limits.max_payload, MAX_PAYLOAD_LEN - DIGEST_SIZE, self.limits.max_transaction):
            raise CallRefused("the frame would be over its limit", self.state.value)
        self._call_in_window(Call.ATOMIC)
        self._start()
        self._absorb(payload, length)
        return self._finish_atomic(length)

    # What the peer sent

    def receive(self, data: bytes | memoryview) -> Iterator[SenderEvent]:
        """
        Take the next bytes of the stream.  The events must be drained before the next call.

        :raises WireError: while drained; the session is over then.
        """
        try:
            at = 0
            while (transaction := self.acknowledged_by(data, at)) is not None:
                at += HEADER_SIZE
                yield Acknowledged(transaction)
            for piece in self._deframer.feed(memoryview(data)[at:]):
                event = self._on_header(piece) if isinstance(piece, Header) else self._on_hello_payload(piece)
                if event is not None:
                    yield event
        except WireError:
            self.close()
            raise

    def end_of_stream(self) -> WireError | None:
        """The peer closed the link: what that cut short, ``None`` if nothing."""
        if self.in_flight:
            expecting = f"the ACK of transaction {self.in_flight[0].id}"
        else:
            expecting = f"transaction {self.id} was committed" if self.is_inside else ""
        error = self._end_of_stream(expecting)
        self.close()
        return error

    def acknowledged_by(self, data: bytes | memoryview, at: int = 0) -> InFlight | None:
        """
        The transaction that is committed because the expected ACK lies at ``at``, as mostly it does; ``None`` for what
        has to be received.
        """
        in_flight, deframer = self.in_flight, self._deframer
        following = ON_ACK.get(self.state)
        if (
            not in_flight
            or following is None
            or self._trace.ft_trans_recv_header is not None
            or deframer.partial
            or deframer.payload_left
            or len(data) - at < HEADER_SIZE
        ):
            return None
        transaction = in_flight[0]
        if self._unpack(data, at) != (Command.ACK, transaction.id, transaction.seq, 0):
            return None
        in_flight.popleft()
        self.state = following
        return transaction

    def _on_header(self, header: Header) -> SenderEvent | None:
        state = self.state
        action = self._command(header)
        if action is Action.READ_HELLO:
            self._expect_hello_payload(header)
            return None
        self._expect_no_payload(header)
        if action is Action.OPEN_SESSION:
            if header.seq:
                raise WireError(ErrorCode.STATE_INVALID, f"the opening ACK has seq {header.seq}, not 0")
            self.id = header.id
            return Opened(header.id)
        return self._on_verdict(header, action, state)

    def _on_verdict(self, header: Header, action: Action, state: State) -> SenderEvent:
        if not self.in_flight:
            self.state = state
            raise WireError(ErrorCode.STATE_INVALID, self._why_not(header))
        if action is Action.DROP and FEATURE_NACK not in self.features:
            raise WireError(ErrorCode.STATE_INVALID, "NACK was not agreed")
        transaction = self.in_flight[0]
        # In a NACK seq is the reason.
        if header.id != transaction.id or (action is Action.RETIRE and header.seq != transaction.seq):
            raise WireError(
                ErrorCode.STATE_INVALID,
                f"{Command(header.cmd).name} of id {header.id} seq {header.seq},"
                f" expected for id {transaction.id} seq {transaction.seq}",
            )
        self.in_flight.popleft()
        if action is Action.RETIRE:
            return Acknowledged(transaction)
        cancel = self._frame(Command.CANCEL, self.id, self.seq, 0) if state in INSIDE else b""
        behind = tuple(self.in_flight)
        self.in_flight.clear()
        self.id = transaction.id
        return Refused(transaction, ErrorCode.from_wire(header.seq), behind, cancel)

    def _on_hello_payload(self, piece: memoryview) -> SenderEvent | None:
        self._expect_open()
        hello = self._take_hello(piece)
        if hello is None:
            return None
        self.limits = Limits(
            min(self.limits.max_payload, hello.max_payload),
            min(self.limits.max_transaction, hello.max_transaction or self.limits.max_transaction),
        )
        return HelloReceived(hello)

    # Parts of a transaction

    def _call_in_window(self, call: Call) -> None:
        waiting = len(self.in_flight)
        if waiting >= self.window:
            raise CallRefused(
                f"{call.value} is not possible while {waiting} transactions await their ACK, as many as the window is",
                self.state.value,
            )
        self._call(call)

    def _start(self) -> None:
        self.seq = 0
        self.size = 0
        self._digest.reset()

    def _absorb(self, payload: tuple[Buffer, ...], length: int) -> None:
        self.size += length
        if FEATURE_DIGEST in self.features:
            for piece in payload:
                self._digest.update(piece)

    def _finish(self, cmd: Command, is_heartbeat: bool) -> bytes:
        digest = self._digest_bytes()
        header = self._frame(cmd, self.id, self.seq, len(digest))
        self._put_in_flight(is_heartbeat)
        return header + digest

    def _finish_atomic(self, length: int) -> tuple[bytes, bytes]:
        digest = self._digest_bytes()
        header = self._frame(Command.ATOMIC, self.id, 0, length + len(digest))
        self._put_in_flight(is_heartbeat=False)
        return header, digest

    def _digest_bytes(self) -> bytes:
        if FEATURE_DIGEST not in self.features:
            return b""
        return self._digest.intdigest().to_bytes(DIGEST_SIZE, "little")

    def _put_in_flight(self, is_heartbeat: bool) -> None:
        self.in_flight.append(InFlight(self.id, self.seq, self.size, is_heartbeat))
        self.id = (self.id + 1) % ID_MODULUS


def _interleaved(headers: np.ndarray[Any, Any], payload: memoryview, frame_size: int) -> list[Buffer]:
    """Each header, and the frame that it belongs to."""
    count = len(headers)
    if frame_size > _SMALL or len(payload) > _MOST_JOINED:
        pieces: list[Buffer] = [b""] * (2 * count)
        lines = headers.view(np.uint8).data
        pieces[::2] = [lines[at : at + HEADER_SIZE] for at in range(0, len(lines), HEADER_SIZE)]
        pieces[1::2] = [payload[at : at + frame_size] for at in range(0, len(payload), frame_size)]
        return pieces
    joined = np.empty((count, HEADER_SIZE + frame_size), np.uint8)
    joined[:, :HEADER_SIZE] = headers.view(np.uint8).reshape(count, HEADER_SIZE)
    whole = len(payload) // frame_size
    data = np.frombuffer(payload, np.uint8)
    joined[:whole, HEADER_SIZE:] = data[: whole * frame_size].reshape(whole, frame_size)
    rest = len(payload) - whole * frame_size
    if rest:
        joined[whole, HEADER_SIZE : HEADER_SIZE + rest] = data[whole * frame_size :]
    return [joined.reshape(-1).data[: count * HEADER_SIZE + len(payload)]]
