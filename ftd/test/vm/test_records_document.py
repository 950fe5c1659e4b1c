"""What ``docs/payload.md`` lists is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ftd
from ftd.vm.encoding import MAX_WINDOW, Encoding
from ftd.vm.ram import PAGE
from ftd.vm.record_reader import ENCODINGS
from ftd.vm.records import (
    DEVICE_SIZE,
    END_COUNTS,
    MAX_CHECKPOINT,
    MAX_PAGES,
    MAX_RECORD_PAGES,
    MAX_RECORD_RUNS,
    MAX_TEXT,
    PAGES_COUNT,
    RECORD_HEADER,
    RECORD_VERSION,
    RUN_SIZE,
    CheckpointHeader,
    RecordKind,
    Tally,
)

_DOCUMENT = Path(ftd.__file__).parent.parent / "docs" / "payload.md"

_SIZES = {"u16": 2, "u32": 4, "u64": 8}


class DocumentTests(SynchronousTestCase):
    """Each table of the document, compared."""

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

    def fields(self, heading: str) -> list[str]:
        """The names of a table of fields, after a look at whether their offsets follow one another."""
        names, at = [], 0
        for offset, name, kind, _meaning in self.rows(heading):
            if kind in _SIZES:
                self.assertEqual(int(offset), at, name)
                at += _SIZES[kind]
            names.append(name)
        self.size = at
        return names

    def test_header(self) -> None:
        self.assertEqual(self.fields("Records"), ["kind", "version", "flags", "length"])
        self.assertEqual(self.size, RECORD_HEADER.size)
        self.assertEqual(RECORD_HEADER.format, "<HHIQ")
        self.assertIn(f"| {RECORD_VERSION}; a reader refuses", self.section("Records"))

    def test_kinds(self) -> None:
        listed = [(name, int(number), encodings) for name, number, encodings, _how_many in self.rows("Kinds")]
        self.assertEqual(
            listed,
            [(kind.name, kind.value, ", ".join(encoding.name for encoding in ENCODINGS[kind])) for kind in RecordKind],
        )

    def test_encodings(self) -> None:
        rows = self.rows("Encodings")
        listed = [(name, int(number)) for name, number, _is in rows]
        self.assertEqual(listed, [(encoding.name, encoding.value) for encoding in Encoding])
        self.assertIn(f"at most {MAX_WINDOW // (1024 * 1024)} MiB", rows[1][2])

    def test_pages(self) -> None:
        section = self.section("Pages")
        self.assertIn(f"{PAGE} bytes", section)
        self.assertIn(f"{MAX_PAGES * PAGE >> 40} TiB", section)

    def test_checkpoint(self) -> None:
        listed = [key for key, _value in self.rows("CHECKPOINT")]
        self.assertEqual(listed, [field.name for field in attrs.fields(CheckpointHeader)])
        section = self.section("CHECKPOINT")
        self.assertIn(f"{MAX_CHECKPOINT // 1024} KiB", section)
        self.assertIn(f"at most {MAX_TEXT} characters", section)

    def test_pages_record(self) -> None:
        self.assertEqual(self.fields("PAGES"), ["count", "numbers", "data"])
        self.assertEqual(self.size, PAGES_COUNT.size)
        self.assertIn(f"1 to {MAX_RECORD_PAGES}", self.section("PAGES"))

    def test_zeros(self) -> None:
        self.assertEqual(self.fields("ZEROS"), ["first", "count"])
        self.assertEqual(self.size, RUN_SIZE)
        self.assertIn(f"1 to {MAX_RECORD_RUNS}", self.section("ZEROS"))

    def test_device(self) -> None:
        self.assertEqual(self.fields("DEVICE"), ["size", "data"])
        self.assertEqual(self.size, DEVICE_SIZE.size)

    def test_end(self) -> None:
        self.assertEqual(self.fields("END"), [field.name for field in attrs.fields(Tally)])
        self.assertEqual(self.size, END_COUNTS.size)
