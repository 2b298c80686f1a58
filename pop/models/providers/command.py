"""A local program as a model: the prompt on its standard input, the answer on its standard output.

    [models.agent]
    provider = "command"
    command = ["claude", "-p"]              # no shell; a program with a slash is found from the root, as is "{root}"

What it gets: one user message as it is; several messages as ``## role`` sections, the system's first; a schema in words
at the end. Each call has a new process group, a temporary folder of its own to work in, and the gateway's environment
without keys: names with KEY, TOKEN, SECRET or PASSWORD, those of ``api_key_env`` and those of the keys file, but for
the model's own ``api_key_env``. When the call ends, however it ends, the whole group does: TERM, a second, KILL.

What it may print: a text, or one JSON object (``Envelope``) that has "text" and no unknown key. Where a schema is asked
for, an object whose keys all are properties of that schema is the answer itself.

| what comes of it                                     | class       | asked again |
|------------------------------------------------------|-------------|-------------|
| no such program, not executable, exit code 126 or 127| bad_input   | no          |
| another exit code than 0, a signal                   | unavailable | yes         |
| nothing, or bytes that are no UTF-8 (code `rubbish`) | unavailable | yes         |
| more than 16 MB (code `too-much-output`)             | unavailable | no          |
| its key is not set                                   | auth        | no          |
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pop.errors import PopError, safe
from pop.models.providers import Setup
from pop.models.request import Answer, FinishReason, Form, ModelError, ModelRequest, Origin
from pop.records import BadJson, read_json
from pop.settings import Root, load_settings

if TYPE_CHECKING:
    from pop.models.entries import ModelEntry

MAX_OUTPUT_BYTES = 16 * 2**20
KEPT_ERROR_BYTES = 4096
SHOWN_CHARS = 200
GRACE_S = 1.0  # between TERM and KILL
LAST_WORDS_S = 2.0  # for what lies in the pipes of a process that has ended
CHARS_PER_TOKEN = 4
NOT_RUN = (126, 127)  # how a shell says that a program cannot be run, or is not there
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

Count = Annotated[int, Field(ge=0)]


class Envelope(BaseModel):
    """What a program may print instead of a text, so that tokens and cost (USD) are known."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    text: str
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_input_tokens: Count = 0
    reasoning_tokens: Count = 0
    cost_usd: Annotated[float, Field(ge=0)] | None = None
    model: str | None = None
    finish_reason: FinishReason = "stop"


class CommandProvider:
    """See the module."""

    def __init__(self, setup: Setup) -> None:
        self._environ = setup.environ
        self._root = setup.root

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        began, prompt = time.perf_counter(), prompt_of(request)
        printed = await self._run(entry, prompt.encode("utf-8", "replace"))
        said = await asyncio.to_thread(_read, printed, request, entry)
        counted = said.input_tokens is not None and said.output_tokens is not None
        return Answer(
            text=said.text,
            model=entry.name,
            provider="command",
            provider_model=said.model or entry.model,
            finish_reason=said.finish_reason,
            input_tokens=_estimate(prompt) if said.input_tokens is None else said.input_tokens,
            output_tokens=_estimate(said.text) if said.output_tokens is None else said.output_tokens,
            cached_input_tokens=said.cached_input_tokens,
            reasoning_tokens=said.reasoning_tokens,
            estimated=not counted,
            cost_usd=said.cost_usd,
            prices="command" if said.cost_usd is not None else None,
            ms=round((time.perf_counter() - began) * 1000, 3),
            form="prompt" if request.schema_ is not None else None,
        )

    async def _run(self, entry: ModelEntry, prompt: bytes) -> bytes:
        """What the program printed, once it has ended well."""
        environ = self._environment(entry)
        problem = command_problem(entry, environ, self._root)
        if problem:
            raise ModelError("bad_input", problem, where=_place(entry), hint=PROGRAM_HINT, code="no-program")
        folder = tempfile.mkdtemp(prefix="pop-command-")
        try:
            process = await self._start(entry, environ, folder)
            try:
                printed, complaint = await _talk(process, prompt, entry)
            finally:
                await _dispose(process)
            _check_end(process.returncode, printed, complaint, entry)
            return printed
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _start(self, entry: ModelEntry, environ: Mapping[str, str], folder: str) -> asyncio.subprocess.Process:
        arguments = [argument.replace("{root}", str(self._root)) for argument in entry.command[1:]]
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                _program(entry, environ, self._root) or entry.command[0],
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env=environ,
                start_new_session=True,
                preexec_fn=_die_with_parent if _libc is not None else None,
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # it starts all the same, so it is ended
            with contextlib.suppress(OSError):
                await _dispose(await starting)
            raise
        except (FileNotFoundError, PermissionError, NotADirectoryError, ValueError) as error:
            message = f"the program {entry.command[0]!r} cannot be run: {getattr(error, 'strerror', None) or error}"
            raise ModelError("bad_input", message, where=_place(entry), hint=PROGRAM_HINT, code="no-program") from None
        except OSError as error:
            if error.errno == 8:  # ENOEXEC
                hint = "begin a script with its interpreter: #!/bin/sh"
                message = f"the program {entry.command[0]!r} is in no form that the system can run"
                raise ModelError("bad_input", message, where=_place(entry), hint=hint, code="no-program") from None
            message = f"no process could be started: {error.strerror}"
            raise ModelError("unavailable", message, where=_place(entry), curable=True) from None

    def _environment(self, entry: ModelEntry) -> dict[str, str]:
        """The gateway's environment without keys, but for this model's own."""
        if entry.key_env and not self._environ.get(entry.key_env):
            hint = f"export {entry.key_env}=... before pop up, write it into the keys file, or choose another model"
            raise ModelError("auth", f"{entry.key_env} is not set, model {entry.name!r} needs it", hint=hint)
        secret = self._key_names() | {name for name in self._environ if _SECRET.search(name)}
        return {name: value for name, value in self._environ.items() if name not in secret or name == entry.key_env}

    def _key_names(self) -> set[str]:
        """The variables that pop.toml says hold keys, and those that only the keys file has."""
        found = self._environ.keys() - os.environ.keys()
        try:
            settings = load_settings(Root(self._root))
        except PopError:  # being edited; the gateway works on with what it read before
            return found
        named = {table.api_key_env for table in settings.providers.values()}
        named |= {model.api_key_env for model in settings.models.values() if not isinstance(model, str)}
        return found | {name for name in named if name}


