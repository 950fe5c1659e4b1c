"""What goes on by itself: coroutines that nobody waits for, timers that may be over."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.errors import FtdError


def spawn(act: Coroutine[Deferred[Any], Any, None], log: Logger) -> Deferred[None]:
    """
    Begin something that goes on by itself.

    :param log: told of an error; what ftd says to people is a warning there, anything else a fault.
    :return: fires when it is over, whatever became of it.
    """

    def tell(failure: Failure) -> None:
        if failure.check(FtdError):
            log.warn("{error}", error=failure.value)
        else:
            log.failure("an error in ftd", failure)

    return Deferred.fromCoroutine(act).addErrback(tell)


def cancel(timer: IDelayedCall | None) -> None:
    """Stop a timer that may be over, or may never have been."""
    if timer is not None and timer.active():
        timer.cancel()
