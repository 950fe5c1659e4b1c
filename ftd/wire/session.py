"""
What the sender's and the receiver's machine have in common: the deframer, HELLO, the table step, the end of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

from ftd.wire.constants import FEATURE_WINDOW, FEATURES, MAX_HELLO, ByteOrder, Command
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.framing import Deframer, Header, encode_header
from ftd.wire.hello import Hello
from ftd.wire.states import OPENING, Action, Call, State, Table


class WireTrace(Protocol):
    """The trace events that belong to the wire; each is ``None`` while it is off."""

    @property
    def ft_trans_send_header(self) -> Callable[[int], None] | None: ...
    @property
    def ft_trans_recv_header(self) -> Callable[[int], None] | None: ...
    @property
    def ft_trans_put_buffer(self) -> Callable[[int, int], None] | None: ...
    @property
    def ft_trans_recv_payload(self) -> Callable[[int, int, int], None] | None: ...


@attrs.frozen
class NoTrace:
    """All events off."""

    ft_trans_send_header: None = None
    ft_trans_recv_header: None = None
    ft_trans_put_buffer: None = None
    ft_trans_recv_payload: None = None


NO_TRACE = NoTrace()


@attrs.frozen
class Limits:
    """Bytes a peer, or this side, may put into one frame and into one transaction."""

    max_payload: int
    max_transaction: int


_COMMANDS = frozenset(int(command) for command in Command)

# Asked for at every piece of payload, and dear to look for in its enum each time.
_CLOSED = State.CLOSED
# The first bytes of a handshake and of an alert of TLS, in both byte orders.
_TLS = frozenset({0x0316, 0x0315, 0x1603, 0x1503})


class Session:
    """The state of one end of one link, from its first byte to its last.  A new link takes a new object."""

    def __init__(self, table: Table, limits: Limits, pair: str, byte_order: ByteOrder, trace: WireTrace) -> None:
        self.state = State.INIT
        self.limits = limits
        #: The features in force, from both HELLOs.
        self.features: frozenset[str] = frozenset()
        #: How many transactions may be in flight, from both HELLOs.
        self.window = 1
        #: The peer's HELLO; ``None`` before it came, and from a Kemari peer for good.
        self.peer_hello: Hello | None = None
        self._pair = pair
        self._table = table
        self._byte_order: ByteOrder = byte_order
        self._trace = trace
        self._deframer = Deframer(byte_order)
        self._hello = bytearray()
        self._offered: frozenset[str] = frozenset()
        self._offered_window = 1

    def greet(self, hello: Hello) -> bytes:
        """Say HELLO, and with it which features this side offers: the receiver first, the sender in answer to it."""
        self._call(Call.GREET)
        self._offered = hello.features
        self._offered_window = hello.window
        self._agree()
        return self.hello_frame(hello)

    def hello_frame(self, hello: Hello) -> bytes:
        """A HELLO frame, header and payload."""
        payload = hello.encode()
        return self._frame(Command.HELLO, 0, 0, len(payload)) + payload

    def close(self) -> None:
        """Nothing more is sent or received."""
        self.state = State.CLOSED

    def _expect_open(self) -> None:
        """Payload has no transition that the table could refuse: what comes behind an error is stopped here."""
        if self.state is _CLOSED:
            raise WireError(ErrorCode.STATE_INVALID, "the session is over")

    def _frame(self, cmd: Command, id: int, seq: int, payload_len: int) -> bytes:
        if self._trace.ft_trans_send_header is not None:
            self._trace.ft_trans_send_header(cmd)
        return encode_header(self._byte_order, cmd, id, seq, payload_len)

    def _call(self, call: Call) -> None:
        """Take the transition of something this side wants."""
        transition = self._table[self.state].get(call)
        if transition is None:
            raise CallRefused(f"{call.value} is not possible in state {self.state.value}", self.state.value)
        self.state = transition[0]

    def _command(self, header: Header) -> Action:
        """Take the transition of something the peer sent."""
        if self._trace.ft_trans_recv_header is not None:
            self._trace.ft_trans_recv_header(header.cmd)
        # A plain number finds the row of the Command that equals it.
        row: Mapping[int, tuple[State, Action]] = self._table[self.state]  # type: ignore[assignment]
        transition = row.get(header.cmd)
        if transition is None:
            raise WireError(ErrorCode.STATE_INVALID, self._why_not(header))
        self.state, action = transition
        return action

    def _why_not(self, header: Header) -> str:
        if header.cmd in _COMMANDS:
            return f"{Command(header.cmd).name} is not allowed in state {self.state.value}"
        swapped = (header.cmd & 0xFF) << 8 | header.cmd >> 8
        hint = "; the peer seems to use the other byte order" if swapped in _COMMANDS else ""
        if header.cmd in _TLS:
            hint = "; the peer speaks TLS: both halves need link-certificate, link-key and link-ca, or neither"
        return f"unknown command 0x{header.cmd:04x} in state {self.state.value}{hint}"

    def _expect_no_payload(self, header: Header) -> None:
        if header.payload_len:
            raise WireError(
                ErrorCode.STATE_INVALID,
                f"{Command(header.cmd).name} carries {header.payload_len} bytes of payload where none may be",
            )

    def _expect_hello_payload(self, header: Header) -> None:
        if header.payload_len > MAX_HELLO:
            raise WireError(ErrorCode.REALLOC_BUF, f"a HELLO of {header.payload_len} bytes; {MAX_HELLO} are allowed")
        if header.id or header.seq or not header.payload_len:
            raise WireError(ErrorCode.STATE_INVALID, "a HELLO has id 0, seq 0 and a payload")

    def _take_hello(self, piece: memoryview) -> Hello | None:
        """Collect a HELLO's payload; the peer's HELLO when it is whole and good."""
        self._hello += piece
        if self._deframer.payload_left:
            return None
        hello = Hello.decode(self._hello)
        self._hello.clear()
        if self.peer_hello is not None:
            raise WireError(ErrorCode.STATE_INVALID, "the peer sent a second HELLO")
        if hello.pair != self._pair:
            raise WireError(
                ErrorCode.STATE_INVALID, f"the peer speaks of pair {hello.pair!r:.200}, this side of {self._pair!r}"
            )
        self.peer_hello = hello
        self._agree()
        return hello

    def _agree(self) -> None:
        """A feature is in force once both HELLOs list it; the smaller one of their windows counts."""
        if self.peer_hello is not None:
            self.features = FEATURES & self._offered & self.peer_hello.features
            if FEATURE_WINDOW in self.features:
                self.window = min(self._offered_window, self.peer_hello.window)

    def _end_of_stream(self, expecting: str) -> WireError | None:
        """Where in the protocol the stream ended; ``expecting`` is what was still to come, empty if nothing was."""
        if self.state is State.CLOSED:
            return None
        if self._deframer.inside_header:
            return WireError(ErrorCode.RECV_HDR, "the peer closed the link in the middle of a header")
        if self._deframer.payload_left:
            return WireError(
                ErrorCode.RECV_PAYLOAD,
                f"the peer closed the link inside a payload, {self._deframer.payload_left} bytes before its end",
            )
        if self.state in OPENING:
            return WireError(ErrorCode.RECV_HDR, "the peer closed the link before the session was open")
        if expecting:
            return WireError(ErrorCode.RECV_HDR, f"the peer closed the link before {expecting}")
        return None
