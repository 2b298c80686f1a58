"""The flowchart: what a reader sees of a pipeline and of a run."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pop.graph import edges, mermaid, ways_back
from pop.pipeline import Pipeline, load_pipeline


def pipeline(*steps: Any) -> Pipeline:
    return load_pipeline(json.dumps({"tasks": list(steps)}).encode(), where="pipeline.json", name="default")


def test_a_chain_is_drawn_with_direct_arrows_only() -> None:
    """The third step waits for the first too, but that follows from the second."""
    assert mermaid(pipeline("a", "b", "c")) == (
        'flowchart TD\n    s1["a"]\n    s2["b"]\n    s3["c"]\n    s1 --> s2\n    s2 --> s3\n'
    )


def test_parallel_steps_fork_and_join() -> None:
    """Both sides have an arrow from the step before and to the step after."""
    of = pipeline("a", {"parallel": ["b", ["c", "d"]]}, "e")
    assert list(edges(of)) == [("a", "b"), ("a", "c"), ("c", "d"), ("b", "e"), ("d", "e")]


def test_each_and_conditions_are_frames_and_labels() -> None:
    """The reader sees what is repeated over what, and what depends on what."""
    drawn = mermaid(pipeline({"each": "seed.parts", "do": {"task": "write", "name": "draft", "when": "item > 1"}}))
    assert 'subgraph s1["each seed.parts"]' in drawn
    assert 's2["draft<br><small>write</small><br><small>when item #62; 1</small>"]' in drawn


LOOP = {"repeat": ["check", "mend"], "until": "inputs.check.score >= 8", "at_most": 3}


def test_a_loop_is_a_frame_with_a_way_back() -> None:
    """What ends it stands in its title; the dotted arrow is no order of steps."""
    of = pipeline("draft", LOOP, "publish")
    drawn = mermaid(of).splitlines()
    assert drawn[2:6] == [
        '    subgraph s2["repeat until inputs.check.score #62;#61; 8, at most 3"]',
        '        s4["check"]', '        s5["mend"]', "    end",
    ]  # fmt: skip
    assert drawn[-1] == "    s5 -.->|again| s4"
    assert list(edges(of)) == [("draft", "check"), ("check", "mend"), ("mend", "publish")]


def test_every_end_of_a_lap_leads_back_to_every_beginning() -> None:
    """Of each loop, the outer one too; a loop of one step leads back to that step."""
    beside = {**LOOP, "repeat": [{"parallel": ["a", ["b", "check"]]}]}
    assert list(ways_back(pipeline(beside))) == [("a", "a"), ("a", "b"), ("check", "a"), ("check", "b")]
    nested = {**LOOP, "repeat": [{**LOOP, "repeat": "check"}, "mend"], "name": "outer"}
    assert list(ways_back(pipeline(nested))) == [("mend", "check"), ("check", "check")]


def test_a_gate_is_a_hexagon_that_waits() -> None:
    """So is seen what a person is asked about, at the end of a loop and of an order that cannot be followed as well."""
    of = pipeline("a", {"approve": "ok", "when": "inputs.a == 1"}, LOOP)
    drawn = mermaid(
        of, {"a": "done", "a+control": "waiting", "ok": "stale", "review-loop": "done", "check-loop@3": "waiting"}
    )
    assert 's2{{"ok<br><small>when inputs#46;a #61;#61; 1</small>"}}' in drawn.replace("inputs.", "inputs#46;")
    assert re.search(r"class s1,s3 waiting$", drawn, re.MULTILINE)
    assert re.search(r"class s2 stale$", drawn, re.MULTILINE)
    answered = mermaid(of, {"a": "done", "a+control": "done"})
    assert "of 2 done" not in answered


def test_states_of_a_run_are_summed_up_per_step() -> None:
    """A failed item shows at once; counts say how far an `each` is."""
    of = pipeline("a", {"each": "seed.parts", "do": "b"}, "c")
    drawn = mermaid(of, {"a": "done", "b.0": "done", "b.1": "failed", "b.2": "running"})
    assert '["b<br>1 of 3 done"]' in drawn
    assert re.search(r"class s1 done$", drawn, re.MULTILINE)
    assert re.search(r"class s3 failed$", drawn, re.MULTILINE)
    assert "classDef running" not in drawn


@given(st.text(max_size=40))
def test_no_text_breaks_out_of_its_label(text: str) -> None:
    """Expressions may hold quotes, brackets and tags; the drawing stays one label in one line."""
    literal = json.dumps(text)
    of = pipeline({"task": "a", "when": f"seed.x == {literal}"})
    drawn = mermaid(of).splitlines()
    assert len(drawn) == 2
    assert re.fullmatch(r'    s1\["[^"\[\]]*"\]', drawn[1])
    assert set(re.findall(r"<[^>]*>", drawn[1])) == {"<br>", "<small>", "</small>"}
