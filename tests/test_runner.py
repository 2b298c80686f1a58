"""The inner loop on real task folders, with a model whose answers the test scripts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pop.errors import AttemptFailed
from pop.models.request import Answer, ModelError, ModelRequest
from pop.records import FileRef, Letter
from pop.runner import run_attempt

SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})


class Script:
    """A caller that gives the next scripted answer; a finish reason may stand behind it."""

    def __init__(self, *answers: str | tuple[str, str]) -> None:
        self.answers = list(answers)
        self.requests: list[ModelRequest] = []

    def ask(self, request: ModelRequest) -> Answer:
        self.requests.append(request)
        text, finish = entry if isinstance(entry := self.answers.pop(0), tuple) else (entry, "stop")
        return Answer(text=text, model="m", provider="p", provider_model="pm", finish_reason=finish, key="k")

    def ask_many(
        self, requests: Sequence[ModelRequest], *, at_once: int | None = None, heard: Any = None
    ) -> list[Answer | ModelError]:
        answers: list[Answer | ModelError] = [self.ask(request) for request in requests]
        for place, answer in enumerate(answers):
            heard(place, answer)
        return answers


Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Writes a task folder and runs one attempt on it; returns the output."""

    def go(files: dict[str, str], caller: Script | None = None, *, seed: Any = None, **letter: Any) -> Any:
        tasks = tmp_path / "pipeline-tasks"
        tasks.mkdir(exist_ok=True)
        for name, text in files.items():
            (tasks / name).write_text(text)
        data = json.dumps(seed if seed is not None else {"text": "hello"}).encode()
        (tmp_path / "seed.json").write_bytes(data)
        inputs = {}
        for name, value in letter.pop("inputs", {}).items():
            (tmp_path / "tasks" / name).mkdir(parents=True)
            raw = json.dumps(value).encode()
            (tmp_path / "tasks" / name / "output.json").write_bytes(raw)
            inputs[name] = FileRef(path=f"tasks/{name}/output.json", sha256=hashlib.sha256(raw).hexdigest())
        folder = tmp_path / "attempt"
        folder.mkdir(exist_ok=True)
        order = Letter(
            run_id="r", run_name="r", instance="t", step="t", task="t", tasks_dir=str(tasks), run_dir=str(tmp_path),
            attempt=1, attempt_id="a", generation=1, inputs=inputs, deadline_at=0.0,
            seed=FileRef(path="seed.json", sha256=hashlib.sha256(data).hexdigest()), **letter,
        )  # fmt: skip
        run_attempt(order, folder, caller)
        return json.loads((folder / "output.json").read_bytes())

    return go


def test_a_function_is_a_whole_task(run: Run) -> None:
    """What infer returns is the output."""
    assert run({"t.py": "def infer(prompt, ctx):\n    return {'n': len(ctx.inputs)}\n"}) == {"n": 0}


def test_a_prompt_is_a_whole_task(run: Run, tmp_path: Path) -> None:
    """The template names seed and inputs; the answer's text is the output; prompt and answer are readable files."""
    script = Script(" Fine. ")
    files = {"t.md": "---\nsystem: Terse.\nmodel: big\n---\n{{ seed.text }} {{ inputs.step_one.x }}"}
    assert run(files, script, inputs={"step-one": {"x": 5}}) == "Fine."
    request = script.requests[0]
    assert [(m.role, m.content) for m in request.messages] == [("system", "Terse."), ("user", "hello 5")]
    assert request.model == "big"
    assert "hello 5" in (tmp_path / "attempt" / "03-prompt.md").read_text()
    assert "Fine." in (tmp_path / "attempt" / "04-infer.md").read_text()


def test_an_undefined_name_says_where_and_what_was_meant(run: Run) -> None:
    """bad_input, with the template's line and the nearest name."""
    with pytest.raises(AttemptFailed) as caught:
        run({"t.md": "line one\n{{ sed.text }}"}, Script("x"))
    assert (caught.value.error_class, caught.value.where) == ("bad_input", "t.md:2")
    assert "seed" in (caught.value.hint or "")


