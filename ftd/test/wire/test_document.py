"""What ``docs/protocol.md`` lists is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ftd
from ftd.wire.constants import FEATURES, PROTOCOL_VERSION, Command
from ftd.wire.errors import ErrorCode
from ftd.wire.hello import Hello
from ftd.wire.states import RECEIVER, SENDER, State, Table

_DOCUMENT = Path(ftd.__file__).parent.parent / "docs" / "protocol.md"


def drawn(table: Table) -> set[tuple[str, str, str]]:
    """A table as the arrows of a drawing: from, to, and what is written on it."""
    return {
        (state.name, following.name, key.name if isinstance(key, Command) else key.value)
        for state, row in table.items()
        for key, (following, _action) in row.items()
    }


class DocumentTests(SynchronousTestCase):
    """Each list of the document, compared."""

    def setUp(self) -> None:
        try:
            self.text = _DOCUMENT.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SkipTest("the documents are not installed with ftd") from None

    def section(self, heading: str) -> str:
        """The text under a heading, up to the next one."""
        found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", self.text, re.MULTILINE | re.DOTALL)
        assert found is not None, f"there is no heading {heading!r}"
        return found[1]

    def rows(self, heading: str) -> list[list[str]]:
        """The rows of the table under a heading, without its head, and without the marks of code."""
        lines = [line for line in self.section(heading).splitlines() if line.startswith("|")]
        return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]

    def arrows(self, heading: str) -> list[tuple[str, str, str]]:
        """The arrows of the drawing under a heading."""
        return re.findall(r"^ +(\w+) --> (\w+): (\w+)$", self.section(heading), re.MULTILINE)

    def test_the_sender(self) -> None:
        self.assertEqual(sorted(self.arrows("The sender")), sorted(drawn(SENDER)))

    def test_the_receiver(self) -> None:
        self.assertEqual(sorted(self.arrows("The receiver")), sorted(drawn(RECEIVER)))

    def test_all_states_are_drawn(self) -> None:
        """Of both machines, but for the one that every error leads to."""
        for heading in ("The sender", "The receiver"):
            states = {state for arrow in self.arrows(heading) for state in arrow[:2]}
            self.assertEqual(states, {state.name for state in State if state is not State.CLOSED})
            self.assertIn("[*] --> INIT", self.section(heading))

    def test_commands(self) -> None:
        listed = [(name, int(number)) for name, number, *_rest in self.rows("Commands")]
        self.assertEqual(listed, [(command.name, command.value) for command in Command])

    def test_errors(self) -> None:
        listed = [(int(number, 16), name) for number, name, _when in self.rows("Errors")]
        self.assertEqual(listed, [(code.value, code.name) for code in ErrorCode])

    def test_features(self) -> None:
        self.assertEqual([name for name, _effect in self.rows("Features")], sorted(FEATURES))

    def test_hello(self) -> None:
        rows = dict(self.rows("HELLO"))
        self.assertEqual(list(rows), ["version", *(field.name for field in attrs.fields(Hello))])
        self.assertEqual(rows["version"], str(PROTOCOL_VERSION))
