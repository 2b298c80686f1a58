"""A workflow and its targets become a folder: manifests, prompts, criteria, readable pages, and the pipeline that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pop.recipes.iterate.manifest import PROMPTS, Manifest, check_step, rounds_step, seed_key
from pop.records import Record

RECORD = ".generated.json"
AGENT_TASK, CHECK_TASK = "iterate-agent", "iterate-check"


class Generated(Record):
    """.generated.json: what `generate` wrote into a folder, so that it knows what a person edited since.

    `base`: the folder the targets were found in, relative to this one where it stands above it. `files`: sha256 by path.
    """

    schema_version: int = 1
    workflow: str
    source: str
    base: str
    targets: list[str] = []
    created_at: str
    pop_version: str
    files: dict[str, str]

    def base_of(self, folder: Path) -> Path:
        """Where the targets lie, for the generated `folder`."""
        return (folder / self.base).resolve()


def read_generated(folder: Path) -> Generated | None:
    """The record of a generated folder; None where there is none that can be read."""
    from pop.records import read_json
    from pop.store import read_regular

    try:
        return Generated.model_validate(read_json(read_regular(folder / RECORD, max_bytes=50_000_000)))
    except (OSError, ValueError):
        return None


def compile_pipeline(manifests: Sequence[Manifest], name: str | None = None) -> dict[str, Any]:
    """The pipeline that runs these iterations, each a loop of its agents and its check; others do not count as needed."""
    here = {manifest.iteration for manifest in manifests}
    return {"name": name or manifests[0].workflow, "tasks": [_rounds(manifest, here) for manifest in manifests]}


def _rounds(manifest: Manifest, here: set[str]) -> dict[str, Any]:
    check = check_step(manifest.iteration)
    agents = [
        {
            "each": f"seed.agents.{seed_key(agent.step)}",
            "do": {
                "task": AGENT_TASK,
                "name": agent.step,
                **({"model": agent.model} if agent.model else {}),
                "budget": {"step_tokens": agent.token_budget},
                "with": {"iteration": manifest.iteration, "prompt": f"{PROMPTS}/{agent.prompt}"},
            },
        }
        for agent in manifest.agents
    ]
    return {
        "repeat": [
            {"parallel": agents},
            {"task": CHECK_TASK, "name": check, "with": {"iteration": manifest.iteration}},
        ],
        "name": rounds_step(manifest.iteration),
        "needs": [rounds_step(name) for name in manifest.dependencies if name in here],
        "until": f"inputs.{seed_key(check)}.met",
        "score": f"inputs.{seed_key(check)}.met_count",
        "at_most": manifest.rounds,
        "otherwise": manifest.otherwise,
    }
