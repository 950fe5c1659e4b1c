"""What the commands do, each with a :class:`ftd.cli.session.Session`: no click, no reactor of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import BinaryIO

from rich.table import Table
from rich.text import Text
from twisted.web.iweb import IBodyProducer

from ftd.cli.progress import progress_bar
from ftd.cli.session import Session
from ftd.cli.status_view import checkpoints_view, pair_view, status_view, transactions_view
from ftd.cli.watch import watch
from ftd.cli.wording import duration, frames, milliseconds, plain, size, timestamp
from ftd.client import ApiError, Event, FileBody, PipeBody, Progress, Protection, RateLimit, Unreachable, Which
from ftd.client.events import Notice
from ftd.client.transfer import is_regular
from ftd.status import Commit, VmStatus, to_json
from ftd.trace import TRACE_EVENTS, log_line

# The daemon


async def status(session: Session) -> None:
    """All pairs at a glance."""
    info, pairs = await session.client.info(), await session.client.pairs()
    session.answer({"pairs": [to_json(pair) for pair in pairs]}, status_view(info, pairs, session.now()))


async def status_watch(session: Session) -> None:
    """All pairs, live."""
    if not session.as_json:
        await watch(session)
        return
    with closing(session.client.events(kinds=("pair",), notice=_notice(session))) as stream:
        async for event in stream:
            session.line(_as_json(event))


# Pairs


async def pair_show(session: Session, pair: str) -> None:
    """Everything about one."""
    shown = await session.client.pair(pair)
    session.answer(to_json(shown), pair_view(shown))


async def pair_create(session: Session, pair: str, settings: Mapping[str, str]) -> None:
    """A new one."""
    created = await session.client.create_pair(pair, settings)
    session.answer(to_json(created), f"pair {created.name} is created")


async def pair_delete(session: Session, pair: str) -> None:
    """Remove one."""
    await session.client.delete_pair(pair)
    session.answer({}, f"pair {pair} is removed")


async def reset(session: Session, pair: str) -> None:
    """Clear the error, re-open the link."""
    await session.client.reset(pair)
    session.answer({}, f"the error of {pair} is cleared, and its link is being opened anew")


async def transactions(session: Session, pair: str) -> None:
    """The history."""
    rows = await session.client.transactions(pair)
    session.answer({"transactions": [to_json(row) for row in rows]}, transactions_view(rows))


# Transactions


async def begin(session: Session, pair: str) -> None:
    """Open one."""
    opened = await session.client.begin(pair)
    session.answer({"id": opened}, f"transaction {opened} is open")


async def put(session: Session, pair: str, file: BinaryIO) -> None:
    """State bytes into the open one."""
    with progress_bar(session, "sending") as progress:
        taken = await session.client.data(pair, _body(session, file, progress))
    frozen = "; the pair is frozen: its link takes no more just now" if taken.frozen else ""
    session.answer(to_json(taken), f"accepted {size(taken.accepted)}{frozen}")


async def commit(session: Session, pair: str, timeout: float | None) -> None:
    """Commit the open one and wait for its ACK."""
    _committed(session, await session.client.commit(pair, timeout=timeout))


async def commit_without_waiting(session: Session, pair: str) -> None:
    """Commit the open one."""
    sent = await session.client.commit_without_waiting(pair)
    session.answer({"id": sent}, f"COMMIT of transaction {sent} is on its way")


async def cancel(session: Session, pair: str) -> None:
    """Drop the open one."""
    dropped = await session.client.cancel(pair)
    session.answer({"id": dropped}, f"transaction {dropped} is cancelled")


async def push(session: Session, pair: str, file: BinaryIO) -> None:
    """A whole checkpoint."""
    with progress_bar(session, "sending", then="waiting for the ACK") as progress:
        committed = await session.client.push(pair, _body(session, file, progress))
    _committed(session, committed)


def _committed(session: Session, commit: Commit) -> None:
    shown = (
        f"committed: transaction {commit.id}, {size(commit.bytes)} in {frames(commit.seq)}, "
        f"acknowledged after {duration(commit.seconds)}"
    )
    session.answer(to_json(commit), shown)


def _body(session: Session, file: BinaryIO, progress: Progress) -> IBodyProducer:
    """Files are read when there is room, anything else when there is something; standard input has no length to us."""
    if is_regular(file) and file.name != "<stdin>":
        return FileBody(file, session.reactor, progress=progress)
    return PipeBody(file.fileno(), session.reactor, progress)


# Switches


async def rate_limit(session: Session, pair: str, *, enabled: bool | None, bandwidth: int | None) -> None:
    """Show it, or change either part and show it."""
    if enabled is None and bandwidth is None:
        limit = await session.client.rate_limit(pair)
    else:
        limit = await session.client.set_rate_limit(pair, enabled=enabled, bandwidth=bandwidth)
    session.answer(to_json(limit), _shown_limit(limit))


def _shown_limit(limit: RateLimit) -> str:
    bandwidth = f"{size(limit.bandwidth)}/s" if limit.bandwidth else "unlimited"
    return f"rate limit {'on' if limit.enabled else 'off'}, bandwidth {bandwidth}"


# VMs


async def protect(session: Session, pair: str, *, enabled: bool, interval: float | None) -> None:
    """
    Turn it on or off.

    :param interval: seconds, 0 for checkpoints at begin and commit; ``None`` leaves it.
    """
    every = None if interval is None else interval * 1000
    protection = await session.client.set_protection(pair, enabled=enabled, interval_ms=every)
    session.answer(to_json(protection), f"protection of {pair} is {_shown_protection(protection)}")


def _shown_protection(protection: Protection) -> str:
    every = milliseconds(protection.interval_ms)
    when = f"a checkpoint every {every}" if protection.interval_ms else "checkpoints at begin and commit"
    return f"on, {when}" if protection.enabled else "off"


async def promote(session: Session, pair: str, *, force: bool) -> None:
    """The standby's VM takes over."""
    vm = await session.client.promote(pair, force=force)
    _answer_vm(session, vm, f"the VM of {pair} runs: {vm.status.value}, checkpoint {vm.checkpoint}")


