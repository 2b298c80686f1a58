"""What `ctx` does with model calls: how they are asked, written down, gathered, and read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pop.context import Call, Context
from pop.durations import ANY_AGE_S
from pop.errors import AttemptFailed
from pop.inputs import Inputs
from pop.models.request import Answer, ModelError, ModelRequest, Try, prompt_hash, request_hash
from pop.models.tokens import estimate_tokens
from pop.records import CallRecord, FileRef, Letter
from pop.trail import Trail
from tests.fake_openai import FakeOpenAI, Fault
from tests.living import LivingRoot

Reaction = Callable[[ModelRequest], str | Answer | ModelError]


def answer(text: str, **about: Any) -> Answer:
    return Answer(text=text, **{"model": "m", "provider": "p", "provider_model": "pm", "key": "k", **about})


class Model:
    """A caller whose answers a function makes of the requests."""

    def __init__(self, react: Reaction) -> None:
        self.react = react
        self.requests: list[ModelRequest] = []
        self.windows: list[int | None] = []
        self.order: Callable[[Sequence[int]], Sequence[int]] = lambda places: places  # in which answers come

    def _one(self, request: ModelRequest) -> Answer | ModelError:
        self.requests.append(request)
        found = self.react(request)
        return answer(found) if isinstance(found, str) else found

    def ask(self, request: ModelRequest) -> Answer:
        found = self._one(request)
        if isinstance(found, ModelError):
            raise found
        return found

    def ask_many(
        self,
        requests: Sequence[ModelRequest],
        *,
        at_once: int | None = None,
        heard: Callable[[int, Answer | ModelError], None] | None = None,
    ) -> list[Answer | ModelError]:
        self.windows.append(at_once)
        found = {}
        for place in self.order(range(len(requests))):
            found[place] = self._one(requests[place])
            if heard:
                heard(place, found[place])
        return [found[place] for place in range(len(requests))]


Make = Callable[..., tuple[Context, Model]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A context in a folder, and the model behind it."""

    def go(react: Reaction = lambda request: "ok", **about: Any) -> tuple[Context, Model]:
        limit = {"max_output_tokens": about.pop("max_output_tokens", None)}
        letter = Letter(
            run_id="r", run_name="r", instance="t", step="t", task="t", tasks_dir="", run_dir=str(tmp_path), attempt=1,
            attempt_id="a", generation=1, deadline_at=0.0, seed=FileRef(path="seed.json", sha256=""), **about,
        )  # fmt: skip
        model = Model(react)
        return Context(letter, {}, Inputs(tmp_path, {}), Trail(tmp_path), model, **limit), model

    return go