def test_data_is_never_a_template(run: Run) -> None:
    """Braces in a seed are text."""
    script = Script("ok")
    run({"t.md": "{{ seed.text }}"}, script, seed={"text": "{{ 7 * 7 }}"})
    assert script.requests[0].messages[0].content == "{{ 7 * 7 }}"


def test_a_structure_that_never_fits_fails_with_pointers(run: Run) -> None:
    """After the refinements are used up the attempt is invalid_output."""
    script = Script('{"n": "a"}', '{"n": "b"}', '{"n": "c"}')
    with pytest.raises(AttemptFailed) as caught:
        run({"t.md": "x", "t.schema.json": SCHEMA}, script)
    assert caught.value.error_class == "invalid_output" and caught.value.problems[0].startswith("/n:")
    assert len(script.requests) == 3


def test_without_refinements_a_structure_failure_fails_at_once(run: Run) -> None:
    """The strict path."""
    script = Script("no json")
    with pytest.raises(AttemptFailed):
        run({"t.md": "x", "t.schema.json": SCHEMA}, script, refinements=0)
    assert len(script.requests) == 1


def test_a_repeated_output_ends_the_loop(run: Run) -> None:
    """Asking the same thing a third time would pay for nothing."""
    script = Script('{"n": "a"}', '{"n": "a"}', '{"n": 1}')
    with pytest.raises(AttemptFailed):
        run({"t.md": "x", "t.schema.json": SCHEMA}, script)
    assert len(script.requests) == 2


def test_the_best_output_is_kept_and_its_problems_are_recorded(run: Run, tmp_path: Path) -> None:
    """Quality that stays short does not throw away the best answer."""
    code = (
        "from pop.stages import Problem\n"
        "def validate_quality(output, ctx):\n    yield Problem(f'{output} words', score=float(output))\n"
    )
    assert run({"t.md": "x", "t.py": code}, Script("5", "2", "9")) == "2"
    assert json.loads((tmp_path / "attempt" / "problems.json").read_bytes()) == ["2 words"]


def test_a_fatal_problem_fails_the_attempt(run: Run) -> None:
    """Some outputs are worse than none."""
    code = (
        "from pop.stages import Problem\n"
        "def validate_quality(output, ctx):\n    return [Problem('never', fatal=True)]\n"
    )
    with pytest.raises(AttemptFailed, match="never"):
        run({"t.md": "x", "t.py": code}, Script("1", "2", "3"))


def test_critique_and_refine_templates_are_used(run: Run) -> None:
    """The critique is a model's, and the next prompt is the refine template's."""
    code = "def validate_quality(output, ctx):\n    return ['too long'] if len(output) > 3 else []\n"
    files = {
        "t.md": "write", "t.py": code,
        "t.critique.md": "What is wrong? {{ problems | join }}", "t.refine.md": "Again: {{ critique }} / {{ answer }}",
    }  # fmt: skip
    script = Script("loooong", "make it short", "ok")
    assert run(files, script) == "ok"
    assert [r.messages[-1].content for r in script.requests[1:]] == [
        "What is wrong? too long", "Again: make it short / loooong",
    ]  # fmt: skip


@pytest.mark.parametrize(("finish", "error_class"), [("length", "truncated"), ("refusal", "refused")])
def test_truncation_and_refusal_come_before_parsing(run: Run, finish: str, error_class: str) -> None:
    """A cut answer is not half an output."""
    with pytest.raises(AttemptFailed) as caught:
        run({"t.md": "x", "t.schema.json": SCHEMA}, Script(('{"n": 1}', finish)))
    assert caught.value.error_class == error_class


def test_samples_are_several_calls_and_the_best_counts(run: Run) -> None:
    """Fewest problems first, then the majority."""
    script = Script('{"n": "bad"}', '{"n": 7}', '{"n": 8}', '{"n": 7}')
    assert run({"t.md": "---\nsamples: 4\n---\nx", "t.schema.json": SCHEMA}, script) == {"n": 7}


def notes(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "attempt" / "trail.jsonl").read_bytes().splitlines()
    return [row["text"] for row in map(json.loads, lines) if row["event"] == "note"]


ODD = "def validate_quality(output, ctx):\n    return ['too few'] if output['n'] < 5 else []\n"