PROGRAM_HINT = "correct `command` in pop.toml, or install the program and start POP again with it on its PATH"


def command_problem(entry: ModelEntry, environ: Mapping[str, str], root: Path | None = None) -> str | None:
    """Why a model's program cannot be run at all, or None; nothing is run to find out.

    Args:
        root: Where a program such as ``./agent.sh`` is looked for (else the present folder).
    """
    if entry.provider != "command" or _program(entry, environ, root or Path.cwd()):
        return None
    name = entry.command[0]
    if "/" in name:
        path = _path(name, root or Path.cwd())
        why = "is not executable" if path.is_file() else "is no file" if path.exists() else "does not exist"
        return f"the program {name!r} {why}"
    return f"there is no program {name!r} on the PATH"


def _program(entry: ModelEntry, environ: Mapping[str, str], root: Path) -> str | None:
    """The program's path, where it can be run."""
    name = entry.command[0]
    if "\0" in name:
        return None
    return shutil.which(str(_path(name, root)) if "/" in name else name, path=environ.get("PATH", os.defpath))


def _path(name: str, root: Path) -> Path:
    return root / os.path.expanduser(name.replace("{root}", str(root)))


def prompt_of(request: ModelRequest) -> str:
    """All that is asked, as one text."""
    if len(request.messages) == 1 and request.messages[0].role == "user":
        text = request.messages[0].content
    else:
        ordered = sorted(request.messages, key=lambda message: message.role != "system")
        text = "\n\n".join(f"## {message.role}\n\n{message.content}" for message in ordered)
    if request.schema_ is None:
        return text
    words = "Answer with one JSON value that obeys this JSON Schema, and nothing else:"
    return f"{text}\n\n{words}\n{json.dumps(request.schema_, ensure_ascii=False)}\n"


# -- the process -----------------------------------------------------------------------------------------------------


def _die_with_parent() -> None:
    """In the child, before its program: the kernel ends it when the gateway is killed."""
    assert _libc is not None
    _libc.prctl(1, signal.SIGKILL)


