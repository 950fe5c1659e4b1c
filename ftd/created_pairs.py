"""The pairs that were created through the API: one file each below ``state-dir``, in the form of the configuration."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from ftd.config import PairConfig, pair_from_ini, pair_to_ini
from ftd.durable import sync_directory, write_durably
from ftd.errors import ConfigError

_log = Logger()


class CreatedPairs:
    """
    :param directory: holds ``NAME.conf`` files; made when there is something to put into it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> list[PairConfig]:
        """All that are there.  A file that cannot be used is logged and left alone: the other pairs run."""
        found = []
        for path in sorted(self._directory.glob("*.conf")):
            try:
                found.append(pair_from_ini(path.read_text()))
            except (ConfigError, OSError, UnicodeDecodeError) as error:
                _log.error("{path} cannot be used, its pair is off: {error}", path=path, error=error)
        return found

    def save(self, config: PairConfig) -> None:
        """Keep a new one, durably.  :raises OSError: if that is not possible."""
        path = self._path(config.section)
        try:
            write_durably(path, pair_to_ini(config))
        except OSError:
            # It was refused: it must not be there after the next start.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise

    def remove(self, section: str) -> None:
        """Forget one."""
        self._path(section).unlink(missing_ok=True)
        sync_directory(self._directory)

    def _path(self, section: str) -> Path:
        return self._directory / f"{section}.conf"
