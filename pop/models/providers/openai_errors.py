"""What went wrong with an OpenAI-compatible server: its words, their class, and what its headers say about its limits.

| what comes back                                     | class        | code               | asked again |
|-----------------------------------------------------|--------------|--------------------|-------------|
| 408, 425, 5xx                                       | unavailable  | server-error (500, 501) | yes, after Retry-After |
| 409, 429                                            | rate_limited |                    | yes, after Retry-After |
| 429 or any other with insufficient_quota, 402       | budget       | insufficient-quota | no |
| 401, 403, 407                                       | auth         |                    | no |
| 404, model_not_found                                | bad_input    | not-found          | no |
| context length exceeded in any words, 413           | bad_input    | context-length     | no: ctx.compress |
| 400, 422 about response_format or its schema        | bad_input    | wrong-form, bad-schema | in another form (pop/models/forms.py) |
| any other 4xx, a redirect                           | bad_input    |                    | no |
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from pop.models.request import Form, ModelError, RateNews, Tokens

if TYPE_CHECKING:
    from pop.models.entries import ModelEntry

MAX_TOLD = 500  # characters of a server's own text
MAX_WAIT_S = 30 * 86400.0
LATE = (504, 524)  # a gateway's patience ended: the model behind it may have worked on

_CONTEXT = re.compile(
    r"context[ _]length|context[ _]size|context[ _]window|maximum (context|prompt) length|prompt (is )?too long|"
    r"input (is )?too long|input token count.{0,60}exceed|too many (input |prompt )?tokens|request too large|"
    r"reduce the length of the (messages|prompt|input)|must have less than \d+ tokens",
    re.IGNORECASE | re.DOTALL,
)
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_balance",
        "payment_required",
    }
)
_QUOTA = re.compile(
    r"credit balance is too low|insufficient (account )?(balance|credits?|funds|quota)|payment required|"
    r"(out of|not enough|more) credits",
    re.IGNORECASE,
)
_FORM = re.compile(
    r"response_?format|json_?schema|json_?object|json mode|structured[ _]outputs?|guided[ _]|grammar|text\.format",
    re.IGNORECASE,
)
_BAD_SCHEMA = re.compile(
    r"invalid (json )?schema|schema is (invalid|not valid)|too many (states|propert)", re.IGNORECASE
)
_UNKNOWN = re.compile(
    r"unsupported|not supported|does not support|doesn't support|unknown|unrecogni[sz]ed|unexpected|not permitted|"
    r"not allowed|extra_forbidden|invalid (parameter|argument|field)|no such",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Told:
    """A server's error in its own words."""

    message: str
    code: str = ""
    param: str = ""
    retry_after_s: float | None = None

    def names(self, parameter: str) -> bool:
        """Whether it says that the server does not know or allow this parameter."""
        if self.param:
            return self.param == parameter and (bool(_UNKNOWN.search(self.message)) or "unsupported" in self.code)
        found = re.search(rf"\b{parameter}\b", self.message)
        return found is not None and bool(_UNKNOWN.search(self.message))


def place(entry: ModelEntry) -> str:
    """The model and its server, for an error's `where`."""
    url = entry.base_url or "the OpenAI API"
    if "@" in url:
        url = url.replace(urlsplit(url).netloc.rpartition("@")[0] + "@", "")
    return f"model {entry.name!r} ({entry.model} at {url})"


