"""The generation of a primary: the UUID of the lineage of states that it sends, kept over restarts."""

from __future__ import annotations

import uuid
from pathlib import Path

from ftd.durable import write_durably
from ftd.errors import ConfigError

_FILE = "generation"


def new_generation(directory: Path) -> str:
    """Begin a lineage, which ``directory`` holds from now on.  :raises OSError: if it cannot."""
    generation = str(uuid.uuid4())
    write_durably(directory / _FILE, generation + "\n")
    return generation


def load_generation(directory: Path, section: str) -> str:
    """
    Read the generation that ``directory`` holds, or make one and keep it there.

    :param section: the pair's name, for the error.
    :raises ConfigError: if it can neither be read nor written, or is not a UUID.
    """
    path = directory / _FILE
    try:
        if path.exists():
            return str(uuid.UUID(path.read_text().strip()))
        generation = new_generation(directory)
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror}", "ftd", "state-dir") from None
    except ValueError:
        raise ConfigError(
            f"{path} does not hold a UUID; remove it and pair {section} starts a new generation", "ftd", "state-dir"
        ) from None
    return generation
