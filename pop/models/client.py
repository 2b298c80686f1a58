"""How a worker asks models: a blocking socket to the gateway, JSON lines, several questions at once.

It imports no SDK and starts no thread, so that a thousand workers can wait at once.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
from pydantic import ValidationError

from pop.errors import ERROR_CLASSES, AttemptFailed
from pop.models.request import Answer, ModelError, ModelRequest, Origin, Try, request_hash

CONNECT_PATIENCE_S = 15.0
MAX_LINE_BYTES = 60 * 2**20  # the gateway hangs up on a longer one


class GatewayClient:
    """One worker's connection, opened with the first question.

    Args:
        address: The path of the gateway's socket.
        origin: Who asks; `n` is counted here.
    """

    def __init__(self, address: str, origin: Origin) -> None:
        self._address = address
        self._origin = origin
        self._asked: Counter[str] = Counter()
        self._socket: socket.socket | None = None
        self._inbox = bytearray()
        self._number = 0
        self._turn = threading.Lock()  # a task's own threads ask one after the other

    def ask(self, request: ModelRequest) -> Answer:
        """One answer.

        Raises:
            ModelError: The model could not answer.
            AttemptFailed: ``interrupted``: the gateway went away.
        """
        (answer,) = self.ask_many([request])
        if isinstance(answer, ModelError):
            raise answer
        return answer

    def ask_many(
        self,
        requests: Sequence[ModelRequest],
        *,
        at_once: int | None = None,
        heard: Callable[[int, Answer | ModelError], None] | None = None,
    ) -> list[Answer | ModelError]:
        """Answers in the order of the requests.

        Args:
            at_once: So many are open at a time; None: all, and the gateway bounds them.
            heard: Told of each answer when it comes, with the place of its question.

        Raises:
            AttemptFailed: ``interrupted``: the gateway went away.
        """
        found: dict[int, Answer | ModelError] = {}
        window = at_once or len(requests)
        with self._turn:
            first = self._number + 1

            def take(number: int, outcome: Answer | ModelError) -> None:
                found[number] = outcome
                if heard:
                    heard(number - first, outcome)

            for sent, request in enumerate(requests):
                while sent - len(found) >= window:
                    take(*self._receive())
                refused = self._send(request)
                if refused:
                    take(self._number, refused)
            while len(found) < len(requests):
                take(*self._receive())
        return [found[number] for number in range(first, first + len(requests))]

    def count(self, text: str, model: str, asked: str = "") -> tuple[int, bool] | None:
        """Tokens of a text and whether they are exact; None when the gateway cannot say.

        Args:
            asked: The model's name as the task said it, by which a replay knows it.
        """
        about = {"model": model, "asked": asked, "instance": self._origin.instance, "text": text}
        with self._turn:
            self._number += 1
            try:
                data = _dumped({"id": self._number, "count": about})
                if len(data) > MAX_LINE_BYTES:
                    return None
                self._connection().sendall(data)
                count = self._line().get("count")
            except OSError:
                self._socket = None
                self._inbox.clear()
                return None
            except UnicodeEncodeError:  # half a surrogate pair
                return None
        try:
            return int(count["tokens"]), bool(count["exact"])
        except (TypeError, KeyError, ValueError):
            return None

    def _send(self, request: ModelRequest) -> ModelError | None:
        """Send a question; the error of one that no gateway would read."""
        asked = request_hash(request)
        origin = self._origin.model_copy(update={"n": self._asked[asked]})
        self._asked[asked] += 1
        self._number += 1
        body = request.model_dump(mode="json", by_alias=True)
        data = _dumped({"id": self._number, "request": body, "origin": origin.model_dump()})
        if len(data) > MAX_LINE_BYTES:
            message = f"a prompt of {len(data) / 2**20:.0f} MB is too long for any model"
            return ModelError("bad_input", message, code="context-length")
        try:
            self._connection().sendall(data)
        except OSError as error:
            raise _gone(error) from None
        return None

    def _receive(self) -> tuple[int, Answer | ModelError]:
        try:
            reply = self._line()
        except OSError as error:
            raise _gone(error) from None
        return reply["id"], _outcome(reply)

    def _line(self) -> Any:
        connection = self._connection()
        while (end := self._inbox.find(b"\n")) < 0:
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionResetError("it closed the connection")
            self._inbox += data
        line = bytes(self._inbox[:end])
        del self._inbox[: end + 1]
        return orjson.loads(line)

    def _connection(self) -> socket.socket:
        if self._socket is None:
            self._socket = _connect(self._address)
        return self._socket


def _gone(error: OSError) -> AttemptFailed:
    return AttemptFailed("interrupted", f"the gateway went away: {error}")


def _dumped(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line) + b"\n"
    except TypeError:  # an integer beyond 64 bits, in a schema
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _connect(address: str) -> socket.socket:
    """Connect; a gateway that is just starting is waited for."""
    give_up = time.monotonic() + CONNECT_PATIENCE_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(address)
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > give_up:
                raise
        time.sleep(0.05)


def _outcome(reply: dict[str, Any]) -> Answer | ModelError:
    if "answer" in reply:
        return Answer.model_validate(reply["answer"])
    return _failure(reply["error"])


def _failure(error: dict[str, Any]) -> ModelError:
    kind = error.get("error_class")
    failure = ModelError(
        kind if kind in ERROR_CLASSES else "unavailable",
        str(error.get("message")),
        where=error.get("where"),
        hint=error.get("hint"),
        code=error.get("code"),
    )
    failure.tries = list(_tries(error.get("tries") or []))
    return failure


def _tries(rows: Sequence[Any]) -> Iterator[Try]:
    for row in rows:
        with suppress(ValidationError):
            yield Try.model_validate(row)
