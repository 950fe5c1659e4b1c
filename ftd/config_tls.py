"""
The files of a TLS link: read and tried before they are needed, so that what is wrong is told with its section and key.

What Python's :mod:`ssl` says of a bad file names neither the file nor what is wrong with it, hence the looks at them
beforehand.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from ftd.config_endpoints import TcpAddress, dialled
from ftd.config_keys import PairConfig, Role
from ftd.errors import ConfigError

#: The longest file that is read.
_LONGEST = 4 * 1024 * 1024

_CERTIFICATE = "link-certificate"
_KEY = "link-key"
_CA = "link-ca"


@attrs.frozen(kw_only=True)
class TlsFiles:
    """
    What one end of a TLS link goes by.

    :ivar section: the pair's, for errors.
    :ivar is_server: whether this end is dialled.
    :ivar peer_name: what the peer's certificate has to have in its subjectAltName, a DNS name or an IP address; empty
        for any.
    """

    section: str
    is_server: bool
    certificate: str
    key: str
    ca: str
    peer_name: str

    @classmethod
    def of(cls, config: PairConfig) -> TlsFiles | None:
        """Those of a pair, ``None`` for one whose link is not TLS."""
        if not config.has_tls:
            return None
        return cls(
            section=config.section,
            is_server=config.role is Role.SECONDARY,
            certificate=config.link_certificate,
            key=config.link_key,
            ca=config.link_ca,
            peer_name=config.link_peer_name or _host_dialled(config),
        )

    def versions(self) -> tuple[object, ...]:
        """What changes when a file does; a file that is not there has a version too."""
        return tuple(_version(path) for path in (self.certificate, self.key, self.ca))

    def context(self) -> ssl.SSLContext:
        """
        What TLS connections are made with.

        :raises ConfigError: if the files cannot be read, are not what they should be, or do not go together.
        """
        self._read(_CERTIFICATE, self.certificate, "-----BEGIN CERTIFICATE-----", "a certificate")
        self._read(_KEY, self.key, "PRIVATE KEY-----", "a private key")
        trusted = self._read(_CA, self.ca, "-----BEGIN CERTIFICATE-----", "a certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self.is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        # Python's documentation has it for clients; OpenSSL does the same on both sides, and tells the peer.
        context.check_hostname = bool(self.peer_name)
        if self.is_server:
            # Nobody comes back to go on with an earlier session.
            context.num_tickets = 0
        try:
            context.load_verify_locations(cadata=trusted)
        except ssl.SSLError as error:
            raise self._error(_CA, f"{self.ca} cannot be used: {_reason(error)}") from None
        try:
            context.load_cert_chain(self.certificate, self.key, _no_passphrase)
        except _HasPassphrase:
            raise self._error(_KEY, f"{self.key} has a passphrase, which ftd cannot ask for") from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise self._error(_KEY, f"{self.key} is not the key of {self.certificate}") from None
            detail = f"{self.certificate}, or its key {self.key}, cannot be used: {_reason(error)}"
            raise self._error(_CERTIFICATE, detail) from None
        except OSError as error:
            raise self._error(_CERTIFICATE, f"{self.certificate} and {self.key}: {error.strerror}") from None
        return context

    def is_right_peer(self, certificate: Mapping[str, object]) -> bool:
        """
        Whether a certificate, as `ssl.SSLObject.getpeercert` has it, has the peer's name in so many letters: OpenSSL
        would take one with a ``*`` too.
        """
        if not self.peer_name:
            return True
        names = certificate.get("subjectAltName", ())
        assert isinstance(names, tuple)
        wanted = _address(self.peer_name)
        if wanted is not None:
            return any(kind == "IP Address" and _address(name.strip()) == wanted for kind, name in names)
        return any(kind == "DNS" and name.lower() == self.peer_name.lower() for kind, name in names)

    def _read(self, key: str, path: str, mark: str, what: str) -> str:
        try:
            with Path(path).open("rb") as file:
                text = file.read(_LONGEST).decode("ascii", "replace")
        except OSError as error:
            raise self._error(key, f"{path} cannot be read: {error.strerror}") from None
        if mark not in text:
            raise self._error(key, f"{path} has not got {what} in PEM form in it")
        return text

    def _error(self, key: str, detail: str) -> ConfigError:
        return ConfigError(detail, f"pair {self.section}", key)


def tls_problems(config: PairConfig) -> Iterator[ConfigError]:
    """What is wrong with a pair's files, tried as the daemon will."""
    files = TlsFiles.of(config)
    if files is not None:
        try:
            files.context()
        except ConfigError as error:
            yield error


class _HasPassphrase(Exception):
    """Asking for it on a terminal would hold up the daemon, which may not have one."""


def _no_passphrase() -> str:
    raise _HasPassphrase


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _version(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _host_dialled(config: PairConfig) -> str:
    if config.role is Role.SECONDARY:
        return ""
    address = dialled(config.link, None).address
    assert isinstance(address, TcpAddress), "a pair that dials a socket has a name to look for"
    # The zone of a link-local address is this host's business and not in anybody's certificate.
    return address.host.partition("%")[0]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