@pytest.mark.parametrize(
    ("choose", "output", "note"),
    [
        ("best", {"n": 9}, "sample 4 of 5 is taken (best): given 1 times, 0 problems"),
        ("majority", {"n": 2}, "sample 2 of 5 is taken (majority): given 2 times, 1 problems"),
    ],
)
def test_samples_are_chosen_as_the_task_says(run: Run, tmp_path: Path, choose: str, output: Any, note: str) -> None:
    """By rank, or by how many gave the same value, however it was written; the trail says which and how many."""
    script = Script('{"n": "x"}', '{"n": 2, "a": 1.0}', '{"n": "x"}', '{"n": 9}', ' {"a": 1, "n": 2}', '{"n": "x"}')
    files = {
        "t.md": f"---\nsamples: 5\nchoose: {choose}\n---\nx", "t.schema.json": SCHEMA, "t.py": ODD,
    }  # fmt: skip
    assert run(files, script, refinements=0)["n"] == output["n"]
    assert notes(tmp_path) == [note]


@pytest.mark.parametrize(
    ("answers", "rounds", "output"),
    [
        (['{"n": 1}', '{"n": 7}', '{"n": 8}'], 0, {"n": 7}),
        (["no", '{"n": "a"}', "nor that", '{"n": 6}'], 1, {"n": 6}),
    ],
)
def test_a_tied_vote_goes_to_the_better_then_to_the_first(run: Run, answers: Any, rounds: int, output: Any) -> None:
    """And without any sound sample the least bad is refined, as with one."""
    files = {"t.md": "---\nsamples: 3\nchoose: majority\n---\nx", "t.schema.json": SCHEMA, "t.py": ODD}
    assert run(files, Script(*answers), refinements=rounds) == output


def test_true_is_no_vote_for_one(run: Run) -> None:
    """Values are compared as JSON has them."""
    script = Script("true", "1", "1.0", "true", "true")
    files = {"t.md": "---\nsamples: 5\nchoose: majority\n---\nx", "t.schema.json": "{}"}
    assert run(files, script) is True


@pytest.mark.parametrize(
    "text",
    ['{"n": 3}', 'Sure:\n```json\n{"n": 3}\n```', 'I think {"n": 3} is right', '{"n": 3,', "{'n': 3}"],
)
def test_json_is_found_where_models_put_it(run: Run, text: str) -> None:
    """Strict, fenced, embedded, repaired."""
    assert run({"t.md": "x", "t.schema.json": SCHEMA}, Script(text)) == {"n": 3}


def test_a_pydantic_model_is_the_schema(run: Run) -> None:
    """Output gives the schema that is asked for and checked."""
    code = "from pydantic import BaseModel\nclass Output(BaseModel):\n    n: int\n"
    script = Script('{"n": "x"}', '{"n": 4}')
    assert run({"t.md": "x", "t.py": code}, script) == {"n": 4}
    assert script.requests[0].schema_ and "n" in script.requests[0].schema_["properties"]


def test_a_task_is_not_given_the_nulls_of_a_strict_server(run: Run) -> None:
    """Its schema says what may be null; what a strict server must write is read as left out."""

    class Strict(Script):
        def ask(self, request: ModelRequest) -> Answer:
            return super().ask(request).model_copy(update={"extra": {"nulls": True}})

    schema = {"properties": {"n": {"type": "integer"}, "m": {"type": "integer"}, "k": {"type": ["null", "integer"]}}}
    files = {"t.md": "x", "t.schema.json": json.dumps({"type": "object", "required": ["n"], **schema})}
    assert run(files, Strict('{"n": 1, "m": null, "k": null}')) == {"n": 1, "k": None}


def test_async_stages_and_generators_are_welcome(run: Run) -> None:
    """Also together."""
    code = (
        "async def infer(prompt, ctx):\n    return 1\n"
        "async def validate_quality(output, ctx):\n    yield 'hm'\n"
        "async def finalize(output, ctx):\n    return output + 1\n"
    )
    assert run({"t.py": code}) == 2


