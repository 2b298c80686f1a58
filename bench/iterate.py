"""What `pop iterate` takes for many targets: `python -m bench iterate`.

Ten thousand stories of about 2 kB with front matter are matched, read and allocated, and manifests, prompts, criteria and
pipelines are written: two iterations, the second of which reads what the first makes. The clock runs from the command's
first look at the workflow to its last file; the files were written just before, so the disk is warm.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from bench.iterate_validate import validating

Row = tuple[str, str, str]
TARGETS = 10_000
WORDS = "The reader wants to find what was said before and to know who said it, when, and why it was left out. " * 18
WORKFLOW = """
workflow:
  name: many
  description: As many stories as a person would never read.
  iterations:
    - name: requirements
      goal: Every story can be built.
      agents:
        - role: developer
          targets: ["stories/**/{story_id}.md"]
          deliverables: ["{epic}/{story_id}/requirements.md"]
      completion_criteria: ['`{epic}/{story_id}/requirements.md` (exists, >1KB, has "## Risks")']
    - name: design
      goal: Every story has a design.
      dependencies: [requirements]
      agents:
        - role: developer
          targets: ["stories/**/*.md"]
          deliverables: ["{epic}/{stem}/design.md"]
agent_roles:
  developer: {complexity_threshold: 25, token_budget: 150000}
"""


def write_stories(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / "stories" / f"part{number % 20}" / f"S-{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f"---\nepic: E{number % 50}\ntitle: Story {number}\nstate: open\n---\n"
        path.write_text(f"{head}# Story {number}\n\n{WORDS}\n")
    (folder / "workflow.yaml").write_text(WORKFLOW)


def generate_s(folder: Path) -> tuple[float, int, int]:
    """Seconds to generate, agents, and files written."""
    from pop.recipes.iterate.generate import plan_workflow
    from pop.recipes.iterate.targets import Inputs
    from pop.recipes.iterate.workflow import load_workflow
    from pop.recipes.iterate.writing import write_folder

    began = time.perf_counter()
    loaded = load_workflow(folder / "workflow.yaml")
    output = folder / "out"
    plan = plan_workflow(loaded, Inputs(folder, skip=output), output)
    plan.refuse_high()
    write_folder(output, plan.files, plan.record)
    return time.perf_counter() - began, len(plan.figures), len(plan.files)


def generating() -> list[Row]:
    folder = Path(tempfile.mkdtemp(prefix="pop-bench-"))
    try:
        write_stories(folder, TARGETS)
        seconds, agents, files = generate_s(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = f"{seconds:.1f} s: {agents} agents, {2 * TARGETS:,} deliverables, {files:,} files"
    return [(f"allocate {TARGETS:,} targets, write prompts", text, "<= 10 s")]


def figures() -> list[Row]:
    return [*generating(), *validating()]
