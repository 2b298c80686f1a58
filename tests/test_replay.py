"""Answers from recorded runs, and a recorded run as a test of its pipeline."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pop.models.catalogue import ModelEntry
from pop.models.providers import Setup, replay
from pop.models.providers.replay import Recording, ReplayProvider
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin, prompt_hash

RUN = "20261121-031502-brief-x7k2"


def request(text: str, asked: str = "fast", model: str = f"replay:{RUN}", **more: Any) -> ModelRequest:
    return ModelRequest(model=model, asked=asked, messages=[Message(role="user", content=text)], **more)


def line(text: str | None, prompt: str = "Say hello", asked: str = "fast", **more: Any) -> dict[str, Any]:
    """A line of calls.jsonl."""
    return {
        "at": "2026-11-21T03:15:02.000Z", "stage": "infer", "key": "k", "model": "large", "provider": "openai",
        "provider_model": "gpt-9", "input_tokens": 7, "output_tokens": 3, "cost_usd": 0.5, "ms": 9.0, "cached": False,
        "finish_reason": "stop", "asked": asked, "prompt_sha256": prompt_hash(request(prompt)), "text": text, **more,
    }  # fmt: skip


class Recorded:
    """A recorded run, written by hand, and a provider that replays it."""

    def __init__(self, root: Path, run_id: str = RUN) -> None:
        self.root, self.path = root, root / "pipeline-complete" / run_id
        self.path.mkdir(parents=True)
        (self.path / "events.jsonl").write_text('{"event": "run.created", "at": "2026-11-21T03:15:02.000Z"}\n')
        self.provider = ReplayProvider(Setup({}, root))
        self.entry = ModelEntry(f"replay:{run_id}", "replay", run_id)

    def attempt(
        self, *lines: dict[str, Any], number: int = 1, generation: int = 1, instance: str = "ask", prompt: str = ""
    ) -> Path:
        folder = self.path / "tasks" / instance / "attempts" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        if prompt:
            (folder / "03-prompt.md").write_text(prompt + "\n")
        event = {"event": "step.started", "instance": instance, "attempt": number, "generation": generation}
        with open(self.path / "events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")
        return folder / "calls.jsonl"

    def ask(
        self, asked: ModelRequest | str = "Say hello", generation: int = 1, n: int = 0, instance: str = "ask"
    ) -> Answer:
        chosen = request(asked) if isinstance(asked, str) else asked
        origin = Origin(run_id="new", instance=instance, generation=generation, attempt=1, n=n)
        return asyncio.run(self.provider.answer(chosen, self.entry, origin, None))

    def fails(self, *about: Any, **more: Any) -> ModelError:
        with pytest.raises(ModelError) as caught:
            self.ask(*about, **more)
        return caught.value


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


def test_an_answer_comes_back_as_it_was(recorded: Recorded) -> None:
    """Text, reason, tokens, maker, note and evidence are the recorded ones; it costs nothing and says where it is from."""
    evidence = [{"pointer": "/", "quote": "q", "document": "d", "line": 1}]
    recorded.attempt(
        line(" hi\n", finish_reason="length", note="odd", form="object", evidence=evidence, estimated=True)
    )
    answer = recorded.ask()
    assert (answer.text, answer.finish_reason, answer.note, answer.form) == (" hi\n", "length", "odd", "object")
    assert (answer.provider, answer.provider_model, answer.model) == ("openai", "gpt-9", f"replay:{RUN}")
    assert (answer.input_tokens, answer.output_tokens, answer.estimated) == (7, 3, True)
    assert (answer.cost_usd, answer.prices, answer.extra) == (0, "replay", {"replayed_from": RUN, "evidence": evidence})


def test_the_nth_asking_gets_the_nth_answer(recorded: Recorded) -> None:
    """In each generation; one more than was asked is not recorded."""
    recorded.attempt(line("a"), line("other", "Say bye"), line("b"), number=1)
    recorded.attempt(line("c"), number=2, generation=2)
    assert [recorded.ask(n=n).text for n in (0, 1)] == ["a", "b"]
    assert recorded.ask(generation=2).text == "c" and recorded.ask("Say bye").text == "other"
    for about in ({"n": 2}, {"generation": 2, "n": 1}, {"generation": 3}):
        error = recorded.fails(**about)
        assert (error.error_class, error.code) == ("bad_input", "not-recorded")
        assert "the very same was asked 3 times there" in error.message


def test_what_a_crash_made_it_ask_again_counts_once(recorded: Recorded) -> None:
    """The second attempt of a generation was answered from the store up to where the first broke."""
    recorded.attempt(line("a", key="1"), line("b", key="2"), number=1)
    recorded.attempt(line("a", key="1", cached=True), line("b", key="2", cached=True), line("c", key="3"), number=2)
    assert [recorded.ask(n=n).text for n in range(3)] == ["a", "b", "c"]
    assert recorded.fails(n=3).code == "not-recorded"


def test_one_name_for_all_models_counts_over_all_names(recorded: Recorded) -> None:
    """A worker counts by prompt and model: with `*` the second model's first question is the second of all."""
    recorded.attempt(line("f0"), line("l0", asked="large"), line("l1", asked="large"), line("f1"))
    order = [("fast", 0, "f0"), ("large", 1, "l0"), ("large", 2, "l1"), ("fast", 3, "f1")]
    assert [recorded.ask(request("Say hello", asked), n=n).text for asked, n, _ in order] == [t for *_, t in order]
    own = [("fast", 0, "f0"), ("large", 0, "l0"), ("large", 1, "l1"), ("fast", 1, "f1")]
    assert [recorded.ask(request("Say hello", asked, asked), n=n).text for asked, n, _ in own] == [t for *_, t in own]


