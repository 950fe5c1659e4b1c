"""Certificates, good and bad, for tests of TLS links: made when they are needed, so that none runs out."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = timedelta(days=1)


@attrs.frozen
class Identity:
    """Where a certificate and its key are."""

    certificate: str
    key: str


class Authority:
    """
    A CA with a directory of its own, in which it leaves what it signs.

    :ivar ca: the file of its own certificate.
    """

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._name = _subject(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(self._name, self._key, -_DAY, 30 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = self._write(f"{name}.pem", certificate.public_bytes(Encoding.PEM))

    def sign(
        self,
        name: str,
        names: Sequence[str] = ("127.0.0.1",),
        *,
        since: timedelta = -_DAY,
        until: timedelta = _DAY,
        is_for_servers_only: bool = False,
        passphrase: bytes = b"",
    ) -> Identity:
        """
        A new key and its certificate.

        :param name: of the files, and the common name.
        :param names: DNS names and IP addresses.
        :param since: when it begins to be valid, from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._builder(_subject(name), key, since, until).add_extension(
            x509.SubjectAlternativeName([_general_name(text) for text in names]), critical=False
        )
        if is_for_servers_only:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            certificate = certificate.add_extension(usage, critical=False)
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        return Identity(
            self._write(f"{name}.pem", certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)),
            self._write(f"{name}.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)),
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, since: timedelta, until: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
        )

    def _write(self, name: str, content: bytes) -> str:
        path = (self._directory / name).absolute()
        path.write_bytes(content)
        return str(path)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
