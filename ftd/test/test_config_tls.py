"""Tests of :mod:`ftd.config_tls` and :mod:`ftd.transport.tls_identity`: files, good, bad and renewed."""

from __future__ import annotations

import contextlib
import shutil
import ssl
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import PairConfig, Role, load, problems
from ftd.config_tls import TlsFiles
from ftd.errors import ConfigError
from ftd.testing.certificates import Authority, Identity
from ftd.transport.tls_identity import TlsIdentity


class FilesCase(SynchronousTestCase):
    """A CA, and a certificate of it that is in the files of a pair."""

    def setUp(self) -> None:
        """Make them."""
        self.directory = Path(self.mktemp()).absolute()
        self.authority = Authority(self.directory)
        self.own = self.authority.sign("host-a", ["host-a"])
        self.files = self.files_of(self.own)

    def files_of(self, own: Identity) -> TlsFiles:
        """Those of a server that has this certificate."""
        return TlsFiles(
            section="a", is_server=True, certificate=own.certificate, key=own.key, ca=self.authority.ca, peer_name=""
        )

    def write(self, name: str, text: str) -> str:
        """A file that is none of the CA's."""
        path = self.directory / name
        path.write_text(text)
        return str(path)


class FilesTests(FilesCase):
    def assert_refused(self, where: str, said: str, *, certificate: str = "", key: str = "", ca: str = "") -> None:
        """With these files instead, this is said of that key."""
        own = self.files
        files = attrs.evolve(own, certificate=certificate or own.certificate, key=key or own.key, ca=ca or own.ca)
        error = self.assertRaises(ConfigError, files.context)
        self.assertEqual((error.section, error.key), ("pair a", where))
        self.assertIn(said, error.detail)

    def test_good(self) -> None:
        context = self.files.context()
        self.assertEqual((context.verify_mode, context.minimum_version), (ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_3))
        self.assertFalse(context.check_hostname)
        self.assertTrue(attrs.evolve(self.files, peer_name="host-b").context().check_hostname)

    def test_the_systems_cas_are_not_trusted(self) -> None:
        (trusted,) = self.files.context().get_ca_certs()
        self.assertEqual(trusted["subject"], ((("commonName", "ca"),),))

    def test_files_that_cannot_be_read(self) -> None:
        missing = str(self.directory / "missing")
        self.assert_refused("link-certificate", f"{missing} cannot be read: No such file", certificate=missing)
        self.assert_refused("link-key", f"{missing} cannot be read: No such file", key=missing)
        self.assert_refused("link-ca", f"{self.directory} cannot be read: Is a directory", ca=str(self.directory))

    def test_files_that_are_something_else(self) -> None:
        self.assert_refused("link-certificate", "has not got a certificate in PEM form in it", certificate=self.own.key)
        self.assert_refused("link-key", "has not got a private key in PEM form in it", key=self.own.certificate)
        self.assert_refused("link-ca", "has not got a certificate in PEM form", ca=self.write("empty", ""))

    def test_files_that_are_damaged(self) -> None:
        text = Path(self.own.certificate).read_text()
        damaged = self.write("damaged", text[:100] + "!" + text[101:])
        self.assert_refused("link-certificate", "cannot be used: ", certificate=damaged)
        self.assert_refused("link-ca", "cannot be used: ", ca=damaged)

    def test_a_key_of_another_certificate(self) -> None:
        other = self.authority.sign("other")
        self.assert_refused("link-key", f"{other.key} is not the key of {self.own.certificate}", key=other.key)

    def test_a_key_with_a_passphrase(self) -> None:
        """Nobody is there to type it."""
        locked = self.authority.sign("locked", passphrase=b"secret")
        self.assert_refused("link-key", "has a passphrase", certificate=locked.certificate, key=locked.key)


class ConfigTests(FilesCase):
    def config(self, more: str = "") -> str:
        """A configuration file with a TLS pair, and what else there is to say of it."""
        return self.write(
            "ftd.conf",
            "[pair a]\nrole = primary\nlink = tcp:host-b:8441\n"
            f"link-certificate = host-a.pem\nlink-key = host-a.key\nlink-ca = ca.pem\n{more}",
        )

    def test_files_are_tried_with_the_configuration(self) -> None:
        """``--check``, a start and a reload all find what is wrong, before anything is changed."""
        path = self.config()
        self.assertEqual(problems(path), [])
        Path(self.own.key).unlink()
        (problem,) = problems(path)
        self.assertEqual(str(problem), f"[pair a] link-key: {self.own.key} cannot be read: No such file or directory")

    def test_whom_to_expect(self) -> None:
        """What is dialled, unless it is said otherwise; on a secondary, nobody in particular."""
        for more, expected in (("", "host-b"), ("link-peer-name = b.example\n", "b.example")):
            files = TlsFiles.of(load(self.config(more)).pairs["a"])
            assert files is not None
            self.assertEqual((files.is_server, files.peer_name), (False, expected))
        for link, expected in (("tcp:fe80\\:\\:1%eth0:1", "fe80::1"), ("tcp:192.0.2.1:1", "192.0.2.1")):
            config = attrs.evolve(load(self.config()).pairs["a"], link=link)
            files = TlsFiles.of(config)
            assert files is not None
            self.assertEqual(files.peer_name, expected)
        standby = attrs.evolve(load(self.config()).pairs["a"], role=Role.SECONDARY, link="tcp:8441")
        files = TlsFiles.of(standby)
        assert files is not None
        self.assertEqual((files.is_server, files.peer_name), (True, ""))

    def test_no_tls(self) -> None:
        self.assertIsNone(TlsFiles.of(PairConfig(section="a", role=Role.SECONDARY, link="tcp:8441")))


class RenewalTests(FilesCase):
    """Certificates run out while the daemon runs."""

    def connects(self, identity: TlsIdentity) -> str:
        """The name that a peer sees at a new connection."""
        bios = [ssl.MemoryBIO() for _ in range(4)]
        server = identity.connection(bios[0], bios[1])
        other = self.authority.sign("peer")
        peer = TlsIdentity(attrs.evolve(self.files_of(other), is_server=False))
        client = peer.connection(bios[2], bios[3])
        for _ in range(3):
            for side in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
            bios[0].write(bios[3].read())
            bios[2].write(bios[1].read())
        certificate = client.getpeercert()
        assert certificate is not None
        return str(dict(certificate["subjectAltName"])["DNS"])  # type: ignore[arg-type]

    def test_new_files_count_from_the_next_connection_on(self) -> None:
        identity = TlsIdentity(self.files)
        self.assertEqual(self.connects(identity), "host-a")
        newer = self.authority.sign("newer", ["newer"])
        shutil.copy(newer.certificate, self.own.certificate)
        self.assertEqual(self.connects(identity), "host-a", "its key is not there yet")
        shutil.copy(newer.key, self.own.key)
        self.assertEqual(self.connects(identity), "newer")

    def test_files_that_are_gone(self) -> None:
        """What was read stays in use, and the files are looked for again each time."""
        identity = TlsIdentity(self.files)
        content = Path(self.own.key).read_bytes()
        Path(self.own.key).unlink()
        self.assertEqual(self.connects(identity), "host-a")
        Path(self.own.key).write_bytes(content)
        self.assertEqual(self.connects(identity), "host-a")
