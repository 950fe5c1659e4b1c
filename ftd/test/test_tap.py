"""Tests of :mod:`ftd.tap`: what ``twistd ftd`` reads, says and refuses before anything runs."""

from __future__ import annotations

import os
import sys
from io import StringIO
from pathlib import Path
from types import ModuleType
from unittest import mock

from twisted.application.service import IService, IServiceMaker, Service
from twisted.internet import reactor
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ftd import tap
from ftd.config import Config
from ftd.errors import ConfigError
from twisted.plugins import ftd_plugin

GOOD = "[pair a]\nrole = primary\nlink = tcp:127.0.0.1:8441\n"
TWO_PROBLEMS = "[ftd]\nnod = a\n[pair a]\nrole = primary\nlink = tcp:127.0.0.1:8441\nkeep = 1\n"


class FakeService(Service):
    """Stands in for the daemon: keeps what it was made from, and finds an address taken where a node is called so."""

    def __init__(self, config: Config, reactor: object) -> None:
        self.made_from = (config, reactor)
        self.prepared = False

    def prepare(self) -> None:
        """Take the addresses."""
        if self.made_from[0].node == "taken":
            raise ConfigError("Address already in use", "api", "endpoint")
        self.prepared = True


class TapCase(SynchronousTestCase):
    """A test case in a directory of its own, whose standard streams are kept."""

    def setUp(self) -> None:
        """Go to an empty directory and catch what is written."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.addCleanup(os.chdir, Path.cwd())
        os.chdir(self.directory)
        self.out, self.err = StringIO(), StringIO()
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stderr", self.err)

    def parse(self, *arguments: str) -> tap.Options:
        """Options from a command line that is right."""
        options = tap.Options()
        options.parseOptions(list(arguments))
        return options

    def parse_and_exit(self, *arguments: str) -> object:
        """The exit status of a command line that ends the process."""
        return self.assertRaises(SystemExit, tap.Options().parseOptions, list(arguments)).code


class OptionsTests(TapCase):
    """Which file is read, and what happens when it is not right."""

    def test_config(self) -> None:
        """``--config``, or ``-c``, names the file; nothing is said about one that is right."""
        Path("x.conf").write_text(GOOD, encoding="utf-8")
        for option in ("--config", "-c"):
            configuration = self.parse(option, "x.conf").configuration
            self.assertEqual((configuration.path, list(configuration.pairs)), (self.directory / "x.conf", ["a"]))
        self.assertEqual((self.out.getvalue(), self.err.getvalue()), ("", ""))

    def test_default(self) -> None:
        """Without ``--config`` it is ``etc/ftd.conf``."""
        Path("etc").mkdir()
        Path("etc/ftd.conf").write_text(GOOD, encoding="utf-8")
        self.assertEqual(self.parse().configuration.path, self.directory / "etc" / "ftd.conf")

    def test_no_default(self) -> None:
        """Where there is none, the user is told how to name a file."""
        for arguments in ((), ("--check",)):
            self.assertEqual(self.parse_and_exit(*arguments), 1)
        said = "ftd: etc/ftd.conf: there is no such file here; name the configuration with --config FILE\n"
        self.assertEqual((self.out.getvalue(), self.err.getvalue()), ("", said * 2))

    def test_paths_are_absolute(self) -> None:
        """The daemon may go to another directory afterwards."""
        Path("x.conf").write_text(GOOD, encoding="utf-8")
        configuration = self.parse("--config", "x.conf").configuration
        self.assertEqual((configuration.path.is_absolute(), configuration.state_dir), (True, self.directory / "var"))

    def test_bad_file(self) -> None:
        """The first problem is told in exactly one line, and nothing starts."""
        Path("x.conf").write_text(TWO_PROBLEMS, encoding="utf-8")
        self.assertEqual(self.parse_and_exit("--config", "x.conf"), 1)
        said = "ftd: x.conf: [ftd] nod: there is no such key; is node meant?\n"
        self.assertEqual((self.out.getvalue(), self.err.getvalue()), ("", said))

    def test_missing_file(self) -> None:
        """A file that is not there is told in one line, with its name made harmless."""
        self.assertEqual(self.parse_and_exit("--config", "a\nb.conf"), 1)
        self.assertEqual(self.err.getvalue(), "ftd: a\\nb.conf: cannot be read: No such file or directory\n")

    def test_wrong_option(self) -> None:
        """What is wrong with the command line itself is left to twistd, which shows the usage."""
        for arguments in (["--colour"], ["--config"], ["argument"]):
            self.assertRaises(usage.UsageError, tap.Options().parseOptions, arguments)


class CheckTests(TapCase):
    """``--check``."""

    def test_ok(self) -> None:
        """A file that is right is said to be, and how many pairs it has."""
        Path("x.conf").write_text(GOOD, encoding="utf-8")
        Path("y.conf").write_text(GOOD + GOOD.replace("[pair a]", "[pair b]"), encoding="utf-8")
        self.assertEqual(self.parse_and_exit("--check", "--config", "x.conf"), 0)
        self.assertEqual(self.parse_and_exit("--check", "--config", "y.conf"), 0)
        said = "x.conf: ok, 1 pair\ny.conf: ok, 2 pairs\n"
        self.assertEqual((self.out.getvalue(), self.err.getvalue()), (said, ""))

    def test_problems(self) -> None:
        """Everything that is wrong is told, a line each."""
        Path("x.conf").write_text(TWO_PROBLEMS, encoding="utf-8")
        self.assertEqual(self.parse_and_exit("--config", "x.conf", "--check"), 1)
        self.assertEqual(
            (self.out.getvalue(), self.err.getvalue().splitlines()),
            (
                "",
                [
                    "ftd: x.conf: [ftd] nod: there is no such key; is node meant?",
                    "ftd: x.conf: [pair a] keep: is for a secondary, and this pair is a primary",
                ],
            ),
        )


class ServiceTests(TapCase):
    """From the plugin to the service."""

    def test_plugin(self) -> None:
        """Twisted finds the command ``ftd``, its options and its service by way of the plugin."""
        self.assertTrue(verifyObject(IServiceMaker, ftd_plugin.ftd))
        self.assertEqual((ftd_plugin.ftd.tapname, ftd_plugin.ftd.module), ("ftd", "ftd.tap"))
        self.assertIs(ftd_plugin.ftd.options, tap.Options)
        self.assertIs(ftd_plugin.ftd.makeService, tap.makeService)

    def make_service(self, content: str) -> IService:
        """The service of a configuration with this content."""
        Path("x.conf").write_text(content, encoding="utf-8")
        self.options = self.parse("--config", "x.conf")
        module = ModuleType("ftd.service")
        module.__dict__["FtdService"] = FakeService
        with mock.patch.dict(sys.modules, {"ftd.service": module}):
            return tap.makeService(self.options)

    def test_service(self) -> None:
        """The service is made from the configuration that was read, on the reactor, and has its addresses."""
        service = self.make_service(GOOD)
        assert isinstance(service, FakeService)
        self.assertEqual(service.made_from, (self.options.configuration, reactor))
        self.assertEqual((service.prepared, service.running), (True, 0))

    def test_refused(self) -> None:
        """An address that is taken ends the process with one line that names the section and key."""
        error = self.assertRaises(SystemExit, self.make_service, "[ftd]\nnode = taken\n")
        self.assertEqual(error.code, 1)
        said = f"ftd: {self.directory / 'x.conf'}: [api] endpoint: Address already in use\n"
        self.assertEqual((self.out.getvalue(), self.err.getvalue()), ("", said))
