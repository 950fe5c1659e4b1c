"""
``ftdctl``: the operator's command line.

Here are the commands and their arguments; what they do is in :mod:`ftd.cli.commands`, and how it is run in
:mod:`ftd.cli.session`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, BinaryIO, NoReturn

import click

import ftd
from ftd.cli import commands
from ftd.cli.arguments import (
    converted,
    interval,
    key_and_value,
    limit_change,
    seconds,
    shared_options,
    trace_names,
    which_checkpoint,
)
from ftd.cli.session import DONE, REFUSED, Settings, Task
from ftd.cli.wording import plain
from ftd.client import Which
from ftd.trace import TRACE_EVENTS


def _perform(operation: Callable[..., Awaitable[None]], pair: str | None = None, **arguments: Any) -> NoReturn:
    """Do it, and leave with its exit code."""
    context = click.get_current_context()
    settings = context.ensure_object(Settings)
    if pair is not None:
        arguments["pair"] = pair
    task = Task(operation=partial(operation, **arguments), command=str(context.info_name), pair=pair)
    context.exit(settings.run(settings, task))


_EPILOG = "Exit codes: 0 done, 1 refused by the daemon, 2 wrong usage, 3 daemon unreachable."


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@shared_options(env=True)
@click.version_option(ftd.__version__, prog_name="ftdctl")
def main() -> None:
    """See and steer an ftd daemon."""


_pair_argument = click.argument("pair")
_file_argument = click.argument("file", type=click.File("rb"))


@main.command()
@click.option("--watch", is_flag=True, help="Show it live until interrupted.")
@shared_options()
def status(watch: bool) -> None:
    """Show all pairs at a glance."""
    _perform(commands.status_watch if watch else commands.status)


@main.group()
@shared_options()
def pair() -> None:
    """Show, create or delete a pair."""


@pair.command("show")
@_pair_argument
@shared_options()
def pair_show(pair: str) -> None:
    """Show everything about PAIR."""
    _perform(commands.pair_show, pair)


@pair.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice(["primary", "secondary"]), required=True)
@click.option("--link", metavar="ENDPOINT", required=True, help="Where to connect to, or, of a secondary, to listen.")
@click.option(
    "-o",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    callback=converted(key_and_value),
    help="Any other key of a [pair …] section.",
)
@shared_options()
def pair_create(name: str, role: str, link: str, options: tuple[tuple[str, str], ...]) -> None:
    """Create the pair NAME, which is there after a restart too."""
    _perform(commands.pair_create, name, settings={**dict(options), "role": role, "link": link})


@pair.command("delete")
@_pair_argument
@shared_options()
def pair_delete(pair: str) -> None:
    """Remove PAIR, which was created by `pair create`."""
    _perform(commands.pair_delete, pair)


@main.command()
@_pair_argument
@shared_options()
def begin(pair: str) -> None:
    """Open a transaction of PAIR."""
    _perform(commands.begin, pair)


@main.command()
@_pair_argument
@_file_argument
@shared_options()
def put(pair: str, file: BinaryIO) -> None:
    """Append FILE (- is standard input) to PAIR's open transaction."""
    _perform(commands.put, pair, file=file)


@main.command()
@_pair_argument
@click.option("--no-wait", is_flag=True, help="Do not wait for the standby's ACK.")
@click.option(
    "--timeout",
    metavar="TIME",
    callback=converted(seconds),
    help="How long to wait for it: 10, 500ms, 2min. [default: the pair's ack-time]",
)
@shared_options()
def commit(pair: str, no_wait: bool, timeout: float | None) -> None:
    """Commit PAIR's open transaction."""
    if no_wait and timeout is not None:
        raise click.UsageError("--timeout is for waiting, and --no-wait does not wait")
    if no_wait:
        _perform(commands.commit_without_waiting, pair)
    _perform(commands.commit, pair, timeout=timeout)


@main.command()
@_pair_argument
@shared_options()
def cancel(pair: str) -> None:
    """Drop PAIR's open transaction."""
    _perform(commands.cancel, pair)


@main.command()
@_pair_argument
@_file_argument
@shared_options()
def push(pair: str, file: BinaryIO) -> None:
    """Send FILE (- is standard input) as one whole checkpoint of PAIR."""
    _perform(commands.push, pair, file=file)


@main.command("rate-limit")
@_pair_argument
@click.argument("limit", required=False, callback=converted(limit_change))
@shared_options()
def rate_limit(pair: str, limit: dict[str, Any] | None) -> None:
    """
    Show or set PAIR's rate limit.

    LIMIT is on or off (whether the source waits while the link is frozen), or bytes per second (10MiB; 0 for no limit),
    which turns it on too.
    """
    _perform(commands.rate_limit, pair, **(limit or {"enabled": None, "bandwidth": None}))


