"""Who this end of a TLS link is, and whom it talks to, with files that may be renewed while the daemon runs."""

from __future__ import annotations

import ssl

from twisted.logger import Logger

from ftd.config_tls import TlsFiles
from ftd.errors import ConfigError


class TlsIdentity:
    """
    :param files: read now, and for a new connection again where they have changed.
    :raises ConfigError: if they cannot be used.
    """

    log = Logger()

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        # First, so that a change in between is seen at the next connection.
        self._versions = files.versions()
        self._context = files.context()

    def connection(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """
        This end of a new connection.

        :param incoming: gets what the peer sends.
        :param outgoing: gets what is for the peer.
        """
        return self._current().wrap_bio(
            incoming, outgoing, server_side=self.files.is_server, server_hostname=self.files.peer_name or None
        )

    def _current(self) -> ssl.SSLContext:
        versions = self.files.versions()
        if versions != self._versions:
            try:
                self._context = self.files.context()
            except ConfigError as error:
                # Maybe only one of them has been written yet: the next connection looks again.
                self.log.error("{error}; what was read before stays in use", error=error)
            else:
                self._versions = versions
                self.log.info("the TLS files of pair {pair} were read again", pair=self.files.section)
        return self._context
