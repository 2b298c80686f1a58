"""Small workflows that were generated, and runs of them, for the tests of `pop iterate monitor` and `feedback`.

The agents ask the fake server; words in their targets make them misbehave: SLEEP (until a file called ``go`` stands in
the root), DIE, RAISE.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from pop.recipes.iterate.folder import read_folder
from pop.recipes.iterate.generate import compile_pipeline
from pop.recipes.iterate.installing import Compiled
from pop.recipes.iterate.launch import record_run, seed_folder
from pop.recipes.iterate.manifest import Agent, Deliverable, Manifest, prompt_name, step_name
from pop.records import dump_json
from tests import warm
from tests.living import LivingRoot

AGENT = """
import os, pathlib, time

def infer(prompt, ctx):
    item = ctx.item
    texts = [(ctx.files / "targets" / target).read_text() for target in item["targets"]]
    whole = "\\n".join(texts)
    ctx.log.info("at work", pid=os.getpid())
    if "DIE" in whole:
        os._exit(9)
    if "RAISE" in whole:
        raise ValueError("the agent fell over its own feet")
    while "SLEEP" in whole and not pathlib.Path(ctx.config["go"]).exists():
        time.sleep(0.05)
    return ctx.model()("lap %s of %s: %s" % (ctx.lap, item["path"], whole)).text

def finalize(output, ctx):
    path = ctx.artifact(ctx.item["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(output)
    return {"path": ctx.item["path"], "format": "markdown", "targets": ctx.item["targets"], "text": output,
            "bytes": len(output.encode()), "sha256": ""}
"""
CHECK = "from pop.recipes.iterate.check import infer\n"
WORKFLOW = """\
# A workflow of two iterations, written by a person.
workflow:
  name: stories          # short
  description: Stories become notes.
  iterations:
    - name: draft
      goal: Write notes.
      rounds: 2
      agents:
        - role: writer     # the one who writes
          targets: ["*.txt"]
          deliverables: ["{stem}.md"]
      completion_criteria:
        - '`{stem}.md` (exists, has "## Risks")'
    - name: judge
      goal: Judge the notes.
      dependencies: [draft]
      agents:
        - role: critic
          targets: ["draft/*.md"]
          deliverables: ["verdict.md"]
agent_roles:
  writer:
    perspective: You write notes.
    constraints:
      - Write in short sentences.   # they are read on a telephone
    token_budget: 9000
  critic: {perspective: You judge notes.}
"""


def settings(base_url: str, more: str = "") -> str:
    """pop.toml with the fake server as the default model."""
    return (
        f'[models]\ndefault = "fake"\n[models.fake]\nprovider = "openai"\nbase_url = "{base_url}"\nmodel = "fake-1"\n'
        f"price = {{ input = 1.0, output = 2.0 }}\n{more}"
    )


def manifest(
    iteration: str,
    agents: dict[str, dict[str, list[str]]],
    *,
    dependencies: tuple[str, ...] = (),
    rounds: int = 1,
    otherwise: str = "keep-best",
    budget: int = 100_000,
    tokens: int = 100,
    reads: dict[str, list[dict[str, Any]]] | None = None,
) -> Manifest:
    """An iteration: ``{role: {deliverable: [targets]}}``; ``role#2`` is the second agent of a role."""
    made = []
    for name, work in agents.items():
        role, _, number = name.partition("#")
        of = sum(1 for other in agents if other.partition("#")[0] == role)
        which = int(number or 1)
        made.append(
            Agent(
                step=step_name(iteration, role, which, of),
                role=role,
                number=which,
                prompt=prompt_name(role, which, of),
                token_budget=budget,
                tokens=tokens * len(work),
                share=tokens * len(work) / budget,
                risk="LOW",
                deliverables=[
                    Deliverable.model_validate(
                        {"path": path, "targets": targets, "tokens": tokens, "reads": (reads or {}).get(path, [])}
                    )
                    for path, targets in work.items()
                ],
            )
        )
    return Manifest.model_validate(
        {
            "workflow": "stories", "iteration": iteration, "goal": f"Do the {iteration}.", "base": "../inputs",
            "dependencies": list(dependencies), "rounds": rounds, "otherwise": otherwise,
            "agents": made, "created_at": "2026-11-21T00:00:00.000Z", "pop_version": "0",
        }
    )  # fmt: skip


def lay_out(root: Path, manifests: list[Manifest], targets: dict[str, str], criteria: dict[str, str]) -> Path:
    """DIR as `pop iterate generate` leaves it; returns it."""
    folder, inputs = root / "work", root / "inputs"
    for path, text in targets.items():
        (inputs / path).parent.mkdir(parents=True, exist_ok=True)
        (inputs / path).write_text(text)
    for one in manifests:
        place = folder / one.iteration
        (place / "agent-prompts").mkdir(parents=True, exist_ok=True)
        (place / "manifest.json").write_bytes(dump_json(one.model_dump()))
        (place / "CONTEXT.md").write_text(f"# {one.iteration}\n")
        (place / "COMPLETION_CRITERIA.md").write_text(criteria.get(one.iteration, "# Criteria\n"))
        for agent in one.agents:
            (place / "agent-prompts" / agent.prompt).write_text(f"You are the {agent.role}.\n")
    (folder / "pipeline.json").write_bytes(dump_json(compile_pipeline(manifests)))
    (folder / "workflow.yaml").write_text(WORKFLOW)
    return folder


def install(living: LivingRoot, folder: Path) -> None:
    """The pipeline and the two tasks, with an agent of our own."""
    living.task("iterate-agent.py", AGENT)
    living.task("iterate-check.py", CHECK)
    pipeline = json.loads((folder / "pipeline.json").read_bytes())
    for loop in pipeline["tasks"]:
        for each in loop["repeat"][0]["parallel"]:
            each["do"]["with"]["go"] = str(living.path / "go")
    (living.path / "pipelines").mkdir(exist_ok=True)
    (living.path / "pipelines" / "stories.json").write_text(json.dumps(pipeline))


def submit(living: LivingRoot, folder: Path, *, count: int = 1) -> str:
    """Put a seed of the folder into the queue, wait until it is a run, note it in the folder; returns the run's id."""
    draft = living.path / f".seed-{count}"
    data = (living.path / "pipelines" / "stories.json").read_bytes()
    seed_folder(read_folder(folder), draft, Compiled("stories", data), fresh=True)
    os.rename(draft, living.root.pending / f"stories-{count}")
    before = {path.name for path in known(living)}
    run = living.wait(lambda: [path for path in known(living) if path.name not in before], "a run")[0]
    iterations = [one.iteration for one in read_folder(folder).manifests.values()]
    record_run(folder, run.name, "stories", iterations)
    return str(run.name)


def kill(living: LivingRoot, run_id: str, instance: str) -> bool:
    """kill -9 of the worker that is at work on an instance; False while there is none."""
    logs = sorted((living.root.current / run_id / "tasks" / instance / "attempts").glob("*/log.jsonl"))
    try:
        os.kill(json.loads(logs[-1].read_text().splitlines()[0])["pid"], signal.SIGKILL)
    except (OSError, LookupError):
        return False
    return True


def known(living: LivingRoot) -> list[Path]:
    """The folders of all runs."""
    folders = [*living.root.current.iterdir(), *living.root.complete.iterdir()]
    return sorted(path for path in folders if path.name[:1].isdigit())


def pop(living: LivingRoot, *arguments: object, **about: Any) -> subprocess.CompletedProcess[str]:
    """Call the command as a person does."""
    return warm.pop(arguments, cwd=living.path, stdin=subprocess.DEVNULL, **about)
