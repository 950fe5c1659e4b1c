"""``ftdctl`` in memory, from its arguments to the pair and back to what it prints."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import attrs
from click.testing import CliRunner
from rich.console import Console
from twisted.internet.defer import Deferred

from ftd.cli import main
from ftd.cli.session import Session, Settings, Task, outcome
from ftd.test.client_case import ClientTestCase


@attrs.frozen
class Printed:
    """
    What a command came to.

    :ivar out: on standard output.
    :ivar err: on standard error.
    :ivar usage: what click said, before the command began.
    """

    code: int
    out: str
    err: str
    usage: str

    @property
    def lines(self) -> list[str]:
        """Standard output without the blanks at line ends."""
        return [line.rstrip() for line in self.out.splitlines()]

    def json(self) -> Any:
        """Standard output, which has to be one JSON object and nothing else."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


class CliTestCase(ClientTestCase):
    """
    :cvar is_terminal: whether both outputs are terminals.
    :ivar running: the command that goes on, if the last one did not come to an end.
    :ivar settings: of the last command that was run.
    :ivar reads: how often the reactor found something to read.
    """

    is_terminal = False

    def setUp(self) -> None:
        super().setUp()
        self.running: Deferred[int] | None = None
        self.settings: Settings
        self.reads = 0
        self.out = StringIO()
        self.err = StringIO()

    def ftdctl(self, *arguments: str, **environment: str) -> Printed:
        """Run a command; one that goes on has the exit code -1."""
        self.out, self.err, self.running = StringIO(), StringIO(), None
        result = CliRunner().invoke(main, arguments, obj=Settings(self.run_task), env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Printed(result.exit_code, self.out.getvalue(), self.err.getvalue(), result.output)

    def run_task(self, settings: Settings, task: Task) -> int:
        """In the place of the reactor."""
        self.settings = settings
        session = Session(
            client=self.client,
            reactor=self.reactor,
            out=self.console(self.out),
            err=self.console(self.err),
            as_json=settings.as_json,
            now=self.reactor.seconds,
        )
        working = self.start(outcome(session, task))
        while readers := self.reactor.getReaders():
            for reader in readers:
                self.reads += 1
                reader.doRead()
            self.pump()
        if working.called:
            return self.successResultOf(working)
        self.running = working
        return -1

    def console(self, file: StringIO) -> Console:
        """80 columns, without colours."""
        return Console(
            file=file,
            width=80,
            markup=False,
            emoji=False,
            highlight=False,
            force_terminal=self.is_terminal,
            color_system=None,
        )

    def printed(self) -> list[str]:
        """What the command that goes on has written to standard output since this was asked for the last time."""
        text = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return [line.rstrip() for line in text.splitlines()]

    def interrupt(self) -> int:
        """Stop the command that goes on, as Ctrl-C does; its exit code."""
        assert self.running is not None, "nothing goes on"
        self.running.cancel()
        self.pump()
        return self.successResultOf(self.running)