def test_a_public_function_that_is_no_stage_is_an_error(run: Run) -> None:
    """With the nearest stage's name."""
    with pytest.raises(AttemptFailed, match="validate_qualty") as caught:
        run({"t.py": "def infer(p, ctx):\n    return 1\ndef validate_qualty(o, ctx):\n    pass\n"})
    assert "validate_quality" in (caught.value.hint or "")


def test_an_artifact_cannot_leave_its_folder(run: Run) -> None:
    """Names may come from a model."""
    with pytest.raises(Exception, match="plain relative path"):
        run({"t.py": "def infer(p, ctx):\n    ctx.artifact('../../x')\n"})


def test_compress_stays_within_its_budget(run: Run) -> None:
    """Parts are condensed side by side until the whole fits."""
    code = "def infer(p, ctx):\n    return ctx.compress('word ' * 8000, 400)\n"
    script = Script(*["short digest"] * 20)
    assert len(run({"t.py": code}, script)) <= 1600
    assert len(script.requests) >= 3


def test_a_changed_input_is_noticed(run: Run, tmp_path: Path) -> None:
    """An output that is not the one that was recorded is bad input."""
    code = "def infer(p, ctx):\n    open(ctx.letter.run_dir + '/tasks/a/output.json', 'w').write('9')\n    return ctx.inputs.a\n"
    with pytest.raises(AttemptFailed, match="not the file that was recorded"):
        run({"t.py": code}, inputs={"a": 1})


