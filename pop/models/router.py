"""One call's way to a model and back: store, reuse, flights, fallback, ledger. What one model is asked: `tries`.

    ask -> the store, by the answer's key; or, where `reuse` allows it, by what was asked
        -> one flight for all who ask the same at once
        -> the models of the name's rung, one after the other while the next one can cure the error
            -> its tries, before one deadline
        -> the answer and the ledger's lines are durable before the answer is handed out

A request that was sent is waited for even when its worker is gone: it has been paid for, and the next attempt finds its
answer in the store. One that was not sent yet is given up when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from pop.errors import ConfigError
from pop.models.answers import AnswerStore
from pop.models.answerwriter import NotStored
from pop.models.calls import CallLine
from pop.models.catalogue import Catalogue
from pop.models.entries import ModelEntry
from pop.models.flights import Flight, Waited
from pop.models.providers import Provider
from pop.models.request import Answer, ModelError, ModelRequest, Origin, Tokens, Try, answer_key, request_hash
from pop.models.tokens import TokenCounter
from pop.models.tries import Tries, counted, not_stored
from pop.settings import BudgetSettings

log = structlog.get_logger()

NEXT_MODEL = frozenset({"unavailable", "rate_limited", "auth"})  # classes that another model can cure
NEXT_MODEL_CODES = frozenset({"insufficient-quota", "context-length", "not-found", "no-program"})  # of other classes
REFUSALS = ("refusal", "content_filter")


class Router:
    """Everything between a question and its answer. All calls come from the gateway's event loop.

    Args:
        catalogue: The names as they stand now; it may change between calls.
        provider: Opens or finds the provider of a kind.
        clean: Takes keys out of an answer.
    """

    def __init__(
        self,
        store: AnswerStore,
        *,
        catalogue: Callable[[], Catalogue],
        budget: Callable[[], BudgetSettings],
        provider: Callable[[str], Awaitable[Provider]],
        clean: Callable[[Answer], Answer],
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._clean = clean
        self.tokens = TokenCounter(store)
        self._tries = Tries(store, budget=budget, provider=provider, clean=clean, tokens=self.tokens)
        self._flights: set[Flight] = set()
        self._by_key: dict[str, Flight] = {}  # those that may be joined
        self._by_question: dict[str, Flight] = {}
        self._waited: dict[tuple[str, str, int], Waited] = {}

    @property
    def somebody_waits(self) -> asyncio.Event:
        """Set while a call waits for its permit, or did within the last second: then `refresh` is worth its while."""
        return self._tries.lanes.somebody_waits

    # -- asking ------------------------------------------------------------------------------------------------

    async def ask(self, request: ModelRequest, origin: Origin) -> Answer:
        """The answer to one question, from the store where it is there.

        Raises:
            ModelError: No model of the asked name could answer; its `tries` tell what was tried.
        """
        try:
            return await self._ask(request, origin)
        except NotStored as error:
            raise not_stored(error) from None

    async def _ask(self, request: ModelRequest, origin: Origin) -> Answer:
        asked = request_hash(request)
        key = answer_key(origin, asked)
        while (flight := self._by_key.get(key)) is None:
            known = self._store.get(key)
            if known:
                return _from_store(known)
            if self._store.is_behind:  # its answer may be one that could not be written yet
                await self._store.ready()
                continue
            rung = self._rung(request, origin)
            shared_key = _shared_key(rung, asked, origin.n)
            age_s = request.reuse_s if request.reuse_s is not None else rung[0].reuse_s
            other = None
            if age_s and origin.generation == 1:  # a later one was begun because the answers were bad
                known = self._store.reusable(shared_key, age_s)
                if known:
                    return await self._kept(key, asked, known)
                other = self._by_question.get(shared_key)
            if other is None:
                flight = Flight(origin, request, key, asked, shared_key)
                self._launch(flight, rung)
                break
            try:
                answer = await self._join(other, origin)
            except ModelError as error:
                if not _is_its_own(error, other.origin, origin):
                    raise
            else:
                if answer.finish_reason == "stop":
                    return await self._kept(key, asked, answer)
        return await self._join(flight, origin)

    async def _kept(self, key: str, asked_sha256: str, answer: Answer) -> Answer:
        """An answer that another question was given, kept under this one's own key too: an attempt after a crash finds it."""
        answer = _from_store(answer)
        await self._store.put(key, asked_sha256, None, answer)
        return answer

    def _rung(self, request: ModelRequest, origin: Origin) -> tuple[ModelEntry, ...]:
        try:
            route = self._catalogue().route(request.model)
        except ConfigError as error:
            raise ModelError("bad_input", error.message, where=error.where, hint=error.hint, code=error.code) from None
        rung = route.rung(request.round + origin.generation - 1)
        self._tries.lanes.configure(rung)
        return rung

    def _launch(self, flight: Flight, rung: tuple[ModelEntry, ...]) -> None:
        flight.task = asyncio.create_task(self._fly(flight, rung))
        self._flights.add(flight)
        self._by_key[flight.key] = flight
        self._by_question.setdefault(flight.shared_key, flight)
        flight.task.add_done_callback(lambda _: self._land(flight))

    def _land(self, flight: Flight) -> None:
        self._close(flight)
        self._flights.discard(flight)
        if flight.task and not flight.task.cancelled():
            flight.task.exception()  # looked at, so that nobody complains when no asker is left

    def _close(self, flight: Flight) -> None:
        """Nobody joins it any more."""
        for table, name in ((self._by_key, flight.key), (self._by_question, flight.shared_key)):
            if table.get(name) is flight:
                del table[name]

    async def _join(self, flight: Flight, origin: Origin) -> Answer:
        """Wait for its answer; meanwhile its waits are those of the attempt that asks."""
        assert flight.task is not None
        waited = self._waited.setdefault((origin.run_id, origin.instance, origin.attempt), Waited())
        loop = asyncio.get_running_loop()
        flight.askers.append(waited)
        if flight.waiting:
            waited.begin(loop.time())
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.askers.remove(waited)
            if flight.waiting:
                waited.end(loop.time())
            if not flight.askers and not flight.sent and not flight.task.done():
                self._close(flight)  # who asks from now on begins anew
                flight.task.cancel()

    async def _fly(self, flight: Flight, rung: tuple[ModelEntry, ...]) -> Answer:
        try:
            answer, lines = await self._first_that_answers(flight, rung)
            answer = answer.model_copy(
                update={
                    "key": flight.key,
                    "request_sha256": flight.asked_sha256,
                    "tries": [*flight.tries, *answer.tries],
                    "warnings": [*flight.warnings, *answer.warnings],
                }
            )
            if flight.tries or flight.warnings:  # the answer itself is clean
                answer = self._clean(answer)
            shared_key = flight.shared_key if answer.finish_reason == "stop" else None
            await self._store.put(flight.key, flight.asked_sha256, shared_key, answer, lines)
            return answer
        except NotStored as error:
            raise self._with_tries(not_stored(error), flight) from None
        finally:
            if flight.notes:
                await asyncio.gather(*flight.notes, return_exceptions=True)

    def _with_tries(self, error: ModelError, flight: Flight) -> ModelError:
        error.tries = flight.tries
        return error

    async def _first_that_answers(self, flight: Flight, rung: tuple[ModelEntry, ...]) -> tuple[Answer, list[CallLine]]:
        """Ask the models one after the other, as long as the next one may cure what went wrong with the last."""
        for number, entry in enumerate(rung, 1):
            last = number == len(rung)
            try:
                answer, line = await self._tries.answer(flight, entry, last)
            except ModelError as error:
                self._with_tries(error, flight)
                if last or not flight.askers or not _another_may(error):
                    raise
                log.warning("model.passed_over", model=entry.name, error_class=error.error_class, code=error.code)
                continue
            if last or answer.finish_reason not in REFUSALS:
                return answer, [line]
            log.warning("model.passed_over", model=entry.name, error_class="refused")
            flight.tries.append(
                Try(model=entry.name, error_class="refused", message=answer.text[:500], ms=answer.ms, billed=True,
                    tokens=Tokens(**counted(answer)), cost_usd=answer.cost_usd)
            )  # fmt: skip
            self._tries.note(flight, line.model_copy(update={"outcome": "refused"}))
        raise AssertionError("a name stands for at least one model")

    def refresh(self) -> None:
        """Take changed limits into account for those who wait already; a broken pop.toml changes nothing."""
        catalogue = self._catalogue()
        names = {flight.model for flight in self._flights if flight.waiting}
        if not names:
            self._tries.lanes.somebody_waits.clear()
        for name in names:
            with contextlib.suppress(ConfigError):
                self._tries.lanes.configure(catalogue.resolve(name))

    # -- figures -----------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What goes on now: lanes by name (`Lane.figures`), circuits that are not closed, flights and open calls."""
        return {
            "lanes": self._tries.lanes.figures(),
            "circuits": self._tries.circuits(),
            "flights": len(self._flights),
        }

    def waited(self, run_id: str, instance: str, attempt: int) -> dict[str, Any]:
        """How long an attempt has waited for permits: seconds in all, whether it does now, seconds since it last did."""
        waited = self._waited.get((run_id, instance, attempt))
        if waited is None:
            return {"seconds": 0.0, "waiting": False, "since_s": None}
        now = asyncio.get_running_loop().time()
        running_s = now - waited.began if waited.open else 0.0
        since_s = 0.0 if waited.open else now - waited.ended
        return {"seconds": waited.total_s + running_s, "waiting": waited.open > 0, "since_s": since_s}

    def forget_waits(self, origin: Origin) -> None:
        """The attempt's connection has closed."""
        self._waited.pop((origin.run_id, origin.instance, origin.attempt), None)

    def open_calls(self, run_id: str) -> int:
        """How many requests of a run are under way."""
        return sum(1 for flight in self._flights if flight.origin.run_id == run_id)

    async def land_all(self, patience_s: float) -> None:
        """Wait for the requests that were sent; those that were not are given up."""
        for flight in self._flights:
            if flight.task and not flight.sent:
                flight.task.cancel()
        tasks = [flight.task for flight in self._flights if flight.task]
        if tasks:
            await asyncio.wait(tasks, timeout=patience_s)


def _from_store(answer: Answer) -> Answer:
    return answer.model_copy(update={"cached": True, "warnings": [], "tries": []})


def _is_its_own(error: ModelError, origin: Origin, other: Origin) -> bool:
    """Whether only a budget of the one who asked first stood in the way."""
    same = (origin.run_id, origin.step) == (other.run_id, other.step)
    return error.error_class == "budget" and error.code in ("budget", "no-price") and not same


def _another_may(error: ModelError) -> bool:
    return error.error_class in NEXT_MODEL or error.code in NEXT_MODEL_CODES


def _shared_key(rung: tuple[ModelEntry, ...], asked_sha256: str, n: int) -> str:
    """What `reuse` looks for: the same question to the same models, for the same how-manieth time."""
    parts = (*(entry.shared_identity for entry in rung), asked_sha256, str(n))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
