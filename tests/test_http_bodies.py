"""Large bodies and answers, which pass the API connection's buffers by: whole, in order, and nobody else's bytes."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import gatherResults

from tests.case import EndToEndCase
from tests.daemon import Daemon, Section, free_port, primary, secondary
from tests.state import MIB, state_of

_SINKS: Mapping[str, Mapping[str, str]] = {"memory": {"sink": "memory"}, "disk": {"ack": "applied"}}


def _pairs(count: int) -> dict[str, Section]:
    """So many pairs of each kind, ``NAME-0`` and ``NAME-0-standby`` and so on."""
    pairs: dict[str, Section] = {}
    for kind, keys in _SINKS.items():
        for number in range(count):
            name, port = f"{kind}-{number}", free_port()
            pairs[name] = primary(port)
            pairs[f"{name}-standby"] = secondary(port, name=name, **keys)
    return pairs


class LargeBodyTests(EndToEndCase):
    async def compare(self, daemon: Daemon, name: str, state: bytes) -> None:
        """Get what a standby has, as a whole and in parts."""
        self.assertTrue(await daemon.checkpoint(f"{name}-standby") == state, "megabytes need not be shown")
        path = f"/v1/pairs/{name}-standby/checkpoints/latest"
        for first, end in ((1, MIB), (len(state) // 2 + 1, len(state)), (len(state) - 10, len(state))):
            answer = await daemon.http.request("GET", path, headers={"Range": f"bytes={first}-{end - 1}"})
            self.assertEqual((answer.status, answer.body == state[first:end]), (206, True))

    async def test_many_at_once(self) -> None:
        daemon = await self.daemon(_pairs(4)).start()
        await daemon.until_up()
        names = [name for name in daemon.pairs if not name.endswith("-standby")]
        for turn in range(2):
            states = {name: state_of(5 * MIB + 17 * turn, seed=f"{name} {turn}") for name in names}
            await gatherResults([self.in_background(daemon.push(name, state)) for name, state in states.items()])
            for name, state in states.items():
                await self.compare(daemon, name, state)

    async def test_over_a_unix_socket(self) -> None:
        daemon = await self.daemon(_pairs(1), has_socket=True).start()
        await daemon.until_up()
        for name in ("memory-0", "disk-0"):
            state = state_of(9 * MIB + 1, seed=name)
            await daemon.push(name, state)
            await self.compare(daemon, name, state)

    async def test_in_parts(self) -> None:
        daemon = await self.daemon(_pairs(1)).start()
        await daemon.until_up()
        parts = [state_of(size, seed=str(size)) for size in (3 * MIB, 1, 300_000, MIB + 1)]
        await daemon.http.request("POST", "/v1/pairs/memory-0/begin")
        for part in parts:
            answer = await daemon.http.request("POST", "/v1/pairs/memory-0/data", part)
            self.assertEqual(answer.json()["accepted"], len(part))
        await daemon.http.request("POST", "/v1/pairs/memory-0/commit")
        await self.compare(daemon, "memory-0", b"".join(parts))

    async def test_requests_that_do_not_wait_for_answers(self) -> None:
        daemon = await self.daemon(_pairs(1)).start()
        await daemon.until_up()
        for name in ("memory-0", "disk-0"):
            client = await self.raw_sender(daemon.port)
            states = [state_of(3 * MIB + number, seed=f"{name} {number}") for number in range(2)]
            for state in states:
                client.send(
                    f"PUT /v1/pairs/{name}/checkpoint HTTP/1.1\r\nContent-Length: {len(state)}\r\n\r\n".encode()
                )
                client.send(state)
            for number, end in ((1, ""), (2, "Connection: close\r\n")):
                client.send(f"GET /v1/pairs/{name}-standby/checkpoints/{number} HTTP/1.1\r\n{end}\r\n".encode())
            answers = await client.until_closed()
            for state in states:
                at = answers.find(state)
                self.assertGreater(at, 0)
                self.assertEqual(answers[:at].count(b"HTTP/1.1 200 OK\r\n"), 3, answers[:at])
                answers = b"HTTP/1.1 200 OK\r\n" * 2 + answers[at + len(state) :]
            self.assertEqual(answers, b"HTTP/1.1 200 OK\r\n" * 2)
