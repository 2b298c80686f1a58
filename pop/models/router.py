"""One call's way to a model and back: store, reuse, fallback, deadline, permits, circuit, budget, retries, ledger.

    ask -> the store, by the answer's key; or, where `reuse` allows it, by what was asked
        -> one flight for all who ask the same at once
        -> the models of the name's rung, one after the other while the next one can cure the error
            -> at most `tries` tries before one deadline, which stands still while a permit is waited for
                -> permit of the model, permit of its endpoint, circuit, budget, intent
                -> the provider
        -> the answer and the ledger's lines are durable before the answer is handed out

A request that was sent is waited for even when its worker is gone: it has been paid for, and the next attempt finds its
answer in the store. One that was not sent yet is given up when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
import tenacity

from pop.errors import ConfigError
from pop.events import rfc3339
from pop.models import forms
from pop.models.answers import AnswerStore, NotStored
from pop.models.budgets import Budgets, NoRoomYet, Reservation
from pop.models.calls import CallLine
from pop.models.catalogue import Catalogue, ModelEntry
from pop.models.circuit import Circuit
from pop.models.flights import Deadline, Flight, Wait, Waited
from pop.models.limits import Lane, Permit
from pop.models.prices import cost_usd
from pop.models.providers import Provider
from pop.models.request import (
    Answer,
    ModelError,
    ModelRequest,
    Origin,
    Tokens,
    Try,
    answer_key,
    request_hash,
)
from pop.models.tokens import TokenCounter, weigh
from pop.records import BudgetLimit
from pop.settings import BudgetSettings

log = structlog.get_logger()

BASE_S, CAP_S = 0.5, 30.0
NEXT_MODEL = frozenset({"unavailable", "rate_limited", "auth"})  # classes that another model can cure
NEXT_MODEL_CODES = frozenset({"insufficient-quota", "context-length", "not-found", "no-program"})  # of other classes
REFUSALS = ("refusal", "content_filter")
TYPICAL_OUTPUT = 500.0  # tokens, until a model's own answers say more
_COUNTED = tuple(Tokens.model_fields)
MOST_OUTPUT = 200_000  # no server's count of one answer moves the estimate further


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a call will use, rather too much, and its price."""

    tokens: Tokens
    cost_usd: float | None
    prices: str | None


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
        self._budget = budget
        self._provider = provider
        self._clean = clean
        self._budgets = Budgets(store.totals)
        self._standing: tuple[BudgetSettings | None, list[BudgetLimit]] = (None, [])  # the limits of pop.toml
        self.tokens = TokenCounter(store)
        self._lanes: dict[str, Lane] = {}
        self._limits: dict[str, tuple[Any, ...]] = {}  # of the lanes
        self._circuits: dict[str, Circuit] = {}
        self._typical: dict[str, float] = {}
        self._flights: set[Flight] = set()
        self._by_key: dict[str, Flight] = {}  # those that may be joined
        self._by_question: dict[str, Flight] = {}
        self._waited: dict[tuple[str, str, int], Waited] = {}
        self._places = asyncio.Semaphore(max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))  # connections
        self._rng = random.Random()
        self.somebody_waits = asyncio.Event()  # or did within the last second

    # -- asking ------------------------------------------------------------------------------------------------

    async def ask(self, request: ModelRequest, origin: Origin) -> Answer:
        """The answer to one question, from the store where it is there.

        Raises:
            ModelError: No model of the asked name could answer; its `tries` tell what was tried.
        """
        try:
            return await self._ask(request, origin)
        except NotStored as error:
            raise _not_stored(error) from None

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
        self._configure(rung)
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
            raise self._with_tries(_not_stored(error), flight) from None
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
                answer, line = await self._before_its_deadline(flight, entry, last)
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
                    tokens=Tokens(**_counted(answer)), cost_usd=answer.cost_usd)
            )  # fmt: skip
            self._note(flight, line.model_copy(update={"outcome": "refused"}))
        raise AssertionError("a name stands for at least one model")

    async def _before_its_deadline(self, flight: Flight, entry: ModelEntry, last: bool) -> tuple[Answer, CallLine]:
        """All tries of one model, within `timeout_s` without the time that permits were waited for."""
        flight.model = entry.name
        with self._waiting(flight):  # loading an SDK is nobody's lost time
            provider = await self._provider(entry.provider)
        try:
            async with asyncio.timeout(None) as timeout:
                deadline = Deadline(timeout, entry.timeout_s)
                return await self._with_retries(flight, entry, provider, deadline, last)
        except TimeoutError:
            message = f"no answer within {entry.timeout_s:g} s, all tries together"
            hint = f"raise `timeout_s` of {entry.name!r} in pop.toml, or ask for less"
            raise ModelError(
                "unavailable", message, where=f"model {entry.name!r}", hint=hint, code="deadline"
            ) from None

    async def _with_retries(
        self, flight: Flight, entry: ModelEntry, provider: Provider, deadline: Deadline, last: bool
    ) -> tuple[Answer, CallLine]:
        """The first try is made without the machinery of those that follow: nearly all calls need no second one."""
        try:
            return await self._try(flight, entry, provider, deadline, last)
        except ModelError as error:
            if not error.curable:
                raise
            failed: list[ModelError] = [error]

        def is_over(state: tenacity.RetryCallState) -> bool:
            return not flight.askers or state.upcoming_sleep > deadline.left_s

        async def attempt() -> tuple[Answer, CallLine]:
            if failed:  # the first one was made above
                raise failed.pop()
            return await self._try(flight, entry, provider, deadline, last)

        retrying = tenacity.AsyncRetrying(
            stop=lambda state: state.attempt_number >= entry.tries or is_over(state),
            wait=self._wait_s,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, ModelError) and error.curable),
            reraise=True,
        )
        return await retrying(attempt)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        """Full jitter below a doubling bound, or what the server asked for."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ModelError) and error.retry_after_s is not None:
            return error.retry_after_s + self._rng.uniform(0, BASE_S)
        return self._rng.uniform(0, min(CAP_S, BASE_S * 2.0**state.attempt_number))

    # -- one try -----------------------------------------------------------------------------------------------

    async def _try(
        self, flight: Flight, entry: ModelEntry, provider: Provider, deadline: Deadline, last: bool
    ) -> tuple[Answer, CallLine]:
        """One request to one model, with all that bounds it."""
        expected = self._expected(flight.request, entry)
        circuit = self._circuit(entry)
        while True:
            circuit.check(deadline.left_s if last else 0.0)  # before anybody waits for a permit
            permits = await self._permits(flight, entry, deadline, expected.tokens)
            try:
                await circuit.before(deadline.left_s if last else 0.0)
                try:
                    await self._store.ready()
                    at = rfc3339(time.time())  # the day of the budget is that of the ledger
                    reservation = self._reserve(flight, entry, expected, at)
                    line = self._line(flight, entry, expected, at)
                    return await self._send(flight, entry, provider, line, reservation, permits, circuit)
                except NoRoomYet:
                    circuit.left()
                except BaseException:
                    circuit.left()
                    raise
            finally:
                self._places.release()
                for permit in permits:
                    permit.end()
            with self._waiting(flight, deadline):
                await self._budgets.room()

    async def _send(
        self,
        flight: Flight,
        entry: ModelEntry,
        provider: Provider,
        line: CallLine,
        reservation: Reservation,
        permits: list[Permit],
        circuit: Circuit,
    ) -> tuple[Answer, CallLine]:
        try:
            self._store.begin(line)
        except NotStored as error:
            reservation.release()
            raise _not_stored(error) from None
        began, flight.sent = time.perf_counter(), True
        try:
            answer = await forms.ask(provider, flight.request, entry, flight.origin, self._store)
        except ModelError as error:
            self._failed(flight, entry, line, error, _ms(began), reservation, permits, circuit)
            raise
        except asyncio.CancelledError:
            lost = ModelError("unavailable", "given up while the provider was at work", tokens=Tokens(**_counted(line)))
            self._failed(flight, entry, line, lost, _ms(began), reservation, permits, circuit)
            raise
        except BaseException as error:  # a mistake in a provider: its call is not left open
            bug = ModelError("bug", f"{type(error).__name__}: {error}", tokens=Tokens(**_counted(line)))
            self._failed(flight, entry, line, bug, _ms(began), reservation, permits, circuit)
            raise
        finally:
            flight.sent = False
        return self._answered(flight, entry, line, answer, reservation, permits, circuit)

    def _answered(
        self,
        flight: Flight,
        entry: ModelEntry,
        line: CallLine,
        answer: Answer,
        reservation: Reservation,
        permits: list[Permit],
        circuit: Circuit,
    ) -> tuple[Answer, CallLine]:
        answer, more = self._clean(answer), dict[str, Any]()  # before the ledger's line is made of it
        if answer.cost_usd is None:
            more["cost_usd"], more["prices"] = cost_usd(answer, entry, answer.provider_model)
        if entry.provider == "replay":  # paid for when it was recorded
            more["cached"] = True
        answer = answer.model_copy(update=more) if more else answer
        circuit.succeeded()
        if entry.provider == "replay":
            reservation.release()
        else:
            reservation.settle(answer, answer.cost_usd)
        for permit in permits:
            permit.settle(answer.input_tokens + answer.output_tokens)
            permit.heard(answer.rate, limited=False)
        if not answer.estimated:
            self._learn(flight.request, entry, answer)
        return answer, line.model_copy(
            update={
                **_counted(answer),
                "outcome": "answer",
                "billed": not answer.cached,
                "provider_model": answer.provider_model,
                "cost_usd": answer.cost_usd,
                "prices": answer.prices,
                "ms": answer.ms,
            }
        )

    def _failed(
        self,
        flight: Flight,
        entry: ModelEntry,
        line: CallLine,
        error: ModelError,
        ms: float,
        reservation: Reservation,
        permits: list[Permit],
        circuit: Circuit,
    ) -> None:
        """Settle what a request cost that brought no answer: nothing, what the provider said, or our estimate."""
        counted = error.tokens
        if counted and counted.estimated and not counted.input_tokens + counted.output_tokens:
            counted = Tokens(**_counted(line))
        usd, prices = cost_usd(counted, entry, entry.model) if counted else (0.0, None)
        if counted:
            reservation.settle(counted, usd)
        else:
            reservation.release()
        limited = error.error_class == "rate_limited"
        for permit in permits:
            permit.settle(counted.input_tokens + counted.output_tokens if counted else 0)
            permit.heard(error.rate, limited=limited)
        if error.error_class == "unavailable":
            circuit.failed()
        else:
            circuit.succeeded()  # it answered, though not well
        tokens = counted or Tokens()
        flight.tries.append(
            Try(model=entry.name, error_class=error.error_class, message=error.message[:500], ms=ms,
                billed=bool(counted), tokens=tokens, cost_usd=usd if counted else None)
        )  # fmt: skip
        about = {"outcome": error.error_class, "billed": bool(counted), "ms": ms}
        self._note(flight, line.model_copy(update={**about, **tokens.model_dump(), "cost_usd": usd, "prices": prices}))

    def _note(self, flight: Flight, line: CallLine) -> None:
        """Write a line for the ledger at once; the flight ends only when it is durable."""
        flight.notes.append(asyncio.ensure_future(self._store.note([line])))

    def _line(self, flight: Flight, entry: ModelEntry, expected: _Expected, at: str) -> CallLine:
        origin = flight.origin
        return CallLine(
            id=f"{self._rng.getrandbits(64):016x}",
            at=at,
            run_id=origin.run_id,
            pipeline=origin.pipeline,
            step=origin.step,
            instance=origin.instance,
            attempt=origin.attempt,
            key=flight.key,
            model=entry.name,
            provider=entry.provider,
            provider_model=entry.model,
            outcome="lost",
            billed=True,
            **_counted(expected.tokens),
            cost_usd=expected.cost_usd,
            prices=expected.prices,
        )

    # -- what bounds it ----------------------------------------------------------------------------------------

    async def _permits(self, flight: Flight, entry: ModelEntry, deadline: Deadline, estimate: Tokens) -> list[Permit]:
        """The permit of the model, then that of its endpoint, and a place; meanwhile the deadline stands still."""
        tokens = estimate.input_tokens + estimate.output_tokens
        permits: list[Permit] = []
        try:
            with self._waiting(flight, deadline):
                for lane in self._lanes_of(entry):
                    permits.append(await lane.permit(flight.origin.run_id, tokens))
                await self._places.acquire()
            return permits
        except BaseException:
            for permit in permits:
                permit.end()
            raise

    def _waiting(self, flight: Flight, deadline: Deadline | None = None) -> Wait:
        self.somebody_waits.set()
        return Wait(flight, deadline)

    def _lanes_of(self, entry: ModelEntry) -> list[Lane]:
        return [self._lanes.get(name) or self._lane(name, limits) for name, limits in _limits(entry)]

    def _lane(self, name: str, limits: tuple[Any, ...]) -> Lane:
        """The lane, with these limits from now on."""
        concurrency, requests, tokens = limits
        about: dict[str, Any] = {
            "concurrency": concurrency, "requests_per_minute": requests, "tokens_per_minute": tokens
        }  # fmt: skip
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, **about)
        elif self._limits[name] != limits:
            lane.configure(**about)
        self._limits[name] = limits
        return lane

    def refresh(self) -> None:
        """Take changed limits into account for those who wait already; a broken pop.toml changes nothing."""
        catalogue = self._catalogue()
        names = {flight.model for flight in self._flights if flight.waiting}
        if not names:
            self.somebody_waits.clear()
        for name in names:
            with contextlib.suppress(ConfigError):
                self._configure(catalogue.resolve(name))

    def _configure(self, entries: Iterable[ModelEntry]) -> None:
        for entry in entries:
            for name, limits in _limits(entry):
                self._lane(name, limits)

    def _circuit(self, entry: ModelEntry) -> Circuit:
        name = entry.shared.name if entry.base_url or entry.provider == "openai" else f"{entry.provider} {entry.model}"
        if name not in self._circuits:
            self._circuits[name] = Circuit(name)
        return self._circuits[name]

    def _expected(self, request: ModelRequest, entry: ModelEntry) -> _Expected:
        text = "".join(message.content for message in request.messages)
        most = request.max_output_tokens or entry.max_output_tokens
        typical = self._typical.get(entry.identity, TYPICAL_OUTPUT)
        tokens = Tokens(
            input_tokens=self.tokens.count(text, entry.model)[0] + 4 * len(request.messages),
            output_tokens=most or int(typical),
            estimated=True,
        )
        return _Expected(tokens, *cost_usd(tokens, entry, entry.model))

    def _learn(self, request: ModelRequest, entry: ModelEntry, answer: Answer) -> None:
        before = self._typical.get(entry.identity, TYPICAL_OUTPUT)
        self._typical[entry.identity] = before + 0.1 * (min(answer.output_tokens, MOST_OUTPUT) - before)
        self.tokens.learn(entry.model, sum(weigh(message.content) for message in request.messages), answer.input_tokens)

    def _reserve(self, flight: Flight, entry: ModelEntry, expected: _Expected, at: str) -> Reservation:
        settings = self._budget()
        if settings is not self._standing[0]:
            self._standing = settings, _limits_of(settings)
        limits = [*flight.origin.budgets, *self._standing[1]]
        if entry.provider == "replay":
            limits = []  # it was paid for when it was recorded
        try:
            reservation = self._budgets.reserve(
                flight.origin, limits, expected.tokens, expected.cost_usd, at[:10], model=entry.name
            )
        except NoRoomYet:
            raise
        except ModelError as error:
            raise self._with_tries(error, flight) from None
        for warning in reservation.warnings:
            flight.warnings.append(warning)
            log.warning("budget.soft", run=flight.origin.run_id, warning=warning)
            self._store.warn(flight.origin.run_id, flight.origin.instance, warning, at)
        return reservation

    # -- figures -----------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What goes on now: lanes by name (`Lane.figures`), circuits that are not closed, flights and open calls."""
        return {
            "lanes": {name: lane.figures() for name, lane in self._lanes.items()},
            "circuits": {name: circuit.state for name, circuit in self._circuits.items()},
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


def _limits(entry: ModelEntry) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The lanes that bound a model, and their limits: its own, and its endpoint's where that has any."""
    yield f"model {entry.name}", (entry.concurrency, entry.requests_per_minute, entry.tokens_per_minute)
    shared = entry.shared
    limits = (shared.concurrency, shared.requests_per_minute, shared.tokens_per_minute)
    if any(limits):
        yield f"provider {shared.name}", limits


def _from_store(answer: Answer) -> Answer:
    return answer.model_copy(update={"cached": True, "warnings": [], "tries": []})


def _is_its_own(error: ModelError, origin: Origin, other: Origin) -> bool:
    """Whether only a budget of the one who asked first stood in the way."""
    same = (origin.run_id, origin.step) == (other.run_id, other.step)
    return error.error_class == "budget" and error.code in ("budget", "no-price") and not same


def _not_stored(error: NotStored) -> ModelError:
    return ModelError("unavailable", error.message, where=error.where, hint=error.hint, code=error.code)


def _another_may(error: ModelError) -> bool:
    return error.error_class in NEXT_MODEL or error.code in NEXT_MODEL_CODES


def _shared_key(rung: tuple[ModelEntry, ...], asked_sha256: str, n: int) -> str:
    """What `reuse` looks for: the same question to the same models, for the same how-manieth time."""
    parts = (*(entry.shared_identity for entry in rung), asked_sha256, str(n))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _limits_of(settings: BudgetSettings) -> list[BudgetLimit]:
    found = []
    for soft, table in ((False, settings), (True, settings.warn)):
        for name, limit in table.model_dump(exclude={"warn"}, exclude_none=True).items():
            found.append(BudgetLimit(name=name, limit=limit, source="pop.toml", soft=soft))
    return found


def _counted(tokens: Tokens | CallLine) -> dict[str, Any]:
    return {name: getattr(tokens, name) for name in _COUNTED}


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)
