"""
Ways into every state of both machines, by nothing but calls and bytes from the peer.

The peer is played by headers that are packed here: what a test feeds must not come from the code that it tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import attrs

from ftd.wire.constants import FEATURES, MAX_PAYLOAD_LEN, ByteOrder, Command
from ftd.wire.errors import ErrorCode
from ftd.wire.events import ReceiverEvent, SenderEvent
from ftd.wire.hello import Hello
from ftd.wire.receiver import ReceiverMachine
from ftd.wire.sender import SenderMachine
from ftd.wire.session import NO_TRACE, Limits, WireTrace
from ftd.wire.states import State

PAIR = "demo"
LIMITS = Limits(max_payload=1 << 20, max_transaction=1 << 24)

#: The id that the receiver expects first.
FIRST_ID = 7

#: All but the digest, so that a COMMIT is a header and nothing else.
NO_DIGEST = FEATURES - {"digest"}

#: Numbers that are no command; the first ones are BEGIN and HELLO in the wrong byte order.
UNKNOWN = (0x0100, 0x0700, 8, 9, 0x00FF, 0x7FFF, 0x8000, 0xFFFE)


def frame(cmd: int, id: int = 0, seq: int = 0, payload: bytes = b"", byte_order: ByteOrder = "little") -> bytes:
    """A frame as the peer writes it."""
    return head(cmd, id, seq, len(payload), byte_order) + payload


def head(cmd: int, id: int = 0, seq: int = 0, payload_len: int = 0, byte_order: ByteOrder = "little") -> bytes:
    """Only a header, which may promise any payload."""
    return struct.pack(("<" if byte_order == "little" else ">") + "HHII", cmd, id, seq, payload_len)


def hello(features: frozenset[str] = NO_DIGEST, state: str = "standby", pair: str = PAIR, window: int = 1) -> Hello:
    """A HELLO that this pair can work with."""
    return Hello(
        pair=pair, node="elsewhere", features=features, max_payload=MAX_PAYLOAD_LEN, window=window, state=state
    )


def hello_frame(features: frozenset[str] = NO_DIGEST, state: str = "standby", pair: str = PAIR) -> bytes:
    """The same as a frame."""
    return frame(Command.HELLO, payload=hello(features, state, pair).encode())


def new_sender(limits: Limits = LIMITS, trace: WireTrace = NO_TRACE) -> SenderMachine:
    return SenderMachine(limits, pair=PAIR, trace=trace)


def new_receiver(limits: Limits = LIMITS, trace: WireTrace = NO_TRACE, kemari: bool = False) -> ReceiverMachine:
    return ReceiverMachine(limits, pair=PAIR, next_id=FIRST_ID, trace=trace, kemari=kemari)


def open_sender(
    features: frozenset[str] = NO_DIGEST,
    limits: Limits = LIMITS,
    next_id: int = FIRST_ID,
    window: int = 1,
    trace: WireTrace = NO_TRACE,
) -> SenderMachine:
    """A sender whose session with an ftd is open."""
    machine = new_sender(limits, trace)
    fed(machine, frame(Command.HELLO, payload=hello(features, window=window).encode()))
    machine.greet(hello(state="primary", features=FEATURES, window=window))
    fed(machine, frame(Command.ACK, next_id))
    return machine


def open_receiver(features: frozenset[str] = NO_DIGEST, limits: Limits = LIMITS) -> ReceiverMachine:
    """A receiver whose session with an ftd is open."""
    machine = new_receiver(limits)
    machine.greet(hello(features=FEATURES))
    taken(machine, hello_frame(features, "primary"))
    machine.open()
    return machine


def fed(machine: SenderMachine, data: bytes) -> list[SenderEvent]:
    """What a sender makes of bytes."""
    return list(machine.receive(data))


def taken(machine: ReceiverMachine, data: bytes) -> list[ReceiverEvent]:
    """What a receiver makes of bytes that hold no question behind which there is more."""
    return list(machine.receive(data))


def sender_in(state: State, trace: WireTrace = NO_TRACE) -> SenderMachine:
    """A sender in ``state``; in those of a transaction it has sent one frame of three bytes."""
    machine = new_sender(trace=trace)

    def refused() -> None:
        transaction = machine.in_flight[0]
        fed(machine, frame(Command.NACK, transaction.id, ErrorCode.FLUSH))

    steps: dict[State, list[Callable[[], object]]] = {
        State.INIT: [],
        State.GREETED: [lambda: fed(machine, hello_frame())],
        State.HELLO: [lambda: machine.greet(hello(state="primary"))],
        State.ACK: [lambda: fed(machine, frame(Command.ACK, FIRST_ID))],
        State.BEGIN: [machine.begin],
        State.CONTINUE: [lambda: machine.continue_(b"abc")],
        State.COMMIT: [machine.commit],
        State.NACK: [refused],
    }
    asides: dict[State, tuple[State, list[Callable[[], object]]]] = {
        State.CANCEL: (State.CONTINUE, [machine.cancel]),
        State.CLOSED: (State.CONTINUE, [machine.close]),
    }
    _walk(state, steps, asides)
    assert machine.state is state, f"the way to {state} leads to {machine.state}"
    return machine


def sender_in_window(state: State, trace: WireTrace = NO_TRACE) -> SenderMachine:
    """
    A sender in ``state`` whose window of four has a transaction of no bytes in flight before whatever it is doing now;
    it began that with `FIRST_ID`.
    """
    machine = open_sender(next_id=FIRST_ID - 1 if state is State.ACK else FIRST_ID, window=4, trace=trace)
    machine.heartbeat()
    if state is State.ACK:
        machine.heartbeat()
        fed(machine, frame(Command.ACK, FIRST_ID - 1))
    else:
        machine.begin()
    if state in (State.CONTINUE, State.COMMIT, State.CANCEL):
        machine.continue_(b"abc")
    if state is State.COMMIT:
        machine.commit()
    if state is State.CANCEL:
        machine.cancel()
    assert machine.state is state, f"the way to {state} leads to {machine.state}"
    assert machine.in_flight[0].id == FIRST_ID
    return machine


def receiver_in(state: State, trace: WireTrace = NO_TRACE) -> ReceiverMachine:
    """A receiver in ``state``; in those of a transaction it has read one frame of three bytes."""
    machine = new_receiver(trace=trace)
    steps: dict[State, list[Callable[[], object]]] = {
        State.INIT: [],
        State.HELLO: [lambda: machine.greet(hello())],
        State.GREETED: [lambda: taken(machine, hello_frame(state="primary"))],
        State.ACK: [machine.open],
        State.BEGIN: [lambda: taken(machine, frame(Command.BEGIN, FIRST_ID))],
        State.CONTINUE: [lambda: taken(machine, frame(Command.CONTINUE, FIRST_ID, payload=b"abc"))],
        State.COMMIT: [lambda: taken(machine, frame(Command.COMMIT, FIRST_ID, 1))],
        State.NACK: [lambda: machine.refuse(ErrorCode.FLUSH)],
    }
    asides: dict[State, tuple[State, list[Callable[[], object]]]] = {
        State.CANCEL: (State.CONTINUE, [lambda: taken(machine, frame(Command.CANCEL, FIRST_ID, 1))]),
        State.CLOSED: (State.CONTINUE, [machine.close]),
    }
    _walk(state, steps, asides)
    assert machine.state is state, f"the way to {state} leads to {machine.state}"
    return machine


def _walk(
    state: State,
    steps: dict[State, list[Callable[[], object]]],
    asides: dict[State, tuple[State, list[Callable[[], object]]]],
) -> None:
    """Take the steps up to ``state``: those before it in their order, or those to where an aside branches off."""
    goal, last = asides.get(state, (state, []))
    for reached, way in steps.items():
        for step in way:
            step()
        if reached is goal:
            break
    for step in last:
        step()


@attrs.define
class RecordingTrace:
    """All four events on; each is a line in ``lines``."""

    lines: list[tuple[object, ...]] = attrs.Factory(list)

    def ft_trans_send_header(self, cmd: int) -> None:
        self.lines.append(("send_header", cmd))

    def ft_trans_recv_header(self, cmd: int) -> None:
        self.lines.append(("recv_header", cmd))

    def ft_trans_put_buffer(self, size: int, pos: int) -> None:
        self.lines.append(("put_buffer", size, pos))

    def ft_trans_recv_payload(self, length: int, hdr: int, total: int) -> None:
        self.lines.append(("recv_payload", length, hdr, total))


def listing(text: str) -> dict[tuple[State, str], State]:
    """
    A list of transitions, one ``STATE input NEXT`` a line, as a mapping.

    Several states with one input and one next state may share a line: ``ACK CANCEL NACK begin BEGIN`` is three.
    Commands are in capitals, calls are not.
    """
    found: dict[tuple[State, str], State] = {}
    for line in text.split("\n"):
        if words := line.split():
            *states, taken_in, following = words
            for state in states:
                key = State[state], taken_in
                assert key not in found, f"{key} is listed twice"
                found[key] = State[following]
    return found
