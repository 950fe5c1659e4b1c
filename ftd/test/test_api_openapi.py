"""The OpenAPI document and the routes are the same thing; answers are held against it by :mod:`ftd.test.api_case`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from ftd.api import Api
from ftd.config import PAIR_KEYS
from ftd.status import PairStatus
from ftd.test.api_case import ApiTestCase, mismatches, openapi_document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield path, method.upper(), operation


class DocumentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.document = openapi_document()

    def test_every_route_is_there_and_nothing_else(self) -> None:
        routed = {
            (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
            for rule in Api.app.url_map.iter_rules()
            for method in rule.methods or ()
        }
        self.assertEqual(routed, {(path, method) for path, method, _ in operations(self.document)})

    def test_every_part_of_a_path_is_described(self) -> None:
        for path, item in self.document["paths"].items():
            described = [parameter["name"] for parameter in item.get("parameters", ())]
            self.assertEqual(described, re.findall(r"{(\w+)}", path))

    def test_operation_ids_are_unique(self) -> None:
        ids = [operation["operationId"] for _, _, operation in operations(self.document)]
        self.assertEqual(len(ids), len(set(ids)))

    def test_every_reference_leads_somewhere(self) -> None:
        for kind, components in self.document["components"].items():
            referred = set(re.findall(rf"#/components/{kind}/(\w+)", str(self.document)))
            self.assertEqual(referred, set(components))

    def test_a_pair_has_the_fields_of_its_status(self) -> None:
        schema = self.document["components"]["schemas"]["PairStatus"]
        names = [field.name for field in attrs.fields(PairStatus)]
        self.assertEqual((list(schema["properties"]), schema["required"]), (names, names))
        self.assertEqual(schema["properties"]["link_peer"], {"anyOf": [{"type": "string"}, {"type": "null"}]})
        self.assertIn("up", schema["properties"]["link_state"]["enum"])

    def test_a_pair_may_have_a_vm(self) -> None:
        schemas = self.document["components"]["schemas"]
        vm = {"anyOf": [{"$ref": "#/components/schemas/VmStatus"}, {"type": "null"}]}
        self.assertEqual(schemas["PairStatus"]["properties"]["vm"], vm)
        pause = schemas["VmStatus"]["properties"]["pause_ms"]
        self.assertEqual(pause, {"anyOf": [{"$ref": "#/components/schemas/PauseStatus"}, {"type": "null"}]})
        self.assertIn("fenced", schemas["VmStatus"]["properties"]["status"]["enum"])

    def test_a_body_that_may_be_left_out(self) -> None:
        paths = self.document["paths"]
        self.assertFalse(paths["/v1/pairs/{pair}/promote"]["post"]["requestBody"]["required"])
        self.assertTrue(paths["/v1/pairs/{pair}/protection"]["put"]["requestBody"]["required"])
        self.assertNotIn("requestBody", paths["/v1/pairs/{pair}/demote"]["post"])

    def test_a_pair_is_created_with_the_keys_of_the_configuration(self) -> None:
        body = self.document["paths"]["/v1/pairs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        in_body = {name for name, key in PAIR_KEYS.items() if not (key.in_file or key.family)}
        self.assertEqual(set(body["properties"]), {"pair", *in_body})

    def test_what_a_body_needs(self) -> None:
        schemas = self.document["components"]["schemas"]
        self.assertEqual(schemas["RateLimitChange"]["required"], [])
        self.assertEqual(schemas["TraceChange"]["required"], ["events"])
        self.assertEqual((schemas["ProtectionChange"]["required"], schemas["Promotion"]["required"]), ([], []))

    def test_errors_are_problems(self) -> None:
        for response in self.document["components"]["responses"].values():
            self.assertEqual(list(response["content"]), ["application/problem+json"])
        for path, method, operation in operations(self.document):
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")) and path != "/readyz":
                    self.assertEqual(list(response), ["$ref"], f"{method} {path}")

    def test_who_has_to_wait_is_told_how_long(self) -> None:
        for name, response in self.document["components"]["responses"].items():
            self.assertEqual("headers" in response, name == "ServiceUnavailable")

    def test_state_may_be_of_any_type(self) -> None:
        upload = self.document["paths"]["/v1/pairs/{pair}/checkpoint"]["put"]
        self.assertEqual(list(upload["requestBody"]["content"]), ["*/*"])
        self.assertNotIn("415", upload["responses"])


class ServedTests(ApiTestCase):
    def test_it_is_served(self) -> None:
        document = self.call("GET", "/v1/openapi.json").json()
        self.assertEqual(document["openapi"], "3.1.0")
        self.assertEqual(document["info"]["version"], self.daemon.version)


class MismatchTests(SynchronousTestCase):
    """The check sees what it is there to see."""

    def found(self, value: object, schema: dict[str, Any]) -> list[str]:
        document = {"components": {"schemas": {"Number": {"type": "integer"}}}}
        return list(mismatches(value, schema, document, "body"))

    def test_what_fits(self) -> None:
        schema = {
            "type": "object",
            "properties": {
                "a": {"$ref": "#/components/schemas/Number"},
                "b": {"anyOf": [{"type": "null"}, {"enum": ["x"]}]},
            },
            "required": ["a"],
            "additionalProperties": {"type": "array", "items": {"type": "number"}},
        }
        self.assertEqual(self.found({"a": 1, "b": None, "c": [1, 2.5]}, schema), [])
        self.assertEqual(len(self.found({"b": "y", "c": [True]}, schema)), 3)
        self.assertEqual(len(self.found({"a": "1"}, schema)), 1)

    def test_what_does_not(self) -> None:
        self.assertEqual(len(self.found({"a": 1}, {"type": "object", "additionalProperties": False})), 1)
        self.assertEqual(len(self.found("urn:x", {"type": "string", "pattern": "^urn:y"})), 1)
        self.assertEqual(len(self.found([], {"type": "object"})), 1)

    def test_a_keyword_that_is_not_known(self) -> None:
        self.assertRaises(AssertionError, self.found, 1, {"multipleOf": 2})
