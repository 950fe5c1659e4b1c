"""Checkpoints on their way out: whole, in ranges, conditional, to slow clients."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from werkzeug.http import http_date

from ftd.http import downloads
from ftd.http.downloads import BLOCK
from ftd.test.api_case import NOW, ApiTestCase
from ftd.testing.http_client import Connection, Response

DATA = bytes(range(256)) * 4
PATH = "/v1/pairs/demo-standby/checkpoints"


class DownloadTestCase(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.store = self.secondary.kept
        self.store.add(b"older", NOW)
        self.checkpoint = self.store.add(DATA, NOW + 0.5)
        self.etag = f'"{self.checkpoint.xxh3}"'

    def get(self, **headers: str) -> Response:
        """The second checkpoint."""
        return self.call("GET", f"{PATH}/2", headers={name.replace("_", "-"): headers[name] for name in headers})


class WholeTests(DownloadTestCase):
    def test_by_number(self) -> None:
        response = self.get()
        self.assertEqual((response.status, response.body), (200, DATA))
        self.assertEqual(
            {name: response.header(name) for name in ("Content-Type", "Content-Length", "Accept-Ranges", "ETag")},
            {
                "Content-Type": "application/octet-stream",
                "Content-Length": "1024",
                "Accept-Ranges": "bytes",
                "ETag": self.etag,
            },
        )
        self.assertEqual(response.header("X-Ftd-Checkpoint"), "2")
        self.assertEqual(response.header("Last-Modified"), http_date(NOW))
        self.assertEqual(response.header("Content-Disposition"), 'attachment; filename="demo-standby-2.bin"')
        self.assertIsNone(response.header("Content-Location"))
        self.assertIsNone(response.header("Content-Range"))
        self.assertEqual(self.call("GET", f"{PATH}/1").body, b"older")

    def test_latest(self) -> None:
        response = self.call("GET", f"{PATH}/latest")
        self.assertEqual(response.body, DATA)
        self.assertEqual(response.header("X-Ftd-Checkpoint"), "2")
        self.assertEqual(response.header("Content-Location"), f"{PATH}/2")

    def test_an_empty_one(self) -> None:
        self.store.add(b"", NOW)
        response = self.call("GET", f"{PATH}/latest")
        self.assertEqual((response.status, response.body, response.header("Content-Length")), (200, b"", "0"))

    def test_one_that_is_not_held(self) -> None:
        for number in ("0", "3", "99999999999999999999"):
            self.assertIn(number, self.assert_problem(self.call("GET", f"{PATH}/{number}"), 404, "unknown"))

    def test_one_that_is_dropped_in_between(self) -> None:
        listed = self.store.checkpoints()
        self.store.drop(2)
        self.patch(self.store, "checkpoints", lambda: listed)
        self.assert_problem(self.get(), 404, "unknown")

    def test_head(self) -> None:
        client = self.connect()
        self.request(client, "HEAD", f"{PATH}/2", headers={"Range": "bytes=0-1"})
        response = client.response("HEAD")
        self.assertEqual((response.status, response.header("Content-Length")), (200, "1024"))
        self.assertEqual(response.header("ETag"), self.etag)
        self.assertEqual(client.received, b"")
        self.assertEqual(self.store.opened, [])

    def test_the_file_is_closed(self) -> None:
        self.get()
        self.assertTrue(self.store.opened[0].closed)

    def test_the_connection_serves_more_requests(self) -> None:
        client = self.connect()
        for _ in range(2):
            self.request(client, "GET", f"{PATH}/2")
            self.assertEqual(client.response().body, DATA)


class RangeTests(DownloadTestCase):
    def test_one_range(self) -> None:
        cases = {
            "bytes=0-0": (0, 1),
            "bytes=10-19": (10, 20),
            "bytes=1000-": (1000, 1024),
            "bytes=1000-5000": (1000, 1024),
            "bytes=-24": (1000, 1024),
            "BYTES=5-6": (5, 7),
        }
        for asked, (first, end) in cases.items():
            response = self.get(Range=asked)
            self.assertEqual((response.status, response.body), (206, DATA[first:end]), asked)
            self.assertEqual(response.header("Content-Range"), f"bytes {first}-{end - 1}/1024")
            self.assertEqual(response.header("Content-Length"), str(end - first))
            self.assertEqual(response.header("ETag"), self.etag)

    def test_ranges_that_are_all_of_it(self) -> None:
        for asked in ("bytes=0-", "bytes=-1024", "bytes=-5000", "bytes=0-9999"):
            response = self.get(Range=asked)
            self.assertEqual((response.status, response.body), (206, DATA), asked)
            self.assertEqual(response.header("Content-Range"), "bytes 0-1023/1024")

    def test_what_is_not_a_range_of_ours_is_as_if_it_were_not_there(self) -> None:
        for asked in ("bytes=0-1,5-6", "lines=1-2", "bytes=x-y", "bytes=5-1", "nonsense", "bytes=-0", ""):
            response = self.get(Range=asked)
            self.assertEqual((response.status, response.body), (200, DATA), asked)

    def test_after_the_end(self) -> None:
        for asked in ("bytes=1024-", "bytes=2000-3000"):
            response = self.get(Range=asked)
            self.assert_problem(response, 416, "requested-range-not-satisfiable")
            self.assertEqual(response.header("Content-Range"), "bytes */1024")
        self.assertEqual(self.store.opened, [])

    def test_if_range(self) -> None:
        cases = {
            self.etag: 206,
            http_date(NOW): 206,
            '"another"': 200,
            f"W/{self.etag}": 200,
            http_date(NOW - 1): 200,
            http_date(NOW + 1): 200,
        }
        for condition, status in cases.items():
            self.assertEqual(self.get(Range="bytes=1-2", If_Range=condition).status, status, condition)

    def test_going_on_with_latest(self) -> None:
        headers = {"Range": "bytes=512-", "If-Range": self.etag}
        self.assertEqual(self.call("GET", f"{PATH}/latest", headers=headers).body, DATA[512:])
        self.store.add(b"newer", NOW + 1)
        response = self.call("GET", f"{PATH}/latest", headers=headers)
        self.assertEqual((response.status, response.body), (200, b"newer"))


class ConditionTests(DownloadTestCase):
    def test_the_client_has_it(self) -> None:
        for condition in (self.etag, f"W/{self.etag}", f'"other", {self.etag}', "*"):
            response = self.get(If_None_Match=condition)
            self.assertEqual((response.status, response.body), (304, b""), condition)
            self.assertEqual(response.header("ETag"), self.etag)
        self.assertEqual(self.get(If_Modified_Since=http_date(NOW)).status, 304)
        self.assertEqual(self.store.opened, [])

    def test_the_client_has_another_one(self) -> None:
        self.assertEqual(self.get(If_None_Match='"other"').status, 200)
        self.assertEqual(self.get(If_Modified_Since=http_date(NOW - 1)).status, 200)
        both = self.get(If_None_Match='"other"', If_Modified_Since=http_date(NOW))
        self.assertEqual(both.status, 200, "the tag counts, not the date")

    def test_a_connection_goes_on_after_304(self) -> None:
        client = self.connect()
        self.request(client, "GET", f"{PATH}/2", headers={"If-None-Match": self.etag})
        self.request(client, "GET", "/healthz")
        self.assertEqual([client.response().status, client.response().status], [304, 200])


class PaceTests(DownloadTestCase):
    SIZE = 10 * BLOCK + 17

    def setUp(self) -> None:
        super().setUp()
        self.big = bytes(self.SIZE)
        self.store.add(self.big, NOW)

    def start(self) -> Connection:
        """A client that has asked for the big one and reads nothing."""
        client = self.connect(capacity=BLOCK // 2)
        self.request(client, "GET", f"{PATH}/3")
        return client

    def test_a_slow_client_holds_the_reading_up(self) -> None:
        client = self.start()
        (file,) = self.store.opened
        self.assertEqual(file.tell(), BLOCK)
        client.received += client.transport.take()
        self.assertEqual(file.tell(), 2 * BLOCK)
        self.assertEqual(client.response().body, self.big)
        self.assertTrue(file.closed)

    def test_a_client_that_goes_away(self) -> None:
        client = self.start()
        client.disconnect()
        self.assertTrue(self.store.opened[0].closed)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_file_that_is_too_short_breaks_the_connection(self) -> None:
        self.store.missing = 5
        client = self.start()
        client.read()
        self.assertTrue(client.transport.was_aborted)
        self.assertTrue(self.store.opened[0].closed)
        self.assertEqual(len(self.flushLoggedErrors(EOFError)), 1)

    def test_a_connection_that_sends_at_once_does_not_pile_up_calls(self) -> None:
        self.patch(downloads, "BLOCK", 1)
        client = self.connect(capacity=0)
        write = client.transport.write

        def write_and_send(data: bytes) -> None:
            write(data)
            client.received += client.transport.take()

        self.patch(client.transport, "write", write_and_send)
        self.request(client, "GET", f"{PATH}/2")
        self.assertEqual(client.response().body, DATA)

    def test_a_file_that_cannot_be_read_breaks_the_connection(self) -> None:
        client = self.start()
        (file,) = self.store.opened
        aborts: list[None] = []
        # As with a socket: the protocol is told in a later turn of the reactor.
        self.patch(client.transport, "abortConnection", lambda: aborts.append(None))

        def fail(_: int) -> bytes:
            raise OSError("the disk is gone")

        self.patch(file, "read", fail)
        client.read()
        self.assertEqual(len(aborts), 1)
        self.assertTrue(file.closed)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        client.disconnect()

    def test_a_client_that_goes_away_while_the_store_settles(self) -> None:
        self.secondary.settling = Deferred()
        client = self.start()
        client.disconnect()
        self.secondary.settling.callback(None)
        self.assertEqual(self.store.opened, [])
        self.assertEqual(self.flushLoggedErrors(), [])
