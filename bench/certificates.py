"""Certificates for one run: a CA, and one for both ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: Whom the certificate is for.
NAME = "bench.example"

_LIFE = timedelta(days=1)


def make(directory: Path) -> dict[str, str]:
    """The paths of ``certificate``, ``key`` and ``ca``, and the ``name`` in the certificate."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = _name("bench CA")
    basic = x509.BasicConstraints(ca=True, path_length=None)
    ca = _builder(issuer, issuer, ca_key.public_key()).add_extension(basic, critical=True)
    names = x509.SubjectAlternativeName([x509.DNSName(NAME)])
    leaf = _builder(_name(NAME), issuer, key.public_key()).add_extension(names, critical=False)
    contents = {
        "ca": ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        "certificate": leaf.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        "key": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    paths = {"name": NAME}
    for what, content in contents.items():
        path = directory / f"{what}.pem"
        path.touch(mode=0o600)
        path.write_bytes(content)
        paths[what] = str(path)
    return paths


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LIFE)
        .not_valid_after(now + _LIFE)
    )
