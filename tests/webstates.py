"""A root with runs in every state, made by a real daemon that has ended: what is ordered of them stays as it was written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pop.acts import order
from pop.records import dump_json
from pop.runs import Run
from pop.settings import Root
from tests.living import LivingRoot, living_root

HOSTILE = "<script>alert(1)</script>"
TEXT = "The tide rises twice a day. The moon pulls the water. Sailors read the tables before they leave the harbour."
TASKS = {
    "a.py": "def infer(prompt, ctx):\n    ctx.log.info('at work')\n    return {'words': len(str(ctx.seed).split())}\n",
    "ask.md": "Condense to one sentence:\n\n{{ seed.text }}\n",
    "draft.py": "def infer(prompt, ctx):\n    ctx.artifact('note.md').write_text('# Note\\n')\n    return ctx.seed.get('text', 'low')\n",
    "boom.py": "def infer(prompt, ctx):\n    raise ValueError('no good')\n",
    "sleep.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(600)\n",
}
PIPELINES: dict[str, Any] = {
    "default": {"name": "default", "description": "Condenses a text.", "tasks": ["ask", "a"]},
    "gated": {"tasks": ["draft", {"approve": "sign-off", "text": "Is it good?"}, "a"]},
    "failing": {"tasks": ["a", {"task": "boom", "attempts": 1}]},
    "slow": {"tasks": ["sleep"]},
}
SETTINGS = "[daemon]\ndrain_s = 0\n"
STATES = ("complete", "waiting", "paused", "cancelled", "failed", "running", "unreadable")


@dataclass(frozen=True)
class States:
    """The root, and a run by state."""

    living: LivingRoot
    runs: dict[str, str]

    @property
    def root(self) -> Root:
        return self.living.root

    def run(self, state: str) -> Run:
        place = "complete" if state == "complete" else "current"
        folder = self.root.complete if state == "complete" else self.root.current
        return Run(folder / self.runs[state], place)


@contextmanager
def every_state(path: Path) -> Iterator[States]:
    """Runs in every state, one seed that waits for its time, one that was refused."""
    with living_root(path, pipeline=PIPELINES["default"], tasks=TASKS, settings=SETTINGS) as living:
        (path / "pipelines").mkdir()
        for name, pipeline in PIPELINES.items():
            if name != "default":
                (path / "pipelines" / f"{name}.json").write_text(json.dumps(pipeline))
        (path / "examples").mkdir()
        (path / "examples" / "tides.json").write_text(json.dumps({"text": TEXT}))
        daemon = living.up()
        drop(living, "complete", "default", {"text": TEXT, "note": HOSTILE})
        for name in ("waiting", "paused", "cancelled"):
            drop(living, name, "gated", {"text": f"low {HOSTILE}\n"})
        drop(living, "failed", "failing", {})
        drop(living, "running", "slow", {})
        drop(living, "later", "default", {"text": ""}, not_before="2199-01-01T00:00:00Z")
        living.drop("broken.json", '{"a": 1, "a": 2}')
        living.wait_complete(1)
        names = living.wait(lambda: _by_name(living, 5), "five runs that are not complete")
        for name in ("waiting", "paused", "cancelled"):
            living.wait_state("waiting", living.root.current / names[name])
        for name, verb in (("paused", "pause"), ("cancelled", "cancel")):
            order(Run(living.root.current / names[name], "current"), verb)
        for name in ("paused", "cancelled", "failed", "running"):
            living.wait_state(name, living.root.current / names[name])
        living.wait(lambda: list(living.root.rejected.glob("*.reason.json")), "a refusal")
        living.stop(daemon)
        names["complete"] = living.ledger()[0]["run_id"]
        names["unreadable"] = "20261121-000000-unreadable-abcd"
        (living.root.current / names["unreadable"] / "tasks").mkdir(parents=True)
        (living.root.current / names["unreadable"] / "events.jsonl").write_text("{\n")
        yield States(living, names)


def drop(living: LivingRoot, name: str, pipeline: str, data: Any, **envelope: Any) -> None:
    living.drop(f"{name}.json", dump_json({"data": data, "pipeline": pipeline, "name": name, **envelope}).decode())


def _by_name(living: LivingRoot, count: int) -> dict[str, str]:
    found = {status["name"]: status["run_id"] for status in map(living.status, living.current())}
    return found if len(found) == count else {}
