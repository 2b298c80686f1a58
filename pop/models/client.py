"""How a worker asks models: a blocking socket to the gateway, JSON lines, several questions at once.

It imports no SDK and starts no thread, so that a thousand workers can wait at once.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from pop.errors import AttemptFailed
from pop.models.request import Answer, ModelError, ModelRequest, Origin, request_hash

CONNECT_PATIENCE_S = 15.0


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

    def ask_many(self, requests: Sequence[ModelRequest]) -> list[Answer | ModelError]:
        """Answers in the order of the requests; all are asked at once and the gateway bounds them.

        Raises:
            AttemptFailed: ``interrupted``: the gateway went away.
        """
        try:
            numbers = [self._send(request) for request in requests]
            return self._receive(numbers)
        except OSError as error:
            raise AttemptFailed("interrupted", f"the gateway went away: {error}") from None

    def _send(self, request: ModelRequest) -> int:
        asked = request_hash(request)
        origin = self._origin.model_copy(update={"n": self._asked[asked]})
        self._asked[asked] += 1
        self._number += 1
        line = {
            "id": self._number,
            "request": request.model_dump(mode="json", by_alias=True),
            "origin": origin.model_dump(),
        }
        self._connection().sendall(orjson.dumps(line) + b"\n")
        return self._number

    def _receive(self, numbers: list[int]) -> list[Answer | ModelError]:
        found: dict[int, Answer | ModelError] = {}
        while len(found) < len(numbers):
            reply = self._line()
            found[reply["id"]] = _outcome(reply)
        return [found[number] for number in numbers]

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
    error = reply["error"]
    return ModelError(error["error_class"], error["message"], where=error["where"], hint=error["hint"])
