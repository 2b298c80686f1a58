"""An OpenAI-compatible server of our own, over real sockets: it answers, it misbehaves on order, and it counts.

    python -m tests.fake_openai --port 8001

Chat completions and the Responses API echo a digest of the prompt; asked for a JSON Schema, in whichever way, they answer
with JSON that obeys it. Faults are scripted: each entry of `faults` is used up by one request.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Fault:
    """What one request gets instead of an answer.

    `status` with `headers` and `body` as they are; `close` cuts the connection in the middle of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False
    delay_s: float = 0.0
    finish_reason: str | None = None
    refusal: str | None = None


@dataclass
class Served:
    """One request that was answered: when it came, what it asked, what it was told."""

    at: float
    messages_sha256: str
    text: str
    key: str


class FakeOpenAI:
    """The server. `served` holds every request; `delay_s` is the time an answer takes; `answers` are used up first.

    `takes` holds the ways of asking for a schema that this server knows (None: all; "prompt" it cannot tell from none); the
    others get `wrong_form`. `bodies`, `headers` (names in lower case) and `arrivals` (monotonic seconds) hold what came, faults included.
    """

    def __init__(self, port: int = 0) -> None:
        self.delay_s = 0.0
        self.faults: list[Fault] = []
        self.answers: list[str] = []
        self.served: list[Served] = []
        self.keys_seen: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.arrivals: list[float] = []
        self.most_at_once = 0
        self.takes: set[str] | None = None
        self.wrong_form = Fault(status=400, body=b'{"error": {"message": "response_format is not supported"}}')
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def total(self) -> int:
        return len(self.served)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: dict[str, Any], key: str) -> tuple[Fault | None, bytes]:
        """Decide what this request gets."""
        arrived = time.time()
        with self._lock:
            fault = self.faults.pop(0) if self.faults else None
            if self.takes is not None and form_of(body) not in {"prompt", *self.takes}:
                fault = self.wrong_form
            scripted = self.answers.pop(0) if self.answers and not (fault and fault.status != 200) else None
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.bodies.append(body)
            self.keys_seen.add(key)
        time.sleep(fault.delay_s if fault and fault.delay_s else self.delay_s)
        messages = body["messages"] if "messages" in body else body["input"]
        asked = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
        text = scripted if scripted is not None else _text(body, asked)
        with self._lock:
            self._at_once -= 1
            if not fault or fault.status == 200:
                self.served.append(Served(arrived, asked, text, key))
        reply = _completion(body, text, fault) if "messages" in body else _response(body, text, fault)
        return fault, json.dumps(reply).encode()

    def served_after_stored(self, answers: Path) -> list[str]:
        """Requests that came although their answer had been stored before; there must be none.

        An answer is known by its text, which names the request.
        """
        with sqlite3.connect(answers) as store:
            rows = store.execute("SELECT stored_at, answer FROM answers").fetchall()
        stored = {json.loads(answer)["text"]: at for at, answer in rows}
        return [served.text for served in self.served if served.at > stored.get(served.text, float("inf"))]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def form_of(body: dict[str, Any]) -> str:
    """How a request asks for a schema; "prompt" when it does not, or in words alone."""
    asked = _format(body)
    if asked.get("type") == "json_schema":
        return "strict" if asked.get("strict", asked.get("json_schema", {}).get("strict")) else "schema"
    if asked.get("type") == "json_object":
        return "object+schema" if "schema" in asked else "object"
    return "prompt"


def _format(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    return found


def _text(body: dict[str, Any], asked: str) -> str:
    wanted = _format(body).get("json_schema") or _format(body)
    last = str((body.get("messages") or body.get("input") or [{}])[-1].get("content"))
    if "schema" in wanted:
        return json.dumps(obey(wanted["schema"], asked))
    if last.startswith("Answer with one JSON value that obeys this JSON Schema"):
        return json.dumps(obey(json.loads(last.partition("\n")[2]), asked))
    return f"An answer to {asked[:24]}."


def obey(schema: dict[str, Any], seed: str, root: dict[str, Any] | None = None) -> Any:
    """Some value that obeys a plain JSON Schema."""
    root = root or schema
    if "$ref" in schema:
        return obey(root["$defs"][schema["$ref"].rpartition("/")[2]], seed, root)
    if "anyOf" in schema:
        return obey(schema["anyOf"][-1], seed, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: obey(inner, seed, root) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [obey(schema.get("items", {}), seed, root) for _ in range(schema.get("minItems", 1))]
    plain: dict[str, Any] = {"integer": int(schema.get("minimum", 1)), "number": 1.5, "boolean": True, "null": None}
    return plain.get(kind, f"text {seed[:12]}")


def _response(body: dict[str, Any], text: str, fault: Fault | None) -> dict[str, Any]:
    """In the shape of the Responses API; finish_reason ``length`` is told as incomplete."""
    part = {"type": "output_text", "text": text, "annotations": []}
    if fault and fault.refusal:
        part = {"type": "refusal", "refusal": fault.refusal}
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    reason = reasons.get((fault and fault.finish_reason) or "")
    words = sum(len(str(m["content"]).split()) for m in body["input"])
    return {
        "id": "resp-fake",
        "object": "response",
        "model": body["model"],
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [part]},
        ],
        "usage": {"input_tokens": words, "output_tokens": len(text.split())},
    }


def _completion(body: dict[str, Any], text: str, fault: Fault | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if fault and fault.refusal:
        message = {"role": "assistant", "content": None, "refusal": fault.refusal}
    words = sum(len(str(m["content"]).split()) for m in body["messages"])
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": (fault and fault.finish_reason) or "stop"}],
        "usage": {
            "prompt_tokens": words,
            "completion_tokens": len(text.split()),
            "total_tokens": words + len(text.split()),
        },
    }


def _handler(fake: FakeOpenAI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            fake.arrivals.append(time.monotonic())
            fault, answer = fake.answer(body, key)
            if fault and fault.close:
                self._cut(answer)
                return
            with contextlib.suppress(ConnectionError):  # who asked may have been killed meanwhile
                self._send(fault, answer)

        def do_GET(self) -> None:
            self._send(None, json.dumps({"total": fake.total}).encode())

        def _cut(self, answer: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer[: len(answer) // 2])
            self.close_connection = True

        def _send(self, fault: Fault | None, answer: bytes) -> None:
            data = fault.body if fault and fault.body else answer
            self.send_response(fault.status if fault else 200)
            headers = {"content-type": "application/json", **(fault.headers if fault else {})}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    fake = FakeOpenAI(parser.parse_args().port)
    print(fake.base_url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
