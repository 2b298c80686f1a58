"""One model's answer: tries before one deadline, each with all that bounds it, and the books put right after it.

the deadline, which stands still while a permit is waited for
    -> at most `tries` tries
        -> permit of the model, permit of its endpoint, circuit, budget, intent
        -> the provider
        -> what it cost takes the place of what was reserved; permits and circuit hear how it went
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
import tenacity

from pop.events import rfc3339
from pop.models import forms
from pop.models.answers import AnswerStore
from pop.models.answerwriter import NotStored
from pop.models.budgets import Budgets, NoRoomYet, Reservation
from pop.models.calls import CallLine
from pop.models.circuit import Circuit
from pop.models.entries import ModelEntry
from pop.models.expected import Expectations, Expected
from pop.models.flights import Deadline, Flight
from pop.models.lanes import Lanes
from pop.models.limits import Permit
from pop.models.prices import cost_usd
from pop.models.providers import Provider
from pop.models.request import Answer, ModelError, Tokens, Try
from pop.models.tokens import TokenCounter
from pop.records import BudgetLimit
from pop.settings import BudgetSettings

log = structlog.get_logger()

BASE_S, CAP_S = 0.5, 30.0
_COUNTED = tuple(Tokens.model_fields)


@dataclass(slots=True)
class _Call:
    """One request to a provider, and what it holds."""

    flight: Flight
    entry: ModelEntry
    line: CallLine
    reservation: Reservation
    permits: list[Permit]
    circuit: Circuit


class Tries:
    """Asks one model for one answer. Used from the gateway's event loop; its arguments are those of `Router`."""

    def __init__(
        self,
        store: AnswerStore,
        *,
        budget: Callable[[], BudgetSettings],
        provider: Callable[[str], Awaitable[Provider]],
        clean: Callable[[Answer], Answer],
        tokens: TokenCounter,
    ) -> None:
        self.lanes = Lanes()
        self._store = store
        self._budget = budget
        self._provider = provider
        self._clean = clean
        self._budgets = Budgets(store.totals)
        self._standing: tuple[BudgetSettings | None, list[BudgetLimit]] = (None, [])  # the limits of pop.toml
        self._expectations = Expectations(tokens)
        self._circuits: dict[str, Circuit] = {}
        self._rng = random.Random()

    async def answer(self, flight: Flight, entry: ModelEntry, last: bool) -> tuple[Answer, CallLine]:
        """The model's answer and its line for the ledger, not written yet; the lines of failed tries are.

        All tries are made within `timeout_s`, without the time that permits were waited for.

        Args:
            last: No other model would be asked: so it is worth waiting for a circuit.

        Raises:
            ModelError: The last try's; what all of them told stands in `flight.tries`.
        """
        flight.model = entry.name
        with self.lanes.waiting(flight):  # loading an SDK is nobody's lost time
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
        expected = self._expectations.of(flight.request, entry)
        tokens = expected.tokens.input_tokens + expected.tokens.output_tokens
        circuit = self._circuit(entry)
        while True:
            circuit.check(deadline.left_s if last else 0.0)  # before anybody waits for a permit
            permits = await self.lanes.permits(flight, entry, deadline, tokens)
            try:
                await circuit.before(deadline.left_s if last else 0.0)
                try:
                    await self._store.ready()
                    at = rfc3339(time.time())  # the day of the budget is that of the ledger
                    reservation = self._reserve(flight, entry, expected, at)
                    line = self._line(flight, entry, expected, at)
                    return await self._send(provider, _Call(flight, entry, line, reservation, permits, circuit))
                except NoRoomYet:
                    circuit.left()
                except BaseException:
                    circuit.left()
                    raise
            finally:
                self.lanes.end(permits)
            with self.lanes.waiting(flight, deadline):
                await self._budgets.room()

    def _reserve(self, flight: Flight, entry: ModelEntry, expected: Expected, at: str) -> Reservation:
        settings = self._budget()
        if settings is not self._standing[0]:
            self._standing = settings, _limits_of(settings)
        limits = [*flight.origin.budgets, *self._standing[1]]
        if entry.provider == "replay":
            limits = []  # it was paid for when it was recorded
        reservation = self._budgets.reserve(
            flight.origin, limits, expected.tokens, expected.cost_usd, at[:10], model=entry.name
        )
        for warning in reservation.warnings:
            flight.warnings.append(warning)
            log.warning("budget.soft", run=flight.origin.run_id, warning=warning)
            self._store.warn(flight.origin.run_id, flight.origin.instance, warning, at)
        return reservation

    def _line(self, flight: Flight, entry: ModelEntry, expected: Expected, at: str) -> CallLine:
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
            **counted(expected.tokens),
            cost_usd=expected.cost_usd,
            prices=expected.prices,
        )

    async def _send(self, provider: Provider, call: _Call) -> tuple[Answer, CallLine]:
        flight = call.flight
        try:
            self._store.begin(call.line)
        except NotStored as error:
            call.reservation.release()
            raise not_stored(error) from None
        began, flight.sent = time.perf_counter(), True
        try:
            answer = await forms.ask(provider, flight.request, call.entry, flight.origin, self._store)
        except ModelError as error:
            self._failed(call, error, began)
            raise
        except asyncio.CancelledError:
            why = "given up while the provider was at work"
            self._failed(call, ModelError("unavailable", why, tokens=Tokens(**counted(call.line))), began)
            raise
        except BaseException as error:  # a mistake in a provider: its call is not left open
            why = f"{type(error).__name__}: {error}"
            self._failed(call, ModelError("bug", why, tokens=Tokens(**counted(call.line))), began)
            raise
        finally:
            flight.sent = False
        return self._answered(call, answer)

    def _answered(self, call: _Call, answer: Answer) -> tuple[Answer, CallLine]:
        entry = call.entry
        answer, more = self._clean(answer), dict[str, Any]()  # before the ledger's line is made of it
        if answer.cost_usd is None:
            more["cost_usd"], more["prices"] = cost_usd(answer, entry, answer.provider_model)
        if entry.provider == "replay":  # paid for when it was recorded
            more["cached"] = True
        answer = answer.model_copy(update=more) if more else answer
        call.circuit.succeeded()
        if entry.provider == "replay":
            call.reservation.release()
        else:
            call.reservation.settle(answer, answer.cost_usd)
        for permit in call.permits:
            permit.settle(answer.input_tokens + answer.output_tokens)
            permit.heard(answer.rate, limited=False)
        if not answer.estimated:
            self._expectations.learn(call.flight.request, entry, answer)
        return answer, call.line.model_copy(
            update={
                **counted(answer),
                "outcome": "answer",
                "billed": not answer.cached,
                "provider_model": answer.provider_model,
                "cost_usd": answer.cost_usd,
                "prices": answer.prices,
                "ms": answer.ms,
            }
        )

    def _failed(self, call: _Call, error: ModelError, began: float) -> None:
        """Settle what a request cost that brought no answer: nothing, what the provider said, or our estimate."""
        entry, used, ms = call.entry, error.tokens, round((time.perf_counter() - began) * 1000, 3)
        if used and used.estimated and not used.input_tokens + used.output_tokens:
            used = Tokens(**counted(call.line))
        usd, prices = cost_usd(used, entry, entry.model) if used else (0.0, None)
        if used:
            call.reservation.settle(used, usd)
        else:
            call.reservation.release()
        limited = error.error_class == "rate_limited"
        for permit in call.permits:
            permit.settle(used.input_tokens + used.output_tokens if used else 0)
            permit.heard(error.rate, limited=limited)
        if error.error_class == "unavailable":
            call.circuit.failed()
        else:
            call.circuit.succeeded()  # it answered, though not well
        tokens = used or Tokens()
        call.flight.tries.append(
            Try(model=entry.name, error_class=error.error_class, message=error.message[:500], ms=ms,
                billed=bool(used), tokens=tokens, cost_usd=usd if used else None)
        )  # fmt: skip
        about = {"outcome": error.error_class, "billed": bool(used), "ms": ms}
        self.note(
            call.flight,
            call.line.model_copy(update={**about, **tokens.model_dump(), "cost_usd": usd, "prices": prices}),
        )

    def note(self, flight: Flight, line: CallLine) -> None:
        """Write a line for the ledger at once; the flight ends only when it is durable."""
        flight.notes.append(asyncio.ensure_future(self._store.note([line])))

    def _circuit(self, entry: ModelEntry) -> Circuit:
        name = entry.shared.name if entry.base_url or entry.provider == "openai" else f"{entry.provider} {entry.model}"
        if name not in self._circuits:
            self._circuits[name] = Circuit(name)
        return self._circuits[name]

    def circuits(self) -> dict[str, str]:
        """By the name of the endpoint: `Circuit.state`."""
        return {name: circuit.state for name, circuit in self._circuits.items()}


def not_stored(error: NotStored) -> ModelError:
    """What an asker is told when the store takes nothing."""
    return ModelError("unavailable", error.message, where=error.where, hint=error.hint, code=error.code)


def _limits_of(settings: BudgetSettings) -> list[BudgetLimit]:
    found = []
    for soft, table in ((False, settings), (True, settings.warn)):
        for name, limit in table.model_dump(exclude={"warn"}, exclude_none=True).items():
            found.append(BudgetLimit(name=name, limit=limit, source="pop.toml", soft=soft))
    return found


def counted(tokens: Tokens | CallLine) -> dict[str, Any]:
    """The counts alone, as keywords."""
    return {name: getattr(tokens, name) for name in _COUNTED}
