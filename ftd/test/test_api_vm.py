"""The API's routes for pairs that have a VM, and what it answers where they have none."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import FtdError, NotInState
from ftd.http.problems import STATUS_BY_ERROR
from ftd.status import LinkState, VmState, to_json
from ftd.test.api_case import ApiTestCase
from ftd.vm import errors
from ftd.vm.errors import CannotProtect, QmpClosed, QmpRefused, QmpTimeout, VmError

PROTECTION = "/v1/pairs/vm/protection"


class VmCase(ApiTestCase):
    """
    :ivar vm: the primary ``vm``.
    :ivar standby: the secondary ``vm-standby``.
    """

    def setUp(self) -> None:
        super().setUp()
        self.vm, self.standby = self.daemon.add_vms()


class StatusTests(VmCase):
    def test_a_pair_has_its_vm(self) -> None:
        self.vm.show_vm(lag_ms=12.5, held_frames=3)
        answer = self.call("GET", "/v1/pairs/vm").json()
        self.assertEqual(answer, to_json(self.vm.status()))
        self.assertEqual((answer["vm"]["status"], answer["vm"]["lag_ms"]), ("protected", 12.5))
        self.assertIsNone(self.call("GET", "/v1/pairs/demo").json()["vm"])

    def test_a_change_of_the_vm_is_an_event(self) -> None:
        client = self.connect()
        self.request(client, "GET", "/v1/pairs/vm/events?kinds=pair")
        client.read()
        self.vm.show_vm(status=VmState.HOLDING, reason="the standby is lost")
        self.clock.advance(1)
        self.assertIn(b'"status":"holding"', client.read())


class ProtectionTests(VmCase):
    def test_it_is_shown(self) -> None:
        self.assertEqual(self.call("GET", PROTECTION).json(), {"enabled": True, "interval_ms": 50.0})

    def test_either_key_or_both(self) -> None:
        for body, shown in (
            ({"enabled": False}, {"enabled": False, "interval_ms": 50.0}),
            ({"interval_ms": 0}, {"enabled": False, "interval_ms": 0.0}),
            ({"enabled": True, "interval_ms": 12.5}, {"enabled": True, "interval_ms": 12.5}),
        ):
            self.assertEqual(self.call("PUT", PROTECTION, body).json(), shown)
        self.assertEqual(self.call("GET", PROTECTION).json(), {"enabled": True, "interval_ms": 12.5})

    def test_it_is_answered_when_it_is_so(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.patch(self.vm, "set_protection", lambda *_: waiting)
        client = self.connect()
        self.request(client, "PUT", PROTECTION, {"enabled": False})
        self.assertIsNone(client.response_if_any())
        self.vm.show_vm(protection=False)
        waiting.callback(None)
        self.assertEqual(client.response().json(), {"enabled": False, "interval_ms": 50.0})

    def test_bodies_that_are_wrong(self) -> None:
        cases: list[tuple[object, str]] = [
            ({}, "body"),
            (b"", "body"),
            ({"enabled": 1}, "enabled"),
            ({"enabled": None}, "enabled"),
            ({"interval_ms": "50ms"}, "interval_ms"),
            ({"interval_ms": True}, "interval_ms"),
            ({"interval_ms": 0.5}, "interval_ms"),
            ({"interval_ms": -1}, "interval_ms"),
            ({"interval_ms": 3_600_001}, "interval_ms"),
            ({"interval_ms": 10**400}, "interval_ms"),
            ({"interval": 50}, "interval"),
        ]
        for body, field in cases:
            self.assert_problem(self.call("PUT", PROTECTION, body), 400, "bad-request", field=field)
        self.assertEqual(self.call("GET", PROTECTION).json(), {"enabled": True, "interval_ms": 50.0})

    def test_it_is_for_primaries(self) -> None:
        response = self.call("PUT", "/v1/pairs/vm-standby/protection", {"enabled": True})
        self.assertIn("is a secondary", self.assert_problem(response, 409, "not-in-state", state="ACK"))


class PromotionTests(VmCase):
    def test_promote(self) -> None:
        self.standby.show(link_state=LinkState.DOWN)
        for body in (None, {}, {"force": False}):
            response = self.call("POST", "/v1/pairs/vm-standby/promote", body)
            self.assertEqual((response.status, response.json()), (200, to_json(self.standby.status())["vm"]))
            self.assertEqual(response.json()["status"], "promoted")
        self.assertEqual(self.standby.promotions, [False, False, False])

    def test_promote_is_refused_while_the_primary_is_up_unless_forced(self) -> None:
        response = self.call("POST", "/v1/pairs/vm-standby/promote")
        self.assertIn("force", self.assert_problem(response, 409, "not-in-state", state="ACK"))
        self.assertEqual(self.call("POST", "/v1/pairs/vm-standby/promote", {"force": True}).status, 200)
        self.assertEqual(self.standby.promotions, [True])

    def test_demote(self) -> None:
        for pair in (self.vm, self.standby):
            response = self.call("POST", f"/v1/pairs/{pair.name}/demote")
            self.assertEqual((response.status, response.json()["reason"]), (200, "it was demoted"))
            self.assertEqual(pair.demotions, 1)

    def test_bodies_that_are_wrong(self) -> None:
        for body, field in (({"force": "yes"}, "force"), ({"force": None}, "force"), ({"forced": True}, "forced")):
            response = self.call("POST", "/v1/pairs/vm-standby/promote", body)
            self.assert_problem(response, 400, "bad-request", field=field)
        response = self.call("POST", "/v1/pairs/vm/demote", {"force": True})
        self.assert_problem(response, 400, "bad-request", field="body")
        self.assertEqual((self.standby.promotions, self.vm.demotions), ([], 0))


class NoVmTests(ApiTestCase):
    def test_pairs_without_a_vm(self) -> None:
        for method, path, body in (
            ("GET", "/v1/pairs/demo/protection", None),
            ("PUT", "/v1/pairs/demo/protection", {"enabled": True}),
            ("POST", "/v1/pairs/demo/promote", None),
            ("POST", "/v1/pairs/demo-standby/promote", {"force": True}),
            ("POST", "/v1/pairs/demo-standby/demote", None),
        ):
            response = self.call(method, path, body)
            self.assertIn("has no VM", self.assert_problem(response, 409, "not-in-state", state="ACK"))

    def test_no_pair(self) -> None:
        self.assert_problem(self.call("POST", "/v1/pairs/nope/promote"), 404, "unknown")


class ErrorTests(VmCase):
    def test_each_has_its_status(self) -> None:
        class GateClosed(VmError):
            kind = "gate"

        for error, status, kind in (
            (VmError("The guest is gone."), 409, "vm"),
            (CannotProtect("The RAM is not shared: add share=on."), 409, "cannot-protect"),
            (QmpRefused("stop", "GenericError", "no"), 502, "qmp"),
            (QmpTimeout("No answer in 5 s."), 504, "qmp"),
            (QmpClosed("QEMU has ended."), 503, "qmp"),
            (GateClosed("The tap device is busy."), 409, "gate"),
        ):
            self.vm.failing = error
            response = self.call("PUT", PROTECTION, {"enabled": True})
            self.assertEqual(self.assert_problem(response, status, kind), str(error))
            self.assertEqual(response.header("Retry-After"), "1" if status == 503 else None)

    def test_promote_and_demote_have_them_too(self) -> None:
        for path in ("/v1/pairs/vm-standby/promote", "/v1/pairs/vm-standby/demote"):
            for error, status in ((QmpTimeout("No answer."), 504), (NotInState("No checkpoint yet.", "INIT"), 409)):
                self.standby.failing = error
                self.assertEqual(self.call("POST", path, None).status, status)


class ReadinessTests(VmCase):
    def why(self) -> list[dict[str, str]]:
        """Which pairs are not ready."""
        rows: list[dict[str, str]] = self.call("GET", "/readyz").json().get("not_ready", [])
        return rows

    def test_a_vm_that_is_protected(self) -> None:
        self.assertEqual(self.why(), [])

    def test_a_vm_that_is_to_be_and_is_not(self) -> None:
        for status in (VmState.UNPROTECTED, VmState.SYNCING, VmState.HOLDING, VmState.FENCED):
            self.vm.show_vm(status=status, reason="the RAM is not shared")
            self.assertEqual(self.why(), [{"pair": "vm", "why": f"the VM is {status.value}: the RAM is not shared"}])

    def test_the_reason_says_more_than_the_link(self) -> None:
        self.vm.show(link_state=LinkState.DOWN, link_detail="connection refused")
        self.assertEqual(self.why(), [{"pair": "vm", "why": "the link is down: connection refused"}])
        self.vm.show_vm(status=VmState.UNPROTECTED, reason="the standby is lost since 5 s")
        self.assertEqual(self.why(), [{"pair": "vm", "why": "the VM is unprotected: the standby is lost since 5 s"}])

    def test_a_vm_that_nobody_wants_protected(self) -> None:
        self.vm.show_vm(status=VmState.UNPROTECTED, protection=False, reason="protection is off")
        self.assertEqual(self.why(), [])

    def test_one_that_has_taken_over_has_no_standby(self) -> None:
        self.standby.show_vm(status=VmState.PROMOTED)
        self.assertEqual(self.why(), [{"pair": "vm-standby", "why": "the VM is promoted"}])


class TableTests(SynchronousTestCase):
    def test_every_error_has_a_status(self) -> None:
        of_vms = {error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, FtdError)}
        of_vms.discard(FtdError)
        self.assertGreater(len(of_vms), 5)
        self.assertEqual({error for error in of_vms if not set(error.__mro__) & set(STATUS_BY_ERROR)}, set())
