"""SIGHUP: what did not change goes on as if nothing had been, and a file with an error changes nothing."""

from __future__ import annotations

import os
import signal

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel

from ftd.errors import AlreadyExists, NotInState
from ftd.primary import PrimaryPair
from ftd.secondary import SecondaryPair
from ftd.status import LinkState, Outcome
from ftd.test.pair_case import Body
from ftd.test.service_case import API, ServiceTestCase, pair


class ReloadTests(ServiceTestCase):
    """The daemon runs the pairs ``stays`` and ``goes``."""

    def setUp(self) -> None:
        super().setUp()
        self.start(pair("stays", 8441), pair("goes", 8442))
        self.before = dict(self.service.pairs())

    def reload(self, *pairs: str) -> None:
        """Read a new file."""
        self.configure(*pairs)
        self.service.reload()
        self.reactor.pass_time(1)

    def refusal(self) -> str:
        """Read the file, which has to be refused and to change nothing; what the log says."""
        with self.logged(LogLevel.error) as lines:
            self.service.reload()
        self.reactor.pass_time(1)
        self.assertEqual(dict(self.service.pairs()), self.before)
        self.check_works("stays", "goes")
        self.assertEqual([half.status().reconnects for half in self.halves()], [0] * 4)
        (line,) = lines
        self.assertTrue(line.startswith(f"{self.path}: ") and line.endswith("; nothing was changed"), line)
        return line

    def halves(self) -> list[PrimaryPair | SecondaryPair]:
        found = [*self.service.pairs().values()]
        return [half for half in found if isinstance(half, PrimaryPair | SecondaryPair)]

    def test_nothing_changed(self) -> None:
        self.reload(pair("stays", 8441), pair("goes", 8442))
        self.assertEqual(dict(self.service.pairs()), self.before)
        self.assertEqual([half.status().reconnects for half in self.halves()], [0] * 4)

    def test_what_did_not_change_keeps_its_link_and_its_transaction(self) -> None:
        upload = self.primary("stays").checkpoint(Body())
        upload.write(b"a" * 1000)
        self.reload(pair("comes", 8443), pair("stays", 8441))
        upload.write(b"b" * 1000)
        upload.finish()
        self.reactor.deliver()
        self.successResultOf(upload.done)
        for name in ("stays", "stays-standby"):
            self.assertIs(self.service.pairs()[name], self.before[name])
            self.assertEqual(self.service.pairs()[name].status().reconnects, 0)

    def test_what_is_new_runs_and_what_is_gone_does_not(self) -> None:
        going = self.primary("goes")
        self.reload(pair("stays", 8441), pair("comes", 8443))
        self.assertEqual(self.names(), ["stays", "stays-standby", "comes", "comes-standby"])
        self.check_works("stays", "comes")
        self.assertEqual(self.ports(), [8440, 8441, 8443])
        self.assertEqual((going.link_state, going.link_detail), (LinkState.DOWN, "stopped"))

    def test_an_open_transaction_of_one_that_is_gone_is_cancelled(self) -> None:
        going = self.primary("goes")
        upload = going.checkpoint(Body())
        upload.write(b"abc")
        self.reactor.deliver()
        self.reload(pair("stays", 8441))
        self.failureResultOf(upload.done, NotInState)
        self.assertEqual(going.transactions()[-1].outcome, Outcome.CANCELLED)

    def test_who_watches_is_told_that_it_is_gone(self) -> None:
        seen = self.service._bus.last_id
        self.reload(pair("stays", 8441))
        _, events = self.service._bus.since(seen)
        removed = []
        for event in events:
            body = event.body() if callable(event.body) else event.body
            if body.get("removed"):
                removed.append(event.pair)
                self.assertEqual(body["link_state"], "down")
        self.assertEqual(sorted(removed), ["goes", "goes-standby"])

    def test_what_changed_is_replaced_and_keeps_its_checkpoints(self) -> None:
        self.check_works("goes")
        generation = self.primary("goes").generation
        self.reload(pair("stays", 8441), pair("goes", 8442, "heartbeat = 500ms\n"))
        for name in ("goes", "goes-standby"):
            self.assertIsNot(self.service.pairs()[name], self.before[name])
        self.assertEqual(self.primary("goes").config.heartbeat, 0.5)
        self.assertEqual(self.primary("goes").generation, generation)
        self.check_works("goes", "stays")
        held = self.secondary("goes-standby").store().checkpoints()
        self.assertEqual([checkpoint.number for checkpoint in held], [1, 2])

    def test_two_pairs_may_change_places(self) -> None:
        self.reload(pair("stays", 8442), pair("goes", 8441))
        self.check_works("stays", "goes")

    def test_a_commit_that_is_under_way_is_finished_first(self) -> None:
        committing = self.push("goes", b"abc")
        self.configure(pair("stays", 8441))
        self.service.reload()
        self.assertNoResult(committing)
        self.reactor.pass_time(1)
        self.successResultOf(committing)

    def test_one_reload_after_the_other_while_the_first_is_not_done(self) -> None:
        self.reactor.threads_are_stuck = True
        committing = self.push("goes", b"abc")
        self.reactor.deliver()
        self.configure(pair("stays", 8441), pair("goes", 8442, "heartbeat = 500ms\n"))
        self.service.reload()
        self.reactor.deliver()
        with self.logged(LogLevel.error) as lines:
            self.service.reload()
            self.reactor.deliver()
        # What the old one has, a VM among other things, must not be two pairs' at a time.
        self.assertEqual((lines, "goes-standby" in self.names()), ([], False))
        self.reactor.threads_are_stuck = False
        while self.reactor.stuck:
            self.reactor.stuck.pop(0)()
        self.reactor.pass_time(2)
        self.successResultOf(committing)
        self.assertEqual(sorted(self.names()), ["goes", "goes-standby", "stays", "stays-standby"])
        self.check_works("stays", "goes")

    def test_the_daemon_is_stopped_before_it_is_done(self) -> None:
        self.reactor.threads_are_stuck = True
        self.push("goes", b"abc")
        self.reactor.deliver()
        self.configure(pair("stays", 8441), pair("goes", 8442, "heartbeat = 500ms\n"))
        self.service.reload()
        self.reactor.deliver()
        stopping = self.service.stopService()
        self.reactor.threads_are_stuck = False
        while self.reactor.stuck:
            self.reactor.stuck.pop(0)()
        self.reactor.pass_time(5)
        self.successResultOf(stopping)
        self.assertEqual(sorted(self.reactor.listening), [])

    def test_a_name_is_not_free_before_the_deleted_pair_has_stopped(self) -> None:
        values = {"role": "secondary", "link": "tcp:9001:interface=127.0.0.1"}
        created = self.successResultOf(self.service.create_pair("new", values))
        stopped: Deferred[None] = Deferred()
        stop = created.stop  # type: ignore[attr-defined]
        created.stop = lambda: stop().addCallback(lambda _: stopped)  # type: ignore[attr-defined]
        deleting = self.service.delete_pair("new")
        self.reactor.deliver()
        refused = self.refused(AlreadyExists, self.service.create_pair("new", values))
        self.assertIn("still being stopped", str(refused))
        # The file has one of that name by now.
        self.configure(pair("stays", 8441), pair("goes", 8442), pair("new", 9001).replace("new-standby", "new-b"))
        self.service.reload()
        self.reactor.deliver()
        self.assertEqual(("new" in self.names(), "new-b" in self.names()), (False, True))
        stopped.callback(None)
        self.successResultOf(deleting)
        self.assertIn("new", self.names())

    def test_a_bad_file(self) -> None:
        self.configure(pair("stays", 8441), "[pair goes]\nrole = primary\n")
        self.assertIn("[pair goes] link: is missing", self.refusal())

    def test_a_file_that_is_gone(self) -> None:
        self.path.unlink()
        self.assertIn("No such file", self.refusal())

    def test_a_pair_on_the_port_of_the_api(self) -> None:
        # The file alone is right, but the API stays where it is until a restart.
        self.configure(pair("stays", 8440), daemon=f"[ftd]\nnode = host-a\n{API.replace('8440', '8450')}")
        self.assertIn("port 8440 is taken", self.refusal())

    def test_a_pair_of_the_name_of_one_that_was_created(self) -> None:
        self.successResultOf(self.service.create_pair("new", {"role": "primary", "link": "tcp:127.0.0.1:9001"}))
        self.before = dict(self.service.pairs())
        self.before.pop("new")
        self.configure(pair("stays", 8441), pair("new", 9001))
        with self.logged(LogLevel.error) as lines:
            self.service.reload()
        self.assertIn("[pair new]: a pair of this name was created through the API; delete that one first", lines[0])
        self.assertEqual(len(self.names()), 5)
        self.check_works("stays", "goes")

    def test_a_pair_on_the_port_of_one_that_was_created(self) -> None:
        values = {"role": "secondary", "link": "tcp:9001:interface=127.0.0.1"}
        self.successResultOf(self.service.create_pair("new", values))
        self.configure(pair("stays", 9001))
        with self.logged(LogLevel.error) as lines:
            self.service.reload()
        self.assertIn("9001 is taken", lines[0])
        self.check_works("stays", "goes")

    def test_what_was_created_stays(self) -> None:
        created = self.successResultOf(
            self.service.create_pair("new", {"role": "primary", "link": "tcp:127.0.0.1:8441", "name": "stays"})
        )
        self.reload(pair("stays", 8441))
        self.assertEqual(self.names(), ["stays", "stays-standby", "new"])
        self.assertIs(self.service.pairs()["new"], created)

    def test_more_pairs_than_the_limit_with_those_that_were_created(self) -> None:
        self.service.config = type(self.service.config)(
            path=self.path,
            node="host-a",
            state_dir=self.state_dir,
            pairs_limit=5,
            api=self.service.config.api,
            pairs=self.service.config.pairs,
        )
        self.successResultOf(self.service.create_pair("new", {"role": "primary", "link": "tcp:127.0.0.1:9001"}))
        self.configure(pair("stays", 8441), pair("goes", 8442), pair("more", 8443))
        with self.logged(LogLevel.error) as lines:
            self.service.reload()
        self.assertIn("[ftd] pairs-limit: the file has 6 pairs, 1 were created through the API", lines[0])
        self.assertEqual(len(self.names()), 5)

    def test_a_port_that_somebody_else_has(self) -> None:
        self.reactor.taken.add(("127.0.0.1", 8443))
        self.configure(pair("stays", 8441), pair("comes", 8443))
        with self.logged(LogLevel.error) as lines:
            self.service.reload()
            self.reactor.pass_time(1)
        self.assertEqual(
            lines, ["[pair comes-standby] link: cannot listen there: Address already in use; the pair is off"]
        )
        self.assertEqual(self.names(), ["stays", "stays-standby", "comes"])
        self.check_works("stays")
        # The next reload tries again.
        self.reactor.taken.clear()
        self.service.reload()
        self.reactor.pass_time(10)
        self.check_works("stays", "comes")

    def test_what_takes_a_restart_is_said(self) -> None:
        self.configure(pair("stays", 8441), daemon=f"[ftd]\nnode = another\nstate-dir = var\n{API}")
        with self.logged(LogLevel.warn) as lines:
            self.service.reload()
        self.assertIn("changes in [ftd] and [api] take a restart; only pairs were reloaded", lines)
        self.assertEqual(self.service.node, "host-a")
        self.configure(pair("stays", 8441))
        with self.logged(LogLevel.warn) as lines:
            self.service.reload()
        self.assertEqual(lines, [])

    def test_sighup_is_heard(self) -> None:
        self.configure(pair("stays", 8441))
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.pass_time(1)
        self.assertEqual(self.names(), ["stays", "stays-standby"])
