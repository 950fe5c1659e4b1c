"""What was measured, what it is compared with, and how both are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table


def median(values: Iterable[float]) -> float:
    """The one in the middle; the upper one of two."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def p99(values: Iterable[float]) -> float:
    """The one that a hundredth is above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


@attrs.frozen(kw_only=True)
class Figure:
    """
    One figure.

    :ivar part: of the benchmark, as on its command line.
    :ivar guest: which guest it is of.
    :ivar name: what was measured.
    :ivar value: the median, or the one value that there is.
    :ivar p99: ``None`` where there is one value.
    :ivar samples: how many values it is of.
    :ivar note: what it is compared with, or made of.
    :ivar limit: what ``value`` may be at most; ``None`` where it is only shown.
    """

    part: str
    guest: str
    name: str
    value: float
    unit: str = "ms"
    p99: float | None = None
    samples: int = 1
    note: str = ""
    limit: float | None = None

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is reached; ``None`` where there is none."""
        return None if self.limit is None else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**attrs.asdict(self), "reached": self.is_reached}


def milliseconds(part: str, guest: str, name: str, seconds: Sequence[float], **more: Any) -> Figure:
    """A figure of times that are in seconds."""
    return Figure(
        part=part,
        guest=guest,
        name=name,
        value=median(seconds) * 1e3,
        p99=p99(seconds) * 1e3,
        samples=len(seconds),
        **more,
    )


def show(figures: Sequence[Figure], console: Console) -> None:
    """The table of all figures."""
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("GUEST", "left"),
        ("FIGURE", "left"),
        ("MEDIAN", "right"),
        ("P99", "right"),
        ("N", "right"),
        ("TARGET", "right"),
        ("", "left"),
        ("COMPARED WITH", "left"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]  # rich has a Literal for it
    before = None
    for figure in figures:
        if before is not None and (before.part, before.guest) != (figure.part, figure.guest):
            table.add_row()
        first = before is None or (before.part, before.guest) != (figure.part, figure.guest)
        before = figure
        table.add_row(
            figure.guest if first else "",
            figure.name,
            _number(figure.value, figure.unit),
            "" if figure.p99 is None else _number(figure.p99, figure.unit),
            str(figure.samples) if figure.samples > 1 else "",
            "" if figure.limit is None else f"≤ {_number(figure.limit, figure.unit)}",
            {None: "", True: "[green]PASS[/]", False: "[bold red]FAIL[/]"}[figure.is_reached],
            figure.note,
        )
    console.print(table)


def _number(value: float, unit: str) -> str:
    digits = f"{value:.0f}" if abs(value) >= 1000 or unit in ("pages", "checkpoints") else f"{value:.3g}"
    return f"{digits} {unit}".strip()
