"""A worker's way to the gateway: JSON lines over a socket, several questions at once, answers in any order."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pop.errors import AttemptFailed
from pop.models.client import GatewayClient
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin

Served = Callable[[list[dict[str, Any]]], list[bytes] | None]


def question(text: str) -> ModelRequest:
    return ModelRequest(model="m", messages=[Message(role="user", content=text)])


def reply(asked: dict[str, Any]) -> bytes:
    text = asked["request"]["messages"][0]["content"] + "!"
    answer = Answer(text=text, model="m", provider="p", provider_model="m")
    return json.dumps({"id": asked["id"], "answer": answer.model_dump(mode="json")}).encode() + b"\n"


@contextmanager
def gateway(path: Path, count: int, serve: Served, late_s: float = 0.0) -> Iterator[list[dict[str, Any]]]:
    """A server that takes `count` lines and sends what `serve` makes of them (None: hangs up)."""
    asked: list[dict[str, Any]] = []

    def work() -> None:
        time.sleep(late_s)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                for _ in range(count):
                    asked.append(json.loads(lines.readline()))
                for data in serve(asked) or []:
                    connection.sendall(data)
                    time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield asked
    finally:
        thread.join(10)


def client(path: Path) -> GatewayClient:
    return GatewayClient(str(path), Origin(run_id="run", instance="step.0", generation=2, attempt=3))


def test_answers_come_back_in_the_order_of_the_questions(tmp_path: Path) -> None:
    """However they arrive: last first, and cut into pieces."""

    def backwards(asked: list[dict[str, Any]]) -> list[bytes]:
        data = b"".join(reply(one) for one in reversed(asked))
        return [data[at : at + 97] for at in range(0, len(data), 97)]

    with gateway(tmp_path / "g", 5, backwards):
        answers = client(tmp_path / "g").ask_many([question(str(number)) for number in range(5)])
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == [f"{number}!" for number in range(5)]


def test_a_question_says_who_asks_and_how_often_it_was_asked(tmp_path: Path) -> None:
    """So that two samples are two calls, and a repetition after a crash is the same one."""
    with gateway(tmp_path / "g", 3, lambda asked: [reply(one) for one in asked]) as asked:
        client(tmp_path / "g").ask_many([question("same"), question("other"), question("same")])
    assert [one["origin"]["n"] for one in asked] == [0, 0, 1]
    origin = {"run_id": "run", "instance": "step.0", "generation": 2, "attempt": 3, "n": 0}
    assert asked[0]["origin"] == origin


def test_one_failure_does_not_spoil_the_others(tmp_path: Path) -> None:
    """ask_many gives it in its place, ask raises it, with class, place and hint."""
    error = {"error_class": "auth", "message": "no key", "where": "model 'm'", "hint": "export it"}

    def first_fails(asked: list[dict[str, Any]]) -> list[bytes]:
        return [json.dumps({"id": asked[0]["id"], "error": error}).encode() + b"\n", *(reply(one) for one in asked[1:])]

    with gateway(tmp_path / "g", 2, first_fails):
        failed, good = client(tmp_path / "g").ask_many([question("a"), question("b")])
    assert isinstance(failed, ModelError) and isinstance(good, Answer)
    assert (failed.error_class, failed.where, failed.hint) == ("auth", "model 'm'", "export it")
    with gateway(tmp_path / "h", 1, first_fails), pytest.raises(ModelError, match="no key"):
        client(tmp_path / "h").ask(question("a"))


def test_a_gateway_that_goes_away_interrupts_the_attempt(tmp_path: Path) -> None:
    """Which uses up none; also in the middle of a line."""
    for number, data in enumerate([None, [b'{"id": 1, "ans']]):
        path = tmp_path / f"g{number}"
        with gateway(path, 1, lambda asked, data=data: data), pytest.raises(AttemptFailed) as caught:  # type: ignore[misc]
            client(path).ask(question("x"))
        assert caught.value.error_class == "interrupted"


def test_a_gateway_that_is_just_starting_is_waited_for(tmp_path: Path) -> None:
    """The worker waits at its door."""
    with gateway(tmp_path / "g", 1, lambda asked: [reply(asked[0])], late_s=0.6):
        assert client(tmp_path / "g").ask(question("x")).text == "x!"
