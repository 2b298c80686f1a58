"""Answers from recorded runs, and a recorded run as a test of its pipeline."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pop.errors import UsageError
from pop.models.counts import text_sha256
from pop.models.entries import ModelEntry
from pop.models.providers import Setup, replay
from pop.models.providers.replay import Recording, ReplayProvider
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin, prompt_hash
from pop.models.tokens import estimate_tokens
from pop.settings import Root
from pop.testing import NOTHING, Replayed, replay_run
from tests.fake_openai import FakeOpenAI, Fault
from tests.test_cli import REPOSITORY, pop

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
    failed = line(None, error_class="rate_limited", note="rate-limited: slow down")
    recorded.attempt(failed, line(None, "Say bye", error_class="bad_input", note="context-length: too long"), number=1)
    recorded.attempt(
        line("hi"), line(None, "Say bye", error_class="bad_input", note="context-length: too long"), number=2
    )
    assert recorded.ask().text == "hi"
    error = recorded.fails("Say bye")
    assert (error.error_class, error.code, error.curable) == ("bad_input", "context-length", False)
    assert error.message == f"too long (so it was in the run {RUN})"
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


def test_tokens_are_counted_as_they_were_counted_then(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same instance, first come first served; what it did not count is not known, and memory is bounded."""
    monkeypatch.setattr(replay, "COUNTS_KEPT", 3)

    def write(instance: str, number: int, *counts: tuple[str, str, int]) -> None:
        path = recorded.attempt(number=number, instance=instance).with_name("counts.jsonl")
        about = [{"asked": asked, "model": "m", "sha256": text_sha256(text), "tokens": n} for asked, text, n in counts]
        path.write_text("".join(json.dumps({**row, "exact": False}) + "\n" for row in about) + '{"torn')

    def counted(instance: str, asked: str, text: str, run: str = RUN) -> int | None:
        found = recorded.provider.counted(run, instance, asked, text)
        return found[0] if found else None

    write("a", 1, ("fast", "x", 5), ("large", "x", 6))
    write("a", 2, ("fast", "x", 50), ("fast", "y", 7))
    write("b", 1, ("fast", "x", 8))
    assert [counted("a", "fast", "x"), counted("a", "large", "x"), counted("a", "fast", "y")] == [5, 6, 7]
    assert [counted("b", "fast", "x"), counted("b", "fast", "y"), counted("a", "small", "x")] == [8, None, None]
    assert [counted(name, "fast", "x") for name in ("c", "..", "../../..")] == [None] * 3
    assert counted("a", "fast", "x", "no-such-run") is None
    write("b", 2, ("fast", "y", 9))
    assert (counted("b", "fast", "y"), counted("a", "fast", "x")) == (9, 5)


# -- the command line ------------------------------------------------------------------------------------------------

TASKS = {
    "summarise.md": "---\nmodel: fast\n---\nSay it in short: {{ seed.text }}\n",
    "both.py": (
        "from pop.context import Call\n"
        "def infer(prompt, ctx):\n"
        "    calls = [Call('Who are you?', model=name) for name in ('fast', 'large', 'fast')]\n"
        "    texts = [reply.text for reply in ctx.gather(calls)]\n"
        "    files = sorted(path.name for path in ctx.files.iterdir()) if ctx.files else []\n"
        "    return {'texts': texts, 'file': files, 'again': ctx.model()(ctx.inputs.summarise['text']).text}\n"
    ),
    "summarise.py": "def finalize(output, ctx):\n    return {'text': output if isinstance(output, str) else str(output)}\n",
}


