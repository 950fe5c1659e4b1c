"""Waiting for what has to happen, through the reactor, with a deadline that is there only so that nothing hangs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import reactor as _installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

T = TypeVar("T")

#: The reactor, which Twisted types as a module.
reactor: Any = _installed_reactor

#: Seconds that a step of a test may take on the slowest machine.
DEADLINE = 30.0

#: Seconds between two looks.
_PAUSE = 0.03


async def pause(seconds: float = _PAUSE) -> None:
    """Let the reactor run."""
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], object], what: str | Callable[[], str], deadline: float = DEADLINE) -> None:
    """
    Wait until ``condition`` gives something that is true, or that turns out to be when it is awaited.

    :param what: what is waited for, for the failure; a function is called then.
    """
    end = reactor.seconds() + deadline
    while True:
        given = condition()
        if await given if inspect.isawaitable(given) else given:
            return
        if reactor.seconds() > end:
            raise AssertionError(f"not within {deadline:g} s: {what if isinstance(what, str) else what()}")
        await pause()


def limited(deferred: Deferred[T], deadline: float = DEADLINE) -> Deferred[T]:
    """A Deferred that fails when nothing comes of it."""
    return deferred.addTimeout(deadline, reactor)
