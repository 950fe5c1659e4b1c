"""What ftd says about itself to pip agrees with what its modules import."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ftd

_PACKAGE = Path(ftd.__file__).parent

#: Only what serves tests may use what only the ``test`` extra brings.
_FOR_TESTS = ("test", "testing")


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it: ``zope.interface`` and ``Zope-Interface`` are one (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(extra: str | None = None) -> set[str]:
    """
    The distributions that ftd asks for, normalized: always, or for one of its extras.

    :raises SkipTest: ftd runs from a tree that is not installed.
    """
    try:
        lines = metadata.requires("ftd") or []
    except metadata.PackageNotFoundError:
        raise SkipTest("ftd is not installed here") from None
    wanted = set()
    for line in lines:
        requirement, _, marker = line.partition(";")
        of_extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        if (of_extra[1] if of_extra else None) == extra:
            name = re.match(r"[\w.-]+", requirement)
            assert name is not None, line
            wanted.add(normalized(name[0]))
    return wanted


def third_party_imports(for_tests: bool) -> Iterator[tuple[str, str]]:
    """Top-level modules that neither Python nor ftd has, each with the file that imports it."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        where = path.relative_to(_PACKAGE)
        if (where.parts[0] in _FOR_TESTS) != for_tests:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            else:
                continue
            for top in {module.partition(".")[0] for module in modules}:
                if top != "ftd" and top not in sys.stdlib_module_names:
                    yield top, str(where)


class RequirementTests(SynchronousTestCase):
    """``install_requires`` and the ``test`` extra name what is imported, all of it and nothing else."""

    def undeclared(self, for_tests: bool, declared: set[str]) -> set[str]:
        providers = metadata.packages_distributions()
        return {
            f"{where} imports {top}"
            for top, where in third_party_imports(for_tests)
            if not declared & {normalized(name) for name in providers.get(top, ())}
        }

    def test_what_is_imported_is_declared(self) -> None:
        self.assertEqual(self.undeclared(False, requirements()), set())

    def test_what_tests_import_is_declared(self) -> None:
        self.assertEqual(self.undeclared(True, requirements() | requirements("test")), set())

    def test_what_is_declared_is_imported(self) -> None:
        providers = metadata.packages_distributions()
        imported = {
            normalized(name) for top, _where in third_party_imports(for_tests=False) for name in providers.get(top, ())
        }
        self.assertEqual(requirements() - imported, set())

    def test_every_requirement_has_a_lower_bound(self) -> None:
        requirements()
        always = [line for line in metadata.requires("ftd") or [] if ";" not in line]
        self.assertEqual([line for line in always if ">=" not in line], [])


class MetadataTests(SynchronousTestCase):
    """What pip shows of ftd."""

    def setUp(self) -> None:
        requirements()

    def test_version(self) -> None:
        self.assertEqual(metadata.version("ftd"), ftd.__version__)

    def test_license(self) -> None:
        self.assertEqual(metadata.metadata("ftd")["License-Expression"], "GPL-2.0-or-later")

    def test_python(self) -> None:
        self.assertEqual(metadata.metadata("ftd")["Requires-Python"], ">=3.11")

    def test_ftdctl_is_the_command_line(self) -> None:
        (command,) = metadata.entry_points(group="console_scripts", name="ftdctl")
        self.assertEqual(command.value, "ftd.cli:main")

    def test_the_package_is_typed(self) -> None:
        self.assertTrue((_PACKAGE / "py.typed").is_file())
