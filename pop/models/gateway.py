"""The gateway process: the only one with API keys and the model SDK.

    python -m pop.models.gateway --root DIR --socket PATH

Workers connect to the Unix socket and send JSON lines; answers come back in any order:

    {"id": n, "request": ModelRequest, "origin": Origin}
    {"id": n, "answer": Answer}   or   {"id": n, "error": {"error_class", "code", "message", "where", "hint", "tries"}}

| further questions                                       | answers                                                 |
|---------------------------------------------------------|---------------------------------------------------------|
| {"id", "count": {"model", "asked", "instance", "text"}} | {"id", "count": {"tokens", "exact"}}                    |
| {"id", "waited": {"run_id", "instance", "attempt"}}     | {"id", "waited": {"seconds", "waiting", "since_s"}}     |
| {"id", "open": run_id}                                  | {"id", "open": requests of the run that are under way}  |
| {"id", "figures": true}                                 | {"id", "figures": `Router.figures`}                     |

How a question is answered stands in `router`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO, cast

import orjson
import structlog
from pydantic import ValidationError

from pop.confine import protect_keys
from pop.errors import ConfigError, PopError
from pop.models.answers import AnswerStore
from pop.models.callers import Callers
from pop.models.catalogue import Catalogue
from pop.models.keys import Keys, RedactingStream, redacting
from pop.models.keysfile import find_keys_file
from pop.models.providers import Provider, Setup, kinds, open_provider
from pop.models.providers.replay import ReplayProvider
from pop.models.request import ModelError, ModelRequest, Origin, read_line
from pop.models.router import Router
from pop.models.tokens import estimate_tokens
from pop.settings import Root, Settings, load_settings

log = structlog.get_logger()

MAX_LINE_BYTES = 64 * 2**20
MAX_OPEN_BYTES = 128 * 2**20  # questions of one connection
FRESH_S = 0.02  # between two looks at pop.toml and the keys file
LOOK_S = 5.0  # between two looks whether .pop is still there
LAST_CALLS_S = 60.0  # how long requests that were sent may go on when it is not
FAREWELL_S = 4.0  # how long requests that were sent may go on when the daemon ends


class _Room:
    """Bytes of questions that one connection has open: no more is read before some are answered."""

    def __init__(self) -> None:
        self._taken_bytes = 0
        self._freed = asyncio.Event()

    async def take(self, size_bytes: int) -> None:
        self._taken_bytes += size_bytes
        while self._taken_bytes > MAX_OPEN_BYTES and self._taken_bytes > size_bytes:
            self._freed.clear()
            await self._freed.wait()

    def give_back(self, size_bytes: int) -> None:
        self._taken_bytes -= size_bytes
        self._freed.set()


class Gateway:
    """The settings as they stand now, the providers, and the socket's side of the router."""

    def __init__(self, root: Root, keys: Keys, store: AnswerStore) -> None:
        self._root = root
        self._keys = keys
        self._providers: dict[str, asyncio.Future[Provider]] = {}
        self._settings_mtime_ns = -1
        self._fresh_until = 0.0
        self._take(load_settings(root))
        self._callers: Callers | None = None
        self._open_callers()
        self.router = Router(
            store,
            catalogue=self._fresh_catalogue,
            budget=lambda: self._settings.budget,
            provider=self._provider,
            clean=keys.redact_answer,
        )

    def _take(self, settings: Settings) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings, self._keys.environ)
        self._keys.learn(settings)

    def _open_callers(self) -> None:
        """Processes are counted when the gateway starts; with changed keys they are others."""
        if self._callers is not None:
            self._callers.retire()
        count = self._settings.gateway.processes
        self._callers = Callers(count, Setup(self._keys.environ, self._root.path)) if count else None

    def _fresh_catalogue(self) -> Catalogue:
        """Take a changed pop.toml or keys file into account; a broken one leaves things as they are."""
        now = time.monotonic()
        if now < self._fresh_until:
            return self._catalogue
        self._fresh_until = now + FRESH_S
        with contextlib.suppress(OSError, PopError):
            changed = self._keys.fresh()
            if changed:
                self._providers.clear()
                self._open_callers()
            mtime_ns = os.stat(self._root.settings_file).st_mtime_ns
            if changed or mtime_ns != self._settings_mtime_ns:
                self._settings_mtime_ns = mtime_ns
                self._take(load_settings(self._root))
        return self._catalogue

    async def _provider(self, kind: str) -> Provider:
        """The provider of a kind; its module is loaded in a thread, because an SDK takes most of a second."""
        if self._callers and not kinds()[kind].local and kind != "command":  # its programs need no second process
            return self._callers.provider(kind)
        opening = self._providers.get(kind)
        if opening is None:
            setup = Setup(self._keys.environ, self._root.path)
            opening = self._providers[kind] = asyncio.ensure_future(asyncio.to_thread(open_provider, kind, setup))
        try:
            return await asyncio.shield(opening)
        except ConfigError as error:
            self._providers.pop(kind, None)
            raise ModelError("bad_input", error.message, where=error.where, hint=error.hint) from None

    async def look_at_settings(self) -> None:
        """While anybody waits, once a second: limits that were raised let those go on."""
        while True:
            await self.router.somebody_waits.wait()
            await asyncio.sleep(1.0)
            try:
                self.router.refresh()
            except Exception:
                log.exception("gateway.bug")

    # -- the socket --------------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; every line is a question of its own."""
        tasks: set[asyncio.Task[None]] = set()
        room = _Room()
        origins: dict[tuple[str, str, int], Origin] = {}
        with contextlib.suppress(ConnectionError, ValueError, asyncio.CancelledError):
            while line := await reader.readline():
                await room.take(len(line))
                task = asyncio.create_task(self._serve_line(line, writer, origins, room))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()
        for origin in origins.values():
            self.router.forget_waits(origin)
        writer.close()

    async def _serve_line(
        self, line: bytes, writer: asyncio.StreamWriter, origins: dict[Any, Origin], room: _Room
    ) -> None:
        reply = await self._reply(line, origins)
        room.give_back(len(line))
        writer.write(orjson.dumps(reply) + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _reply(self, line: bytes, origins: dict[Any, Origin]) -> dict[str, Any]:
        number: Any = None
        try:
            value = read_line(line)
            number = value["id"]
            if "request" not in value:
                return {"id": number, **await self._tell(value)}
            request, origin = ModelRequest.model_validate(value["request"]), Origin.model_validate(value["origin"])
            origins[origin.run_id, origin.instance, origin.attempt] = origin
            answer = await self.router.ask(request, origin)
            return {"id": number, "answer": orjson.Fragment(answer.model_dump_json())}
        except ModelError as error:
            return {"id": number, "error": self._redacted(error)}
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            return {"id": number, "error": self._redacted(ModelError("bug", f"not a request: {error}"))}
        except Exception as error:
            log.exception("gateway.bug")
            return {"id": number, "error": self._redacted(ModelError("bug", f"{type(error).__name__}: {error}"))}

    async def _tell(self, value: dict[str, Any]) -> dict[str, Any]:
        """Answers to the further questions of the module's table."""
        if "count" in value:
            tokens, exact = await self._count(**value["count"])
            return {"count": {"tokens": tokens, "exact": exact}}
        if "waited" in value:
            about = value["waited"]
            return {"waited": self.router.waited(about["run_id"], about["instance"], about["attempt"])}
        if "open" in value:
            return {"open": self.router.open_calls(value["open"])}
        if "figures" in value:
            return {"figures": self.router.figures()}
        raise KeyError("request")

    async def _count(self, text: str, model: str, asked: str = "", instance: str = "") -> tuple[int, bool]:
        """Tokens for the first model behind a name; under a replay as they were counted then, else by plain estimate."""
        try:
            entry = self._fresh_catalogue().resolve(model)[0]
        except ConfigError:
            return self.router.tokens.count(text, model)
        if entry.provider == "builtin":  # which has no tokens of its own to learn from
            return estimate_tokens(text), False
        if entry.provider != "replay":
            return self.router.tokens.count(text, entry.model)
        provider = await self._provider("replay")
        assert isinstance(provider, ReplayProvider)
        found = await asyncio.to_thread(provider.counted, entry.model, instance, asked or model, text)
        return found or (estimate_tokens(text), False)

    def _redacted(self, error: ModelError) -> dict[str, Any]:
        clean = self._keys.redact_error(error)
        fields = {"code": clean.code, "message": clean.message, "where": clean.where, "hint": clean.hint}
        return {"error_class": clean.error_class, **fields, "tries": [one.model_dump() for one in clean.tries]}


async def _serve(root: Root, socket_path: Path, keys: Keys) -> None:
    durable = load_settings(root).daemon.durability == "safe"
    store = AnswerStore(root.machine_room / "answers.db", calls=root.calls, durable=durable)
    gateway = Gateway(root, keys, store)
    server = await asyncio.start_unix_server(gateway.serve, path=str(socket_path), limit=MAX_LINE_BYTES, backlog=4096)
    with contextlib.suppress(BrokenPipeError):  # the daemon has just ended
        print("ready", flush=True)
    log.info("gateway.started", pid=os.getpid(), at=time.time())
    looking = asyncio.create_task(gateway.look_at_settings())
    ends = [asyncio.create_task(_parent_gone()), asyncio.create_task(_room_gone(root, socket_path))]
    async with server:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    looking.cancel()
    if ends[1].done() and not ends[0].done():  # the daemon starts another one, which makes everything anew
        log.error("gateway.deleted", why=f"somebody deleted {root.machine_room.name}: answers are lost, sums are not")
        await gateway.router.land_all(LAST_CALLS_S)
        (root.machine_room / "log").mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        await gateway.router.land_all(FAREWELL_S)
    store.close()


async def _room_gone(root: Root, socket_path: Path) -> None:
    """Returns when nobody can find the gateway or its store any more: ``.pop`` was deleted."""
    needed = (socket_path, root.machine_room / "answers.db")
    missing = 0
    while missing < 2:  # a damaged store is away for an instant
        await asyncio.sleep(LOOK_S)
        missing = 0 if all(map(os.path.lexists, needed)) else missing + 1


async def _parent_gone() -> None:
    """Returns when standard input closes: the daemon has ended."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()

    def on_input() -> None:
        if not os.read(0, 1024) and not gone.done():
            gone.set_result(None)

    loop.add_reader(0, on_input)
    await gone
    loop.remove_reader(0)


def _log_without(keys: Keys) -> None:
    """Logs and tracebacks go to standard error without any key."""
    sys.stderr = cast(TextIO, RedactingStream(keys, sys.stderr))
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            redacting(keys),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def main() -> None:
    """Entry point, started by the supervisor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--socket", required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    root = Root(Path(arguments.root))
    try:
        settings = load_settings(root)
        protect_keys()
        keys = Keys(os.environ, find_keys_file(settings))
        _log_without(keys)
        asyncio.run(_serve(root, Path(arguments.socket), keys))
    except PopError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    os._exit(0)


if __name__ == "__main__":
    main()
