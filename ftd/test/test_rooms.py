"""
Who may import whom: ``wire`` ← ``protocol`` ← ``pair`` ← ``service`` and ``api``, and nothing the other way.

Every module stands on a floor and imports only from its own and the floors below.  The imports are read from the
source, those inside functions and under ``TYPE_CHECKING`` too, so a module is judged without being imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

import ftd

_PACKAGE = Path(ftd.__file__).parent

#: From the ground up.  A room is a module or a package and all that is in it; ``config_ini`` is a part of ``config``.
FLOORS: tuple[tuple[str, ...], ...] = (
    # Bytes to events and back.
    ("wire",),
    # The words that all of ftd uses: what can be asked, shown, told and go wrong.
    ("bus", "config", "durable", "errors", "interfaces", "status", "trace"),
    # What moves state: along the link, out of a source, into a sink.
    (
        "bandwidth",
        "feed",
        "heartbeat",
        "history",
        "inbox",
        "lineage",
        "link",
        "outbox",
        "protocol",
        "receiver_protocol",
        "sender_protocol",
        "sinks",
        "transport",
        "vm",
    ),
    # A half-pair: all of the above put together.
    ("commits", "pair", "primary", "refusals", "secondary"),
    # All pairs, and what is shown of them.
    ("api", "composition", "created_pairs", "http", "service"),
    # What a person starts.
    ("tap", "client", "cli"),
)

_PLACED = frozenset(room for rooms in FLOORS for room in rooms)

#: Speak to a daemon over HTTP only, so that they work from another machine: never import what runs in one.
OUTSIDE = ("client", "cli")

#: What of Python, and what of others, ``wire`` may import: nothing that gets at files, sockets, threads or the clock.
PURE_STANDARD = frozenset({"__future__", "collections", "enum", "functools", "itertools", "json", "struct", "typing"})
PURE_LIBRARIES = frozenset({"attrs", "numpy", "xxhash"})


@attrs.frozen
class Import:
    """``module`` is imported at ``line`` of ``importer``; both are dotted names."""

    importer: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.module}"


def module_name(path: Path) -> str:
    """``…/ftd/wire/hello.py`` as ``ftd.wire.hello``."""
    parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(importer: str, source: str) -> Iterator[Import]:
    """
    Every import in ``source``.

    ``from ftd import pair`` counts as ``ftd.pair``: a name that is taken from a package may be a module of it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise AssertionError(f"{importer}, line {node.lineno}: imports are absolute here")
            for alias in node.names:
                yield Import(importer, node.lineno, f"{node.module}.{alias.name}")


def imports_in_package() -> Iterator[Import]:
    """Every import in ftd but those of its tests and of what it offers to tests."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = module_name(path)
        if room_of(name) not in ("test", "testing"):
            yield from imports_of(name, path.read_text(encoding="utf-8"))


def room_of(module: str) -> str:
    """``ftd.wire.hello`` is in ``wire``; ftd itself, its ``__version__`` and whatever is not ftd are in none."""
    top, _, rest = module.partition(".")
    if top != "ftd" or rest.startswith("__"):
        return ""
    room = rest.partition(".")[0]
    split_from = room.partition("_")[0]
    return split_from if room not in _PLACED and split_from in _PLACED else room


def floor_of(room: str) -> int:
    """
    The number of the floor on which a room is.

    :raises LookupError: ``FLOORS`` does not have it.
    """
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise LookupError(f"FLOORS does not say on which floor ftd.{room} stands")


def is_upward(found: Import) -> bool:
    """Whether a room of ftd imports from a floor above its own."""
    target = room_of(found.module)
    return bool(target) and floor_of(target) > floor_of(room_of(found.importer))


def taints_wire(found: Import) -> bool:
    """Whether this is an import that ``ftd.wire`` may not have."""
    if room_of(found.module) == "wire":
        return False
    return found.module.partition(".")[0] not in PURE_STANDARD | PURE_LIBRARIES


class RoomTests(SynchronousTestCase):
    """The house as it stands."""

    def test_every_room_has_a_floor(self) -> None:
        rooms = {room_of(module_name(path)) for path in _PACKAGE.rglob("*.py")} - {"", "test", "testing"}
        self.assertEqual(rooms - _PLACED, set(), "FLOORS does not say on which floor these stand")

    def test_nothing_imports_from_above(self) -> None:
        self.assertEqual([str(found) for found in imports_in_package() if is_upward(found)], [])

    def test_wire_is_pure(self) -> None:
        tainted = [str(f) for f in imports_in_package() if room_of(f.importer) == "wire" and taints_wire(f)]
        self.assertEqual(tainted, [])

    def test_client_and_cli_stay_outside_of_the_daemon(self) -> None:
        inside = {"tap"}.union(*FLOORS[2:5])
        crossing = [
            str(f) for f in imports_in_package() if room_of(f.importer) in OUTSIDE and room_of(f.module) in inside
        ]
        self.assertEqual(crossing, [])

    def test_what_runs_does_not_import_tests(self) -> None:
        crossing = [
            str(f)
            for f in imports_in_package()
            if room_of(f.module) in ("test", "testing") or f.module.split(".")[0] == "tests"
        ]
        self.assertEqual(crossing, [])


class RuleTests(SynchronousTestCase):
    """The rules see what they are there to see."""

    def found(self, importer: str, source: str) -> list[Import]:
        return list(imports_of(importer, source))

    def test_every_form_of_import_is_found(self) -> None:
        source = "import os.path\nfrom ftd import pair, trace\ndef late():\n    from twisted.internet import reactor\n"
        self.assertEqual(
            [(found.line, found.module) for found in self.found("ftd.wire.x", source)],
            [(1, "os.path"), (2, "ftd.pair"), (2, "ftd.trace"), (4, "twisted.internet.reactor")],
        )

    def test_a_relative_import_is_refused(self) -> None:
        self.assertRaises(AssertionError, self.found, "ftd.wire.x", "from .events import Ended")

    def test_upward_and_downward(self) -> None:
        upward = self.found("ftd.protocol", "from ftd.pair import PrimaryPair\nfrom ftd.wire.events import Ended\n")
        self.assertEqual([is_upward(found) for found in upward], [True, False])

    def test_the_version_is_on_no_floor(self) -> None:
        self.assertEqual([is_upward(f) for f in self.found("ftd.protocol", "from ftd import __version__")], [False])

    def test_a_module_that_was_split_stays_one_room(self) -> None:
        self.assertEqual((room_of("ftd.config_ini"), room_of("ftd.created_pairs")), ("config", "created_pairs"))

    def test_an_unknown_room_is_an_error(self) -> None:
        self.assertRaises(LookupError, floor_of, "cellar")

    def test_what_wire_may_import(self) -> None:
        allowed = "import struct\nimport json\nfrom ftd.wire.errors import WireError\nimport attrs\nimport xxhash\n"
        self.assertEqual([taints_wire(found) for found in self.found("ftd.wire.x", allowed)], [False] * 5)

    def test_what_wire_may_not_import(self) -> None:
        refused = "import os, socket, time\nfrom twisted.internet import defer\nimport klein, treq\nimport ftd.bus\n"
        self.assertEqual([taints_wire(found) for found in self.found("ftd.wire.x", refused)], [True] * 7)