def test_other_models_under_the_same_names_change_nothing(recorded: Recorded) -> None:
    """The name is what the task said; a record or a request without it falls back to the model."""
    recorded.attempt(line("hi"), {**line("old", "Older"), "asked": ""})
    assert recorded.ask(request("Say hello", "fast", "another")).text == "hi"
    assert recorded.ask(request("Older", "", "large")).text == "old"
    error = recorded.fails(request("Say hello", "large"))
    assert "asks the model 'large' what the run" in error.message and "asked of the model 'fast'" in error.message


def test_a_call_that_failed_fails_again_unless_it_was_answered_later(recorded: Recorded) -> None:
    """In its class, with its words."""
    failed = line(None, error_class="rate_limited", tries=[{"message": "slow down"}])
    recorded.attempt(failed, line(None, "Say bye", error_class="bad_input", note="too long"), number=1)
    recorded.attempt(line("hi"), line(None, "Say bye", error_class="bad_input", note="too long"), number=2)
    assert recorded.ask().text == "hi"
    error = recorded.fails("Say bye")
    assert (error.error_class, error.curable) == ("bad_input", False) and "too long" in error.message
    recorded.attempt(failed, instance="other")
    error = recorded.fails(instance="other")
    assert error.error_class == "rate_limited" and "slow down" in error.message and RUN in error.message


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("One\nTwo, and more\nThree", "line 2 of tasks/ask/attempts/1/03-prompt.md was 'Two', now 'Two, and more'"),
        ("One\nTwo", "line 3 of tasks/ask/attempts/1/03-prompt.md was 'Three', now the prompt ends before it"),
        (
            "One\nTwo\nThree\nFour",
            "line 4 of tasks/ask/attempts/1/03-prompt.md was the prompt ended before it, now 'Four'",
        ),
        ("x" * 500, "now 'xxx"),
        ("One\nTwo\x1b[31m\nThree", "now 'Two\ufffd[31m'"),
    ],
)
def test_what_differs_from_the_recorded_prompt_is_shown(recorded: Recorded, now: str, words: str) -> None:
    """The first line that differs, both sides, cut."""
    recorded.attempt(line("x", "something else"), prompt="One\nTwo\nThree")
    error = recorded.fails(now)
    assert error.message.startswith(f"step 'ask' asks the model 'fast' what the run {RUN} did not ask: ")
    assert words in error.message and len(error.message) < 500
    assert error.where == f"tasks/ask of {RUN}" and "without --replay" in str(error.hint)


def test_a_change_that_no_prompt_shows_is_named(recorded: Recorded) -> None:
    """The schema and the limits are part of the question."""
    recorded.attempt(line("x"), prompt="Say hello")
    for more in ({"schema": {"type": "object"}}, {"temperature": 0.5}, {"max_output_tokens": 9}):
        error = recorded.fails(request("Say hello", **more))
        assert "but the schema, the temperature or max_output_tokens changed" in error.message


