"""
What can go wrong with an operation on a pair.

Everything an operator or a program can be told derives from :class:`FtdError`, whose text says what is wrong and,
where there is something to do, what to do next.  :mod:`ftd.http.problems` turns these classes into HTTP answers;
nothing else knows about status codes.
"""

from __future__ import annotations

from typing import ClassVar

from ftd.wire.errors import ErrorCode


class FtdError(Exception):
    """An operation that could not be done.  ``str()`` of it is one sentence for a person."""

    #: A short name that programs can compare, the last part of the problem's ``type`` URI.
    kind: ClassVar[str] = "error"


class NotInState(FtdError):
    """
    The operation is not possible in the state the pair is in.

    :ivar state: the state it is in, as the API shows it (``ACK``, ``CONTINUE`` …).
    """

    kind = "not-in-state"

    def __init__(self, detail: str, state: str) -> None:
        super().__init__(detail)
        self.state = state


class PairFailed(FtdError):
    """
    The pair has an error: a sticky one of its own, or the standby refused the transaction (NACK).

    :ivar code: one of the eight codes of the protocol.
    """

    kind = "pair-failed"

    def __init__(self, detail: str, code: ErrorCode) -> None:
        super().__init__(detail)
        self.code = code


class LinkDown(FtdError):
    """
    There is no link, or it broke before the transaction was in.

    :ivar retry_after: seconds after which it is worth trying again.
    """

    kind = "link-down"

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NoAck(FtdError):
    """COMMIT was sent and no ACK came in time.  The transaction may still be committed later."""

    kind = "no-ack"


class TooLarge(FtdError):
    """More bytes than a limit of the configuration allows."""

    kind = "too-large"


class Unknown(FtdError):
    """There is no such pair or checkpoint."""

    kind = "unknown"


class AlreadyExists(FtdError):
    """A pair of that name is there already, or something else holds what it needs."""

    kind = "already-exists"


class CannotKeep(FtdError):
    """``state-dir`` does not take what has to be kept over a restart; nothing was changed."""

    kind = "cannot-keep"


class ConfigError(FtdError):
    """
    A configuration that cannot be used.

    :ivar section: ``ftd``, ``api``, ``pair NAME``; empty where the file as a whole is at fault.
    :ivar key: the key in it; empty where the section as a whole is at fault.
    """

    kind = "config"

    def __init__(self, detail: str, section: str = "", key: str = "") -> None:
        where = f"[{section}] {key}".strip() if section else ""
        super().__init__(f"{where}: {detail}" if where else detail)
        self.detail = detail
        self.section = section
        self.key = key
