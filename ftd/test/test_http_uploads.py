"""State on its way in: streamed, paused, cut, refused in the middle."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import ApiConfig
from ftd.errors import LinkDown, NotInState, TooLarge
from ftd.http.site import LINGER_SILENCE, LINGER_TIME
from ftd.http.uploads import shielded
from ftd.test.api_case import ApiTestCase
from ftd.testing.fake_pairs import FakeUpload
from ftd.testing.http_client import Connection

PATH = "/v1/pairs/demo/checkpoint"


class UploadTestCase(ApiTestCase):
    def begin_upload(self, length: int = 10, headers: dict[str, str] | None = None) -> Connection:
        """A client that has sent its headers."""
        client = self.connect()
        client.send_head("PUT", PATH, {"Content-Length": str(length), **(headers or {})})
        return client

    def begin_chunked(self) -> Connection:
        """A client that has sent its headers, and has not said how much will come."""
        client = self.connect()
        client.send_head("PUT", PATH, {"Transfer-Encoding": "chunked"})
        return client

    @property
    def upload(self) -> FakeUpload:
        """The one upload that the pair got."""
        (upload,) = self.primary.uploads
        return upload


class StreamingTests(UploadTestCase):
    def test_the_pair_has_each_part_as_it_arrives(self) -> None:
        client = self.begin_upload()
        self.assertEqual(self.upload.chunks, [])
        for part in (b"abc", b"defg"):
            client.send(part)
            self.assertEqual(self.upload.chunks[-1], part)
        self.assertEqual(self.upload.ending, "")
        self.assertIsNone(client.response_if_any())
        client.send(b"hij")
        self.assertEqual((self.upload.data, self.upload.ending), (b"abcdefghij", "finished"))
        self.assertEqual(client.response().json()["bytes"], 10)

    def test_chunked(self) -> None:
        client = self.begin_chunked()
        client.send(b"3\r\nabc\r\n")
        self.assertEqual(self.upload.chunks, [b"abc"])
        client.send(b"2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
        self.assertEqual((self.upload.data, self.upload.ending), (b"abcde", "finished"))
        self.assertEqual(client.response().json()["bytes"], 5)

    def test_data_streams_too(self) -> None:
        self.call("POST", "/v1/pairs/demo/begin")
        client = self.connect()
        client.send_head("POST", "/v1/pairs/demo/data", {"Content-Length": "6"})
        client.send(b"abc")
        self.assertEqual(self.upload.chunks, [b"abc"])
        client.send(b"def")
        self.assertEqual(client.response().json(), {"accepted": 6, "frozen": False})

    def test_nothing_at_all(self) -> None:
        for headers in ({"Content-Length": "0"}, {}):
            client = self.connect()
            client.send_head("PUT", PATH, headers)
            self.assertEqual(client.response().json()["bytes"], 0)
        client = self.begin_chunked()
        client.send(b"0\r\n\r\n")
        self.assertEqual(client.response().json()["bytes"], 0)
        self.assertEqual([upload.ending for upload in self.primary.uploads], ["finished"] * 3)

    def test_no_limit_but_the_pair_s(self) -> None:
        client = self.begin_upload(length=100 * self.config.body_limit)
        for _ in range(100):
            client.send(bytes(self.config.body_limit))
        self.assertEqual(client.response().json()["bytes"], 100 * self.config.body_limit)

    def test_the_connection_serves_more_requests(self) -> None:
        client = self.begin_upload()
        client.send(b"0123456789" + b"GET /healthz HTTP/1.1\r\n\r\n")
        self.assertEqual(client.response().json()["bytes"], 10)
        self.assertEqual(client.response().json(), {"status": "ok"})
        self.assertFalse(client.is_closed)

    def test_the_answer_waits_for_the_acknowledgement(self) -> None:
        self.primary.acknowledges = False
        client = self.begin_upload()
        client.send(b"0123456789")
        self.clock.advance(3600)
        self.assertIsNone(client.response_if_any())
        self.primary.acknowledge()
        self.assertEqual(client.response().status, 200)

    def test_100_continue(self) -> None:
        client = self.begin_upload(headers={"Expect": "100-continue"})
        self.assertEqual(client.response().status, 100)
        client.send(b"0123456789")
        self.assertEqual(client.response().status, 200)

    def test_http_1_0(self) -> None:
        client = self.connect()
        client.send(f"PUT {PATH} HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc".encode())
        self.assertEqual(client.response().json()["bytes"], 3)
        self.assertTrue(client.is_closed)


class PauseTests(UploadTestCase):
    def test_a_pause_stops_the_reading_until_the_pair_takes_more(self) -> None:
        client = self.begin_upload()
        self.upload.body.pauseProducing()
        self.upload.body.pauseProducing()
        self.assertFalse(client.is_read)
        client.send(b"01234")
        self.assertEqual(self.upload.chunks, [])
        self.upload.body.resumeProducing()
        self.assertTrue(client.is_read)
        self.assertEqual(self.upload.chunks, [b"01234"])
        client.send(b"56789")
        self.assertEqual(client.response().status, 200)

    def test_a_pair_that_is_frozen_from_the_start(self) -> None:
        self.primary.show(freeze_output=True)
        client = self.begin_upload()
        self.assertFalse(client.is_read)

    def test_the_idle_time_does_not_run_in_a_pause(self) -> None:
        client = self.begin_upload()
        self.clock.advance(50)
        self.upload.body.pauseProducing()
        self.clock.advance(3600)
        self.assertEqual(self.upload.ending, "")
        self.upload.body.resumeProducing()
        self.clock.advance(59)
        self.assertEqual(self.upload.ending, "")
        self.clock.advance(2)
        self.assertEqual(self.upload.ending, "the client sent nothing for 60 s")
        self.assertTrue(client.is_closed)

    def test_a_drained_send_buffer_does_not_lift_the_pause(self) -> None:
        client = self.begin_upload()
        channel = client.transport.producer
        assert channel is not None
        channel.pauseProducing()
        self.upload.body.pauseProducing()
        channel.resumeProducing()
        self.assertFalse(client.is_read)
        self.upload.body.resumeProducing()
        self.assertTrue(client.is_read)

    def test_the_end_of_a_pause_does_not_read_on_while_the_send_buffer_is_full(self) -> None:
        client = self.begin_upload()
        channel = client.transport.producer
        assert channel is not None
        self.upload.body.pauseProducing()
        channel.pauseProducing()
        self.upload.body.resumeProducing()
        self.assertFalse(client.is_read)
        channel.resumeProducing()
        self.assertTrue(client.is_read)

    def test_a_pause_in_the_last_part_ends_with_the_body(self) -> None:
        self.primary.acknowledges = False
        client = self.begin_upload()
        self.upload.on_write = self.upload.body.pauseProducing
        client.send(b"01234")
        self.assertFalse(client.is_read)
        self.upload.body.resumeProducing()
        client.send(b"56789")
        self.assertEqual(self.upload.ending, "finished")
        self.assertTrue(client.is_read, "or nobody would see the client go away")
        self.upload.body.pauseProducing()
        self.assertTrue(client.is_read)
        self.clock.advance(3600)
        self.primary.acknowledge()
        self.assertEqual(client.response().status, 200)
        self.clock.advance(59)
        self.assertFalse(client.is_closed)
        self.clock.advance(2)
        self.assertTrue(client.is_closed, "between requests the idle time runs again")

    def test_a_pair_that_wants_no_more(self) -> None:
        client = self.begin_upload()
        client.send(b"012")
        self.upload.body.pauseProducing()
        self.upload.body.stopProducing()
        client.send(b"3456789")
        self.assertEqual((self.upload.data, self.upload.ending), (b"012", "finished"))
        self.assertEqual(client.response().status, 200)


class CutTests(UploadTestCase):
    def test_a_client_that_goes_away(self) -> None:
        client = self.begin_upload()
        client.send(b"01234")
        client.disconnect()
        self.assertEqual(self.upload.ending, "the client closed the connection before the end of the body")
        self.assertIsNone(self.primary.status().transaction)
        self.assertEqual(self.primary.status().transactions_cancelled, 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_client_that_goes_away_in_a_pause(self) -> None:
        client = self.begin_upload()
        self.upload.body.pauseProducing()
        client.disconnect()
        self.assertIn("closed the connection", self.upload.ending)
        self.upload.body.resumeProducing()
        self.clock.advance(3600)

    def test_a_client_that_goes_away_after_the_body(self) -> None:
        self.primary.acknowledges = False
        client = self.begin_upload()
        client.send(b"0123456789")
        client.disconnect()
        self.assertEqual(self.upload.ending, "finished")
        self.primary.acknowledge()
        self.assertEqual(self.primary.status().transactions_committed, 1)

    def test_a_silent_client(self) -> None:
        client = self.begin_upload()
        for _ in range(3):
            self.clock.advance(59)
            client.send(b"x")
        self.assertEqual(self.upload.ending, "")
        self.clock.advance(61)
        self.assertEqual(self.upload.ending, "the client sent nothing for 60 s")
        self.assertTrue(client.is_closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_chunks_that_are_not(self) -> None:
        client = self.begin_chunked()
        client.send(b"3\r\nabc\r\nzz\r\n")
        self.assertTrue(client.read().startswith(b"HTTP/1.1 400 "))
        self.assertTrue(client.is_closed)
        self.assertEqual(self.upload.data, b"abc")
        self.assertIn("closed the connection", self.upload.ending)

    def test_a_part_of_a_checkpoint(self) -> None:
        client = self.begin_upload(headers={"Content-Range": "bytes 0-9/20"})
        self.assert_problem(client.response(), 400, "bad-request", field="Content-Range")
        self.assertEqual(self.primary.uploads, [])


class EarlyAnswerTests(UploadTestCase):
    """Answers that are there before the body is."""

    def test_an_error_in_the_middle(self) -> None:
        client = self.begin_upload()
        client.send(b"012")
        self.upload.break_off(LinkDown("demo has no link.", 1.0))
        response = client.response()
        self.assert_problem(response, 503, "link-down")
        self.assertEqual(response.header("Connection"), "close")
        self.assertFalse(client.transport.disconnecting)

    def test_the_upload_is_cut_once_and_gets_nothing_more(self) -> None:
        client = self.begin_upload()
        self.upload.break_off(TooLarge("that is all there may be"))
        self.assertEqual(self.upload.ending, "the request was answered before its body was complete")
        client.send(b"012345678")
        client.disconnect()
        self.assertEqual(self.upload.chunks, [])

    def test_an_error_that_the_headers_tell(self) -> None:
        for path, status, kind in (
            ("/v1/pairs/nope/checkpoint", 404, "unknown"),
            ("/v1/pairs/demo-standby/checkpoint", 409, "not-in-state"),
        ):
            client = self.connect()
            client.send_head("PUT", path, {"Content-Length": "1000000000"})
            response = client.response()
            self.assertEqual((response.status, response.json()["type"]), (status, f"urn:ftd:problem:{kind}"))
            self.assertEqual(response.header("Connection"), "close")

    def test_instead_of_100_continue(self) -> None:
        self.primary.lose_link()
        client = self.begin_upload(headers={"Expect": "100-continue"})
        self.assert_problem(client.response(), 503, "link-down")
        self.assertEqual(client.received, b"")

    def test_the_client_may_go_on_sending_for_a_while(self) -> None:
        client = self.begin_upload(length=10**9)
        self.upload.break_off(NotInState("not now", "ACK"))
        client.response()
        spent = 0.0
        while spent + 1.5 < LINGER_TIME:
            self.clock.advance(1.5)
            spent += 1.5
            client.send(b"x" * 1000)
            self.assertFalse(client.is_closed)
            self.assertTrue(client.is_read)
        self.clock.advance(LINGER_TIME - spent)
        self.assertTrue(client.is_closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_falls_silent_is_closed(self) -> None:
        client = self.begin_upload(length=10**9)
        self.upload.break_off(NotInState("not now", "ACK"))
        self.clock.advance(LINGER_SILENCE - 0.1)
        self.assertFalse(client.is_closed)
        client.send(b"x")
        self.clock.advance(LINGER_SILENCE - 0.1)
        self.assertFalse(client.is_closed)
        client.send(b"x")
        self.clock.advance(LINGER_SILENCE + 0.1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(client.is_closed)

    def test_a_client_that_closes_ends_the_wait(self) -> None:
        client = self.begin_upload(length=10**9)
        self.upload.break_off(NotInState("not now", "ACK"))
        client.disconnect()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_pause_of_a_pair_that_gave_up_is_over(self) -> None:
        client = self.begin_upload(length=10**9)
        self.upload.body.pauseProducing()
        self.upload.break_off(NotInState("not now", "ACK"))
        self.assertTrue(client.is_read)
        self.upload.body.pauseProducing()
        self.assertTrue(client.is_read)
        client.response()
        self.assertTrue(client.is_read, "a drained send buffer does not bring the pause back")

    def test_the_rest_is_read_even_if_the_client_does_not_read(self) -> None:
        client = self.begin_upload(length=10**9)
        channel = client.transport.producer
        assert channel is not None
        channel.pauseProducing()
        self.upload.break_off(NotInState("not now", "ACK"))
        self.assertTrue(client.is_read)

    def test_what_is_left_of_the_read_in_which_the_pair_gave_up_is_dropped(self) -> None:
        client = self.begin_chunked()
        self.upload.on_write = lambda: self.upload.break_off(LinkDown("demo has no link.", 1.0))
        client.send(b"1\r\na\r\n1\r\nb\r\n")
        self.assertEqual(self.upload.data, b"a")
        self.assert_problem(client.response(), 503, "link-down")
        client.send(b"1\r\nc\r\n")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_the_body_ends_in_the_read_in_which_the_answer_is_given(self) -> None:
        self.primary.lose_link()
        client = self.connect()
        client.send(f"PUT {PATH} HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody".encode())
        self.assert_problem(client.response(), 503, "link-down")
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        self.clock.advance(LINGER_TIME)
        self.assertTrue(client.is_closed)
        self.assertEqual(client.received, b"")

    def test_no_body_at_all_keeps_the_connection(self) -> None:
        self.primary.lose_link()
        client = self.connect()
        client.send_head("PUT", PATH, {"Content-Length": "0"})
        response = client.response()
        self.assert_problem(response, 503, "link-down")
        self.assertIsNone(response.header("Connection"))
        self.request(client, "GET", "/healthz")
        self.assertEqual(client.response().status, 200)


class ShortIdleTimeTests(UploadTestCase):
    config = ApiConfig(idle_time=0.5)

    def test_the_idle_time_does_not_end_the_wait(self) -> None:
        client = self.begin_upload(length=10**9)
        self.upload.break_off(NotInState("not now", "ACK"))
        self.clock.advance(LINGER_SILENCE - 0.1)
        self.assertFalse(client.is_closed)
        self.clock.advance(0.2)
        self.assertTrue(client.is_closed)


class ShieldTests(SynchronousTestCase):
    def test_the_result_comes_through(self) -> None:
        work: Deferred[int] = Deferred()
        waiter = shielded(work)
        work.callback(3)
        self.assertEqual(self.successResultOf(waiter), 3)

    def test_an_error_comes_through(self) -> None:
        work: Deferred[int] = Deferred()
        waiter = shielded(work)
        work.errback(TooLarge("too much"))
        self.failureResultOf(waiter, TooLarge)

    def test_cancelling_leaves_the_work_alone(self) -> None:
        cancelled: list[object] = []
        work: Deferred[int] = Deferred(cancelled.append)
        waiter = shielded(work)
        waiter.cancel()
        self.failureResultOf(waiter, CancelledError)
        self.assertEqual(cancelled, [])
        work.callback(3)