def test_a_large_seed_is_not_written_again(run: Run, tmp_path: Path) -> None:
    """Stage files point to what already stands on disk."""
    run({"t.py": "def infer(p, ctx):\n    return len(ctx.seed['text'])\n"}, seed={"text": "x" * 500_000})
    assert sum(path.stat().st_size for path in (tmp_path / "attempt").iterdir()) < 10_000


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{" * 200_000, '{"a":' * 50_000, "[1," * 60_000], ids=["[", "{", "a", "1"]
)
def test_a_hostile_answer_costs_little_time(run: Run, text: str) -> None:
    """Nothing but brackets is refused, not pondered."""
    began = time.perf_counter()
    with pytest.raises(AttemptFailed):
        run({"t.md": "x", "t.schema.json": SCHEMA}, Script(text), refinements=0)
    assert time.perf_counter() - began < 10


def test_two_different_answers_without_json_are_no_repetition(run: Run) -> None:
    """The loop ends early only when an answer really came back the same."""
    assert run({"t.md": "x", "t.schema.json": SCHEMA}, Script("no", "still no", '{"n": 1}')) == {"n": 1}


def test_a_refusal_to_refine_does_not_throw_the_best_output_away(run: Run, tmp_path: Path) -> None:
    """What is usable stays, and problems.json says what is wrong with it; a fatal problem still fails."""
    code = "def validate_quality(output, ctx):\n    return ['dull']\n"
    assert run({"t.md": "x", "t.py": code}, Script("good", ("I will not", "refusal"))) == "good"
    assert json.loads((tmp_path / "attempt" / "problems.json").read_bytes()) == ["dull"]
    assert "kept" in (tmp_path / "attempt" / "trail.jsonl").read_text()


def test_a_refusal_to_mend_a_broken_structure_is_a_refusal(run: Run) -> None:
    """Without a usable output the class of the last failure counts."""
    with pytest.raises(AttemptFailed) as caught:
        run({"t.md": "x", "t.schema.json": SCHEMA}, Script("no", ("I will not", "refusal")))
    assert caught.value.error_class == "refused"


def test_one_cut_sample_does_not_spoil_the_others(run: Run) -> None:
    """Samples that came back whole are judged; only when none did does the attempt fail."""
    files = {"t.md": "---\nsamples: 2\n---\nx", "t.schema.json": SCHEMA}
    assert run(files, Script(('{"n', "length"), '{"n": 7}')) == {"n": 7}


def test_all_samples_cut_is_truncated(run: Run) -> None:
    """The first failure is the attempt's."""
    with pytest.raises(AttemptFailed) as caught:
        run({"t.md": "---\nsamples: 2\n---\nx"}, Script(("a", "length"), ("b", "length")))
    assert caught.value.error_class == "truncated"


def test_an_output_model_may_be_returned_as_it_is(run: Run) -> None:
    """infer may build its own Output; it is validated and written like any other answer."""
    code = (
        "from pydantic import BaseModel\nclass Output(BaseModel):\n    n: int\n    pair: tuple[int, int] = (1, 2)\n"
        "def infer(prompt, ctx):\n    return Output(n=3)\n"
    )
    assert run({"t.py": code}) == {"n": 3, "pair": [1, 2]}


def test_a_reply_without_the_asked_form_is_invalid_output_not_a_bug(run: Run) -> None:
    """`data` of a call with a schema is checked when it is looked at, and its failure may be tried again."""
    code = "def infer(p, ctx):\n    return ctx.model()('how many?', schema={'type': 'integer'}).data\n"
    assert run({"t.py": code}, Script("7")) == 7
    with pytest.raises(AttemptFailed) as caught:
        run({"t.py": code}, Script("many"))
    assert caught.value.error_class == "invalid_output"


def test_a_schema_that_reaches_for_the_network_is_refused(run: Run) -> None:
    """A $ref to elsewhere is a mistake of the task with its place, not a download."""
    schema = json.dumps({"$ref": "http://127.0.0.1:9/elsewhere.json"})
    with pytest.raises(AttemptFailed, match=r"\$ref") as caught:
        run({"t.md": "x", "t.schema.json": schema}, Script("{}"))
    assert caught.value.error_class == "bug" and "t.schema.json" in (caught.value.where or "")


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({"t.md": "one\n{{ seed.x"}, "t.md:2"),
        ({"t.py": "x = 1\ndef infer(prompt, ctx)\n    pass\n"}, "t.py:2"),
        ({"t.md": "x", "t.refine.md": "{% if %}"}, "t.refine.md:1"),
    ],
)
def test_a_syntax_error_made_after_the_check_has_its_place(run: Run, files: dict[str, str], where: str) -> None:
    """Tasks are edited while the daemon runs; their mistakes are told without a traceback of POP's."""
    with pytest.raises(AttemptFailed) as caught:
        run(files, Script("x"))
    assert caught.value.error_class == "bug" and (caught.value.where or "").startswith(where)


def test_a_missing_key_is_looked_for_where_it_was_missed(run: Run) -> None:
    """The hint names the nearest key of the inputs, not any key of the seed."""
    with pytest.raises(AttemptFailed) as caught:
        run({"t.md": "{{ inputs.sumary }}"}, Script("x"), inputs={"summary": 1})
    assert caught.value.hint == "did you mean 'summary'?"


def test_keys_named_like_methods_are_data(run: Run) -> None:
    """`seed.items` and `inputs.values` are what the run says, not Python's methods."""
    script = Script("ok")
    run({"t.md": "{{ seed.items | join }}{{ inputs.values }}"}, script, seed={"items": [1, 2]}, inputs={"values": 3})
    assert script.requests[0].messages[0].content == "123"


def test_stages_may_come_from_a_helper_module(run: Run) -> None:
    """An imported or wrapped function with a stage's name is that stage."""
    files = {
        "t.py": "from shared_stages import finalize\nimport shared_stages\ninfer = shared_stages.twice(lambda: 2)\n",
        "shared_stages.py": "def finalize(output, ctx):\n    return output + 1\n"
        "def twice(f):\n    def run(prompt, ctx):\n        return 2 * f()\n    return run\n",
    }
    assert run(files) == 5


def test_an_own_log_line_never_fails_the_attempt(run: Run, tmp_path: Path) -> None:
    """Whatever a task logs becomes a line."""
    code = "def infer(p, ctx):\n    ctx.log.info('half \\ud800', counts={1: {2}}, big=2**80)\n    return 1\n"
    assert run({"t.py": code}) == 1
    assert "half" in json.loads((tmp_path / "attempt" / "log.jsonl").read_bytes())["text"]


def test_a_failed_call_in_a_task_group_keeps_its_class(run: Run) -> None:
    """asyncio wraps errors in groups; the attempt fails as what went wrong inside."""
    code = (
        "import asyncio\n"
        "async def _ask(ctx):\n    return ctx.model()('x').text\n"
        "async def infer(p, ctx):\n    async with asyncio.TaskGroup() as group:\n        group.create_task(_ask(ctx))\n"
    )
    with pytest.raises(AttemptFailed) as caught:
        run({"t.py": code}, Script(("cut", "length")))
    assert caught.value.error_class == "truncated"


def test_critique_sees_the_prompt_and_the_answer(run: Run) -> None:
    """A critic can compare what was asked with what came."""
    code = "def validate_quality(output, ctx):\n    return ['bad'] if output == 'a' else []\n"
    script = Script("a", "hm", "b")
    assert run({"t.md": "the ask", "t.py": code, "t.critique.md": "{{ prompt }}|{{ answer }}"}, script) == "b"
    assert script.requests[1].messages[0].content == "the ask|a"


def test_a_later_attempt_is_told_what_was_wrong(run: Run) -> None:
    """The validators' words of the attempt before stand in the prompt."""
    script = Script("x")
    run({"t.md": "do it"}, script, problems=["/n: too small"])
    assert "/n: too small" in script.requests[0].messages[-1].content


def test_a_validator_that_gives_nonsense_is_a_bug_with_a_sentence(run: Run) -> None:
    """False, a number or an object are no problems, and no silence either."""
    for value in ("False", "3", "{'text': 'x'}"):
        with pytest.raises(TypeError, match="a validator gives sentences"):
            run({"t.py": f"def infer(p, c):\n    return 1\ndef validate_quality(o, c):\n    return {value}\n"})


def test_refinements_that_make_nothing_better_end_the_loop(run: Run, tmp_path: Path) -> None:
    """Two in a row are enough, however many are allowed and however different their outputs are."""
    code = (
        "def infer(prompt, ctx):\n    return {'n': 0}\n\n\ndef validate_quality(output, ctx):\n    yield 'never good'\n\n\n"
        "def refine(output, critique, ctx):\n    return {'n': output['n'] + 1}\n"
    )
    assert run({"t.py": code}, refinements=20) == {"n": 0}
    trail = (tmp_path / "attempt" / "trail.jsonl").read_text()
    assert trail.count('"stage.begin","stage":"refine"') == 2


@pytest.mark.parametrize("value", ["float('nan')", "{'a': [float('inf')], 'b': None}"])
def test_a_number_that_is_none_is_refused(run: Run, value: str) -> None:
    """It would be null in the file, silently."""
    with pytest.raises(AttemptFailed, match="NaN") as caught:
        run({"t.py": f"def infer(prompt, ctx):\n    return {value}\n"}, refinements=0)
    assert caught.value.error_class == "invalid_output"


def test_an_input_that_is_none_names_the_nearest(run: Run) -> None:
    """By key as by attribute."""
    with pytest.raises(KeyError, match="did you mean 'summary'"):
        run({"t.py": "def infer(prompt, ctx):\n    return ctx.inputs['sumary']\n"}, inputs={"summary": 1})


def test_the_evidence_of_an_answer_is_kept_with_its_call(run: Run, tmp_path: Path) -> None:
    """In calls.jsonl, which lives as long as the run."""
    from pop.models.providers.builtin import extract

    class Engine:
        def ask(self, request: ModelRequest) -> Answer:
            return extract(request).model_copy(update={"key": "k"})

        def ask_many(self, requests: Any, **_: Any) -> Any:
            return [self.ask(request) for request in requests]

    text = "The committee met in the old town hall on Monday. It decided to build a new bridge over the river."
    run({"t.md": "Condense.\n\n<document id='d'>\n{{ seed.text }}\n</document>"}, Engine(), seed={"text": text})
    row = json.loads((tmp_path / "attempt" / "calls.jsonl").read_bytes().splitlines()[0])
    assert row["evidence"][0]["quote"] in text and row["evidence"][0]["document"] == "d"


def test_what_code_gives_is_checked_as_json_has_it(run: Run) -> None:
    """A tuple is a list and a key a text, also beside an integer beyond 64 bits, which stays exact."""
    schema = json.dumps({"type": "object", "properties": {"1": {"type": "array"}}, "required": ["1"]})
    code = "def infer(prompt, ctx):\n    return {1: (10**30 + 1, 2)}\n"
    assert run({"t.py": code, "t.schema.json": schema}) == {"1": [10**30 + 1, 2]}
