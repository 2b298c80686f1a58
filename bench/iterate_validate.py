"""10,000 deliverables held to their criteria: sizes, headings, words, well-formed Markdown and JSON with a schema."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from pop.recipes.iterate.criteria import check, parse, with_planned

MANY = 10_000
SECTION = "## Risks\n\n- one *risk* that [the design](design.json) names\n\n| risk | weight |\n|---|---|\n| a | 1 |\n\n"
TEXT = "# Requirements\n\nA story of a person who wants a thing, and says why.\n\n" + SECTION + "```\ncode\n```\n" * 3
CRITERION = (
    '- [ ] `stories/{}/requirements.md` (exists, >200 B, has "## Risks", at least 20 words, markdown, lacks "TODO")\n'
)


def lay_out(folder: Path, many: int = MANY) -> None:
    """Half of the deliverables are Markdown, half JSON; each Markdown file has a criterion of its own, JSON shares one."""
    schema = {
        "type": "object",
        "required": ["id"],
        "properties": {"id": {"type": "integer"}, "parts": {"type": "array"}},
    }
    (folder / "design.schema.json").write_text(json.dumps(schema))
    lines = []
    for number in range(many // 2):
        story = folder / "stories" / f"s{number}"
        story.mkdir(parents=True)
        (story / "requirements.md").write_text(TEXT)
        (story / "design.json").write_text(json.dumps({"id": number, "parts": ["a", "b"] * 10}))
        lines.append(CRITERION.format(f"s{number}"))
    lines.append('- [ ] `stories/*/design.json` (json, schema `design.schema.json`, matches /"id": \\d+/)\n')
    (folder / "COMPLETION_CRITERIA.md").write_text("".join(lines))


def validating() -> list[tuple[str, str, str]]:
    """The row of the table."""
    with tempfile.TemporaryDirectory(prefix="pop-bench-") as name:
        folder = Path(name)
        lay_out(folder)
        began = time.perf_counter()
        criteria = parse((folder / "COMPLETION_CRITERIA.md").read_text())
        report = check(with_planned(criteria, [f"stories/s{n}/requirements.md" for n in range(MANY // 2)]), folder)
        seconds = time.perf_counter() - began
    assert report.met and report.met_count >= MANY * 4, report.unmet_paths
    return [("10,000 deliverables validated", f"{seconds:.1f} s, {report.met_count:,} rules", "< 10 s")]


if __name__ == "__main__":
    print(validating())
