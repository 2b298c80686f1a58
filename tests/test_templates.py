"""Templates at run time: what is missing is said in the words of the template."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pop.context import Context
from pop.errors import AttemptFailed
from pop.inputs import Inputs
from pop.records import FileRef, Letter
from pop.stages import Stages
from pop.tasks import load_task
from pop.templatecheck import Template, missing_from_seed
from pop.templates import Prompt
from pop.trail import Trail

NAMES: dict[str, Any] = {
    "seed": {"text": "x", "parts": [{"title": "a"}], "items": [1]},
    "inputs": {"skipped": None},
    "item": None,
}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ seed.txt }}", "seed has no key 'txt' (t.md:1): did you mean 'text'?"),
        ("{{ seed['txt'] }}", "seed has no key 'txt' (t.md:1): did you mean 'text'?"),
        ("a\n{{ seed.parts[0].titel }}", "seed.parts[0] has no key 'titel' (t.md:2): did you mean 'title'?"),
        (
            "{% for p in seed.parts %}\n{{ p.titel }}{% endfor %}",
            "p has no key 'titel' (t.md:2): did you mean 'title'?",
        ),
        ("{{ seed.parts[4] }}", "seed.parts has no key '4' (t.md:1): None"),
        ("{{ inputs.skipped.x }}", "inputs.skipped has no key 'x' (t.md:1): it is null, as is the output of a skipped"),
        ("{{ (seed.parts | first).titel }}", "an object has no key 'titel' (t.md:1): did you mean 'title'?"),
        ("{{ sed }}", "'sed' is undefined (t.md:1): did you mean 'seed'?"),
        ("{{ seed.text.__class__ }}", "the template fails: access to attribute '__class__'"),
    ],
)
def test_what_is_missing_is_named_as_the_template_names_it(text: str, says: str) -> None:
    """With the line and the nearest key there is, never in Jinja's words."""
    with pytest.raises(AttemptFailed) as caught:
        Prompt(text, Path("t.md")).render(NAMES)
    assert caught.value.error_class == "bad_input"
    assert f"{caught.value.message} ({caught.value.where}): {caught.value.hint}".startswith(says)


def stages(folder: Path, prompt: str, **letter: Any) -> Stages:
    """A task of one file, about to be asked in a run's folder."""
    (folder / "t.md").write_text(prompt)
    order = Letter(
        run_id="r", run_name="r", instance="t@2", step="t", task="t", tasks_dir=str(folder), run_dir=str(folder),
        attempt=1, attempt_id="a", generation=1, deadline_at=0.0, seed=FileRef(path="seed.json", sha256=""), **letter,
    )  # fmt: skip
    return Stages(load_task(folder, "t"), Context(order, {}, Inputs(folder, {}), Trail(folder), None))


def prompted(folder: Path, prompt: str, **letter: Any) -> str:
    return str(stages(folder, prompt, **letter).prompt({})[-1]["content"])


def test_a_prompt_sees_its_lap_and_what_the_laps_before_gave(tmp_path: Path) -> None:
    """`laps` has a list by step, `-` reads `_`, and a lap without an output is null."""
    data = b'{"score": 7.5}'
    (tmp_path / "o.json").write_bytes(data)
    ref = {"path": "o.json", "sha256": sha256(data).hexdigest()}
    said = prompted(tmp_path, "{{ lap }}: {{ laps.the_review[-1].score }} {{ laps.b }}", lap=2,
                    laps={"the-review": [None, ref], "b": [None]})  # fmt: skip
    assert said == "2: 7.5 [None]"


def test_what_persons_asked_for_is_told_to_the_model(tmp_path: Path) -> None:
    """Behind the prompt, unless the template tells it itself; the word in its prose is no telling."""
    asked = ["shorter", "no tables\nat all"]
    said = prompted(tmp_path, "Write, with changes.", changes=asked)
    assert said == (
        "Write, with changes.\n\nA person has looked at an earlier result and asks for these changes:\n"
        "- shorter\n- no tables\n  at all"
    )
    assert prompted(tmp_path, "Write {{ changes[0] }}", changes=asked) == "Write shorter"
    assert prompted(tmp_path, "---\nsystem: Mind {{ changes | json }}\n---\nWrite", changes=asked) == "Write"
    assert prompted(tmp_path, "Write") == "Write"
    both = prompted(tmp_path, "Write", changes=["shorter"], problems=["too long"])
    assert both.index("too long") < both.index("shorter")


def test_a_value_as_json_keeps_its_integers() -> None:
    """Of any length, whole and in one line."""
    value = {"n": 10**30 + 1, "é": [1, {"a": 0.5}]}
    for indent in ("", "(indent=0)"):
        text = Prompt("{{ v | json" + indent + " }}", Path("t.md")).render({"v": value})
        assert json.loads(text) == value and "é" in text
        small = Prompt("{{ v | json" + indent + " }}", Path("t.md")).render({"v": {**value, "n": 1}})
        assert text.replace(str(10**30 + 1), "1") == small
    with pytest.raises(AttemptFailed, match="has no JSON form|not JSON"):
        Prompt("{{ v | json }}", Path("t.md")).render({"v": object()})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n{{ seed.txt }}", ["seed has no key 'txt' p/t.md:2:9 did you mean 'text'?"]),
        ("{{ seed.meta.lang }}", ["seed has no key 'meta' p/t.md:1:9 known: items, parts, text"]),
        ("{% for p in seed.part %}{{ seed.x }}{% endfor %}", ["seed has no key 'part' p/t.md:1:18 did you mean 'parts'?"]),
        ("{% if seed.a == 1 %}{{ seed.b }}{% endif %}", ["seed has no key 'a' p/t.md:1:12 known: items, parts, text"]),
        ("{{ seed.note | default('') }}{{ seed.x is defined }}{{ seed.x if item else '' }}", []),
        ("{{ seed.items() }}{{ seed.text.strip() }}{{ seed.parts[0].titel }}{{ item.x }}", []),
        ("{% set seed = {} %}{{ seed.x }}", []),
    ],
)  # fmt: skip
def test_what_a_seed_certainly_lacks_is_known_before(text: str, says: list[str]) -> None:
    """Only what is read in any case: not in a branch, not behind a default."""
    found = missing_from_seed(Template(text, Path("p/t.md")), NAMES["seed"])
    assert [f"{p.message.removeprefix('template: ')} {p.where} {p.hint}" for p in found] == says
