"""A server that nobody here wrote: llama-cpp-python's, with a tiny model of random weights that the test writes itself.

    make test-peer                                              # builds it once, for about 5 minutes
    POP_TEST_LLAMA=VENV/bin/python pytest tests/test_real_server.py       # with one of your own

The answers are gibberish: shapes are tested, never quality.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pop.models.entries import ModelEntry
from pop.models.forms import ask
from pop.models.providers import Setup, open_provider
from pop.models.request import Answer, Form, Message, ModelError, ModelRequest, Origin
from pop.parsing import schema_problems
from tests.test_forms import Memory

ORIGIN = Origin(run_id="r", instance="ask", generation=1, attempt=1)
CONTEXT = 512
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "big": {"type": "boolean"},
        "note": {"type": ["boolean", "null"]},
    },
    "required": ["colour", "big"],
    "additionalProperties": False,
}
WRITE_MODEL = """
import sys, numpy, gguf
bytes_ = [f"<0x{n:02X}>" for n in range(256)]
words, width, random = ["<unk>", "<s>", "</s>", *bytes_], 32, numpy.random.default_rng(1)
def weights(*shape): return (random.standard_normal(shape) * 0.2).astype(numpy.float32)
ones = numpy.ones(width, numpy.float32)
w = gguf.GGUFWriter(sys.argv[1], "llama")
w.add_context_length(int(sys.argv[2])); w.add_embedding_length(width); w.add_block_count(1)
w.add_feed_forward_length(width); w.add_head_count(2); w.add_head_count_kv(2)
w.add_layer_norm_rms_eps(1e-5); w.add_rope_dimension_count(16); w.add_file_type(0)
w.add_tokenizer_model("llama"); w.add_token_list(words); w.add_token_scores([0.0] * len(words))
w.add_token_types([2, 3, 3] + [6] * 256)
w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_unk_token_id(0)
w.add_tensor("token_embd.weight", weights(len(words), width))
w.add_tensor("output_norm.weight", ones); w.add_tensor("output.weight", weights(len(words), width) * 3)
for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
    w.add_tensor(f"blk.0.{name}.weight", weights(width, width))
w.add_tensor("blk.0.attn_norm.weight", ones); w.add_tensor("blk.0.ffn_norm.weight", ones)
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
"""


@dataclass
class Peer:
    """The server, and how its python is called."""

    python: str
    base_url: str
    entry: ModelEntry

    def ask(
        self, text: str = "Say a colour.", schema: Any = None, *, memory: Memory | None = None, **more: Any
    ) -> Answer:
        return asyncio.run(self.asks(text, schema, memory or Memory(), **more))[0]

    async def asks(self, text: str, schema: Any, memory: Memory, *, times: int = 1, **more: Any) -> list[Answer]:
        provider = open_provider("openai", Setup({}, Path("/nonexistent")))
        request = ModelRequest(model="peer", messages=[Message(role="user", content=text)], schema=schema)
        entry = replace(self.entry, **more)
        return await asyncio.gather(*(ask(provider, request, entry, ORIGIN, memory) for _ in range(times)))


def _python() -> str:
    """The python that has llama_cpp.

    Raises:
        pytest.skip.Exception: There is none.
    """
    named = os.environ.get("POP_TEST_LLAMA")
    if named:
        return named
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        return sys.executable
    pytest.skip("llama-cpp-python is not installed; set POP_TEST_LLAMA to the python of a venv that has it")


def _start(python: str, model: Path, port: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", str(CONTEXT), "--n_threads", "1",
               "--n_threads_batch", "1", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with open(folder / "server.log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    python, folder, port = _python(), tmp_path_factory.mktemp("peer"), _free_port()
    subprocess.run([python, "-c", WRITE_MODEL, str(folder / "tiny.gguf"), str(CONTEXT)], check=True, timeout=60)
    server = _start(python, folder / "tiny.gguf", port, folder)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(300):
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        entry = ModelEntry("peer", "openai", "tiny", base_url=url, max_output_tokens=80, timeout_s=60.0)
        yield Peer(python, url, entry)
    finally:
        server.kill()
        server.wait()


def test_it_chats_and_counts(peer: Peer) -> None:
    """A text, its tokens as the server counts them, and the limit of the answer kept.

    It knows the limit by its old name alone, and goes up to three bytes beyond it to end a character.
    """
    answer = peer.ask(max_output_tokens=5)
    assert answer.provider_model == "tiny" and answer.finish_reason in ("length", "stop")
    assert not answer.estimated and answer.input_tokens > 0 and 0 < answer.output_tokens <= 5 + 3


def test_it_is_found_out_how_it_is_asked_for_json(peer: Peer) -> None:
    """It answers 500 to json_schema, strict or not; json_object with the schema in it works, and is remembered."""
    memory = Memory()
    answer = peer.ask(schema=SCHEMA, memory=memory)
    assert answer.form == "object+schema"
    assert [(one.error_class, one.billed) for one in answer.tries] == [("unavailable", False)] * 2
    assert schema_problems(json.loads(answer.text), SCHEMA) == []
    again = peer.ask(schema=SCHEMA, memory=memory)
    assert again.form == "object+schema" and again.tries == []
    assert schema_problems(json.loads(again.text), SCHEMA) == []


@pytest.mark.parametrize("form", ["strict", "schema"])
def test_a_form_that_it_does_not_know_is_its_500(peer: Peer, form: Form) -> None:
    """When pop.toml insists."""
    with pytest.raises(ModelError, match="response_format") as caught:
        peer.ask(schema=SCHEMA, structured=form)
    assert (caught.value.error_class, caught.value.code) == ("unavailable", "server-error")


def test_a_prompt_beyond_its_context_is_told_as_such(peer: Peer) -> None:
    """In its own words, with our hint."""
    with pytest.raises(ModelError, match="maximum context length is 512") as caught:
        peer.ask("x" * 900)
    assert (caught.value.error_class, caught.value.code) == ("bad_input", "context-length")
    assert "ctx.compress" in (caught.value.hint or "")


def test_what_it_does_not_serve_is_not_found(peer: Peer) -> None:
    """The Responses API, and a path beside its own."""
    cases: list[dict[str, Any]] = [{"api": "responses"}, {"base_url": peer.base_url.replace("/v1", "/v9")}]
    for more in cases:
        with pytest.raises(ModelError) as caught:
            peer.ask(**more)
        assert (caught.value.error_class, caught.value.code) == ("bad_input", "not-found")


def test_several_may_ask_at_once(peer: Peer) -> None:
    """It serves them one after the other; each gets its own whole answer."""
    answers = asyncio.run(peer.asks("Say a colour.", SCHEMA, Memory(), times=6))
    assert len(answers) == 6 and all(schema_problems(json.loads(one.text), SCHEMA) == [] for one in answers)
    assert {one.form for one in answers} == {"object+schema"}


def test_a_server_whose_model_is_not_there_is_unavailable(peer: Peer, tmp_path: Path) -> None:
    """It ends before it listens, and nothing is billed."""
    port = _free_port()
    server = _start(peer.python, tmp_path / "missing.gguf", port, tmp_path)
    assert server.wait(60) != 0
    with pytest.raises(ModelError) as caught:
        peer.ask(base_url=f"http://127.0.0.1:{port}/v1")
    assert (caught.value.error_class, caught.value.curable, caught.value.tokens) == ("unavailable", True, None)
