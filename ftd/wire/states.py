"""
All transitions of the two machines, and the theory of them.

A session is a sequence of transactions.  The receiver speaks first: to an ftd it says HELLO, hears HELLO, and
answers ACK; to a Kemari sender it says ACK at once.  From there on the sender alone decides what comes next::

    sender                                          receiver

    INIT --HELLO--> GREETED --greet--> HELLO        INIT --greet--> HELLO --HELLO--> GREETED
    INIT --ACK----> ACK      (a Kemari peer)        INIT --open---> ACK      (a Kemari peer)
    HELLO --ACK---> ACK                             GREETED --open--> ACK

    ACK CANCEL NACK --begin--> BEGIN                ACK CANCEL NACK --BEGIN--> BEGIN
    BEGIN CONTINUE --continue--> CONTINUE           BEGIN CONTINUE --CONTINUE--> CONTINUE
    BEGIN CONTINUE --cancel--> CANCEL               BEGIN CONTINUE --CANCEL--> CANCEL
    BEGIN CONTINUE --commit--> COMMIT               BEGIN CONTINUE --COMMIT--> COMMIT
    COMMIT --ACK--> ACK, --NACK--> NACK             COMMIT --acknowledge--> ACK, --refuse--> NACK

ACK, CANCEL and NACK are the same place, between transactions; they differ in what was last said, which is what the
seed's ``state`` and ours show.  A transaction that is sent as one ATOMIC frame goes from there to COMMIT.  CLOSED is
where an error or the end of the stream leads; nothing leads out of it.

Every pair of a state and a command (something the peer sent) or a call (something this side wants) that is not in a
table is an error: for a command STATE_INVALID and the end of the session, for a call `CallRefused` and no change.

A window of more than one lets the sender go on while answers are still to come: it may begin where it awaits an
answer, while fewer transactions than the window says are in flight, and the answers, which come in the order of the
COMMITs, come to whatever state it is in by then::

    COMMIT --begin--> BEGIN, --atomic--> COMMIT     with room in the window
    ACK CANCEL BEGIN CONTINUE --ACK--> the same     with a transaction in flight
    ACK CANCEL --NACK--> NACK                       with a transaction in flight
    BEGIN CONTINUE --NACK--> CANCEL                 with a transaction in flight

Where the window is one no sender ever stands in ACK, CANCEL, BEGIN or CONTINUE with a transaction in flight, and in
COMMIT there is never room, so that its drawing is the one above.  A NACK takes all transactions behind the refused one
with it, for they follow upon a state that will not be: those in flight get no answer, the open one is cancelled, and
the next BEGIN has the id of the refused one.  That BEGIN tells the receiver where the dropped ones end: until it comes,
a receiver that allows a window stays in NACK and reads, without acting on it, whatever is of one of the ids that can
have been in flight.  That is no state of its own, since nothing shows of it.

A NACK answers a COMMIT or an ATOMIC and nothing else.  Rejected: refusing a transaction while it is still being
sent.  A CANCEL and the next BEGIN of the same id could cross that NACK, and the sender would take it for the wrong
one of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from ftd.wire.constants import Command


class _Member(Enum):
    """A member is one object, and that is its hash, which takes no Python code: every frame looks into a table."""

    __hash__ = object.__hash__


class State(_Member):
    """Where a machine stands; the value is what the API shows."""

    INIT = "INIT"
    GREETED = "GREETED"
    HELLO = "HELLO"
    ACK = "ACK"
    BEGIN = "BEGIN"
    CONTINUE = "CONTINUE"
    COMMIT = "COMMIT"
    CANCEL = "CANCEL"
    NACK = "NACK"
    CLOSED = "CLOSED"


class Call(_Member):
    """What this side may ask of its own machine."""

    GREET = "greet"
    OPEN = "open"
    BEGIN = "begin"
    CONTINUE = "continue"
    COMMIT = "commit"
    CANCEL = "cancel"
    ATOMIC = "atomic"
    ACKNOWLEDGE = "acknowledge"
    REFUSE = "refuse"


class Action(_Member):
    """What a machine does when it takes a transition."""

    READ_HELLO = "read hello"
    SEND_HELLO = "send hello"
    OPEN_SESSION = "open session"
    BEGIN = "begin"
    CONTINUE = "continue"
    COMMIT = "commit"
    CANCEL = "cancel"
    ATOMIC = "atomic"
    RETIRE = "retire"
    DROP = "drop"


Table = Mapping[State, Mapping[Command | Call, tuple[State, Action]]]

_SENDER_BETWEEN: Mapping[Command | Call, tuple[State, Action]] = {
    Call.BEGIN: (State.BEGIN, Action.BEGIN),
    Call.ATOMIC: (State.COMMIT, Action.ATOMIC),
}
_SENDER_INSIDE: Mapping[Command | Call, tuple[State, Action]] = {
    Call.CONTINUE: (State.CONTINUE, Action.CONTINUE),
    Call.COMMIT: (State.COMMIT, Action.COMMIT),
    Call.CANCEL: (State.CANCEL, Action.CANCEL),
    Command.NACK: (State.CANCEL, Action.DROP),
}

SENDER: Table = {
    State.INIT: {
        Command.HELLO: (State.GREETED, Action.READ_HELLO),
        Command.ACK: (State.ACK, Action.OPEN_SESSION),
    },
    State.GREETED: {Call.GREET: (State.HELLO, Action.SEND_HELLO)},
    State.HELLO: {
        Command.ACK: (State.ACK, Action.OPEN_SESSION),
        # A receiver that will not open the session says why in a second HELLO.
        Command.HELLO: (State.HELLO, Action.READ_HELLO),
    },
    State.ACK: {
        **_SENDER_BETWEEN,
        Command.ACK: (State.ACK, Action.RETIRE),
        Command.NACK: (State.NACK, Action.DROP),
    },
    State.CANCEL: {
        **_SENDER_BETWEEN,
        Command.ACK: (State.CANCEL, Action.RETIRE),
        Command.NACK: (State.NACK, Action.DROP),
    },
    State.NACK: _SENDER_BETWEEN,
    State.BEGIN: {**_SENDER_INSIDE, Command.ACK: (State.BEGIN, Action.RETIRE)},
    State.CONTINUE: {**_SENDER_INSIDE, Command.ACK: (State.CONTINUE, Action.RETIRE)},
    State.COMMIT: {
        **_SENDER_BETWEEN,
        Command.ACK: (State.ACK, Action.RETIRE),
        Command.NACK: (State.NACK, Action.DROP),
    },
    State.CLOSED: {},
}

_RECEIVER_BETWEEN: Mapping[Command | Call, tuple[State, Action]] = {
    Command.BEGIN: (State.BEGIN, Action.BEGIN),
    Command.ATOMIC: (State.COMMIT, Action.ATOMIC),
}
_RECEIVER_INSIDE: Mapping[Command | Call, tuple[State, Action]] = {
    Command.CONTINUE: (State.CONTINUE, Action.CONTINUE),
    Command.COMMIT: (State.COMMIT, Action.COMMIT),
    Command.CANCEL: (State.CANCEL, Action.CANCEL),
}

RECEIVER: Table = {
    State.INIT: {
        Call.GREET: (State.HELLO, Action.SEND_HELLO),
        Call.OPEN: (State.ACK, Action.OPEN_SESSION),
    },
    State.HELLO: {Command.HELLO: (State.GREETED, Action.READ_HELLO)},
    State.GREETED: {Call.OPEN: (State.ACK, Action.OPEN_SESSION)},
    State.ACK: _RECEIVER_BETWEEN,
    State.CANCEL: _RECEIVER_BETWEEN,
    State.NACK: _RECEIVER_BETWEEN,
    State.BEGIN: _RECEIVER_INSIDE,
    State.CONTINUE: _RECEIVER_INSIDE,
    State.COMMIT: {
        Call.ACKNOWLEDGE: (State.ACK, Action.RETIRE),
        Call.REFUSE: (State.NACK, Action.DROP),
    },
    State.CLOSED: {},
}

#: Between transactions: the session is open and nothing is on its way.
BETWEEN = frozenset({State.ACK, State.CANCEL, State.NACK})

#: Where the ACK of an earlier transaction leads a sender that has one in flight.
ON_ACK: Mapping[State, State] = {
    state: row[Command.ACK][0]
    for state, row in SENDER.items()
    if row.get(Command.ACK, (None, None))[1] is Action.RETIRE
}

#: Inside a transaction.
INSIDE = frozenset({State.BEGIN, State.CONTINUE})

#: Before the session is open.
OPENING = frozenset({State.INIT, State.GREETED, State.HELLO})
