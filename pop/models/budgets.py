"""Budgets: what may be spent, looked at before each call, so that many workers at once cannot go beyond.

A budget's name is ``<scope>_<unit>``:

| scope    | bounds                                          | unit   | counts                         |
|----------|-------------------------------------------------|--------|--------------------------------|
| step     | one step of one run, all its items              | usd    | USD                            |
| run      | one run                                         | tokens | input and output               |
| pipeline | all runs of a pipeline on this day (UTC)        | calls  | requests that a provider bills |
| day      | everything on this day (UTC)                    |        |                                |

A call reserves its estimate; afterwards the real number takes the estimate's place. `spent + reserved + estimate > limit`
refuses, so a limit is only ever passed by what calls cost beyond their estimates. Nothing here waits or touches a file.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from pop.events import rfc3339
from pop.models.calls import Scope, Sum, nano, usd
from pop.models.request import ModelError, Origin, Tokens
from pop.records import BudgetLimit

Unit = Literal["usd", "tokens", "calls"]
SCOPES = ("step", "run", "pipeline", "day")
MAX_SCOPES = 10_000
LEAST_ROUND_S, LOOK_S = 0.005, 0.0002  # between two rounds of those who wait; the share of each in it
_IDLE_S = 60.0  # by then what was settled stands in the ledger's sums


@dataclass(slots=True)
class _Amount:
    """Calls, tokens, billionths of a USD."""

    calls: int = 0
    tokens: int = 0
    nano_usd: int = 0

    def add(self, other: _Amount, sign: int = 1) -> None:
        self.calls += sign * other.calls
        self.tokens += sign * other.tokens
        self.nano_usd += sign * other.nano_usd

    def of(self, unit: str) -> int:
        return {"usd": self.nano_usd, "tokens": self.tokens, "calls": self.calls}[unit]


@dataclass
class _Account:
    """What is known of one scope; `spent` is None until a budget asks for it."""

    used_at: float
    spent: _Amount | None = None
    reserved: _Amount = field(default_factory=_Amount)
    warned: set[str] = field(default_factory=set)


@dataclass
class Reservation:
    """Room that a call took. End it by `settle` or `release`; what comes after the first of them does nothing.

    Attributes:
        warnings: Sentences on soft budgets that this call went beyond as the first one.
    """

    warnings: list[str] = field(default_factory=list)
    _end: Callable[[_Amount], None] | None = None

    def settle(self, tokens: Tokens, cost_usd: float | None) -> None:
        """The call was made and is counted (None: nobody knows its price, it adds nothing)."""
        self._finish(_Amount(1, tokens.input_tokens + tokens.output_tokens, nano(cost_usd or 0.0)))

    def release(self) -> None:
        """Nobody counts the call."""
        self._finish(_Amount())

    def _finish(self, amount: _Amount) -> None:
        end, self._end = self._end, None
        if end is not None:
            end(amount)


class NoRoomYet(ModelError):
    """Only what calls under way have reserved stands in the way: `Budgets.room` waits until some of them have ended."""


class Budgets:
    """Used from one event loop.

    Args:
        totals_of: What was spent in a scope so far; asked once, when a budget of the scope is first met.
        clock: Unix seconds.
    """

    def __init__(
        self, totals_of: Callable[[Scope], Sum], *, clock: Callable[[], float] = time.time, max_scopes: int = MAX_SCOPES
    ) -> None:
        self._totals_of = totals_of
        self._clock = clock
        self._max_scopes = max_scopes
        self._accounts: OrderedDict[Scope, _Account] = OrderedDict()
        self._waiting: list[asyncio.Future[None]] = []
        self._round: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Scopes in memory."""
        return len(self._accounts)

    def reserve(
        self,
        origin: Origin,
        limits: Sequence[BudgetLimit],
        estimate: Tokens,
        cost_usd: float | None,
        day: str | None = None,
        *,
        model: str = "",
    ) -> Reservation:
        """Take room for one call in all budgets that hold for it, or in none.

        Args:
            estimate: The tokens it will use, rather too many.
            cost_usd: Their price; None when nobody knows it.
            day: ``YYYY-MM-DD``, UTC; today when not given.
            model: Its name, for the message.

        Raises:
            NoRoomYet: It would fit if the calls under way cost less than they reserved.
            ModelError: Class ``budget``; code ``budget`` (it would go beyond) or ``no-price`` (a USD budget cannot be
                kept with a model whose price nobody knows); ``bad_input`` for a budget that does not exist.
        """
        scopes = _scopes(origin, day or _day(int(self._clock() // 86400)))
        asked = _Amount(1, estimate.input_tokens + estimate.output_tokens, nano(cost_usd or 0.0))
        warnings = []
        for limit in sorted(limits, key=lambda limit: limit.soft):  # who is refused is not warned
            scope, unit = _parts(limit)
            account = self._account(scopes[scope])
            spent = self._spent(scopes[scope], account)
            if unit == "usd" and cost_usd is None:
                if not limit.soft:
                    raise _no_price(limit, origin, model)
                continue
            if spent.of(unit) + account.reserved.of(unit) + asked.of(unit) <= _most(limit, unit):
                continue
            if not limit.soft:
                error = _refusal(limit, unit, (spent, account.reserved, asked), origin)
                if spent.of(unit) + asked.of(unit) <= _most(limit, unit):
                    raise NoRoomYet(error.error_class, error.message, where=error.where, hint=error.hint)
                raise error
            text = _warning(limit, scope)
            if text not in account.warned:  # a raised one warns again
                account.warned.add(text)
                warnings.append(text)
        return Reservation(warnings, self._hold(list(scopes.values()), asked))

    async def room(self) -> None:
        """Wait until reservations have ended. The more wait, the rarer the rounds in which they look again."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _ended(self) -> None:
        if self._waiting and self._round is None:
            wait_s = max(LEAST_ROUND_S, LOOK_S * len(self._waiting))
            self._round = asyncio.get_running_loop().call_later(wait_s, self._begin_round)

    def _begin_round(self) -> None:
        self._round, waiting, self._waiting = None, self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def _account(self, scope: Scope) -> _Account:
        account = self._accounts.get(scope)
        if account is None:
            self._make_room()
            account = self._accounts[scope] = _Account(self._clock())
        self._accounts.move_to_end(scope)
        account.used_at = self._clock()
        return account

    def _spent(self, scope: Scope, account: _Account) -> _Amount:
        if account.spent is None:
            total = self._totals_of(scope)
            account.spent = _Amount(total.calls, total.tokens, total.nano_usd)
        return account.spent

    def _make_room(self) -> None:
        """Forget the scopes unused for longest; not one with a call under way, or whose sums may not be written yet."""
        while len(self._accounts) >= self._max_scopes:
            scope, account = next(iter(self._accounts.items()))
            if account.reserved.calls or self._clock() - account.used_at < _IDLE_S:
                return
            del self._accounts[scope]

    def _hold(self, scopes: Sequence[Scope], asked: _Amount) -> Callable[[_Amount], None]:
        """Reserve in all four scopes, whether a budget bounds them or not: one may come while the call is under way."""
        for scope in scopes:
            self._account(scope).reserved.add(asked)

        def end(actual: _Amount) -> None:
            for scope in scopes:
                account = self._account(scope)
                account.reserved.add(asked, -1)
                if account.spent is not None:  # else the ledger will tell
                    account.spent.add(actual)
            self._ended()

        return end


@lru_cache(maxsize=2)
def _day(number: int) -> str:
    """``YYYY-MM-DD`` of a day since 1970, UTC."""
    return rfc3339(number * 86400.0)[:10]


def _scopes(origin: Origin, day: str) -> dict[str, Scope]:
    return {
        "step": ("step", origin.run_id, origin.step),
        "run": ("run", origin.run_id),
        "pipeline": ("pipeline", origin.pipeline, day),
        "day": ("day", day),
    }


def _parts(limit: BudgetLimit) -> tuple[str, Unit]:
    scope, _, unit = limit.name.partition("_")
    match unit:
        case "usd" | "tokens" | "calls" if scope in SCOPES:
            return scope, unit
    known = ", ".join(f"{scope}_usd" for scope in SCOPES)
    hint = f"known: {known}; likewise _tokens and _calls"
    raise ModelError("bad_input", f"no budget {limit.name!r}", where=limit.source, hint=hint)


def _most(limit: BudgetLimit, unit: Unit) -> int:
    return nano(limit.limit) if unit == "usd" else int(limit.limit)


def _refusal(limit: BudgetLimit, unit: Unit, amounts: tuple[_Amount, _Amount, _Amount], origin: Origin) -> ModelError:
    is_first = amounts[0].of(unit) == 0 and amounts[2].of(unit) > _most(limit, unit)
    spent, reserved, asked = (_said(amount.of(unit), unit) for amount in amounts)
    name = f"the budget {limit.name} = {limit.limit:g} ({limit.source})"
    if is_first:
        message = f"{name} is below one call: about {asked} are asked"
    else:
        message = f"{name} does not allow this call: {spent} are spent, {reserved} reserved, about {asked} asked"
    return ModelError("budget", message, where=_where(origin), hint=_hint(limit, origin), code="budget")


def _no_price(limit: BudgetLimit, origin: Origin, model: str) -> ModelError:
    message = (
        f"nobody knows the price of the model {model!r}, so the budget {limit.name} = {limit.limit:g} cannot be kept"
    )
    hint = f"give its price in pop.toml: [models.NAME] price = {{ input = ..., output = ... }}; then pop retry {origin.run_id}"
    return ModelError("budget", f"{message} ({limit.source})", where=_where(origin), hint=hint, code="no-price")


def _warning(limit: BudgetLimit, scope: str) -> str:
    what = {"step": "this step", "run": "this run", "pipeline": "this pipeline today", "day": "this day"}[scope]
    return f"{what} goes beyond {limit.name} = {limit.limit:g} ({limit.source}); work goes on"


def _where(origin: Origin) -> str:
    return f"step {origin.instance!r}"


def _hint(limit: BudgetLimit, origin: Origin) -> str:
    if limit.source.startswith("pop.toml"):
        return f"raise {limit.name} in [budget] of pop.toml, then pop retry {origin.run_id}"
    return f"pop retry {origin.run_id} --budget {limit.name}=..."


def _said(amount: int, unit: Unit) -> str:
    """As people write it: ``0.043``, ``1200``."""
    if unit != "usd":
        return str(amount)
    return f"{usd(amount):.9f}".rstrip("0").rstrip(".")
