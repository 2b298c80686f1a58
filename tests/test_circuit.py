"""The circuit before a real TCP server that goes down and comes back; its times are scaled down."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pop.models.circuit import Circuit
from pop.models.request import ModelError


class Server:
    """Echoes a line after a moment; knows how many it served at once, and in which order of numbers."""

    def __init__(self) -> None:
        self.at_once = 0
        self.seen: list[int] = []
        self.most = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        assert self._server
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at_once += 1
        self.seen.append(self.at_once)
        self.most = max(self.most, self.at_once)
        await reader.readline()
        await asyncio.sleep(0.02)
        self.at_once -= 1
        writer.write(b"well\n")
        writer.close()


async def ask(server: Server) -> None:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"well?\n")
        line = await reader.readline()
        writer.close()
    except OSError as error:
        raise ModelError("unavailable", str(error)) from None
    if not line:
        raise ModelError("unavailable", "closed")


async def call(circuit: Circuit, server: Server, *, tries: int = 1000, patience_s: float = 30.0) -> None:
    """As the gateway does it."""
    for left in reversed(range(tries)):
        await circuit.before(patience_s)
        try:
            await ask(server)
        except ModelError as error:
            circuit.failed(error.error_class)
            if not left:
                raise
        else:
            return circuit.succeeded()


def quick(**about: Any) -> Circuit:
    return Circuit("here", **{"first_s": 0.1, "cap_s": 0.5, "rng": random.Random(5), **about})


def play(work: Callable[[Server], Coroutine[Any, Any, Any]]) -> Any:
    async def whole() -> Any:
        server = Server()
        await server.up()
        await server.down()
        return await asyncio.wait_for(work(server), 60)

    return asyncio.run(whole())


async def opened(circuit: Circuit, server: Server) -> None:
    """Let it fail until it is open."""
    for _ in range(5):
        with pytest.raises(ModelError):
            await call(circuit, server, tries=1)
    assert circuit.state == "open"


def test_after_an_outage_the_herd_comes_back_in_steps() -> None:
    """One looks, then two, four, ...; never all 500 at once, and all are served."""

    async def work(server: Server) -> None:
        circuit = quick()
        herd = [asyncio.create_task(call(circuit, server)) for _ in range(500)]
        await asyncio.sleep(1.5)
        assert server.seen == []
        await server.up()
        await asyncio.gather(*herd)
        assert len(server.seen) == 500 and circuit.state == "closed"
        assert server.seen[:2] == [1, 1] and max(server.seen[:7]) <= 4 and max(server.seen[:63]) <= 32
        assert 32 <= server.most <= 257
        await server.down()

    play(work)


def test_while_it_is_down_it_is_left_alone() -> None:
    """One call looks each time, less and less often."""

    async def work(server: Server) -> None:
        circuit, tried = quick(first_s=0.2, cap_s=0.4), []

        async def one() -> None:
            while True:
                await circuit.before(60)
                tried.append(time.monotonic())
                circuit.failed()

        tasks = [asyncio.create_task(one()) for _ in range(50)]
        await asyncio.sleep(3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 5 + 3 / 0.4 - 1 <= len(tried) <= 60

    play(work)


def test_little_patience_gets_its_error_at_once() -> None:
    """Also when it waits already and the look failed; the others go on waiting."""

    async def work(server: Server) -> None:
        circuit = quick(first_s=0.4, cap_s=60.0, rng=Drawn([0.4, 5.0]))
        await opened(circuit, server)
        began = time.monotonic()
        with pytest.raises(ModelError) as caught:
            await circuit.before(0.1)
        assert time.monotonic() - began < 0.05
        assert (caught.value.error_class, caught.value.code) == ("unavailable", "circuit-open")
        assert (
            "in a row; it is asked again in 0.4 s" in caught.value.message and caught.value.where == "endpoint 'here'"
        )
        some, many = (asyncio.create_task(call(circuit, server, patience_s=one)) for one in (2.0, 99.0))
        done, _ = await asyncio.wait([some, many], return_when=asyncio.FIRST_COMPLETED)
        assert done == {some} and time.monotonic() - began < 1.5 and isinstance(some.exception(), ModelError)
        many.cancel()

    play(work)


class Drawn(random.Random):
    """Draws what the test says."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def uniform(self, a: float, b: float) -> float:
        return self.values.pop(0)


@pytest.mark.parametrize("error_class", ["auth", "bad_input", "rate_limited", "refused", "budget"])
def test_who_says_no_is_there(error_class: str) -> None:
    """Only an outage opens it, and only in a row."""

    async def work(_: Server) -> None:
        circuit = quick()
        for number in range(40):
            await circuit.before(0)
            circuit.failed("unavailable" if number % 5 else error_class)
        assert circuit.state == "closed"

    play(work)


@pytest.mark.parametrize("says_so", [True, False])
def test_a_look_that_was_cancelled_is_handed_to_the_next(says_so: bool) -> None:
    """Before it began as well as on its way, whether it says so or just ends."""

    async def work(server: Server) -> None:
        circuit = quick(rng=Drawn([0.1, 0.1]))
        await opened(circuit, server)
        went: list[int] = []

        async def look(number: int) -> None:
            await circuit.before(30)
            went.append(number)
            try:
                await asyncio.sleep(60)
            finally:
                if says_so:
                    circuit.left()

        looks = [asyncio.create_task(look(number)) for number in range(3)]
        await asyncio.sleep(0)
        looks[0].cancel()
        await asyncio.sleep(0.2)
        assert went == [1] and circuit.state == "half-open"
        looks[1].cancel()
        await asyncio.sleep(0.05)
        assert went == [1, 2]
        looks[2].cancel()
        await asyncio.sleep(0.05)
        await server.up()
        await call(circuit, server)
        await server.down()

    play(work)


def test_calls_from_before_the_outage_say_nothing_about_the_look() -> None:
    """Their late failures do not end it."""

    async def work(server: Server) -> None:
        circuit = quick(rng=Drawn([0.05, 0.05]))

        async def late() -> None:
            await circuit.before(0)
            await asyncio.sleep(0.2)
            circuit.failed()

        stale = [asyncio.create_task(late()) for _ in range(50)]
        await asyncio.sleep(0)
        await opened(circuit, server)
        await asyncio.sleep(0.1)
        await circuit.before(1)
        await asyncio.gather(*stale)
        assert circuit.state == "half-open"
        circuit.succeeded()
        await circuit.before(0)
        circuit.succeeded()
        assert circuit.state == "half-open"

    play(work)


def test_patience_ends_while_others_look() -> None:
    """A look that takes long is not waited for longer than one would."""

    async def work(server: Server) -> None:
        circuit = quick(rng=Drawn([0.05]))
        await opened(circuit, server)
        await asyncio.sleep(0.1)
        await circuit.before(1)
        with pytest.raises(ModelError, match="tried with few calls"):
            await asyncio.create_task(circuit.before(0.1))

    play(work)
