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
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin, prompt_hash, request_hash

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


def in_turn(path: Path, count: int, serve: Callable[[dict[str, Any]], bytes]) -> None:
    """A server that answers `count` lines, one after the other."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as lines:
            for _ in range(count):
                connection.sendall(serve(json.loads(lines.readline())))


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
    assert origin.items() <= asked[0]["origin"].items()


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


def test_a_failure_keeps_its_code_and_the_tries_before_it(tmp_path: Path) -> None:
    """What is missing or no try in an error from another version is passed over."""
    tried = {"model": "m", "error_class": "unavailable", "message": "503", "ms": 3.0, "billed": True}
    error = {"error_class": "bad_input", "code": "context-length", "message": "too long", "where": None, "hint": None}
    errors = [{**error, "tries": [tried, {"odd": 1}]}, {"error_class": "strange", "message": "x"}]

    def fail(asked: list[dict[str, Any]]) -> list[bytes]:
        pairs = zip(asked, errors, strict=True)
        return [json.dumps({"id": one["id"], "error": error}).encode() + b"\n" for one, error in pairs]

    with gateway(tmp_path / "g", 2, fail):
        first, second = client(tmp_path / "g").ask_many([question("a"), question("b")])
    assert isinstance(first, ModelError) and isinstance(second, ModelError)
    assert (first.error_class, first.code) == ("bad_input", "context-length")
    assert [(one.message, one.billed) for one in first.tries] == [("503", True)]
    assert (second.error_class, second.code, second.tries) == ("unavailable", "unavailable", [])


def test_no_more_than_the_window_is_open(tmp_path: Path) -> None:
    """The next question goes out when an answer has come, whichever it is; the order stays."""
    open_at_once, heard = list[int](), list[int]()

    def serve(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()
            connection, _ = server.accept()
            waiting: list[dict[str, Any]] = []
            buffered = b""
            with connection:
                connection.settimeout(0.1)
                for _ in range(200):
                    try:
                        buffered += connection.recv(1 << 16)
                    except TimeoutError:
                        pass
                    *lines, buffered = buffered.split(b"\n")
                    waiting += [json.loads(line) for line in lines]
                    if not open_at_once and len(waiting) < 3:  # the window is not full yet
                        continue
                    open_at_once.append(len(waiting))
                    if not waiting:
                        break
                    connection.sendall(reply(waiting.pop()))  # the newest first

    thread = threading.Thread(target=serve, args=[tmp_path / "g"])
    thread.start()
    asked = [question(str(number)) for number in range(20)]
    answers = client(tmp_path / "g").ask_many(asked, at_once=3, heard=lambda place, _: heard.append(place))
    thread.join(30)
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == [f"{number}!" for number in range(20)]
    assert max(open_at_once) <= 3 and sorted(heard) == list(range(20)) and heard[0] == 2


def test_a_thousand_questions_hold_no_thread(tmp_path: Path) -> None:
    """One socket carries them all."""
    before, during = threading.active_count(), list[int]()
    with gateway(tmp_path / "g", 1000, lambda asked: [b"".join(reply(one) for one in reversed(asked))]):
        asked = [question(str(number)) for number in range(1000)]
        answers = client(tmp_path / "g").ask_many(asked, heard=lambda *_: during.append(threading.active_count()))
    assert len(answers) == 1000 and max(during) <= before + 1  # the server of this test is the one


def test_threads_of_a_task_do_not_take_each_others_answers(tmp_path: Path) -> None:
    """They wait in line."""
    found: dict[int, str] = {}
    asker = client(tmp_path / "g")

    def ask(number: int) -> None:
        found[number] = asker.ask(question(str(number))).text

    threads = [threading.Thread(target=in_turn, args=[tmp_path / "g", 8, reply])]
    threads += [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: f"{number}!" for number in range(8)}


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ({"count": {"tokens": 7, "exact": True}}, (7, True)),
        ({"error": {"error_class": "bug", "message": "not a request"}}, None),
        ({"count": {"tokens": "many"}}, None),
    ],
)
def test_tokens_are_counted_by_the_gateway_when_it_can(tmp_path: Path, answer: Any, count: Any) -> None:
    """Else there is no count; the connection stays usable."""

    def serve(asked: dict[str, Any]) -> bytes:
        if "request" in asked:
            return reply(asked)
        assert asked["count"] == {"model": "m", "asked": "large", "instance": "step.0", "text": "some text"}
        return json.dumps({"id": asked["id"], **answer}).encode() + b"\n"

    thread = threading.Thread(target=in_turn, args=[tmp_path / "g", 2, serve])
    thread.start()
    asker = client(tmp_path / "g")
    assert asker.count("some text", "m", "large") == count
    assert asker.ask(question("x")).text == "x!"
    thread.join(10)


def test_a_prompt_longer_than_the_gateway_reads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place among the others; the gateway would hang up, and the attempt would be repeated without end."""
    monkeypatch.setattr("pop.models.client.MAX_LINE_BYTES", 5000)
    with gateway(tmp_path / "g", 2, lambda asked: [reply(one) for one in asked]):
        asker = client(tmp_path / "g")
        first, failed, last = asker.ask_many([question("a"), question("x" * 6000), question("b")])
        assert asker.count("x" * 6000, "m") is None and asker.count("half a pair \ud800", "m") is None
    assert isinstance(failed, ModelError) and failed.code == "context-length"
    assert isinstance(first, Answer) and isinstance(last, Answer) and last.text == "b!"


def test_a_count_outlives_a_gateway_that_goes_away(tmp_path: Path) -> None:
    """There is no number, and the next question looks for the new gateway."""
    with gateway(tmp_path / "g", 1, lambda asked: None):
        asker = client(tmp_path / "g")
        assert asker.count("x", "m") is None
    (tmp_path / "g").unlink()
    with gateway(tmp_path / "g", 1, lambda asked: [reply(asked[0])]):
        assert asker.ask(question("x")).text == "x!"


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


def test_what_a_listener_raises_is_no_gateway_that_went_away(tmp_path: Path) -> None:
    """A full disk, say, when the answer is written down."""

    def full(place: int, outcome: Answer | ModelError) -> None:
        raise OSError("no space left")

    with gateway(tmp_path / "g", 1, lambda asked: [reply(asked[0])]), pytest.raises(OSError, match="no space"):
        client(tmp_path / "g").ask_many([question("x")], heard=full)


def test_integers_of_any_length_in_a_schema_are_hashed_and_sent(tmp_path: Path) -> None:
    """Exactly; other requests have the hashes they always had."""

    def about(most: int) -> ModelRequest:
        return question("x").model_copy(update={"schema_": {"type": "integer", "maximum": most}})

    hashes = {made(about(10**30 + more)) for more in (0, 1) for made in (request_hash, prompt_hash)}
    assert len(hashes) == 4 and prompt_hash(about(10**30)) == prompt_hash(about(10**30))
    assert prompt_hash(question("x")) == "42d62df06c076929e9089b87e8d6de6b86e32085251087669058fe5bde95b9a4"
    with gateway(tmp_path / "g", 1, lambda asked: [reply(asked[0])]) as asked:
        client(tmp_path / "g").ask(about(10**30 + 1))
    assert asked[0]["request"]["schema"]["maximum"] == 10**30 + 1
