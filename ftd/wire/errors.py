"""
The eight error codes of the protocol (``FT_TRANS_ERR_*`` of the seed's header) and the exception that carries one.
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """What a pair's ``has_error`` holds, and the reason in a NACK's ``seq``.  0 is no error and not a member."""

    UNKNOWN = 0x01
    SEND_HDR = 0x02
    RECV_HDR = 0x03
    SEND_PAYLOAD = 0x04
    RECV_PAYLOAD = 0x05
    FLUSH = 0x06
    STATE_INVALID = 0x07
    REALLOC_BUF = 0x08

    @classmethod
    def from_wire(cls, value: int) -> ErrorCode:
        """The code for a number a peer sent; a number that is none of ours is UNKNOWN."""
        try:
            return cls(value)
        except ValueError:
            return cls.UNKNOWN


class WireError(Exception):
    """
    The session cannot go on: the link has to be closed and an open transaction dropped.

    :ivar code: one of the eight codes.
    :ivar detail: a sentence for a person.
    """

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail


class CallRefused(Exception):
    """
    This side asked for something that the state it is in does not allow; nothing was sent, the session goes on.

    :ivar state: the name of that state.
    """

    def __init__(self, detail: str, state: str) -> None:
        super().__init__(detail)
        self.state = state
