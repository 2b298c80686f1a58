"""The flowchart: what a reader sees of a pipeline and of a run."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pop.graph import edges, mermaid
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
