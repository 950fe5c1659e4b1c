"""
The syntax of configuration files: text into sections of keys, with every mistake found and none of them raised.

:class:`configparser.ConfigParser`, strict and without interpolation, does the reading.  It stops at the first line it
cannot take; so that all of them are told, that line is set aside and the text is read again.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from pathlib import Path

from ftd.config_values import printable, shown
from ftd.errors import ConfigError

#: Bytes; beyond any real configuration, and little enough to read ``/dev/zero`` by mistake.
LARGEST_FILE = 4 * 1024 * 1024

#: Keys whose values may go on in the lines below, where these are indented.
_CONTINUED = frozenset({"qemu-command"})

# Begins the title that stands in for a second section of one name; no text that is read has a zero byte.
_SET_ASIDE = "\0"

# Lines that are set aside before the rest of the text is given up on: each costs a reading of the file.
_MOST_BAD_LINES = 50


class _StrictParser(configparser.ConfigParser):
    # The library's expression takes "[pair demo] = 1" for the section and drops what follows the bracket.
    SECTCRE = re.compile(r"\[(?P<header>.+)\]\Z")

    def __init__(self) -> None:
        super().__init__(
            strict=True,
            interpolation=None,
            delimiters=("=",),
            comment_prefixes=("#", ";"),
            inline_comment_prefixes=(";",),
            empty_lines_in_values=False,
            default_section="",  # no title is empty, so there is no section whose keys leak into all the others
        )

    def optionxform(self, optionstr: str) -> str:
        """Keys are taken as they are written."""
        return optionstr


def read_text(path: Path) -> str:
    """
    The text of a file.

    :raises ConfigError: if it cannot be read, or is not text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"is over {LARGEST_FILE} bytes long, no configuration is")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise ConfigError("is not text, there are zero bytes in it")
    return text


def read_sections(text: str, found: list[ConfigError]) -> Mapping[str, Mapping[str, str]]:
    """
    The keys and values of every section, in order.

    :param found: gets an error for every line that could not be taken.
    """
    parser = _parse(text.replace("\r\n", "\n").split("\n"), found)
    sections: dict[str, dict[str, str]] = {}
    for title in parser.sections():
        if title.startswith(_SET_ASIDE):
            continue
        sections[title] = dict(parser.items(title))
        for key, value in sections[title].items():
            first, *others = value.split("\n")
            if key in _CONTINUED:
                # As it is typed in a shell, too: with a backslash before the end of each line.
                sections[title][key] = " ".join(line.removesuffix("\\").rstrip() for line in (first, *others))
            elif others:
                detail = f"the line after it is indented, so {shown(others[0])} reads as part of the value"
                found.append(ConfigError(detail, printable(title), printable(key)))
                sections[title][key] = first
    return sections


def _parse(lines: list[str], found: list[ConfigError]) -> configparser.ConfigParser:
    """The lines that can be taken, parsed; those that cannot are changed in ``lines`` until nothing is left to say."""
    for _ in range(_MOST_BAD_LINES):
        parser = _StrictParser()
        try:
            parser.read_string("\n".join(lines))
        except configparser.DuplicateSectionError as error:
            line = error.lineno or 1
            found.append(ConfigError(f"line {line}: there is such a section already", printable(error.section)))
            # Under another title, so that its keys neither fall to the section above nor count as given twice.
            lines[line - 1] = f"[{_SET_ASIDE}{line}]"
        except configparser.DuplicateOptionError as error:
            line = error.lineno or 1
            if not error.section.startswith(_SET_ASIDE):
                where, key = printable(error.section), printable(error.option)
                found.append(ConfigError(f"line {line}: the section has this key already", where, key))
            lines[line - 1] = ""
        except configparser.MissingSectionHeaderError as error:
            found.append(ConfigError(f"line {error.lineno}: {shown(error.line.strip())} stands before any [section]"))
            lines[error.lineno - 1] = ""
        except configparser.ParsingError as error:
            for line, _repr in error.errors:
                detail = f"line {line}: {shown(lines[line - 1].strip())} is neither a [section] nor key = value"
                found.append(ConfigError(detail))
                lines[line - 1] = ""
        else:
            return parser
    found.append(ConfigError("has too many lines that cannot be read; the rest was not looked at"))
    return _StrictParser()
