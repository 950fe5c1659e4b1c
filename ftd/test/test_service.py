"""The daemon: what it takes and refuses at its start, and the pairs that come and go while it runs."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from twisted.logger import LogLevel
from zope.interface.verify import verifyObject

from ftd.errors import AlreadyExists, CannotKeep, ConfigError, NotInState, Unknown
from ftd.interfaces import IDaemon
from ftd.status import LinkState, Outcome
from ftd.test.pair_case import Body
from ftd.test.service_case import API, DAEMON, ServiceTestCase, pair

PRIMARY: Mapping[str, object] = {"role": "primary", "link": "tcp:127.0.0.1:9001"}
SECONDARY: Mapping[str, object] = {
    "role": "secondary",
    "link": "tcp:9001:interface=127.0.0.1",
    "name": "new",
    "ack": "applied",
    "keep": 3,
}


class PrepareTests(ServiceTestCase):
    """Everything that can be refused is, before the daemon goes into the background."""

    def refusal(self, section: str, key: str) -> str:
        """Have it refuse to start; the sentence."""
        refused: ConfigError = self.assertRaises(ConfigError, self.new_service().prepare)
        self.assertEqual((refused.section, refused.key), (section, key))
        return refused.detail

    def test_it_listens_and_does_not_dial(self) -> None:
        self.configure(pair("demo", 8441))
        service = self.new_service()
        service.prepare()
        self.assertEqual(self.ports(), [8440, 8441])
        self.reactor.pass_time(1)
        self.assertEqual((self.reactor.dialling, self.reactor.links), ([], []))
        service.startService()
        self.reactor.deliver()
        self.assertEqual(len(self.reactor.links), 1)

    def test_the_port_of_a_link_is_taken(self) -> None:
        self.configure(pair("demo", 8441))
        self.reactor.taken.add(("127.0.0.1", 8441))
        self.assertEqual(self.refusal("pair demo-standby", "link"), "cannot listen there: Address already in use")

    def test_the_port_of_the_api_is_taken(self) -> None:
        self.configure()
        self.reactor.taken.add(("127.0.0.1", 8440))
        self.assertEqual(self.refusal("api", "endpoint"), "cannot listen there: Address already in use")

    def test_the_second_port_of_the_api_is_taken(self) -> None:
        self.configure(daemon=DAEMON + "endpoint-2 = tcp:8442:interface=127.0.0.1\n")
        self.reactor.taken.add(("127.0.0.1", 8442))
        self.refusal("api", "endpoint-2")

    def test_another_daemon_has_the_directory(self) -> None:
        self.start()
        self.assertEqual(self.refusal("ftd", "state-dir"), f"{self.state_dir} is in use by another ftd")

    def test_the_directory_is_free_when_that_daemon_is_gone(self) -> None:
        self.start()
        self.restart()
        self.check_works("demo")

    def test_a_file_in_place_of_the_directory(self) -> None:
        self.configure()
        self.state_dir.write_text("")
        self.assertIn(f"{self.state_dir}", self.refusal("ftd", "state-dir"))

    def test_a_directory_that_cannot_be_written(self) -> None:
        self.configure()

        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied", str(self.state_dir / "lock"))

        self.patch(os, "open", refuse)
        self.assertEqual(self.refusal("ftd", "state-dir"), f"{self.state_dir}/lock: Permission denied")

    def test_a_part_of_the_directory_that_cannot_be_used(self) -> None:
        for name in ("a", "b-standby"):
            self.configure(pair(name.partition("-")[0], 8441), daemon=f"[ftd]\nstate-dir = {name}\n")
            (self.home / name / "pairs").mkdir(parents=True)
            (self.home / name / "pairs" / name).write_text("in the way")
            self.assertIn(f"{self.home}/{name}/pairs/{name}", self.refusal("ftd", "state-dir"))
            self.reactor.listening.clear()

    def test_a_generation_that_is_garbled(self) -> None:
        self.configure(pair("demo", 8441))
        (self.state_dir / "pairs" / "demo").mkdir(parents=True)
        (self.state_dir / "pairs" / "demo" / "generation").write_text("?\n")
        self.assertIn("does not hold a UUID", self.refusal("ftd", "state-dir"))

    def test_nobody_else_may_look_into_the_directory(self) -> None:
        self.start()
        self.assertEqual(self.state_dir.stat().st_mode & 0o777, 0o700)


class RunTests(ServiceTestCase):
    """What runs."""

    def test_it_is_a_daemon(self) -> None:
        self.start()
        self.assertTrue(verifyObject(IDaemon, self.service))
        self.assertEqual(self.service.node, "host-a")

    def test_the_pairs_stand_in_the_order_of_the_file_and_work(self) -> None:
        self.start(pair("b", 8441), pair("a", 8442))
        self.assertEqual(self.names(), ["b", "b-standby", "a", "a-standby"])
        self.check_works("a", "b")

    def test_checkpoints_and_generations_outlive_the_daemon(self) -> None:
        self.start()
        self.check_works("demo")
        generation = self.primary().generation
        self.restart()
        self.assertEqual(self.primary().generation, generation)
        self.assertEqual([held.number for held in self.secondary().store().checkpoints()], [1])
        self.check_works("demo")
        self.assertEqual([held.number for held in self.secondary().store().checkpoints()], [1, 2])

    def test_memory_does_not(self) -> None:
        standby = "\n[pair demo]\nrole = secondary\nsink = memory\nlink = tcp:8441:interface=127.0.0.1\n"
        self.start(standby)
        self.assertFalse((self.state_dir / "pairs").exists())


class CreatedTests(ServiceTestCase):
    """Pairs that are created and deleted while it runs."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def create(self, section: str, values: Mapping[str, object]) -> None:
        """Create a pair, which has to work."""
        created = self.successResultOf(self.service.create_pair(section, values))
        self.assertIs(self.service.pairs()[section], created)
        self.reactor.deliver()

    def create_both(self) -> None:
        """Create both halves."""
        self.create("new-standby", SECONDARY)
        self.create("new", PRIMARY)

    def test_they_run_at_once(self) -> None:
        self.create_both()
        self.assertEqual(self.names(), ["demo", "demo-standby", "new-standby", "new"])
        self.check_works("new", "demo")
        self.assertEqual(self.secondary("new-standby").config.keep, 3)

    def test_they_run_after_a_restart(self) -> None:
        self.create_both()
        self.check_works("new")
        self.restart()
        self.assertEqual(self.names(), ["demo", "demo-standby", "new-standby", "new"])
        self.check_works("new")
        self.assertEqual(len(self.secondary("new-standby").store().checkpoints()), 2)

    def test_they_are_gone_when_they_are_deleted(self) -> None:
        self.create_both()
        for name in ("new", "new-standby"):
            deleting = self.service.delete_pair(name)
            self.reactor.deliver()
            self.successResultOf(deleting)
        self.assertEqual(self.names(), ["demo", "demo-standby"])
        self.assertEqual(self.ports(), [8440, 8441])
        self.restart()
        self.assertEqual(self.names(), ["demo", "demo-standby"])

    def test_an_open_transaction_of_a_deleted_pair_is_cancelled(self) -> None:
        self.create_both()
        deleted = self.primary("new")
        upload = deleted.checkpoint(Body())
        upload.write(b"abc")
        self.reactor.deliver()
        deleting = self.service.delete_pair("new")
        self.refused(NotInState, upload.done)
        self.reactor.deliver()
        self.successResultOf(deleting)
        self.assertEqual(deleted.transactions()[-1].outcome, Outcome.CANCELLED)
        self.assertIs(deleted.link_state, LinkState.DOWN)

    def test_a_name_can_be_used_again(self) -> None:
        self.create_both()
        for _ in range(2):
            deleting = self.service.delete_pair("new-standby")
            self.reactor.deliver()
            self.successResultOf(deleting)
            self.create("new-standby", SECONDARY)
        self.reactor.pass_time(2)
        self.check_works("new")

    def test_a_name_that_is_there(self) -> None:
        self.create("new", PRIMARY)
        for name in ("demo", "demo-standby", "new"):
            refused = self.refused(AlreadyExists, self.service.create_pair(name, PRIMARY))
            self.assertEqual(str(refused), f"there is a pair {name} already")

    def test_a_port_that_another_pair_has(self) -> None:
        refused = self.refused(
            ConfigError, self.service.create_pair("x", {**SECONDARY, "link": "tcp:8441:interface=127.0.0.1"})
        )
        self.assertEqual(
            str(refused),
            "[pair x] link: port 8441 is taken: [pair demo-standby] link listens there already (two pairs on one port)",
        )

    def test_a_port_that_somebody_else_has(self) -> None:
        self.reactor.taken.add(("127.0.0.1", 9001))
        refused = self.refused(ConfigError, self.service.create_pair("x", SECONDARY))
        self.assertEqual(str(refused), "[pair x] link: cannot listen there: Address already in use")
        self.assertNotIn("x", self.names())
        self.reactor.taken.clear()
        self.create("x", SECONDARY)

    def test_values_that_are_wrong(self) -> None:
        refused = self.refused(ConfigError, self.service.create_pair("x", {**SECONDARY, "keep": 0}))
        assert isinstance(refused, ConfigError)
        self.assertEqual((refused.section, refused.key), ("pair x", "keep"))
        self.refused(ConfigError, self.service.create_pair("not a name", SECONDARY))
        self.assertEqual(self.names(), ["demo", "demo-standby"])

    def test_no_more_than_the_limit(self) -> None:
        self.release(self.service)
        self.reactor = type(self.reactor)()
        self.configure(pair("demo", 8441), daemon=f"[ftd]\nstate-dir = var\npairs-limit = 3\n{API}")
        self.service = self.new_service()
        self.service.prepare()
        self.create("new", PRIMARY)
        refused = self.refused(AlreadyExists, self.service.create_pair("x", SECONDARY))
        self.assertEqual(str(refused), "there are 3 pairs already; pairs-limit in [ftd] allows no more")

    def test_one_that_cannot_be_kept_does_not_run(self) -> None:
        (self.state_dir / "created").write_text("in the way")
        refused = self.refused(CannotKeep, self.service.create_pair("new-standby", SECONDARY))
        self.assertIn("pair new-standby cannot be kept in state-dir", str(refused))
        self.assertEqual(self.names(), ["demo", "demo-standby"])
        self.assertEqual(self.ports(), [8440, 8441])
        self.refused(CannotKeep, self.service.create_pair("new", PRIMARY))
        self.reactor.deliver()
        self.assertEqual(self.reactor.dialling, [])
        (self.state_dir / "created").unlink()
        self.create_both()
        self.check_works("new")

    def test_one_whose_file_cannot_be_removed_stays(self) -> None:
        self.create_both()

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patched = self.patch(os, "unlink", refuse)
        refused = self.refused(CannotKeep, self.service.delete_pair("new"))
        self.assertEqual(str(refused), "pair new cannot be removed from state-dir: Read-only file system")
        patched.restore()
        self.check_works("new")
        deleting = self.service.delete_pair("new")
        self.reactor.deliver()
        self.successResultOf(deleting)

    def test_one_that_is_not_there_cannot_be_deleted(self) -> None:
        refused = self.refused(Unknown, self.service.delete_pair("x"))
        self.assertEqual(str(refused), "there is no pair x")

    def test_one_of_the_file_cannot_be_deleted(self) -> None:
        refused = self.refused(NotInState, self.service.delete_pair("demo"))
        self.assertEqual(str(refused), f"pair demo stands in {self.path}: remove its section there and send SIGHUP")
        assert isinstance(refused, NotInState)
        self.assertEqual(refused.state, "configured")
        self.check_works("demo")

    def test_what_cannot_run_after_a_restart_is_off_and_the_others_run(self) -> None:
        self.create_both()
        self.create("garbled", {**PRIMARY, "link": "tcp:127.0.0.1:9002"})
        (self.state_dir / "created" / "garbled.conf").write_text("?")
        # In the meantime somebody has written a pair of the same name into the file.
        self.configure(pair("demo", 8441), pair("new", 9001))
        with self.logged(LogLevel.error) as lines:
            self.restart()
        self.assertEqual(len(lines), 3)
        for line, words in zip(lines, ("garbled.conf cannot be used", "pair new-standby,", "pair new,"), strict=True):
            self.assertIn(words, line)
        self.check_works("demo", "new")