def told(body: bytes) -> Told:
    """The message, code and parameter of an error body, whatever its shape."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Told(_line(body[: 8 * MAX_TOLD].decode(errors="replace")))
    return told_by(value)


def told_by(value: Any) -> Told:
    """The same of a JSON value: ``{"error": {"message", "code", "type", "param"}}`` and its relatives."""
    if isinstance(value, list) and value:
        value = value[0]
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return Told(_line(error if isinstance(error, str) else _json(error)))
    message = next((error[key] for key in ("message", "msg", "detail", "title") if error.get(key)), None)
    raw = error.get("metadata")
    more = raw.get("raw") if isinstance(raw, dict) else None  # where a broker puts what the provider said
    words = [text if isinstance(text, str) else _json(text) for text in (message or error, more) if text]
    code = next((str(error[key]) for key in ("code", "type", "status") if isinstance(error.get(key), (str, int))), "")
    param = error.get("param")
    plain = param[:100] if isinstance(param, str) else ""
    return Told(_line(": ".join(words)), code[:100], plain, _retry_delay_s(error.get("details")))


def _retry_delay_s(details: Any) -> float | None:
    """Where Gemini says how long to wait: ``[{"@type": ".../google.rpc.RetryInfo", "retryDelay": "38s"}]``."""
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (delay_s := _go_s(delay)) is not None:
            return delay_s
    return None


def status_error(
    status: int, headers: Mapping[str, str], said: Told, entry: ModelEntry, form: Form | None, guess: Tokens
) -> ModelError:
    """The error of an HTTP status, or of one that stands in a body.

    Args:
        headers: Names in lower case.
        form: How a schema was asked for, None when none was.
        guess: What the request would count if the provider had worked on it.
    """
    where, rate = place(entry), rate_news(headers)
    if said.retry_after_s is not None and (rate is None or rate.retry_after_s is None):
        rate = replace(rate or RateNews(), retry_after_s=said.retry_after_s)
    text = f"HTTP {status}: {said.message or 'no reason given'}"
    if status == 402 or said.code in _QUOTA_CODES or (400 <= status < 500 and _QUOTA.search(said.message)):
        hint = "the account has no credit left: waiting does not help, paying or another model does"
        return ModelError("budget", text, where=where, hint=hint, code="insufficient-quota", rate=rate)
    if status == 413 or (status in (400, 422, 429, 500) and _is_too_long(said)):
        hint = "shorten the prompt, e.g. with ctx.compress, or take a model with a longer context"
        return ModelError("bad_input", text, where=where, hint=hint, code="context-length", rate=rate)
    if status in (401, 403, 407):
        hint = f"check {entry.key_env}" if entry.key_env else "this server wants a key: set api_key_env in pop.toml"
        return ModelError("auth", text, where=where, hint=hint, rate=rate)
    if status in (408, 409, 425, 429) or status >= 500:
        limited = status in (409, 429)
        return ModelError(
            "rate_limited" if limited else "unavailable",
            text,
            where=where,
            hint="lower requests_per_minute or concurrency in pop.toml if this goes on" if limited else None,
            retry_after_s=rate.retry_after_s if rate else None,
            curable=True,
            code="server-error" if status in (500, 501) else None,
            tokens=guess if status in LATE else None,
            rate=rate,
        )
    if status < 400:
        host = headers.get("location", "")[:200] or "nowhere"
        text = f"HTTP {status}: the server sends us on to {host}, where the key must not go"
        return ModelError("bad_input", text, where=where, hint="set base_url to the address that answers", rate=rate)
    return _refused(status, text, said, entry, form, rate)


def _is_too_long(said: Told) -> bool:
    return "context_length" in said.code or "exceed_context" in said.code or bool(_CONTEXT.search(said.message))


def _refused(
    status: int, text: str, said: Told, entry: ModelEntry, form: Form | None, rate: RateNews | None
) -> ModelError:
    """A request that the server does not take, and will not take again."""
    where = place(entry)
    if status == 404 or said.code in ("model_not_found", "not_found_error"):
        advice = f"check `model` and `base_url` of {entry.name!r} in pop.toml"
        return ModelError("bad_input", text, where=where, hint=advice, code="not-found", rate=rate)
    if form not in (None, "prompt") and (said.param.startswith(("response_format", "text")) or _FORM.search(text)):
        bad_schema = bool(_BAD_SCHEMA.search(text)) or said.code == "invalid_json_schema"
        advice = f'set structured = "object" or "prompt" for {entry.name!r} in pop.toml'
        code = "bad-schema" if bad_schema else "wrong-form"
        return ModelError("bad_input", text, where=where, hint=advice, code=code, wrong_form=True, rate=rate)
    hint: str | None = None
    if said.names("temperature") or said.param == "temperature":
        hint = f"this model takes no such `temperature`: leave it out of {entry.name!r} in pop.toml and of the task"
    return ModelError("bad_input", text, where=where, hint=hint, rate=rate)


# -- headers ---------------------------------------------------------------------------------------------------

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "requests_limit": ("x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit", "x-ratelimit-limit", "ratelimit-limit"),
    "requests_left": ("x-ratelimit-remaining-requests", "anthropic-ratelimit-requests-remaining", "x-ratelimit-remaining", "ratelimit-remaining"),
    "requests_reset_s": ("x-ratelimit-reset-requests", "anthropic-ratelimit-requests-reset", "x-ratelimit-reset", "ratelimit-reset"),
    "tokens_limit": ("x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"),
    "tokens_left": ("x-ratelimit-remaining-tokens", "anthropic-ratelimit-tokens-remaining"),
    "tokens_reset_s": ("x-ratelimit-reset-tokens", "anthropic-ratelimit-tokens-reset"),
}  # fmt: skip
_GO = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|d|h|m|s))+")
_GO_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_PARAMETER = re.compile(r"(?:^|[;,])\s*(\w+)=(\d{1,15})(?=\s*(?:[;,]|$))")
_DRAFT = {
    "limit": "requests_limit", "remaining": "requests_left", "r": "requests_left", "reset": "requests_reset_s",
    "t": "requests_reset_s",
}  # fmt: skip
_GO_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def rate_news(headers: Mapping[str, str]) -> RateNews | None:
    """What the headers (names in lower case) say about limits, None when nothing; nonsense counts as nothing."""
    found = _draft_fields(headers.get("ratelimit", ""))
    for field, names in _FIELDS.items():
        for name in names:
            if name in headers:
                value = _reset_s(headers[name]) if field.endswith("_s") else _number(headers[name])
                if value is not None:
                    found[field] = value
                    break
    after = _retry_after_s(headers)
    if after is not None:
        found["retry_after_s"] = after
    return RateNews(**found) if found else None


def _draft_fields(text: str) -> dict[str, float]:
    """Of the IETF drafts' one header: ``"default";r=50;t=30`` (several: the scarcest), before ``limit=9, remaining=5, reset=3``."""
    if len(text) > 1000:
        return {}
    policies = [dict(_PARAMETER.findall(policy)) for policy in text.split(",")] if ";" in text else []
    policies = [one for one in policies if "r" in one] or [dict(_PARAMETER.findall(text))]
    found = min(policies, key=lambda one: float(one.get("r", "0")))
    named = {_DRAFT[name]: float(value) for name, value in found.items() if name in _DRAFT}
    return {field: value for field, value in named.items() if not field.endswith("_s") or value <= MAX_WAIT_S}


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    exact = _number(headers.get("retry-after-ms", ""))
    if exact is not None:
        return min(exact / 1000, MAX_WAIT_S)
    value = headers.get("retry-after", "")
    plain = _number(value)
    if plain is not None:
        return min(plain, MAX_WAIT_S)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - time.time()), MAX_WAIT_S)
    except (ValueError, TypeError, OverflowError, IndexError):
        return _go_s(value)


def _reset_s(text: str) -> float | None:
    """Seconds until a reset: ``1m2.5s``, ``120ms``, ``7``, seconds or milliseconds since 1970, or an RFC 3339 date."""
    value = _number(text)
    if value is not None and value > 1e9:
        value = max(0.0, (value / 1000 if value > 1e11 else value) - time.time())
    if value is None:
        value = _go_s(text)
    if value is None and text.strip()[4:5] == "-":
        try:
            date = datetime.fromisoformat(text.strip())
            value = max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return value if value is not None and value <= MAX_WAIT_S else None


def _go_s(text: str) -> float | None:
    text = text.strip()
    if len(text) > 60 or not _GO.fullmatch(text):
        return None
    return min(sum(float(number) * _GO_S[unit] for number, unit in _GO_PART.findall(text)), MAX_WAIT_S)


def _number(text: str) -> float | None:
    if not text[:1].isdigit() or len(text) > 30:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value < 1e15 else None


def _line(text: str) -> str:
    return " ".join(text[: 4 * MAX_TOLD].split())[:MAX_TOLD]


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode(errors="replace")[: 4 * MAX_TOLD]
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        return f"a {type(value).__name__} of many levels"
