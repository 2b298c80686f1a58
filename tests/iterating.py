"""Folders as `pop iterate generate` writes them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pop.recipes.iterate.generate import compile_pipeline
from pop.recipes.iterate.manifest import Agent, Deliverable, Manifest, Reading, prompt_name, step_name


@dataclass
class Spec:
    """One iteration: `roles` by name with what each makes: path -> targets, or (targets, reads)."""

    name: str
    roles: dict[str, dict[str, Any]]
    criteria: str = ""
    needs: list[str] = field(default_factory=list)
    rounds: int = 2
    otherwise: str = "fail"
    models: dict[str, str] = field(default_factory=dict)
    token_budget: int = 100_000


def manifest_of(spec: Spec, workflow: str, base: str) -> Manifest:
    agents = []
    for role, made in spec.roles.items():
        deliverables = []
        for path, given in made.items():
            targets, reads = given if isinstance(given, tuple) else (given, [])
            form = {"md": "markdown", "json": "json", "yaml": "yaml"}.get(path.rpartition(".")[2], "text")
            deliverables.append(Deliverable(path=path, format=form, targets=targets, reads=reads))
        agents.append(
            Agent(
                step=step_name(spec.name, role, 1, 1),
                role=role,
                number=1,
                prompt=prompt_name(role, 1, 1),
                model=spec.models.get(role),
                token_budget=spec.token_budget,
                tokens=10,
                share=0.1,
                risk="LOW",
                deliverables=deliverables,
            )
        )
    return Manifest(
        workflow=workflow,
        iteration=spec.name,
        goal=f"the goal of {spec.name}",
        base=base,
        dependencies=spec.needs,
        rounds=spec.rounds,
        otherwise=spec.otherwise,
        agents=agents,
        created_at="2026-11-21T00:00:00Z",
        pop_version="0",
    )


def reading(iteration: str, role: str, index: int, path: str) -> Reading:
    return Reading(iteration=iteration, step=step_name(iteration, role, 1, 1), index=index, path=path)


def write_folder(folder: Path, specs: Sequence[Spec], *, workflow: str = "stories", base: str = "..") -> list[Manifest]:
    """Lay DIR out; targets lie in DIR/base."""
    manifests = [manifest_of(spec, workflow, base) for spec in specs]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.json").write_text(json.dumps(compile_pipeline(manifests)))
    for spec, manifest in zip(specs, manifests, strict=True):
        inner = folder / spec.name
        (inner / "agent-prompts").mkdir(parents=True, exist_ok=True)
        (inner / "manifest.json").write_text(manifest.model_dump_json(indent=1))
        (inner / "pipeline.json").write_text(json.dumps(compile_pipeline([manifest])))
        (inner / "CONTEXT.md").write_text(f"# Context of {spec.name}\n")
        (inner / "COMPLETION_CRITERIA.md").write_text(f"# Criteria\n\n{spec.criteria}\n")
        for role in spec.roles:
            (inner / "agent-prompts" / f"{role}.md").write_text(f"You are the {role} of {spec.name}.\n")
    return manifests
