"""
How pairs look on a terminal: at a glance in 80 columns.

A pair has a row of columns, and underneath it, indented, what does not fit a column: where the link goes, what is open,
what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from ftd.cli.vm_view import vm_lines
from ftd.cli.wording import age, duration, frames, local_time, plain, size
from ftd.client import DaemonInfo
from ftd.status import Checkpoint, LinkState, Outcome, PairStatus, TransactionStatus, to_json

_LINK_WORDS = {
    LinkState.UP: ("up", "green"),
    LinkState.HANDSHAKE: ("greeting", "yellow"),
    LinkState.CONNECTING: ("connecting", "yellow"),
    LinkState.DOWN: ("down", "red"),
}

_OUTCOME_STYLES = {
    Outcome.COMMITTED: "green",
    Outcome.NACKED: "red",
    Outcome.FAILED: "red",
}

#: Column widths, 80 with two spaces behind each but the last.  A name that is longer gets a line of its own.
_NAME, _LINK, _STATE, _LAST, _COUNT = 14, 10, 8, 28, 12


def status_view(
    info: DaemonInfo, pairs: Sequence[PairStatus], now: float, times: Mapping[str, float] | None = None
) -> RenderableType:
    """
    All pairs of a daemon.

    :param now: Unix seconds, for the ages.
    :param times: when each was so, by name; now, where that is not said.
    """
    head = f"ftd {info.version} on {info.node}, up for {duration(info.uptime_seconds)}"
    if not pairs:
        return Group(Text(plain(head)), Text("no pairs; make one: ftdctl pair create NAME --role … --link …"))
    titles = (Text(title, "bold") for title in ("PAIR", "LINK", "STATE", "LAST COMMIT", "COMMITTED"))
    lines: list[RenderableType] = [Text(plain(head)), _row(*titles)]
    for pair in pairs:
        name = Text(plain(pair.name), "bold")
        if len(name) > _NAME:
            lines.append(name)
            name = Text()
        word, colour = _LINK_WORDS[pair.link_state]
        last = Text(_last_commit(pair, now))
        lines.append(
            _row(name, Text(word, colour), Text(plain(pair.state)), last, Text(str(pair.transactions_committed)))
        )
        lines.extend(_underneath(pair))
        if pair.vm is not None:
            lines.extend(vm_lines(pair.vm, now - (times or {}).get(pair.name, now), pair.role == "primary"))
    return Group(*lines)


def _row(*cells: Text) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0))
    for width in (_NAME, _LINK, _STATE, _LAST, _COUNT):
        row.add_column(width=width, no_wrap=True)
    row.add_row(*cells)
    return row


def _last_commit(pair: PairStatus, now: float) -> str:
    last = pair.last_committed
    if last is None:
        return "none yet"
    return f"#{last.number}  {size(last.bytes)}  {age(now - last.at)}"


def _underneath(pair: PairStatus) -> Iterator[Text]:
    """What there is to say beside the columns, one line each."""
    arrow = "→" if pair.role == "primary" else "←"
    yield _indented(f"{pair.role} {arrow} {pair.link_peer or pair.link_address}", "dim")
    if pair.link_state is not LinkState.UP and pair.link_detail:
        yield _indented(f"link: {pair.link_detail}", _LINK_WORDS[pair.link_state][1])
    if pair.transaction is not None:
        opened = pair.transaction
        yield _indented(f"open: transaction {opened.id}, {size(opened.bytes)} in {frames(opened.seq)}", "cyan")
    if pair.freeze_output or pair.freeze_input:
        waits = f", {size(pair.buffered_bytes)} wait to be sent" if pair.buffered_bytes else ""
        yield _indented(f"frozen{waits}", "yellow")
    ended = (
        (pair.transactions_cancelled, "cancelled"),
        (pair.transactions_nacked, "refused by the standby"),
        (pair.transactions_failed, "failed"),
    )
    if any(count for count, _ in ended):
        yield _indented("transactions: " + ", ".join(f"{count} {how}" for count, how in ended if count), "dim")
    if pair.has_error:
        yield _indented(f"{pair.has_error_name}: {pair.has_error_detail}", "bold red")


def _indented(text: str, style: str) -> Text:
    return Text("  " + plain(text), style)


def pair_view(pair: PairStatus) -> Table:
    """Every field of a pair, one a line, by its public name."""
    table = Table.grid(padding=(0, 2, 0, 0))
    shown = to_json(pair)
    vm = shown.pop("vm")
    for name, value in (*shown.items(), *_flat("vm", vm)):
        table.add_row(Text(name, "bold"), plain(_shown(value)))
    return table


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    """What is inside of a value, as ``vm.pause_ms.last``."""
    if isinstance(value, dict):
        for part, inner in value.items():
            yield from _flat(f"{name}.{part}", inner)
    else:
        yield name, value


def _shown(value: object) -> str:
    """A value of JSON as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {local_time(part) if key == 'at' else _shown(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return "-" if value is None else str(value)


def checkpoints_view(checkpoints: Sequence[Checkpoint]) -> RenderableType:
    """The checkpoints that a standby holds."""
    if not checkpoints:
        return "no checkpoint yet"
    table = _table("NUMBER", "ID", "BYTES", "XXH3", "COMMITTED")
    for held in checkpoints:
        table.add_row(str(held.number), str(held.id), str(held.bytes), plain(held.xxh3), local_time(held.committed_at))
    return table


def transactions_view(transactions: Sequence[TransactionStatus]) -> RenderableType:
    """The last transactions of a pair."""
    if not transactions:
        return "no transaction yet"
    table = _table("BEGUN", "ID", "NUMBER", "SIZE", "TOOK", "FROZEN", "OUTCOME")
    for one in transactions:
        ended = one.timeline.ended
        outcome = Text(one.outcome.value, _OUTCOME_STYLES.get(one.outcome, ""))
        table.add_row(
            local_time(one.timeline.begun),
            str(one.id),
            "-" if one.number is None else str(one.number),
            size(one.bytes),
            "-" if ended is None else duration(ended - one.timeline.begun),
            duration(one.frozen_seconds),
            outcome.append(f": {plain(one.detail)}" if one.detail else ""),
        )
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        justify: JustifyMethod = "right" if title in ("NUMBER", "ID", "BYTES", "SIZE", "TOOK", "FROZEN") else "left"
        table.add_column(title, justify=justify, no_wrap=title != "OUTCOME")
    return table