async def _talk(process: asyncio.subprocess.Process, prompt: bytes, entry: ModelEntry) -> tuple[bytes, bytes]:
    """Everything it printed, and the end of what it complained; returns when it has ended.

    Raises:
        ModelError: It prints without end.
    """
    assert process.stdout is not None and process.stderr is not None
    printed, complaint = bytearray(), bytearray()
    readers: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(_gather(process.stdout, printed)),
        asyncio.ensure_future(_keep_last(process.stderr, complaint)),
        asyncio.ensure_future(_feed(process, prompt)),
    ]
    try:
        await _ended(process, readers[0])
        await asyncio.wait(readers[:2], timeout=0.05)
        await end_group(process.pid)  # what it left behind may hold its output open
        await asyncio.wait(readers[:2], timeout=LAST_WORDS_S)
        if len(printed) > MAX_OUTPUT_BYTES:
            message = f"it printed more than {MAX_OUTPUT_BYTES >> 20} MB"
            raise ModelError("unavailable", message, where=_place(entry), code="too-much-output")
        return bytes(printed), bytes(complaint)
    finally:
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _ended(process: asyncio.subprocess.Process, output: asyncio.Future[bool]) -> None:
    """Returns when the process has ended, or has printed too much.

    `Process.wait` also waits for the pipes (before Python 3.11.9), which somebody else may hold open.
    """
    whole = asyncio.ensure_future(process.wait())
    try:
        while process.returncode is None and not (output.done() and output.result()):
            pending = [one for one in (output, whole) if not one.done()]
            await asyncio.wait(pending, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
    finally:
        whole.cancel()
        await asyncio.gather(whole, return_exceptions=True)


async def _gather(stream: asyncio.StreamReader, into: bytearray) -> bool:
    """Whether it is too much."""
    while len(into) <= MAX_OUTPUT_BYTES and (data := await stream.read(1 << 16)):
        into += data
    return len(into) > MAX_OUTPUT_BYTES


async def _keep_last(stream: asyncio.StreamReader, into: bytearray) -> None:
    while data := await stream.read(1 << 16):
        into += data
        del into[:-KEPT_ERROR_BYTES]


async def _feed(process: asyncio.subprocess.Process, prompt: bytes) -> None:
    """It may end without having read all, or anything."""
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(prompt)
        await process.stdin.drain()
    with contextlib.suppress(ConnectionError):
        process.stdin.close()


async def _dispose(process: asyncio.subprocess.Process) -> None:
    try:
        await end_group(process.pid)
    finally:
        process._transport.close()  # type: ignore[attr-defined]  # the pipes, whoever else holds them


async def end_group(group: int) -> None:
    """End what is left of a process group: TERM, `GRACE_S`, KILL; at once KILL when this is cancelled."""
    try:
        give_up = time.monotonic() + GRACE_S
        there = _signal(group, signal.SIGTERM)
        while there and time.monotonic() < give_up:
            await asyncio.sleep(0.01)
            there = _signal(group, 0)
    finally:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Whether there was anybody to hear it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


# -- what it printed -------------------------------------------------------------------------------------------------


def _check_end(code: int | None, printed: bytes, complaint: bytes, entry: ModelEntry) -> None:
    if code == 0:
        return
    said = _shown(complaint or printed, last=True)
    told = f": {said}" if said else ", and said nothing"
    if code in NOT_RUN:
        message = f"{entry.command[0]!r} ended with exit code {code}, which says that a program cannot be run{told}"
        raise ModelError("bad_input", message, where=_place(entry), hint=PROGRAM_HINT, code="no-program")
    how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    raise ModelError("unavailable", f"{entry.command[0]!r} {how}{told}", where=_place(entry), curable=True)


def _read(printed: bytes, request: ModelRequest, entry: ModelEntry) -> Envelope:
    """An envelope, or the text as one."""
    try:
        text = printed.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"it printed bytes that are no UTF-8 (at {error.start}): {_shown(printed)!r}"
        raise ModelError("unavailable", what, where=_place(entry), curable=True, code="rubbish") from None
    found = _envelope(text, request) or Envelope(text=text.strip("\n"))
    if not found.text.strip():
        what = f"it printed no answer: {_shown(printed)!r}"
        raise ModelError("unavailable", what, where=_place(entry), curable=True, code="rubbish")
    return found


def _envelope(text: str, request: ModelRequest) -> Envelope | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = read_json(text)
        found = Envelope.model_validate(value)
    except (BadJson, ValidationError):
        return None
    asked: Any = (request.schema_ or {}).get("properties")
    return None if isinstance(asked, dict) and value.keys() <= asked.keys() else found


def _shown(data: bytes, *, last: bool = False) -> str:
    """The beginning of what it printed, or its last lines, made safe."""
    text = data.decode("utf-8", "replace").strip()
    if last:
        return safe(text[-1000:].strip())
    return safe(text[:SHOWN_CHARS], one_line=True)


def _estimate(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def _place(entry: ModelEntry) -> str:
    return f"model {entry.name!r}"
