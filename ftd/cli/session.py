"""One run of a command: what it works with, what becomes of its errors, and the reactor around it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import FrameType
from typing import Any

import attrs
from rich.console import Console, RenderableType
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ftd.cli.wording import duration, plain
from ftd.client import DEFAULT_URL, ApiError, Client, ClientError, SourceChanged, Unreachable

#: The exit codes; beyond them, what shells say of a process that a signal ended: 128 + its number.
DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3


@attrs.frozen(kw_only=True)
class Session:
    """
    :ivar out: standard output: what was asked for.
    :ivar err: standard error: what went wrong, and progress.
    :ivar as_json: whether what goes to ``out`` is for programs.
    :ivar now: Unix seconds.
    """

    client: Client
    reactor: Any
    out: Console
    err: Console
    as_json: bool
    now: Callable[[], float] = time.time

    def answer(self, value: Mapping[str, Any], shown: RenderableType) -> None:
        """The result of a command: ``value`` for programs, ``shown`` for people."""
        if self.as_json:
            self.line(value)
        elif isinstance(shown, str):
            self.say(shown)
        else:
            self.out.print(shown)

    def line(self, value: Mapping[str, Any]) -> None:
        """An object as one line of JSON."""
        self.out.out(json.dumps(value), highlight=False)

    def say(self, text: str) -> None:
        """A line of text, which may have come from the daemon."""
        self.out.out(plain(text), highlight=False)

    def warn(self, text: str) -> None:
        """As ``say``, on standard error."""
        self.err.out(plain(text), highlight=False)


@attrs.frozen(kw_only=True)
class Task:
    """
    A command that was given.

    :ivar command: its name, as it was typed.
    :ivar pair: the pair it is about, if it is about one.
    """

    operation: Callable[[Session], Awaitable[None]]
    command: str
    pair: str | None


def run_in_reactor(settings: Settings, task: Task) -> int:
    """Run a command in the process's reactor, and return the exit code."""
    from twisted.internet import reactor  # importing it chooses it

    async def work() -> int:
        session = Session(
            client=Client.for_url(settings.url, reactor),
            reactor=reactor,
            out=console(),
            err=console(stderr=True),
            as_json=settings.as_json,
        )
        return await outcome(session, task)

    return run(reactor, work)


@attrs.define
class Settings:
    """
    What the options say that belong to no command.

    :ivar run: runs a command and returns the exit code.
    """

    run: Callable[[Settings, Task], int] = run_in_reactor
    url: str = DEFAULT_URL
    as_json: bool = False


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: neither markup nor emoji codes, no colours for what looks like a number."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


async def outcome(session: Session, task: Task) -> int:
    """
    Run a command and say what went wrong, if something did.

    :return: the exit code.
    """
    try:
        await task.operation(session)
    except ApiError as refused:
        _report(session, {"status": refused.status, "detail": str(refused), **refused.problem}, str(refused))
        advice = next_step(refused, task)
        if advice:
            session.warn(advice)
        return REFUSED
    except Unreachable as unreachable:
        shown = f"the daemon at {unreachable.url} cannot be reached: {unreachable.why}"
        _report(session, {"url": unreachable.url, "detail": shown}, shown)
        session.warn("is the daemon running? try: make run / twistd -n ftd --config etc/ftd.conf")
        return UNREACHABLE
    except (BrokenPipeError, SystemExit):
        # The reader (`| head`) has gone; the second is how rich puts it.
        return 128 + signal.SIGPIPE
    except OSError as failed:
        shown = str(failed) if failed.filename is None else f"{failed.filename}: {failed.strerror}"
        _report(session, {"detail": shown}, shown)
        return REFUSED
    except (ClientError, SourceChanged) as failed:
        _report(session, {"detail": str(failed)}, str(failed))
        return REFUSED
    except CancelledError:
        return 128 + signal.SIGINT
    finally:
        await session.client.close()
    return DONE


def _report(session: Session, error: Mapping[str, Any], shown: str) -> None:
    if session.as_json:
        session.line({"error": error})
    session.warn(f"ftdctl: {shown}")


def next_step(refused: ApiError, task: Task) -> str:
    """What to do about a refusal, where its own words do not say it and it can be known; else empty."""
    pair = task.pair
    state = refused.problem.get("state")
    match refused.kind:
        case "not-in-state" if task.command in ("begin", "push") and state in ("BEGIN", "CONTINUE"):
            return f"to end the open transaction: ftdctl commit {pair}, or ftdctl cancel {pair}"
        case "pair-failed":
            return f"to clear the error and re-open the link: ftdctl reset {pair}"
        case "link-down":
            again = f"; try again in {duration(refused.retry_after)}" if refused.retry_after is not None else ""
            return f"to see what the link is doing: ftdctl status{again}"
        case "no-ack":
            return f"it may still be committed; to see whether it was: ftdctl transactions {pair}"
        case "qmp":
            return f"to see what becomes of the VM: ftdctl pair show {pair}"
        case "unknown" if task.command == "fetch":
            return f"to see which there are: ftdctl status, ftdctl checkpoints {pair}"
        case "unknown":
            return "to see which there are: ftdctl status"
    return ""


def run(reactor: Any, operation: Callable[[], Coroutine[Deferred[Any], Any, int]]) -> int:
    """
    Run the reactor for as long as a command takes.

    SIGINT and SIGTERM cancel the command, which may then clean up after itself.

    :return: its exit code, or 128 + the number of the signal.
    """
    results: list[int | Failure] = []
    signals: list[int] = []

    def begin() -> None:
        working = Deferred.fromCoroutine(operation())

        def interrupt(number: int, _: FrameType | None) -> None:
            signals.append(number)
            reactor.callFromThread(working.cancel)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        working.addBoth(end)

    def end(result: int | Failure) -> None:
        results.append(result)
        reactor.stop()

    reactor.callWhenRunning(begin)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    (result,) = results
    if signals:
        return 128 + signals[0]
    if isinstance(result, Failure):
        result.raiseException()
        raise AssertionError("unreachable")
    return result