class Served:
    """A root with two models of one pretended server."""

    def __init__(self, path: Path, fake: FakeOpenAI) -> None:
        self.path, self.fake = path, fake
        (path / "pipeline-tasks").mkdir(parents=True)
        for name, text in TASKS.items():
            (path / "pipeline-tasks" / name).write_text(text)
        settings = '[models]\ndefault = "fast"\n'
        for name in ("fast", "large"):
            settings += (
                f'[models.{name}]\nprovider = "openai"\nmodel = "m-{name}"\nbase_url = "{fake.base_url}"\ntries = 1\n'
            )
        (path / "pop.toml").write_text(settings)
        self.pipeline("summarise", "both", models={"default": "large"})
        (path / "note.json").write_text('{"text": "Rivers carry water."}')

    def pipeline(self, *tasks: Any, name: str = "default", **more: Any) -> None:
        file = self.path / ("pipeline.json" if name == "default" else f"pipelines/{name}.json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"name": name, "tasks": list(tasks), **more}))

    def run(self, *arguments: object) -> dict[str, Any]:
        ran = pop("run", "--json", *arguments, root=self.path)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        status: dict[str, Any] = json.loads(ran.stdout)
        return status

    def outputs(self, status: dict[str, Any]) -> dict[str, Any]:
        paths = Path(status["path"]).glob("tasks/*/output.json")
        return {path.parent.name: json.loads(path.read_bytes()) for path in paths}

    def asked(self) -> list[str]:
        """The models the server was asked for since the last look."""
        found = [json.loads(body)["model"] if isinstance(body, bytes) else body["model"] for body in self.fake.bodies]
        self.fake.bodies.clear()
        return found

    def envelope(self, name: str = "note.json") -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.path / "pipeline-pending" / name).read_bytes())
        return value


@pytest.fixture
def served(tmp_path: Path, fake_openai: FakeOpenAI) -> Served:
    return Served(tmp_path / "served", fake_openai)


def finished(
    root: Path, run_id: str = RUN, *, pipeline: str = "default", state: str = "complete", text: str = "hi"
) -> Path:
    """A recorded run that lies in a root, made by hand."""
    path = root / "pipeline-complete" / run_id
    folder = path / "tasks" / "summarise" / "attempts" / "1"
    folder.mkdir(parents=True)
    (folder / "calls.jsonl").write_text(json.dumps(line(text)) + "\n")
    (path / "events.jsonl").write_text('{"event": "run.created", "seed_file": "note.0a1b2c3d"}\n')
    status = {"run_id": run_id, "name": "note", "pipeline": pipeline, "state": state, "tasks": {}}
    (path / "tasks-status.json").write_text(json.dumps(status))
    (path / "seed.json").write_text('{"text": "Rivers."}')
    return path


@pytest.mark.parametrize(
    ("options", "models"),
    [
        (["-m", "large"], {"*": "large", "default": "large"}),
        (["-m", "fast=large"], {"fast": "large", "default": "local"}),
        (["-m", "large", "--model", "fast=openai/gpt-5"], {"*": "large", "default": "large", "fast": "openai/gpt-5"}),
        (["-m", "openai/a=b"], {"*": "openai/a=b", "default": "openai/a=b"}),
        (["--replay", "last"], {"*": f"replay:{RUN}", "default": f"replay:{RUN}"}),
        (["--replay", RUN[:12]], {"*": f"replay:{RUN}", "default": f"replay:{RUN}"}),
        ([], {"default": "local"}),
    ],
)
def test_the_command_line_writes_the_models_of_a_seed(
    served: Served, options: list[str], models: dict[str, str]
) -> None:
    """`*` stands for every name, also for those that seed and pipeline give another meaning; all else stays."""
    finished(served.path)
    with open(served.path / "pop.toml", "a") as file:
        file.write('[models.local]\nprovider = "builtin"\n')
    text = '{"data": {"n": 12345678901234567890123, "é": [1.50]}, "priority": 3, "models": {"default": "local"}}'
    (served.path / "note.json").write_text(text)
    ran = pop("submit", served.path / "note.json", *options, root=served.path)
    assert ran.returncode == 0, ran.stderr
    assert served.envelope() == {**json.loads(text), "models": models}


