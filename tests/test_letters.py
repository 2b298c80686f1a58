"""What a worker is told: configuration, models, limits; by the letter, and by its effect in a real run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pop import admission
from pop.history import Instance, RunHistory, read_history
from pop.letters import LetterWriter
from pop.moves import Start
from pop.pipeline import load_pipeline
from pop.records import Letter
from pop.settings import Root, Settings
from pop.steps import At
from pop.store import Disk
from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot

Make = Callable[..., LivingRoot]


class Desk:
    """A sealed run and the writer of its letters."""

    def __init__(self, path: Path, pipeline: Any, seed: Any = None, settings: Settings | None = None) -> None:
        root = Root(path)
        for folder in (root.pending, root.current, root.complete, root.tasks):
            folder.mkdir(parents=True)
        (root.pending / "a.json").write_text(json.dumps(seed if seed is not None else {}))
        (claimed,) = admission.claim(root, Disk(), ["a.json"], 0.0, random.Random(1))
        parsed, data = admission.read_claim(claimed, Settings().seeds)
        text = json.dumps(pipeline).encode()
        admission.seal(
            root, Disk(), claimed, parsed, data, pipeline_name="p", pipeline_bytes=text, provenance={}, now=1e9
        )
        self.run_dir = claimed.run_dir
        self.history: RunHistory = read_history(claimed.run_dir)
        self.pipeline = load_pipeline(text, where="pipeline.json", name="p", known_tasks={"a", "b"})
        self.settings = settings or Settings()
        self.writer = LetterWriter(root, self.settings, self.run_dir, self.pipeline, self.history.created)

    def letter(self, step: str = "a", *items: int) -> Letter:
        instance = ".".join([step, *map(str, items)])
        return self.writer.write(self.history, Start(instance, step, At(items)), gateway=None, now=5.0)


STEP = {"task": "a", "with": {"n": [1, 2]}, "model": "big", "timeout": "3s", "stall": "2s", "memory_mb": 99,
        "output_mb": 0.5, "refinements": 7}  # fmt: skip


def test_a_step_says_what_its_worker_gets(tmp_path: Path) -> None:
    """Every option of a task stands in the letter, and goes before pop.toml."""
    letter = Desk(tmp_path, {"tasks": [STEP]}).letter()
    assert (letter.config, letter.model, letter.refinements) == ({"n": [1, 2]}, "big", 7)
    assert letter.limits.model_dump() == {"timeout_s": 3.0, "stall_s": 2.0, "memory_mb": 99, "output_mb": 0.5}
    assert letter.deadline_at == 8.0


def test_without_options_pop_toml_counts(tmp_path: Path) -> None:
    """[worker] gives the limits."""
    worker = {"timeout_s": 11.0, "stall_s": 12.0, "memory_mb": 130, "output_mb": 1.5}
    desk = Desk(tmp_path, {"tasks": ["a"]}, settings=Settings.model_validate({"worker": {**worker, "attempts": 4}}))
    assert desk.letter().limits.model_dump() == worker
    assert desk.writer.attempts_allowed("a") == 4


def test_the_seeds_models_go_before_the_pipelines(tmp_path: Path) -> None:
    """Name by name."""
    pipeline = {"models": {"default": "p1", "other": "p2"}, "tasks": ["a"]}
    desk = Desk(tmp_path, pipeline, {"data": {}, "models": {"default": "s1", "third": "s3"}})
    assert desk.letter().models == {"default": "s1", "other": "p2", "third": "s3"}


@pytest.mark.parametrize(
    ("step", "seed", "age_s"),
    [
        ({}, {}, None),
        ({}, {"reuse": "1h"}, 3600.0),
        ({}, {"reuse": False}, 0.0),
        ({"reuse": False}, {"reuse": True}, 0.0),
        ({"reuse": "1m"}, {"reuse": False}, 60.0),
    ],
)
def test_the_steps_word_on_reuse_goes_before_the_seeds(
    tmp_path: Path, step: dict[str, Any], seed: dict[str, Any], age_s: float | None
) -> None:
    """A false is a word too, as 0: never, whatever the model says. None leaves it to the model."""
    desk = Desk(tmp_path, {"tasks": [{"task": "a", **step}]}, {"data": {}, **seed})
    assert desk.letter().reuse_s == age_s


def test_after_a_timeout_the_next_letter_gives_twice_the_time(tmp_path: Path) -> None:
    """Of timeout and stall; memory and output stay."""
    desk = Desk(tmp_path, {"tasks": [STEP]})
    desk.history.instances["a"] = Instance(state="retry", started=1, more_time=2.0)
    letter = desk.letter()
    assert (letter.attempt, letter.limits.timeout_s, letter.limits.stall_s, letter.limits.memory_mb) == (
        2,
        6.0,
        4.0,
        99,
    )


def test_a_letter_tells_the_problems_of_the_attempt_before(tmp_path: Path) -> None:
    """And an attempt's id is never used twice."""
    desk = Desk(tmp_path, {"tasks": ["a"]})
    desk.history.instances["a"] = Instance(state="retry", started=1, generation=2, problems=["/n: no"])
    letter = desk.letter()
    assert (letter.problems, letter.generation) == (["/n: no"], 2)
    assert desk.letter().attempt_id != letter.attempt_id