async def demote(session: Session, pair: str) -> None:
    """The VM is stopped for good."""
    vm = await session.client.demote(pair)
    _answer_vm(session, vm, f"the VM of {pair} is stopped for good; the pair is {vm.status.value}")


def _answer_vm(session: Session, vm: VmStatus, shown: str) -> None:
    session.answer(to_json(vm), plain(f"{shown}: {vm.reason}" if vm.reason else shown))


# Trace events


async def trace(session: Session, pair: str, switches: Mapping[str, bool]) -> None:
    """Show which events are on, after changing those that are in ``switches``."""
    client = session.client
    events = await client.set_trace(pair, switches) if switches else await client.trace(pair)
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, is_on in events.items():
        table.add_row(Text("on", "green") if is_on else Text("off", "dim"), name)
    session.answer({"events": events}, table)


async def trace_follow(session: Session, pair: str, names: Sequence[str], *, timestamps: bool) -> None:
    """
    The events as they happen, in the form of QEMU's log.

    :param names: which; they are on for as long as this lasts.
    """
    with closing(session.client.events(pair, kinds=("trace",), names=names, notice=_notice(session))) as stream:
        async for event in stream:
            if session.as_json:
                session.line(_as_json(event))
            elif event.kind == "trace":
                session.say(f"{timestamp(event.time)} {_log_line(event)}" if timestamps else _log_line(event))
            elif event.kind == "lagged":
                session.warn(f"ftdctl: {event.data.get('dropped')} events were missed: this reader is too slow")


def _log_line(event: Event) -> str:
    name, args = str(event.data.get("name")), event.data.get("args")
    if name in TRACE_EVENTS and isinstance(args, Mapping) and set(TRACE_EVENTS[name].arguments) <= set(args):
        return log_line(name, args)
    return f"{name} {args}"  # a newer daemon's event


def _as_json(event: Event) -> dict[str, object]:
    return {"event": event.kind, "id": event.id, **event.data}


def _notice(session: Session) -> Notice:
    """Says on standard error when the stream breaks, and when it goes on: once each."""
    is_broken = False

    def notice(error: Unreachable | ApiError | None) -> None:
        nonlocal is_broken
        if error is not None and not is_broken:
            session.warn(f"ftdctl: {error}; trying again")
        elif error is None and is_broken:
            session.warn("ftdctl: connected again")
        is_broken = error is not None

    return notice


# Checkpoints


async def checkpoints(session: Session, pair: str) -> None:
    """What the standby holds."""
    held = await session.client.checkpoints(pair)
    session.answer({"checkpoints": [to_json(one) for one in held]}, checkpoints_view(held))


async def fetch(session: Session, pair: str, which: Which, path: str) -> None:
    """One of them into a file."""
    with progress_bar(session, "fetching") as progress:
        fetched = await session.client.fetch_to(pair, which, path, progress=progress)
    shown = f"checkpoint {fetched.number} is in {path}: {size(fetched.bytes)}, xxh3 {fetched.xxh3}"
    session.answer(to_json(fetched), shown)


async def fetch_to_stream(session: Session, pair: str, which: Which, stream: BinaryIO) -> None:
    """One of them to where standard output goes; what there is to say about it goes to standard error."""
    with progress_bar(session, "fetching") as progress:
        fetched = await session.client.fetch(pair, which, stream, progress=progress)
    stream.flush()
    session.warn(f"checkpoint {fetched.number}: {size(fetched.bytes)}, xxh3 {fetched.xxh3}")
