"""SIGTERM: open transactions are cancelled, committed ones are finished, and then it ends, soon."""

from __future__ import annotations

import signal

from tests.case import EndToEndCase
from tests.daemon import free_port, primary, secondary, start_all
from tests.http_client import NoAnswer
from tests.proxy import CuttingProxy, Then
from tests.raw_peer import ACK
from tests.state import MIB, LongState, state_of
from tests.waiting import pause, until

#: How twistd ends that was asked to: it cleans up, then ends by the signal it got.
_ENDED_WELL = (0, -signal.SIGTERM)


class ShutdownTests(EndToEndCase):
    """A sender and a standby, one of which is told to end."""

    proxy_between: CuttingProxy

    async def start(self) -> None:
        port = free_port()
        self.proxy_between, proxied = await self.proxy(port)
        self.standby = self.daemon({"demo": secondary(port, ack="applied")})
        self.sender = self.daemon({"demo": primary(proxied)})
        await start_all(self.standby, self.sender)
        await self.sender.until_up()

    async def test_an_idle_daemon_ends(self) -> None:
        await self.start()
        await self.sender.push("demo", b"x")
        for daemon in (self.sender, self.standby):
            self.assertIn(await daemon.stop(), _ENDED_WELL)
            self.assertIn("Server Shut Down.", daemon.log())
            self.assertNotIn("Traceback", daemon.log())

    async def test_an_open_transaction_is_cancelled(self) -> None:
        await self.start()
        await self.sender.push("demo", b"committed")
        await self.sender.http.request("POST", "/v1/pairs/demo/begin")
        await self.sender.http.request("POST", "/v1/pairs/demo/data", state_of(MIB))
        await self.standby.until_pair("demo", state="CONTINUE")
        self.assertIn(await self.sender.stop(), _ENDED_WELL)
        pair = await self.standby.until_pair("demo", link_state="down", transaction=None)
        self.assertEqual((pair["transactions_cancelled"], pair["transactions_failed"], pair["has_error"]), (1, 0, 0))
        self.assertEqual(await self.standby.checkpoint("demo"), b"committed")

    async def test_an_upload_that_is_under_way_is_cancelled(self) -> None:
        await self.start()
        uploader = await self.raw_sender(self.sender.port)
        uploader.send(b"PUT /v1/pairs/demo/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n")
        uploader.send(state_of(2 * MIB))
        await self.standby.until_pair("demo", state="CONTINUE")
        self.assertIn(await self.sender.stop(), _ENDED_WELL)
        pair = await self.standby.until_pair("demo", link_state="down", transaction=None)
        self.assertEqual((pair["transactions_cancelled"], pair["transactions_failed"]), (1, 0))
        self.assertEqual(await self.standby.checkpoints("demo"), [])
        self.assertNotIn(b" 200 ", await uploader.until_closed())

    async def test_a_commit_that_is_under_way_is_finished(self) -> None:
        await self.start()
        held = self.proxy_between.do(ACK, 4, Then.HOLD)
        answer = self.in_background(self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", b"in flight"))
        await held
        self.sender.send(signal.SIGTERM)
        await until(self.is_deaf, "it takes no more requests")
        self.assertFalse(answer.called)
        self.assertTrue(self.sender.is_running)
        self.proxy_between.release()
        commit = await answer
        self.assertEqual((commit.status, commit.json()["bytes"]), (200, 9))
        self.assertIn(await self.sender.ended(), _ENDED_WELL)
        self.assertEqual(await self.standby.checkpoint("demo"), b"in flight")

    async def is_deaf(self) -> bool:
        """Whether the sender's API is closed."""
        try:
            await self.sender.http.request("GET", "/healthz")
        except NoAnswer:
            return True
        return False

    async def test_a_commit_that_nobody_confirms_does_not_keep_it(self) -> None:
        await self.start()
        held = self.proxy_between.do(ACK, 0, Then.HOLD)
        answer = self.in_background(self.sender.http.request("PUT", "/v1/pairs/demo/checkpoint", b"in flight"))
        await held
        self.assertIn(await self.sender.stop(), _ENDED_WELL)
        answer.addErrback(lambda failure: failure.trap(NoAnswer))
        await answer

    async def test_a_peer_that_does_not_read_does_not_keep_it(self) -> None:
        port = free_port()
        standby = await self.raw_standby(port)
        sender = await self.daemon({"demo": primary(port)}).start()
        receiver = await standby.accept()
        await receiver.greet("demo")
        await sender.until_up()
        receiver.stop_reading()
        state = LongState(64)
        push = self.in_background(sender.http.request("PUT", "/v1/pairs/demo/checkpoint", state.body()))
        await sender.until_pair("demo", freeze_output=True)
        sender.send(signal.SIGTERM)
        push.addErrback(lambda failure: failure.trap(NoAnswer))
        await push
        self.assertIn(await sender.ended(), _ENDED_WELL)

    async def test_readers_of_events_do_not_keep_it(self) -> None:
        await self.start()
        for path in (b"/v1/events", b"/v1/pairs/demo/events"):
            reader = await self.raw_sender(self.sender.port)
            reader.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.read(100)
        self.assertIn(await self.sender.stop(), _ENDED_WELL)

    async def test_a_standby_in_the_middle_of_a_transaction(self) -> None:
        await self.start()
        await self.sender.push("demo", b"committed")
        await self.sender.http.request("POST", "/v1/pairs/demo/begin")
        await self.sender.http.request("POST", "/v1/pairs/demo/data", state_of(MIB))
        await self.standby.until_pair("demo", state="CONTINUE")
        self.assertIn(await self.standby.stop(), _ENDED_WELL)
        await self.sender.until_pair("demo", link_state="down", transaction=None)
        self.assertEqual([file.suffix for file in self.standby.stored_files("demo")], [".checkpoint"])
        await self.standby.start()
        await self.sender.until_up()
        await self.sender.push("demo", b"goes on")
        self.assertEqual(await self.standby.checkpoint("demo"), b"goes on")

    async def test_both_halves_in_one_daemon(self) -> None:
        port = free_port()
        daemon = self.daemon({"demo": primary(port), "standby": secondary(port, name="demo", ack="applied")})
        await daemon.start()
        await daemon.until_up()
        answers = []
        for number in range(20):
            answers.append(self.in_background(daemon.push("demo", state_of(MIB, str(number)))))
            await answers[-1]
        last = self.in_background(daemon.http.request("PUT", "/v1/pairs/demo/checkpoint", b"the last"))
        await pause()
        self.assertIn(await daemon.stop(), _ENDED_WELL)
        self.assertNotIn("Traceback", daemon.log())
        last.addErrback(lambda failure: failure.trap(NoAnswer))
        await last