def test_a_seed_without_an_envelope_gets_one(served: Served) -> None:
    """A file, a folder and an archive; what came with it comes along. A replay is no second run of its `id`."""
    finished(served.path)
    folder = served.path / "trip"
    (folder / "more").mkdir(parents=True)
    (folder / "seed.json").write_text('{"data": {"text": "x"}, "id": "once"}')
    (folder / "more" / "a.txt").write_text("a")
    with zipfile.ZipFile(served.path / "packed.zip", "w") as archive:
        archive.writestr("seed.json", '{"text": "x"}')
        archive.writestr("a.txt", "a")
    for name in ("note.json", "trip", "packed.zip"):
        assert pop("submit", served.path / name, "-m", "fast=large", root=served.path).returncode == 0
    assert served.envelope() == {"data": {"text": "Rivers carry water."}, "models": {"fast": "large"}}
    assert served.envelope("trip/seed.json") == {"data": {"text": "x"}, "id": "once", "models": {"fast": "large"}}
    assert served.envelope("packed/seed.json") == {"data": {"text": "x"}, "models": {"fast": "large"}}
    assert (served.path / "pipeline-pending" / "trip" / "more" / "a.txt").read_text() == "a"
    assert (served.path / "pipeline-pending" / "packed" / "a.txt").read_text() == "a"
    assert pop("submit", folder, "--replay", RUN, root=served.path).returncode == 0
    assert "id" not in served.envelope("trip-2/seed.json")


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-m", "lrage"], "unknown-model: no model 'lrage'\n  where: -m lrage\n  hint: did you mean 'large'?"),
        (["-m", "fats=large"], "nothing asks for a model called 'fats'\n  where: -m\n  hint: did you mean 'fast'?"),
        (["-m", "large", "-m", "fast"], "-m says twice which model to ask for every name"),
        (["-m", "a=large", "-m", "a=fast"], "-m says twice which model to ask for 'a'"),
        (["-m", "large", "--replay", RUN], "-m and --replay do not go together"),
        (["--replay", "20991231"], "no run '20991231'"),
        (["--replay", "./nowhere"], "no run in the folder './nowhere'"),
        (["--replay", "20261121-031503-note-fail"], "is not finished: it is failed"),
        (["--replay", "20261121-031504-note-othr"], "is of the pipeline 'other', not of 'default'"),
        (["--replay", "20261121-031505-note-gone"], "is of the pipeline 'gone', which is not here"),
        (["--replay", "20261121-031506-note-oldr"], "keeps no answers: it was made by an older version"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_spent(
    served: Served, command: str, options: list[str], words: str
) -> None:
    """With exit code 2; nothing enters the queue, and nobody is asked."""
    served.pipeline("summarise", name="other")
    finished(served.path)
    finished(served.path, "20261121-031503-note-fail", state="failed")
    finished(served.path, "20261121-031504-note-othr", pipeline="other")
    finished(served.path, "20261121-031505-note-gone", pipeline="gone")
    older = finished(served.path, "20261121-031506-note-oldr")
    (older / "tasks/summarise/attempts/1/calls.jsonl").write_text('{"model": "fast", "key": "k"}\n')
    ran = pop(command, served.path / "note.json", *options, root=served.path)
    assert ran.returncode == 2 and words in ran.stderr and "hint: " in ran.stderr, ran.stderr
    assert not [path for path in served.path.glob("pipeline-pending/*") if path.name != "rejected"]
    assert served.fake.bodies == []


def test_a_run_needs_a_seed_or_a_recorded_run(served: Served) -> None:
    """The usual words."""
    ran = pop("run", root=served.path)
    assert ran.returncode == 2 and "Missing argument 'SEED'" in ran.stderr


def test_a_run_asks_the_models_of_the_command_line(served: Served) -> None:
    """For every name, or for one."""
    served.run(served.path / "note.json")
    assert sorted(served.asked()) == ["m-fast", "m-fast", "m-fast", "m-large", "m-large"]
    served.run(served.path / "note.json", "-m", "large")
    assert set(served.asked()) == {"m-large"}
    served.run(served.path / "note.json", "-m", "fast=large", "-m", "default=fast")
    assert sorted(served.asked()) == ["m-fast"] + ["m-large"] * 4


def test_a_finished_run_is_run_again_offline(served: Served) -> None:
    """From its answers alone, also without naming a seed, and by a replay of the replay; it costs nothing."""
    (served.path / "with").mkdir()
    (served.path / "with" / "seed.json").write_text(
        '{"data": {"text": "Rivers carry water."}, "id": "once", "name": "r"}'
    )
    (served.path / "with" / "more.txt").write_text("more")
    first = served.run(served.path / "with")
    assert len(served.asked()) == 5
    served.fake.close()
    again = served.run("--replay", first["run_id"])
    assert served.outputs(again) == served.outputs(first) and again["run_id"] != first["run_id"]
    assert again["usage"]["cost_usd"] == 0 and again["name"] == "r"
    assert served.outputs(served.run("--replay", again["path"])) == served.outputs(first)
    given = served.run(served.path / "with", "--replay", first["run_id"])
    assert served.outputs(given) == served.outputs(first)


def test_a_replay_fails_at_the_first_request_that_was_not_recorded(served: Served) -> None:
    """Its step, model and first differing line are told."""
    first = served.run(served.path / "note.json")
    served.asked()
    (served.path / "pipeline-tasks" / "summarise.md").write_text(
        "---\nmodel: fast\n---\nSay it at length: {{ seed.text }}\n"
    )
    ran = pop("run", "--json", "--replay", first["run_id"], root=served.path)
    assert ran.returncode == 4 and served.asked() == []
    error = json.loads(ran.stdout)["error"]
    assert error["error_class"] == "bad_input" and "step 'summarise' asks the model 'fast'" in error["message"]
    assert "was 'Say it in short: Rivers carry water.', now 'Say it at length: Rivers carry water.'" in error["message"]


def test_what_went_wrong_goes_wrong_again(served: Served) -> None:
    """A bad answer in the first generation, a better one after it, and a refinement: each in its turn, calls counted."""
    served.pipeline({"task": "count", "attempts": 3})
    (served.path / "pipeline-tasks" / "count.md").write_text("---\nmodel: fast\n---\nCount: {{ seed.text }}\n")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (served.path / "pipeline-tasks" / "count.schema.json").write_text(json.dumps(schema))
    (served.path / "pipeline-tasks" / "count.py").write_text(
        "def validate_quality(output, ctx):\n    if output['n'] < 3:\n        yield 'too few'\n"
    )
    served.fake.answers = ["no number", "still none", "nor here", '{"n": 1}', "ask for more", '{"n": 3}']
    first = served.run(served.path / "note.json")
    assert served.outputs(first) == {"count": {"n": 3}}, first
    asked = len(served.asked())
    assert first["tasks"]["count"]["attempt"] == 2 and asked > 4
    served.fake.close()
    again = served.run("--replay", first["run_id"])
    assert served.outputs(again) == {"count": {"n": 3}}
    assert again["tasks"]["count"]["attempt"] == first["tasks"]["count"]["attempt"]
    calls = [path.read_text().count("\n") for path in Path(again["path"]).glob("tasks/count/attempts/*/calls.jsonl")]
    assert sum(calls) == asked


def test_samples_come_back_in_their_places(served: Served) -> None:
    """Equal prompts of one gather, though the first is answered last; rows are written in the order of asking."""
    served.pipeline("many")
    (served.path / "pipeline-tasks" / "many.py").write_text(
        "def infer(prompt, ctx):\n    return [reply.text for reply in ctx.gather(['Who?'] * 5 + ['What?'] * 2)]\n"
    )
    served.fake.faults = [Fault(delay_s=0.5), Fault(delay_s=0.2)]
    served.fake.answers = [f"answer {number}" for number in range(7)]
    first = served.run(served.path / "note.json")
    texts = served.outputs(first)["many"]
    assert sorted(texts) == served.fake.answers or len(set(texts)) == 7
    (path,) = Path(first["path"]).glob("tasks/many/attempts/1/calls.jsonl")
    told = [json.loads(row)["text"] for row in path.read_text().splitlines()]
    assert [text for text in told if text in texts[:5]] == texts[:5]
    served.fake.close()
    assert served.outputs(served.run("--replay", first["run_id"])) == {"many": texts}


def test_what_a_count_decided_is_decided_again(served: Served) -> None:
    """The gateway's estimate was corrected by the usage it saw; the replay's has seen none of it."""
    served.pipeline("count")
    (served.path / "pipeline-tasks" / "count.py").write_text(
        "def infer(prompt, ctx):\n"
        "    for number in range(5):\n"
        "        ctx.model('large')(f'{number} ' + 'wonderful ' * 200)\n"
        "    tokens = ctx.count_tokens('wonderful ' * 1000, 'large')\n"
        "    return [tokens, ctx.model()(f'Write {tokens} words.').text]\n"
    )
    first = served.run(served.path / "note.json")
    tokens, _ = served.outputs(first)["count"]
    assert 900 < tokens < 2000 < estimate_tokens("wonderful " * 1000)
    served.fake.close()
    again = served.run("--replay", first["run_id"])
    assert served.outputs(again) == served.outputs(first)
    assert served.outputs(served.run("--replay", again["path"])) == served.outputs(first)
    for path in Path(first["path"]).glob("tasks/count/attempts/1/counts.jsonl"):
        path.unlink()
    ran = pop("run", "--json", "--replay", first["run_id"], root=served.path)
    assert "did not ask" in ran.stdout


# -- pop.testing -----------------------------------------------------------------------------------------------------


def replayed(recorded: Any, now: Any, state: str = "complete") -> Replayed:
    return Replayed(Path(), {"state": state, "error": {"message": "why", "hint": "what"}}, now, recorded)


def test_differences_are_shown_place_by_place() -> None:
    """Both sides, cut around the first character that differs."""
    then = {"a": {"x": [1, 2, {"y": "l" * 500 + "old"}]}, "gone": 1, "t": True, "same": [1]}
    now = {"a": {"x": [1, 3, {"y": "l" * 500 + "new"}, 4]}, "t": 1, "new": None, "same": [1]}
    found = replayed(then, now).differences()
    assert [(one.path, one.now) for one in found[:1]] == [("a/x/1", 3)]
    assert [one.path for one in found] == ["a/x/1", "a/x/2/y", "a/x/3", "gone", "t", "new"]
    assert found[3].now is NOTHING and found[5].recorded is NOTHING
    text = str(found[1])
    assert "old" in text and "new" in text and len(text) < 500
    with pytest.raises(AssertionError, match=r"6 place\(s\) differ from the recorded run:\n  a/x/1\n    recorded  2\n"):
        replayed(then, now).assert_same_outputs()


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ((), ["draft.0/s", "draft.1/s", "draft.1/t", "end"]),
        (["draft"], ["end"]),
        ("draft.1", ["draft.0/s", "end"]),
        (["draft/s"], ["draft.1/t", "end"]),
        (["draft.*/s", "end"], ["draft.1/t"]),
        (["*"], []),
        (["end/more"], ["draft.0/s", "draft.1/s", "draft.1/t", "end"]),
    ],
)
def test_places_may_be_ignored(ignore: Any, left: list[str]) -> None:
    """By a step, an item, a place below them, with `*`."""
    then = {"draft.0": {"s": 1}, "draft.1": {"s": 2, "t": 3}, "end": 1}
    now = {"draft.0": {"s": 0}, "draft.1": {"s": 0, "t": 0}, "end": 0}
    assert [one.path for one in replayed(then, now).differences(ignore)] == left


