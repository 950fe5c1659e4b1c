"""
The command line of the daemon: ``twistd ftd [--config FILE] [--check]``.

The configuration is read and checked while the command line is parsed, before a reactor runs and before the daemon goes
into the background: mistakes are told where they can still be seen, and relative paths still mean what the user meant.
"""

from __future__ import annotations

import os.path
import sys
from typing import ClassVar

from twisted.application.service import IService
from twisted.python import usage

from ftd.config import Config, load, problems
from ftd.config_values import printable
from ftd.errors import ConfigError

DEFAULT_CONFIG = os.path.join("etc", "ftd.conf")


def _shown(file: str) -> str:
    """A file's name in a line for the user: all of it, whatever characters it has."""
    return printable(file, longest=len(file))


class Options(usage.Options):
    """
    The options of ``twistd ftd``.

    A configuration that is not right ends the process from within `postOptions`.  The usual way, a
    :exc:`~twisted.python.usage.UsageError`, would print the usage as well, which is no help with a file.

    :ivar configuration: what is in the file; there once the options have been parsed.
    """

    configuration: Config

    synopsis = "[--config FILE] [--check]"
    optParameters: ClassVar = [
        ["config", "c", None, f"The configuration file.  [default: {DEFAULT_CONFIG}, if there is one]"]
    ]
    optFlags: ClassVar = [
        ["check", None, "Check the configuration file, tell all that is wrong with it, and start nothing."]
    ]

    def postOptions(self) -> None:
        """
        Read the configuration file.

        :raises SystemExit: with 1 if something is wrong with it, one line on stderr having said what; after ``--check``
            in any case.
        """
        file = self["config"] or DEFAULT_CONFIG
        if self["config"] is None and not os.path.exists(file):
            sys.stderr.write(f"ftd: {file}: there is no such file here; name the configuration with --config FILE\n")
            raise SystemExit(1)
        try:
            self.configuration = load(file)
        except ConfigError as error:
            for problem in problems(file) if self["check"] else [error]:
                sys.stderr.write(f"ftd: {_shown(file)}: {problem}\n")
            raise SystemExit(1) from None
        if self["check"]:
            count = len(self.configuration.pairs)
            sys.stdout.write(f"{_shown(file)}: ok, {count} {'pair' if count == 1 else 'pairs'}\n")
            raise SystemExit(0)


def makeService(options: Options) -> IService:
    """
    The daemon with everything in it and all its addresses taken, not yet started.

    :raises SystemExit: with 1 if something was refused, one line on stderr having said what.
    """
    # Imported here, so that a check, or a list of twistd's commands, neither loads the daemon nor installs a reactor.
    from twisted.internet import reactor

    from ftd.service import FtdService

    service = FtdService(options.configuration, reactor)
    try:
        service.prepare()
    except ConfigError as error:
        sys.stderr.write(f"ftd: {_shown(str(options.configuration.path))}: {error}\n")
        raise SystemExit(1) from None
    return service