def test_an_item_stands_in_the_letter_by_value(tmp_path: Path) -> None:
    """With its number; a list is worked out once."""
    desk = Desk(tmp_path, {"tasks": [{"each": "seed.list", "do": "a"}]}, {"list": [5, None, {"x": 1}]})
    letters = [desk.letter("a", number) for number in range(3)]
    assert [(letter.item, letter.item_index, letter.has_item) for letter in letters] == [
        (5, 0, True), (None, 1, True), ({"x": 1}, 2, True),
    ]  # fmt: skip


def test_inputs_are_named_by_path_and_hash(tmp_path: Path) -> None:
    """Of what is done; a skipped step is None."""
    desk = Desk(tmp_path, {"tasks": ["a", {"task": "a", "name": "skipped", "when": "false"}, "b"]})
    desk.history.instances["a"] = Instance(state="done", sha256="abc")
    desk.history.instances["skipped"] = Instance(state="skipped")
    inputs = desk.letter("b").model_dump()["inputs"]
    assert inputs == {"a": {"path": "tasks/a/output.json", "sha256": "abc", "pointer": None}, "skipped": None}


# -- the same by its effect ------------------------------------------------------------------------------------------


def test_with_is_what_the_task_reads_as_config(make_living: Make) -> None:
    """In code as ctx.config, in a template as config; a step without `with` reads an empty object."""
    tasks = {
        "a.py": "def infer(prompt, ctx):\n    return ctx.config\n",
        "b.md": "{{ config.words }} words",
        "b.py": "def infer(prompt, ctx):\n    return prompt[-1]['content']\n",
    }
    steps: list[Any] = [
        "a",
        {"task": "a", "name": "c", "with": {"deep": {"x": [1]}}},
        {"task": "b", "with": {"words": 300}},
    ]
    living = make_living(pipeline={"name": "p", "tasks": steps}, tasks=tasks)
    living.up()
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert [living.output(row, step) for step in ("a", "c", "b")] == [{}, {"deep": {"x": [1]}}, "300 words"]


def test_other_models_are_asked_when_pipeline_or_seed_say_so(make_living: Make, fake_openai: FakeOpenAI) -> None:
    """The seed goes before the pipeline, the pipeline before pop.toml; names they do not mention stay."""
    entry = f'provider = "openai"\nbase_url = "{fake_openai.base_url}"\n'
    settings = "".join(f'[models.{name}]\n{entry}model = "m-{name}"\n' for name in ("default", "one", "two", "three"))
    tasks = {"ask.md": "?", "more.md": "---\nmodel: two\n---\n??"}
    plain = {"name": "p", "tasks": ["ask", "more"]}
    living = make_living(pipeline=plain, tasks=tasks, settings=settings)
    living.root.pipelines.mkdir()
    (living.root.pipelines / "own.json").write_text(json.dumps({**plain, "models": {"default": "one"}}))
    living.up()
    asked = []
    seeds: list[dict[str, Any]] = [{}, {"pipeline": "own"}, {"pipeline": "own", "models": {"default": "three"}}]
    for number, more in enumerate(seeds, 1):
        living.drop(f"{number}.json", {"data": {}, **more})
        living.wait_complete(number)
        asked.append([body["model"] for body in fake_openai.bodies[-2:]])
    assert asked == [["m-default", "m-two"], ["m-one", "m-two"], ["m-three", "m-two"]]


def test_a_second_attempt_after_a_timeout_has_twice_the_time(make_living: Make) -> None:
    """What needs a second and a half fails within one, and is done within two."""
    slow = "import time\ndef infer(prompt, ctx):\n    time.sleep(1.5)\n    return ctx.letter.limits.timeout_s\n"
    step = {"task": "slow", "timeout": "1s", "attempts": 2}
    living = make_living(pipeline={"name": "p", "tasks": [step]}, tasks={"slow.py": slow})
    living.up()
    living.drop("a.json", {})
    (row,) = living.wait_complete(1)
    assert (row["attempts"], living.output(row, "slow")) == (2, 2.0)
