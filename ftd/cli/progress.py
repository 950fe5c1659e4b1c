"""The bar that shows how far an upload or a download is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ftd.cli.session import Session
from ftd.cli.wording import size
from ftd.client import Progress
from ftd.client.transfer import silent

#: Seconds between two drawings of the bar.
_INTERVAL = 0.1


class _SpeedColumn(ProgressColumn):
    """Bytes per second, in the units in which the other columns are."""

    def render(self, task: Task) -> Text:
        """See :class:`rich.progress.ProgressColumn`."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{size(int(speed))}/s")


@contextmanager
def progress_bar(session: Session, doing: str, then: str = "") -> Iterator[Progress]:
    """
    A bar on standard error while the block runs, if that is a terminal and a person reads the output; it draws
    nothing by itself, hence no thread beside the reactor.

    :param doing: what is going on, in a word or two.
    :param then: what is going on when all bytes have moved.
    """
    if session.as_json or not session.err.is_terminal:
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        _SpeedColumn(),
        TimeRemainingColumn(),
    )
    seconds = session.reactor.seconds
    with Bars(*columns, console=session.err, auto_refresh=False, transient=True, get_time=seconds, expand=True) as bars:
        task = bars.add_task(doing, total=None)
        drawn = seconds()

        def show(moved: int, total: int | None) -> None:
            nonlocal drawn
            is_whole = moved == total
            bars.update(task, completed=moved, total=total, description=then if is_whole and then else doing)
            if is_whole or seconds() - drawn >= _INTERVAL:
                drawn = seconds()
                bars.refresh()

        yield show