@main.command()
@_pair_argument
@click.option("--off", is_flag=True, help="No longer.")
@click.option(
    "--interval",
    "every",
    metavar="TIME",
    callback=converted(interval),
    help="How often a checkpoint is taken: 50ms, 1s; 0 for one at every begin and commit.",
)
@shared_options()
def protect(pair: str, off: bool, every: float | None) -> None:
    """Protect the VM of PAIR, a primary."""
    _perform(commands.protect, pair, enabled=not off, interval=every)


@main.command()
@_pair_argument
@click.option("--force", is_flag=True, help="Although the primary is up: it then stops its VM.")
@shared_options()
def promote(pair: str, force: bool) -> None:
    """
    Have the VM of PAIR, a secondary, take over.

    It goes on from its newest checkpoint.  Of a fenced primary: with --force its VM goes on.
    """
    _perform(commands.promote, pair, force=force)


@main.command()
@_pair_argument
@shared_options()
def demote(pair: str) -> None:
    """
    Stop the VM of PAIR for good.

    A primary commits what it has first.  A secondary that was promoted stands by anew.
    """
    _perform(commands.demote, pair)


@main.command()
@_pair_argument
@click.argument("names", nargs=-1, callback=converted(trace_names))
@click.option("--on", metavar="NAMES", default="", callback=converted(trace_names), help="Turn these events on.")
@click.option("--off", metavar="NAMES", default="", callback=converted(trace_names), help="Turn these events off.")
@click.option("--follow", is_flag=True, help="Write events as they happen, until interrupted.")
@click.option("--timestamps", is_flag=True, help="Begin each line of --follow with its time.")
@shared_options()
def trace(
    pair: str,
    names: tuple[tuple[str, ...], ...],
    on: tuple[str, ...],
    off: tuple[str, ...],
    follow: bool,
    timestamps: bool,
) -> None:
    """
    Show or switch PAIR's trace events, or follow them.

    With --follow, NAMES (all, if there are none) are turned on for as long as it lasts.  Names may have commas between
    them, and do without ft_trans_.
    """
    if follow and (on or off):
        raise click.UsageError("--on and --off stay in force; --follow turns on what it follows by itself")
    if not follow and (names or timestamps):
        raise click.UsageError("NAMES and --timestamps go with --follow; --on NAMES and --off NAMES switch events")
    if follow:
        chosen = [name for part in names for name in part] or list(TRACE_EVENTS)
        _perform(commands.trace_follow, pair, names=chosen, timestamps=timestamps)
    _perform(commands.trace, pair, switches={**dict.fromkeys(on, True), **dict.fromkeys(off, False)})


@main.command()
@_pair_argument
@shared_options()
def transactions(pair: str) -> None:
    """List PAIR's last transactions."""
    _perform(commands.transactions, pair)


@main.command()
@_pair_argument
@shared_options()
def checkpoints(pair: str) -> None:
    """List the checkpoints that PAIR, a secondary, holds."""
    _perform(commands.checkpoints, pair)


@main.command()
@_pair_argument
@click.argument("number", callback=converted(which_checkpoint))
@click.option("-o", "--output", metavar="FILE", required=True, help="Where to write it; - is standard output.")
@shared_options()
def fetch(pair: str, number: Which, output: str) -> None:
    """
    Read checkpoint NUMBER (or latest) of PAIR, a secondary.

    FILE appears, or is replaced, when all of it is there and its digest is right.
    """
    if output == "-":
        _perform(commands.fetch_to_stream, pair, which=number, stream=sys.stdout.buffer)
    _perform(commands.fetch, pair, which=number, path=output)


@main.command()
@_pair_argument
@shared_options()
def reset(pair: str) -> None:
    """Clear PAIR's error and open its link anew."""
    _perform(commands.reset, pair)


@main.command()
@click.argument("file", type=click.Path())
@shared_options()
def check(file: str) -> None:
    """Check the configuration FILE; needs no daemon."""
    from ftd.config import problems  # the only command that needs it, and all that it imports

    context = click.get_current_context()
    found = problems(file)
    if context.ensure_object(Settings).as_json:
        rows = [{"section": error.section, "key": error.key, "detail": error.detail} for error in found]
        click.echo(json.dumps({"ok": not found, "problems": rows}))
    elif not found:
        click.echo(f"{file}: no error found")
    for error in found:
        click.echo(plain(f"{file}: {error}"), err=True)
    context.exit(REFUSED if found else DONE)
