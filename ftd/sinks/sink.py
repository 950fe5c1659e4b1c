"""What the sinks share: the error that says why a transaction cannot be kept."""

from __future__ import annotations

from ftd.wire.errors import ErrorCode, WireError


class SinkError(WireError):
    """
    A sink cannot keep a transaction; what it held before is untouched.

    It is a `WireError` because it ends up as one: as the reason in a NACK, or as the error of a link.
    """


def cannot_store(what: str, error: OSError) -> SinkError:
    """The `SinkError` for a failed system call."""
    return SinkError(ErrorCode.FLUSH, f"{what}: {error.strerror or error}")
