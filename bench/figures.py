"""What was measured, what it has to reach, and how both are shown: on a terminal, as JSON, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

#: Lines of a page between which figures stand.
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

#: Columns of the longest bar of a chart.
_BAR = 40

#: The unit of what is measured against something else in the same run.
RATIO = "\N{MULTIPLICATION SIGN}"


def median(values: Iterable[float]) -> float:
    """The one in the middle; of two, their mean."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def quantile(values: Iterable[float], part: float) -> float:
    """The one that ``part`` of all are below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


@attrs.frozen(kw_only=True)
class Figure:
    """
    One figure.

    :ivar case: of the bench, as on its command line.
    :ivar group: what it is of: a size, a number of pairs.
    :ivar name: what was measured.
    :ivar value: the median, or the one value that there is.
    :ivar samples: how many values it is of.
    :ivar low: the smallest of them, :ivar high: the largest.
    :ivar at_least: what ``value`` has to reach; ``None`` where it is only shown.
    :ivar at_most: what it may be; ``None`` where it is only shown.
    :ivar note: what it is compared with, or made of.
    """

    case: str
    group: str
    name: str
    value: float
    unit: str
    samples: int = 1
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is reached; ``None`` where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def target(self) -> str:
        """The target as people write it, empty where there is none."""
        if self.at_least is not None:
            return f"≥ {number(self.at_least, self.unit)}"
        return "" if self.at_most is None else f"≤ {number(self.at_most, self.unit)}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**attrs.asdict(self), "reached": self.is_reached}


@attrs.frozen
class Missing:
    """
    What could not be measured.

    :ivar why: in a sentence.
    """

    case: str
    group: str
    why: str


def of_samples(case: str, group: str, name: str, unit: str, values: Sequence[float], **more: Any) -> Figure:
    """The median of what was measured in several rounds."""
    return Figure(
        case=case,
        group=group,
        name=name,
        value=median(values),
        unit=unit,
        samples=len(values),
        low=min(values),
        high=max(values),
        **more,
    )


def of_ratios(
    case: str, group: str, name: str, values: Sequence[float], others: Sequence[float], **more: Any
) -> Figure:
    """The median of the ratios of what was measured in the same round."""
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    return of_samples(case, group, name, RATIO, ratios, **more)


def number(value: float, unit: str) -> str:
    """A value with as many digits as say something."""
    digits = ",.0f" if abs(value) >= 1000 else ".2f" if unit == RATIO else ".3g"
    return f"{value:{digits}} {unit}".strip()


def show(figures: Sequence[Figure], missing: Sequence[Missing], console: Console) -> None:
    """The table of all figures, and below it what is not in it."""
    table = Table(box=None, pad_edge=False)
    for title, is_number in (
        ("CASE", False),
        ("OF", False),
        ("FIGURE", False),
        ("MEDIAN", True),
        ("FROM, TO", True),
        ("TARGET", True),
        ("", False),
        ("", False),
    ):
        table.add_column(title, justify="right" if is_number else "left")
    before = ("", "")
    for figure in figures:
        place = (figure.case, figure.group)
        if before[0] and place != before:
            table.add_row()
        table.add_row(
            figure.case if figure.case != before[0] else "",
            figure.group if place != before else "",
            figure.name,
            number(figure.value, figure.unit),
            _range(figure),
            figure.target,
            {None: "", True: "[green]PASS[/]", False: "[bold red]FAIL[/]"}[figure.is_reached],
            f"[dim]{figure.note}[/]" if figure.note else "",
        )
        before = place
    console.print(table)
    for gap in missing:
        console.print(f"[yellow]not measured[/]: {gap.case} {gap.group}: {gap.why}", soft_wrap=True)


def markdown(figures: Sequence[Figure], missing: Sequence[Missing]) -> str:
    """The same for docs/performance.md: a table for each case, and a chart of the ratios that have a target."""
    lines: list[str] = []
    for case in dict.fromkeys(figure.case for figure in figures):
        lines += [
            f"### {case}",
            "",
            "| of | figure | median | from, to | target | reached |",
            "|---|---|---|---|---|---|",
        ]
        before = ""
        for figure in figures:
            if figure.case == case:
                group = figure.group if figure.group != before else ""
                before = figure.group
                reached = {None: "", True: "yes", False: "**no**"}[figure.is_reached]
                value = number(figure.value, figure.unit)
                lines.append(f"| {group} | {figure.name} | {value} | {_range(figure)} | {figure.target} | {reached} |")
        lines.append("")
    lines += ["### Against the targets", "", "```", *chart(figures), "```", ""]
    lines += [f"Not measured: {gap.case} {gap.group}: {gap.why}." for gap in missing]
    return "\n".join(lines).rstrip() + "\n"


def put_into(path: Path, text: str) -> None:
    """Write ``text`` to a file; in one that has `BEGIN` and `END` only what is between them is replaced."""
    old = path.read_text() if path.exists() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}" if end else text)


def chart(figures: Sequence[Figure]) -> list[str]:
    """
    A bar for each figure with a target: how far it gets, of what it has to reach (a mark at the target's place).

    Figures that have to be small are shown as what is allowed over what is taken: longer is better in every line.
    """
    judged = [figure for figure in figures if figure.is_reached is not None]
    names = [f"{figure.case} {figure.group}: {figure.name}" for figure in judged]
    width = max(map(len, names), default=0)
    lines = []
    for figure, name in zip(judged, names, strict=True):
        if figure.at_least is not None:
            score = figure.value / figure.at_least
        else:
            score = (figure.at_most or 0.0) / figure.value if figure.value > 0 else 2.0
        mark = _BAR // 2
        bar = f"{'█' * min(_BAR, max(0, round(score * mark))):<{_BAR}}"
        shown = bar[:mark] + "│" + bar[mark:]
        lines.append(f"{name:<{width}}  {shown} {number(figure.value, figure.unit)} ({figure.target})")
    return lines


def _range(figure: Figure) -> str:
    if figure.low is None or figure.high is None or figure.samples == 1:
        return ""
    return f"{number(figure.low, '')}, {number(figure.high, '')}"