def test_a_replay_that_failed_tells_why() -> None:
    """Before any difference."""
    with pytest.raises(AssertionError, match="the replay ended as failed\n  why\n  what"):
        replayed({}, {}, "failed").assert_same_outputs()


def test_a_replay_that_cannot_begin_says_so(served: Served, tmp_path: Path) -> None:
    """A folder that is no run, and a broken pipeline."""
    with pytest.raises(AssertionError, match="no run in the folder"):
        replay_run(tmp_path / "none", served.path)
    (served.path / "pipeline.json").write_text("{")
    with pytest.raises(AssertionError, match=r"pipeline.json:1:2"):
        replay_run(finished(served.path), served.path)


FEW = ("pep-0255.rst", "pep-0289.rst")  # so few that nothing is compressed
ALL = tuple(path.name for path in (REPOSITORY / "examples" / "brief").glob("*.rst"))


@pytest.mark.parametrize("documents", [FEW, ALL], ids=["few", "all"])
def test_a_finished_run_is_a_test_of_its_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: tuple[str, ...]
) -> None:
    """What docs/testing.md says, on the shipped brief: it passes, and tells what a change of a task changed."""
    for name in ("pipeline.json", "pop.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "pipeline-tasks", tmp_path / "pipeline-tasks")
    (tmp_path / "brief").mkdir()
    for name in ("seed.json", *documents):
        shutil.copy(REPOSITORY / "examples" / "brief" / name, tmp_path / "brief" / name)
    assert pop("run", "-q", tmp_path / "brief", root=tmp_path).returncode == 0
    (tmp_path / "tests" / "recorded").mkdir(parents=True)
    (run,) = (tmp_path / "pipeline-complete").glob("2*")
    shutil.move(run, tmp_path / "tests" / "recorded" / "brief")
    page = (REPOSITORY / "docs" / "testing.md").read_text()
    example = "\n".join(row[4:] for row in page.splitlines() if row.startswith("    ") or not row).partition(
        "def test_"
    )
    namespace: dict[str, Any] = {"__file__": str(tmp_path / "tests" / "test_brief.py")}
    exec(example[0][example[0].index("from pathlib") :] + example[1] + example[2].partition("\n\n\n")[0], namespace)
    test: Callable[[], None] = namespace["test_the_brief_still_comes_out"]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-used-0123456789")
    test()
    test()
    publish = tmp_path / "pipeline-tasks" / "publish.py"
    publish.write_text(publish.read_text().replace('"title": brief["title"],', '"title": brief["title"] + "!",'))
    with pytest.raises(AssertionError, match="publish/title"):
        test()


def test_the_helper_hands_no_key_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a root that somebody exported, nor a keys file."""
    from pop import testing

    (served.path / "pop.toml").write_text('[gateway]\nkeys_file = "/no/such"\nprocesses = 0\n[models]\n')
    testing._copy(Root(served.path), Root(served.path / "copy"))
    assert (served.path / "copy" / "pop.toml").read_text() == "[gateway]\n\nprocesses = 0\n[models]\n"

    for name in ("OPENAI_API_KEY", "HF_TOKEN", "POP_ROOT", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "x")
    assert not {"OPENAI_API_KEY", "HF_TOKEN", "POP_ROOT", "OPENAI_BASE_URL"} & testing._environment(served.path).keys()


def test_a_recorded_run_elsewhere_is_named_by_its_path(served: Served, tmp_path: Path) -> None:
    """And one of this root by its id."""
    from pop.changes import recorded_run

    root = Root(served.path)
    away = finished(tmp_path / "other")
    assert recorded_run(root, str(away)).model == f"replay:{away}"
    assert recorded_run(root, str(finished(served.path))).model == f"replay:{RUN}"
    with pytest.raises(UsageError):
        recorded_run(root, str(tmp_path))
