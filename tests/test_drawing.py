"""The picture of a pipeline, and ``pop graph --svg``."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pop.drawing import draw
from pop.pipeline import Pipeline, load_pipeline
from pop.svg import clipped, escaped, style, width_of
from tests.test_cli import pop

SVG = "{http://www.w3.org/2000/svg}"


def pipeline(*steps: Any) -> Pipeline:
    return load_pipeline(json.dumps({"tasks": list(steps)}).encode(), where="pipeline.json", name="default")


def boxes(drawn: str) -> dict[str, tuple[float, float, float, float]]:
    """Place and size of every box, by the first word of its title."""
    found = {}
    for node in ET.fromstring(drawn).iter(f"{SVG}g"):
        title, shape = node.find(f".//{SVG}title"), node.find(f".//{SVG}rect[@class='shape']")
        if title is not None and shape is not None and node.get("class", "").startswith("node"):
            x, y, w, h = (float(shape.get(key, 0)) for key in ("x", "y", "width", "height"))
            found[str(title.text).split(" ")[1].strip(":;")] = (x, y, w, h)
    return found


def test_a_chain_goes_to_the_right_and_on_in_the_next_line() -> None:
    """As one reads."""
    at = boxes(draw(pipeline(*(f"step-{n:02}" for n in range(20)))))
    first, second, later = at["step-00"], at["step-01"], at["step-10"]
    assert second[0] > first[0] + first[2] and second[1] == first[1]
    assert later[1] > first[1] + first[3]


def test_no_box_lies_over_another() -> None:
    """Whatever is nested in what."""
    loop = {"repeat": ["c", {"each": "inputs.c", "do": "d"}], "until": "inputs.c.ok", "at_most": 2}
    at = list(boxes(draw(pipeline("a", {"parallel": ["b", loop, ["e", "f"]]}, "g"))).values())
    for n, (x, y, w, h) in enumerate(at):
        assert all(x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y for x2, y2, w2, h2 in at[n + 1 :])


def test_what_a_block_is_can_be_seen_and_heard() -> None:
    """A loop has its way back, an each is a pile, a gate a hexagon, needs a curve; each has words for it."""
    loop = {"repeat": ["review", "revise"], "until": "inputs.review.ok", "at_most": 5, "when": "seed.x"}
    drawn = draw(
        pipeline({"each": "seed.parts", "do": "part"}, loop, {"approve": "ok"}, {"task": "z", "needs": ["part"]})
    )
    tree = ET.fromstring(drawn)
    text = " ".join("".join(tree.itertext()).split())
    assert "again, at most 5 laps" in text and "repeat until inputs.review.ok · when seed.x" in text
    assert "each seed.parts" in text and drawn.count('class="frame pile"') == 2
    assert len(tree.findall(f".//{SVG}polygon")) == 1 and "a person decides" in text
    assert tree.find(f".//{SVG}path[@class='needs']") is not None
    assert tree.get("role") == "group" and tree.get("aria-label") == "pipeline default, 5 steps"


def test_instances_are_summed_up_and_coloured() -> None:
    """One that failed counts more than a hundred that are done; colour is never all there is."""
    states = {**{f"part.{n}": "done" for n in range(100)}, "part.100": "failed"}
    drawn = draw(pipeline({"each": "seed.parts", "do": "part"}, "end"), states, notes={"end": "1.2 s"})
    assert 'class="node task s-failed"' in drawn and "100 of 101 done" in drawn and "✕" in drawn
    assert 'class="node task s-pending"' in drawn and "1.2 s" in drawn
    assert "s-pending" not in draw(pipeline("a"))


HOSTILE = '</title><script>alert(1)</script>" onload="x" \x1b[31m \u202e & \ud800 ]]>'


@given(st.text())
def test_any_text_stays_text(text: str) -> None:
    """Conditions, notes and links come from files that anybody may have written."""
    for words in (text, HOSTILE):
        of = pipeline("a", {"task": "b", "when": f"seed.x == {words[:50]!r}"} if words.isalnum() else "b")
        drawn = draw(of, {"a": "done"}, notes={"a": words}, link={"a": words}.get, label=words, alone=True)
        tree = ET.fromstring(drawn.encode())
        assert not tree.findall(f".//{SVG}script") and not [e for e in tree.iter() if "onload" in e.attrib]
        assert "\x1b" not in drawn and "\u202e" not in drawn


def test_long_names_are_cut_where_the_box_ends_and_told_in_full() -> None:
    """In the title, for those who stay with the pointer."""
    name = "a" + "b" * 60
    drawn = draw(pipeline({"task": name}))
    assert f"step {name}" in drawn and f"{'b' * 20}…" in drawn
    assert width_of(clipped("漢字" * 40, 100, 11), 11) <= 100


def test_a_picture_alone_has_its_style_and_one_in_a_page_has_none() -> None:
    """A page's policy forbids inline style; neither has a script or a style attribute."""
    alone, inside = draw(pipeline("a"), alone=True), draw(pipeline("a"))
    assert style() in alone and "<style" not in inside
    assert " style=" not in alone and "prefers-color-scheme" in alone and "@import" not in alone and "url(" not in alone


def test_a_thousand_steps_are_drawn_in_less_than_a_second() -> None:
    """In a chain, side by side, and each with needs of its own; below half a megabyte."""
    chain = pipeline(*(f"s{n}" for n in range(1000)))
    wide = pipeline({"parallel": [f"a{n}" for n in range(500)]},
                    {"parallel": [{"name": f"b{n}", "task": "t", "needs": [f"a{n}"]} for n in range(500)]})  # fmt: skip
    for of in (chain, wide):
        _ = of.waits
        began = time.process_time()
        drawn = draw(of, {name: "done" for name in of.steps})
        assert time.process_time() - began < 1.0 and len(drawn) < 500_000


def test_numbers_are_short_and_escapes_are_whole() -> None:
    """No attribute is broken by what stands in it."""
    assert escaped("a'b\"c<d>&") == "a&#39;b&quot;c&lt;d&gt;&amp;"
    assert not re.search(r"\d\.\d{3,}", draw(pipeline("a", "b")))


def test_pop_graph_svg(tmp_path: Path) -> None:
    """The same picture from the command line."""
    (tmp_path / "pipeline.json").write_text('{"tasks": ["one", "two"]}')
    printed = pop("graph", "--svg", root=tmp_path)
    assert printed.returncode == 0 and ET.fromstring(printed.stdout.encode()).tag == f"{SVG}svg"
    assert pop("graph", "--svg", "--json", root=tmp_path).returncode == 2
