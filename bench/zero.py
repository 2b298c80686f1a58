"""An OpenAI-compatible server that costs next to nothing, so that what is measured is who asks it.

    python -m bench.zero --port 8002 --latency-ms 0 --processes 2

Every POST gets the same completion with its usage, rendered beforehand; nothing of the request is read but its length.
Connections stay open, and requests may follow each other without waiting. The processes share the port (SO_REUSEPORT) and end
with standard input. `GET /served` says of the process that took it: ``{"served": int, "most_at_once": int}``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

COMPLETION = orjson.dumps(
    {
        "id": "chatcmpl-zero",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "zero",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "All is well. " * 20, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 120,
            "completion_tokens": 60,
            "total_tokens": 180,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
)


def rendered(body: bytes) -> bytes:
    """A whole HTTP answer with the headers a provider sends."""
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_zero\r\n"
        "x-ratelimit-limit-requests: 1000000\r\nx-ratelimit-remaining-requests: 999999\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


ANSWER = rendered(COMPLETION)


class Connection(asyncio.Protocol):
    """One client. `served` counts for the whole process."""

    served = 0
    at_once = 0
    most_at_once = 0
    latency_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inbox = b""

    def data_received(self, data: bytes) -> None:
        inbox = self._inbox + data if self._inbox else data
        while (end := inbox.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + _length(inbox, end)
            if len(inbox) < size:
                break
            self._serve(inbox.startswith(b"POST"))
            inbox = inbox[size:]
        self._inbox = inbox

    def _serve(self, post: bool) -> None:
        if not post:
            figures = {"served": Connection.served, "most_at_once": Connection.most_at_once}
            self._transport.write(rendered(orjson.dumps(figures)))
        elif self.latency_s:
            Connection.at_once += 1
            Connection.most_at_once = max(Connection.most_at_once, Connection.at_once)
            asyncio.get_running_loop().call_later(self.latency_s, self._answer_late)
        else:
            Connection.served += 1
            self._transport.write(ANSWER)

    def _answer_late(self) -> None:
        Connection.at_once -= 1
        Connection.served += 1
        self._transport.write(ANSWER)


def _length(inbox: bytes, end: int) -> int:
    head = inbox[:end].lower()
    at = head.find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


def listening(port: int) -> socket.socket:
    """A socket of this process on a port that its brothers share; 0 chooses one."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(4096)
    return listener


async def _serve(listener: socket.socket, parent: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, sock=listener, backlog=4096)
    gone = asyncio.Event()
    if parent:
        while os.getppid() == parent:
            await asyncio.sleep(0.5)
    else:
        loop.add_reader(0, _on_input, gone)
        await gone.wait()
    server.close()


def _on_input(gone: asyncio.Event) -> None:
    if not os.read(0, 1024):
        gone.set()


@contextmanager
def zero_server(*, latency_ms: float = 0.0, processes: int = 2) -> Iterator[str]:
    """The server in processes of its own.

    Yields:
        Its `base_url`.
    """
    command = [sys.executable, "-m", "bench.zero", "--latency-ms", str(latency_ms), "--processes", str(processes)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin and server.stdout
    try:
        yield server.stdout.readline().decode().strip()
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(10)


def main() -> None:
    """Entry point: prints the base_url once every process listens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    Connection.latency_s = arguments.latency_ms / 1000
    mine = listening(arguments.port)
    port = mine.getsockname()[1]
    others = [listening(port) for _ in range(arguments.processes - 1)]
    me = os.getpid()
    for listener in others:
        if not os.fork():
            mine.close()
            _run(listener, me)
    for listener in others:
        listener.close()
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    _run(mine, 0)


def _run(listener: socket.socket, parent: int) -> None:
    gc.freeze()
    asyncio.run(_serve(listener, parent))
    os._exit(0)


if __name__ == "__main__":
    main()
