"""The server of the bench: what is compared on it is only as true as it is."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import openai

from bench.zero import ANSWER, zero_server


def figures(base_url: str) -> dict[str, int]:
    value: dict[str, int] = json.loads(urllib.request.urlopen(base_url.removesuffix("/v1") + "/served").read())
    return value


def test_the_sdk_reads_its_answer_and_every_answer_is_counted() -> None:
    with zero_server(processes=1) as base_url, openai.OpenAI(api_key="k", base_url=base_url, max_retries=0) as client:
        for _ in range(3):
            found = client.chat.completions.create(model="zero", messages=[{"role": "user", "content": "Hi"}])
            assert found.usage and found.usage.total_tokens == 180
        assert figures(base_url)["served"] == 3


def test_requests_in_pieces_and_requests_in_one_packet_get_one_answer_each() -> None:
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    with zero_server(processes=1) as base_url:
        address = urlsplit(base_url)
        assert address.hostname and address.port
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(request[:20])
            time.sleep(0.05)
            connection.sendall(request[20:] + request + request[:-1])
            found = b""
            while len(found) < 2 * len(ANSWER):
                found += connection.recv(1 << 16)
            assert found == ANSWER * 2
            connection.sendall(request[-1:])
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert figures(base_url)["served"] == 3


def test_latency_is_waited_at_the_same_time() -> None:
    with zero_server(latency_ms=500, processes=1) as base_url:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            url = base_url + "/chat/completions"
            assert all(pool.map(lambda _: urllib.request.urlopen(url, data=b"{}").read(), range(8)))
        assert 0.5 <= time.monotonic() - began < 3.0
        assert figures(base_url) == {"served": 8, "most_at_once": 8}


def test_an_unknown_bench_is_refused_with_the_names_there_are() -> None:
    """Nothing is measured before."""
    command = [sys.executable, "-m", "bench", "latency", "nope"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no bench is called nope; there are: latency, burst" in done.stderr
    assert not done.stdout