def rows(path: Path, name: str = "calls.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_bytes().splitlines()]


def test_a_call_is_written_down_with_all_that_a_replay_and_a_bill_need(make: Make, tmp_path: Path) -> None:
    """What was asked by its hashes, the answer whole, what was counted, how it was priced, what went before it."""
    tried = Try(model="m", error_class="unavailable", message="503", ms=3.0, billed=True)
    text = "long " * 20_000
    given = answer(
        text, input_tokens=9, output_tokens=8, cached_input_tokens=3, reasoning_tokens=5, estimated=True, cost_usd=0.25,
        prices="pop.toml", ms=4.5, form="strict", tries=[tried], warnings=["half of run_usd is spent"], note="hm",
    )  # fmt: skip
    ctx, model = make(lambda request: given, models={"default": "small"})
    ctx.ask(Call("x", schema={"type": "string"}))
    (row,) = rows(tmp_path)
    record = CallRecord.model_validate(row)
    request = model.requests[0]
    assert (record.asked, record.model, record.text, record.form) == ("default", "m", text, "strict")
    assert (record.request_sha256, record.prompt_sha256) == (request_hash(request), prompt_hash(request))
    assert (record.input_tokens, record.output_tokens, record.cached_input_tokens) == (9, 8, 3)
    assert (record.reasoning_tokens, record.estimated, record.cost_usd, record.prices) == (5, True, 0.25, "pop.toml")
    assert record.tries == [tried.model_dump()] and record.warnings == ["half of run_usd is spent"]
    assert (record.ms, record.note, record.error_class, record.finish_reason) == (4.5, "hm", None, "stop")


@pytest.mark.parametrize("many", [False, True])
def test_a_call_that_failed_for_good_is_written_down_too(make: Make, tmp_path: Path, many: bool) -> None:
    """Without text and tokens, with its class, what it said, and the tries before it; its code reaches the attempt."""
    error = ModelError("budget", "run_usd is used up", hint="raise it", code="no-price")
    error.tries = [Try(model="m", error_class="unavailable", message="503", ms=3.0)]
    ctx, _ = make(lambda request: error)
    with pytest.raises(AttemptFailed) as caught:
        ctx.gather(["x"]) if many else ctx.ask(Call("x"))
    assert (caught.value.error_class, caught.value.code, caught.value.hint) == ("budget", "no-price", "raise it")
    record = CallRecord.model_validate(rows(tmp_path)[0])
    assert (record.error_class, record.text, record.input_tokens, record.output_tokens) == ("budget", None, 0, 0)
    assert record.note == "no-price: run_usd is used up" and record.tries[0]["message"] == "503"
    assert record.request_sha256 and record.asked == "default"


def test_names_of_models_are_the_runs_to_change(make: Make) -> None:
    """A name of its own goes before the star, which stands for every name; the asked name stays known."""
    ctx, model = make(models={"large": "big", "*": "cheap"})
    ctx.gather([Call("x", model="large"), Call("x", model="other"), "x"])
    assert [(request.asked, request.model) for request in model.requests] == [
        ("large", "big"), ("other", "cheap"), ("default", "cheap"),
    ]  # fmt: skip


def test_round_and_reuse_go_with_the_request(make: Make) -> None:
    """A ladder moves up with the round; a call's own reuse goes before the run's."""
    ctx, model = make(reuse_s=60.0)
    ctx.trail.round = 2
    ctx.gather([Call("x"), Call("x", reuse_s=5.0)])
    assert [(request.round, request.reuse_s) for request in model.requests] == [(2, 60.0), (2, 5.0)]


def test_a_warning_is_logged_once(make: Make, tmp_path: Path) -> None:
    """However many answers carry it."""
    ctx, _ = make(lambda request: answer("ok", warnings=["half is spent"]))
    ctx.gather(["x"] * 5)
    ctx.ask(Call("y"))
    assert [(row["level"], row["text"]) for row in rows(tmp_path, "log.jsonl")] == [("warning", "half is spent")]


def test_the_calls_so_far_can_be_read(make: Make) -> None:
    """Also before the first one, and those that failed."""
    ctx, _ = make(lambda request: ModelError("auth", "no key") if request.text == "bad" else "ok")
    assert ctx.calls == []
    ctx.gather_each(["a", "bad"])
    assert [(call.text, call.error_class) for call in ctx.calls] == [("ok", None), (None, "auth")]


class Person(BaseModel):
    name: str
    age: int = 0


def test_a_pydantic_model_is_a_schema(make: Make) -> None:
    """Its JSON Schema goes with the request, and an instance comes back."""
    ctx, model = make(lambda request: '```json\n{"name": "Ada", "age": 36}\n```')
    assert ctx.model()("who?", schema=Person).data == Person(name="Ada", age=36)
    assert ctx.gather([Call("who?", Person)])[0].data == ctx.gather(["who?"], schema=Person)[0].data
    assert (model.requests[0].schema_ or {})["properties"]["age"]["type"] == "integer"


@pytest.mark.parametrize(("text", "says"), [('{"age": 1}', "name"), ('{"name": 1}', "/name"), ("Ada", "not JSON")])
def test_an_answer_that_is_no_such_model_is_invalid_output(make: Make, text: str, says: str) -> None:
    """With the pointers of what does not fit."""
    ctx, _ = make(lambda request: text)
    with pytest.raises(AttemptFailed, match=says) as caught:
        _ = ctx.model()("who?", schema=Person).data
    assert caught.value.error_class == "invalid_output" and caught.value.problems


def test_nulls_of_a_strict_server_are_what_was_left_out(make: Make) -> None:
    """For a schema and a pydantic model alike; elsewhere a null is a null."""
    given = answer('{"name": "Ada", "age": null}', extra={"nulls": True})
    ctx, _ = make(lambda request: given)
    assert ctx.model()("who?", schema=Person).data == Person(name="Ada")
    assert ctx.model()("who?", schema=Person.model_json_schema()).data == {"name": "Ada"}
    ctx, _ = make(lambda request: given.model_copy(update={"extra": {}}))
    with pytest.raises(AttemptFailed, match="/age"):
        _ = ctx.model()("who?", schema=Person).data


@pytest.mark.parametrize("schema", ["string", 3, dict, ["a"]])
def test_a_schema_that_is_none_is_said_so(make: Make, schema: Any) -> None:
    """Before anything is asked."""
    ctx, model = make()
    with pytest.raises(TypeError, match="a schema is"):
        ctx.model()("x", schema=schema)
    assert not model.requests


def test_large_integers_of_an_answer_stay_exact(make: Make) -> None:
    """Through the parser, the schema and the model."""
    ctx, _ = make(lambda request: json.dumps({"name": "n", "age": 10**30 + 1}))
    assert ctx.model()("x", schema=Person).data.age == 10**30 + 1


def test_a_gather_is_bounded_and_tells_its_progress_when_asked(make: Make, tmp_path: Path) -> None:
    """A hundred lines at most, however many calls; silent otherwise."""
    ctx, model = make(lambda request: request.text)
    replies = ctx.gather([str(number) for number in range(1000)], at_once=7, progress=True)
    assert [reply.text for reply in replies] == [str(number) for number in range(1000)]
    told = [(row["done"], row["total"]) for row in rows(tmp_path, "trail.jsonl") if row["event"] == "progress"]
    assert len(told) == 100 and told[-1] == (1000, 1000)
    ctx.gather(["x"])
    assert model.windows == [7, None] and len(rows(tmp_path)) == 1001
    assert ctx.gather([]) == []
    with pytest.raises(ValueError, match="at_once"):
        ctx.gather(["x"], at_once=0)


def test_a_call_of_a_gather_is_written_down_when_its_answer_comes(make: Make, tmp_path: Path) -> None:
    """Equal prompts in the order in which they were asked, by which a replay knows them, whoever they go to."""
    seen = list[list[str]]()

    def react(request: ModelRequest) -> str:
        path = tmp_path / "calls.jsonl"
        seen.append([row["text"] for row in rows(tmp_path)] if path.exists() else [])
        return f"{request.asked} {request.text} {len(seen)}"

    ctx, model = make(react)
    model.order = lambda places: [3, 4, 1, 0, 2]
    replies = ctx.gather([Call("x"), "y", Call("x", model="large"), "z", "x"])
    told = ["default z 1", "default y 3", "default x 4", "large x 5", "default x 2"]
    assert [row["text"] for row in rows(tmp_path)] == told
    assert seen[-1] == told[:3]
    assert [reply.text for reply in replies] == [told[place] for place in (2, 1, 3, 0, 4)]


@pytest.mark.parametrize(
    ("given", "error_class", "hint"),
    [
        (answer("x", finish_reason="length"), "truncated", "max_output_tokens"),
        (answer("", finish_reason="content_filter"), "refused", "prompt"),
        (ModelError("bad_input", "too long", code="context-length"), "bad_input", "ctx.compress"),
    ],
)
def test_a_failure_names_the_next_move(make: Make, given: Any, error_class: str, hint: str) -> None:
    """What a person would do about it."""
    ctx, _ = make(lambda request: given)
    with pytest.raises(AttemptFailed) as caught:
        ctx.ask(Call("x"))
    assert caught.value.error_class == error_class and hint in (caught.value.hint or "")


# -- compress ----------------------------------------------------------------------------------------------------------

SENTENCE = "The committee met in the old town hall and decided to build a bridge. "
LONG = "\n\n".join(SENTENCE * 10 for _ in range(100))  # about 18,000 tokens


def document_of(request: ModelRequest) -> str:
    return request.messages[0].content.partition("<document>\n")[2].rpartition("\n</document>")[0]


def words_asked(request: ModelRequest) -> int:
    return int(re.findall(r"at most (\d+) words", request.messages[-1].content)[0])


def obedient(request: ModelRequest) -> str:
    return " ".join(document_of(request).split()[: int(words_asked(request) * 0.9)])


def notes(path: Path) -> list[str]:
    return [row["text"] for row in rows(path, "trail.jsonl") if row["event"] == "note"]


def test_a_text_is_condensed_to_its_budget(make: Make, tmp_path: Path) -> None:
    """In rounds, its parts side by side; the trail says from how much to how much, and answers may be shared."""
    ctx, model = make(obedient)
    shorter = ctx.compress(LONG, 200)
    assert 80 < ctx.count_tokens(shorter) <= 200
    assert len(model.windows) == 2 and len(model.requests) > 5  # two rounds, each asked at once
    assert {request.reuse_s for request in model.requests} == {ANY_AGE_S}
    (note,) = notes(tmp_path)
    assert re.fullmatch(r"compressed 1\d{4} tokens to \d{3} \(at most 200\) by \d calls", note)


def test_a_text_that_fits_is_left_alone(make: Make, tmp_path: Path) -> None:
    """No call, no note; a budget of nothing is a mistake."""
    ctx, model = make()
    assert ctx.compress("short", 10) == "short" and ctx.compress("", 1) == ""
    assert not model.requests and not notes(tmp_path)
    with pytest.raises(ValueError, match="max_tokens"):
        ctx.compress("text", 0)


def test_a_digest_too_long_is_asked_for_once_more_with_the_number(make: Make, tmp_path: Path) -> None:
    """In the same talk; a model that obeys then is not cut."""

    def react(request: ModelRequest) -> str:
        return SENTENCE * 30 if len(request.messages) == 1 else SENTENCE * 2

    ctx, model = make(react)
    assert ctx.compress(SENTENCE * 150, 100) == (SENTENCE * 2).strip()
    assert [len(request.messages) for request in model.requests] == [1, 3]
    again = model.requests[1].messages
    assert again[1].content == (SENTENCE * 30).strip()
    assert re.match(r"That has about \d{3} words. Give it again with at most 75 words.", again[2].content)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_digest_too_long_twice_is_cut_at_a_sentence(make: Make, tmp_path: Path) -> None:
    """With a note in the log."""
    ctx, model = make(lambda request: SENTENCE * 30)
    shorter = ctx.compress(SENTENCE * 150, 100)
    assert shorter.endswith("build a bridge.") and 50 < ctx.count_tokens(shorter) <= 100
    assert len(model.requests) == 2
    assert "was cut" in rows(tmp_path, "log.jsonl")[0]["text"]


def test_a_part_too_long_for_the_model_is_halved(make: Make) -> None:
    """Until it fits; nothing is lost and nothing is asked twice."""

    def react(request: ModelRequest) -> str | ModelError:
        if estimate_tokens(document_of(request)) > 1000:
            return ModelError("bad_input", "too long", code="context-length")
        return f"digest {document_of(request)[:40]}"

    ctx, model = make(react)
    text = "\n\n".join(f"{number}. {SENTENCE * 5}" for number in range(60))
    shorter = ctx.compress(text, 500)
    assert shorter.startswith("digest 0.") and shorter.count("digest") >= 6
    asked = [document_of(request) for request in model.requests]
    assert len(set(asked)) == len(asked)


def test_a_model_that_takes_nothing_says_so(make: Make) -> None:
    """Halving has an end; other failures are told at once."""
    ctx, model = make(lambda request: ModelError("bad_input", "too long", code="context-length"))
    with pytest.raises(AttemptFailed) as caught:
        ctx.compress(LONG, 400)
    assert caught.value.code == "context-length" and len(model.requests) < 400
    ctx, model = make(lambda request: ModelError("auth", "no key"))
    with pytest.raises(AttemptFailed, match="no key"):
        ctx.compress(LONG, 400)


@pytest.mark.parametrize(
    "failure", [ModelError("bad_input", "long", code="context-length"), answer("x", finish_reason="refusal")]
)
def test_a_second_question_that_fails_leaves_the_first_digest_cut(make: Make, failure: Any) -> None:
    """It is only for the better."""
    ctx, _ = make(lambda request: SENTENCE * 30 if len(request.messages) == 1 else failure)
    assert ctx.compress(SENTENCE * 150, 100).startswith(SENTENCE)


@settings(deadline=None, max_examples=60)
@given(
    text=st.text(alphabet="ab. \n我é{}", max_size=60).map(lambda text: text * 40),
    most=st.integers(1, 60),
    reaction=st.sampled_from(["echo", "short", "nothing", "long", "unbroken"]),
)
def test_whatever_a_model_answers_the_budget_holds(tmp_path_factory: Any, text: str, most: int, reaction: str) -> None:
    """Also one that gives everything back, or nothing."""
    path = tmp_path_factory.mktemp("c")
    react: dict[str, Reaction] = {
        "echo": document_of, "short": lambda _: "Short.", "nothing": lambda _: "",
        "long": lambda request: document_of(request) * 3, "unbroken": lambda _: "我" * 5000,
    }  # fmt: skip
    letter = Letter(
        run_id="r", run_name="r", instance="t", step="t", task="t", tasks_dir="", run_dir="", attempt=1,
        attempt_id="a", generation=1, deadline_at=0.0, seed=FileRef(path="seed.json", sha256=""),
    )  # fmt: skip
    ctx = Context(letter, {}, Inputs(path, {}), Trail(path), Model(react[reaction]))
    assert ctx.count_tokens(ctx.compress(text, most)) <= most


def test_a_large_text_without_blank_lines_ends(make: Make) -> None:
    """A model that only repeats cannot keep it going."""
    ctx, model = make(document_of)
    shorter = ctx.compress(SENTENCE * 2000, 300)
    assert 100 < ctx.count_tokens(shorter) <= 300 and len(model.requests) < 100


def test_what_is_learnt_of_tokens_does_not_change_what_is_asked(make: Make) -> None:
    """So an attempt that follows a crash finds its answers, though the estimates have been corrected since."""
    asked = []
    for factor in (1.0, 1.1):
        ctx, model = make(obedient)
        counting: Any = model
        counting.count = lambda text, name, asked, factor=factor: (int(estimate_tokens(text) * factor), False)
        ctx.compress(LONG, 200)
        asked.append([request.messages[0].content for request in model.requests])
    assert asked[0] == asked[1] and len(asked[0]) > 5


def test_a_model_that_needs_more_tokens_than_estimated_gets_fewer_words(make: Make, tmp_path: Path) -> None:
    """The first questions are those of any other model; what is too long by its count is asked for once more."""
    ctx, model = make(obedient)
    counting: Any = model
    counting.count = lambda text, name, asked: (estimate_tokens(text) * 2, False)
    shorter = ctx.compress(LONG, 400)
    assert 150 < ctx.count_tokens(shorter) <= 400
    first = [request for request in model.requests if len(request.messages) == 1]
    again = [request for request in model.requests if len(request.messages) == 3]
    assert again and max(map(words_asked, again)) < max(map(words_asked, first))


# -- counts ------------------------------------------------------------------------------------------------------------


class Counting(Model):
    """A caller whose count of everything grows with every question."""

    def __init__(self, number: int, *, exact: bool = False) -> None:
        super().__init__(obedient)
        self.number, self.exact, self.counted = number, exact, 0

    def count(self, text: str, model: str, asked: str) -> tuple[int, bool] | None:
        self.counted += 1
        return self.number + self.counted, self.exact


def attempt_of(path: Path, number: int, caller: Any, **about: Any) -> Context:
    """A context in the folder of an attempt."""
    folder = path / "attempts" / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    letter = Letter(
        run_id="r", run_name="r", instance="t", step="t", task="t", tasks_dir="", run_dir=str(path), attempt=number,
        attempt_id="a", generation=1, deadline_at=0.0, seed=FileRef(path="seed.json", sha256=""), **about,
    )  # fmt: skip
    return Context(letter, {}, Inputs(path, {}), Trail(folder), caller)


def test_a_count_stays_what_it_was(tmp_path: Path) -> None:
    """In the attempt and in those after it, model by model and text by text; only what is new is asked and written."""
    ctx = attempt_of(tmp_path, 1, Counting(100), models={"large": "big"})
    assert [ctx.count_tokens("a"), ctx.count_tokens("a"), ctx.count_tokens("a", "large")] == [101, 101, 102]
    kept = tmp_path / "attempts" / "1" / "counts.jsonl"
    assert [(row["asked"], row["model"], row["tokens"]) for row in rows(kept.parent, kept.name)] == [
        ("default", "default", 101), ("large", "big", 102),
    ]  # fmt: skip
    with open(kept, "ab") as file:
        file.write(b'5\n{"tokens": -1}\n\xff\n{"asked": "default", "model": "default", "sha')
    (tmp_path / "attempts" / "2").mkdir()
    (tmp_path / "attempts" / "2" / "counts.jsonl").symlink_to("/dev/zero")
    again = attempt_of(tmp_path, 10, caller := Counting(500))
    assert (again.count_tokens("a"), caller.counted) == (101, 0)
    assert (again.count_tokens("a", "large"), again.count_tokens("b \ud800")) == (501, 502)
    assert len(rows(tmp_path / "attempts" / "10", "counts.jsonl")) == 2


def test_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after so many is not written down; then only a count that no usage changes is taken. The trail says so."""
    monkeypatch.setattr("pop.models.counts.MOST_COUNTS", 3)
    for number, exact in ((1, False), (2, True)):
        ctx = attempt_of(tmp_path / str(number), 1, Counting(100, exact=exact))
        found = [ctx.count_tokens("word" * count) for count in range(1, 6)]
        assert found == ([101, 102, 103, 104, 105] if exact else [101, 102, 103, 4, 5])
        assert len(rows(tmp_path / str(number) / "attempts" / "1", "counts.jsonl")) == 3
        assert len(notes(tmp_path / str(number) / "attempts" / "1")) == 1


def test_an_attempt_after_a_crash_asks_what_the_first_asked(tmp_path: Path) -> None:
    """Though the gateway has learnt meanwhile that the model needs half as many tokens again."""
    asked = []
    for number, factor in ((1, 1.0), (2, 1.5)):
        model: Any = Model(obedient)
        model.count = lambda text, name, asked, factor=factor: (int(estimate_tokens(text) * factor), False)
        asked.append((attempt_of(tmp_path, number, model).compress(LONG, 190), model.requests))
    assert asked[0] == asked[1]


def test_the_tasks_own_output_limit_does_not_cut_digests(make: Make) -> None:
    """It is about the task's answers; a digest may need more."""
    ctx, model = make(obedient, max_output_tokens=50)
    ctx.compress(LONG, 400)
    assert min(request.max_output_tokens or 0 for request in model.requests) >= 240


def test_tokens_are_counted_by_whom_the_run_would_ask(make: Make) -> None:
    """The gateway's count goes before the estimate, under the model's name as the run has it."""
    ctx, model = make(models={"large": "big"})
    assert ctx.count_tokens("word" * 10) == 10
    counting: Any = model
    counting.count = lambda text, name, asked: (len(name + asked), True) if name == "big" else None
    assert ctx.count_tokens("word" * 10, "large") == 8 and ctx.count_tokens("word" * 10) == 10
    ctx.caller = None
    assert ctx.count_tokens("word" * 10) == 10


# -- with the real gateway -----------------------------------------------------------------------------------------------


def up(make_living: Callable[..., LivingRoot], fake: FakeOpenAI, code: str, attempts: int = 1) -> LivingRoot:
    settings = f'[models.default]\nprovider = "openai"\nmodel = "fake-1"\nbase_url = "{fake.base_url}"\nreuse = false\n'
    steps = [{"task": "t", "attempts": attempts}]
    living = make_living(pipeline={"name": "p", "tasks": steps}, tasks={"t.py": code}, settings=settings)
    living.up()
    return living


def test_the_gateways_code_reaches_the_status(make_living: Callable[..., LivingRoot], fake_openai: FakeOpenAI) -> None:
    """With the next move, and calls.jsonl holds the call that failed."""
    body = json.dumps({"error": {"message": "too many tokens", "code": "context_length_exceeded"}}).encode()
    fake_openai.faults = [Fault(status=400, body=body)]
    living = up(make_living, fake_openai, "def infer(prompt, ctx):\n    return ctx.model()('long').text\n")
    living.drop("a.json", {})
    error = living.wait_state("failed")["error"]
    assert (error["error_class"], error["code"]) == ("bad_input", "context-length") and "ctx.compress" in error["hint"]
    (path,) = living.path.glob("pipeline-current/*/tasks/t/attempts/1")
    record = CallRecord.model_validate(rows(path)[0])
    assert (record.error_class, record.text) == ("bad_input", None)


def test_a_text_is_compressed_once_for_all_runs(
    make_living: Callable[..., LivingRoot], fake_openai: FakeOpenAI
) -> None:
    """The second run condenses the same text from the store; so many calls at once as the task allows."""
    code = (
        f"TEXT = {LONG!r}\n"
        "def infer(prompt, ctx):\n"
        "    short = ctx.compress(TEXT, 200)\n"
        "    ctx.gather([ctx.run_id + str(n) for n in range(20)], at_once=3, progress=True)\n"
        "    return [ctx.count_tokens(short), sum(call.cached for call in ctx.calls), len(ctx.calls)]\n"
    )
    living = up(make_living, fake_openai, code)
    living.drop("a.json", {})
    (first,) = living.wait_complete(1)
    living.drop("b.json", {})
    second = living.wait_complete(2)[-1]
    tokens, cached, calls = living.output(first, "t")
    assert tokens <= 200 and cached == 0 and calls >= 27
    assert living.output(second, "t")[1:] == [calls - 20, calls]
    assert fake_openai.total == calls + 20


def test_an_attempt_counts_as_the_one_that_was_killed(
    make_living: Callable[..., LivingRoot], fake_openai: FakeOpenAI
) -> None:
    """The gateway has been taught by the first one's calls; only what is new is counted by what it knows now."""
    code = (
        "import os\n"
        "def infer(prompt, ctx):\n"
        "    tokens = ctx.count_tokens('wonderful ' * 1000)\n"
        "    if ctx.attempt == 1:\n"
        "        ctx.gather([f'{number} ' + 'wonderful ' * 200 for number in range(5)])\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return [tokens, ctx.count_tokens('wonderful ' * 999)]\n"
    )
    living = up(make_living, fake_openai, code, attempts=2)
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    first, new = living.output(row, "t")
    assert first == estimate_tokens("wonderful " * 1000) and new < 0.8 * first