def test_the_nearest_prompt_may_be_another_items(recorded: Recorded) -> None:
    """An item that is new is compared with its siblings; a step that is new is said to be."""
    recorded.attempt(line("x"), instance="draft.0", prompt="Write about cats.\n\nBe kind.")
    recorded.attempt(line("x"), instance="draft.1", prompt="Write about dogs.\n\nBe terse.")
    error = recorded.fails("Write about elks.\n\nBe terse.", instance="draft.2")
    assert "line 1 of tasks/draft.1/attempts/1/03-prompt.md was 'Write about dogs.', now 'Write about elks.'" in str(
        error
    )
    assert "it has no such step; the prompt begins 'Hello'" in recorded.fails("Hello", instance="new").message
    recorded.attempt(line("x", "by code"), instance="code")
    assert "kept no prompt" in recorded.fails("Hello", instance="code").message


def test_a_run_of_an_older_version_says_so(recorded: Recorded) -> None:
    """Its calls have no texts."""
    old = {key: value for key, value in line("x").items() if key not in ("asked", "prompt_sha256", "text")}
    recorded.attempt(old)
    error = recorded.fails()
    assert error.code == "not-recorded" and "keeps no answers" in error.message and "older version" in error.message
    assert not Recording(recorded.path).holds_answers()


def test_damaged_records_are_passed_over(recorded: Recorded) -> None:
    """A torn line, a number, a link, something that is no run: none of them crashes or is answered."""
    path = recorded.attempt(line("hi"))
    odd = [b"5", b"null", b'{"prompt_sha256": 5}', b"\xff\xfe", b"{" * 5000, b'{"text": "torn", "prompt']
    path.write_bytes(
        b"\n".join([odd[0], json.dumps(line("hi", finish_reason="tired", input_tokens="x")).encode(), *odd[1:]])
    )
    answer = recorded.ask()
    assert (answer.text, answer.finish_reason, answer.input_tokens) == ("hi", "stop", 0)
    link = recorded.path / "tasks" / "linked" / "attempts" / "1"
    link.mkdir(parents=True)
    (link / "calls.jsonl").symlink_to(path)
    assert recorded.fails(instance="linked").code == "not-recorded"
    assert recorded.fails(instance="../../..").code == "not-recorded"
    (recorded.path / "events.jsonl").write_bytes(b"\x00\n[]\n")
    assert recorded.ask().text == "hi"


def test_a_run_is_found_by_id_beginning_or_path(recorded: Recorded, tmp_path: Path) -> None:
    """Nothing else is guessed."""
    recorded.attempt(line("hi"))
    away = tmp_path / "elsewhere" / "saved"
    away.parent.mkdir()
    away.symlink_to(recorded.path)
    for name in (RUN, "20261121-0315", f"pipeline-complete/{RUN}", str(recorded.path), "elsewhere/saved"):
        recorded.entry = ModelEntry("again", "replay", name)
        assert recorded.ask().extra == {"replayed_from": RUN}
    Recorded(tmp_path, "20261121-031502-brief-y111")
    for name, words in (
        ("20261121", "fits 2 runs"),
        ("20261122-000000-x", "no run '20261122-000000-x' to replay"),
        ("elsewhere/none", "no run in the folder 'elsewhere/none'"),
        ("elsewhere/", "no run in the folder"),
        ("..", "no run in the folder '..'"),
    ):
        recorded.entry = ModelEntry("again", "replay", name)
        error = recorded.fails()
        assert error.error_class == "bad_input" and words in error.message and error.hint


def test_a_changed_recording_is_read_again(recorded: Recorded) -> None:
    """By time and size."""
    path = recorded.attempt(line("old"))
    assert recorded.ask().text == "old"
    recorded.attempt(line("newer"))
    os.utime(path, ns=(1, 1))
    assert recorded.ask().text == "newer"


def test_a_large_run_takes_little_memory(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts stay on disk; of 300 items only as many indexes are kept as are allowed."""
    import tracemalloc

    monkeypatch.setattr(replay, "INDEXES_KEPT", 50)
    for number in range(300):
        recorded.attempt(*[line("t" * 10_000, f"Say {call}") for call in range(10)], instance=f"item.{number}")
    recorded.ask("Say 0", instance="item.0")
    tracemalloc.start()
    for number in range(300):
        assert len(recorded.ask("Say 9", instance=f"item.{number}").text) == 10_000
    assert tracemalloc.get_traced_memory()[0] < 3_000_000  # of 30 MB
    tracemalloc.stop()
