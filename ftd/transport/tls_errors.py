"""What a failure of TLS means to whoever set up the link, and what to do about it."""

from __future__ import annotations

import ssl

from ftd.config_tls import TlsFiles
from ftd.wire.errors import ErrorCode, WireError

# X509_V_ERR_…: what OpenSSL found wrong with the peer's certificate.
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNKNOWN_CA = frozenset({2, 7, 18, 19, 20, 21, 24, 30})
_WRONG_PURPOSE = 26
_WRONG_NAME = frozenset({62, 64})

_PLAIN = "the peer does not speak TLS: both halves of a pair need link-certificate, link-key and link-ca, or neither"

#: What OpenSSL calls it where the bytes of the peer are none of TLS's.
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "BAD_RECORD_TYPE", "UNKNOWN_PROTOCOL"}
)

_LOOK_THERE = "the error and the log of the peer say more"

# The alert of the peer, in the words of OpenSSL without the version of TLS that it was named in first.
_ALERTS = {
    "ALERT_UNKNOWN_CA": "the peer does not know the CA of this side's link-certificate: it has to be in link-ca there",
    "ALERT_CERTIFICATE_EXPIRED": "this side's link-certificate is not valid any more: renew it",
    "ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate, and this side's was of no use to it",
    "ALERT_BAD_CERTIFICATE": "the peer does not take this side's link-certificate, maybe because of the name in it: "
    "it has to be the link-peer-name there",
    "ALERT_UNSUPPORTED_CERTIFICATE": "the peer does not take this side's link-certificate: "
    "its extendedKeyUsage has to have clientAuth on a primary, serverAuth on a secondary, or not be there",
    "ALERT_CERTIFICATE_UNKNOWN": "the peer does not take this side's link-certificate",
    "ALERT_CERTIFICATE_REVOKED": "this side's link-certificate was revoked",
    "ALERT_PROTOCOL_VERSION": "the peer does not take TLS 1.3",
}


def ended_in_handshake() -> WireError:
    """The connection ended before there was a TLS session on it."""
    return WireError(
        ErrorCode.RECV_HDR,
        f"the peer closed the connection in the TLS handshake: it may not speak TLS (link-certificate), "
        f"or not take this side's certificate; {_LOOK_THERE}",
    )


def wrong_name(files: TlsFiles) -> WireError:
    """The peer's certificate is for somebody else."""
    return WireError(
        ErrorCode.RECV_HDR,
        f"the peer's certificate is not for {files.peer_name}, which is what "
        f"{'link-peer-name' if files.is_server else 'link-peer-name, or else the host in link,'} asks for",
    )


def explained(error: ssl.SSLError, files: TlsFiles, *, in_handshake: bool) -> WireError:
    """
    The error of a pair for what OpenSSL says.

    :param in_handshake: nothing of the peer has been understood so far.
    """
    return WireError(ErrorCode.RECV_HDR, _explanation(error, files, in_handshake))


def _explanation(error: ssl.SSLError, files: TlsFiles, in_handshake: bool) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _bad_certificate(error, files)
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the peer sent no certificate: it needs link-certificate, link-key and link-ca too"
    if in_handshake and reason in _NO_TLS:
        return _PLAIN
    _version, is_alert, name = reason.partition("_ALERT_")
    if is_alert:
        said = _ALERTS.get(f"ALERT_{name}", f"the peer ended TLS: {_words(name)}")
        return f"{said} ({_LOOK_THERE})"
    if reason in ("UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "NO_SUITABLE_SIGNATURE_ALGORITHM"):
        return f"the peer and this side do not go together in TLS: {_words(reason)}; both have to have TLS 1.3"
    return f"TLS failed: {_words(reason) or error}"


def _bad_certificate(error: ssl.SSLCertVerificationError, files: TlsFiles) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "the peer's certificate is not valid any more: renew it there, or set the clock here"
    if code == _NOT_YET_VALID:
        return "the peer's certificate is not valid yet: look at the clocks of both hosts"
    if code in _UNKNOWN_CA:
        return f"the peer's certificate is not signed by a CA in {files.ca} (link-ca)"
    if code == _WRONG_PURPOSE:
        wanted = "clientAuth" if files.is_server else "serverAuth"
        return f"the peer's certificate is not for this: its extendedKeyUsage has to have {wanted}, or not be there"
    if code in _WRONG_NAME:
        return wrong_name(files).detail
    return f"the peer's certificate will not do: {error.verify_message}"


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")
