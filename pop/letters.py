"""Writes the letters of one run: what a worker is told, by value or by file and hash; and evaluates its expressions."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path
from typing import Any

from pop import events
from pop.durations import reuse_s
from pop.history import Instance, RunHistory
from pop.inputs import Inputs
from pop.moves import Expand, Move, Moves, Start
from pop.pipeline import Pipeline, Task
from pop.reading import inputs_of, item_expressions, laps_of
from pop.records import BadJson, BudgetLimit, FileRef, Letter, Limits, read_json
from pop.seeds import parse_seed
from pop.settings import Root, Settings
from pop.steps import At, instance_name
from pop.store import NotAFile, read_file, read_regular

MAX_PROBLEMS_BYTES = 2**20


class LetterWriter:
    """The letters of one run. Values are read from the run's folder when an expression or an item needs them."""

    def __init__(
        self,
        root: Root,
        settings: Settings,
        run_dir: Path,
        pipeline: Pipeline,
        created: dict[str, Any],
        *,
        seed_data: bytes | None = None,
        seed: tuple[str, str] | None = None,
    ) -> None:
        self._root = root
        self._settings = settings
        self._run_dir = run_dir
        self._pipeline = pipeline
        self._created = created
        path, sha256 = seed or ("seed.json", created["seed_sha256"])
        self._seed_file = FileRef(path=path, sha256=sha256)
        data = seed_data if seed_data is not None else read_file(run_dir / self._seed_file.path)
        self._envelope = parse_seed(data).model_copy(update={"data": None})
        self._lock = threading.Lock()
        self._lists: dict[str, list[Any]] = {}

    def _budgets(self, task: Task, raised: dict[str, float]) -> list[BudgetLimit]:
        """What the seed, the pipeline and the step allow, or a person instead; pop.toml's are the gateway's to know."""
        given = {"seed": self._envelope.budget or {}, "pipeline.json": self._pipeline.budget}
        found = [(source, name, limit) for source, budget in given.items() for name, limit in budget.items()]
        found += [(f"step {task.name!r}", name, limit) for name, limit in task.budget.items()]
        kept = [(source, name, limit) for source, name, limit in found if name not in raised]
        kept += [("pop retry", name, limit) for name, limit in raised.items()]
        return [BudgetLimit(name=name, limit=limit, source=source) for source, name, limit in kept]

    def forget_lists(self) -> None:
        """Outputs are to be made again: what the lists of `each` blocks are may change."""
        with self._lock:
            self._lists.clear()

    def follow(self, pipeline: Pipeline) -> None:
        """Go on with a pipeline that has more steps."""
        self._pipeline = pipeline

    def attempts_allowed(self, step: str) -> int:
        return self._pipeline.tasks[step].attempts or self._settings.worker.attempts

    def write(self, history: RunHistory, start: Start, *, gateway: str | None, now: float) -> Letter:
        """The letter for the next attempt of an instance."""
        task = self._pipeline.tasks[start.step]
        instance = history.instances.get(start.instance) or Instance(state="retry")
        limits = self._limits(task, instance.more_time)
        number = instance.started + 1
        return Letter(
            run_id=self._created["run_id"],
            run_name=self._created["name"],
            instance=start.instance,
            step=start.step,
            task=task.task,
            tasks_dir=str(self._root.tasks),
            run_dir=str(self._run_dir),
            attempt=number,
            attempt_id=f"{self._created['run_id']}/{start.instance}/{number}-{secrets.token_hex(4)}",
            generation=instance.generation,
            seed=self._seed_file,
            files_dir=str(self._run_dir / "files") if (self._run_dir / "files").is_dir() else None,
            inputs=self.inputs(history, start),
            has_item=bool(start.at.items),
            item=self._item(history, start) if start.at.items else None,
            item_index=start.at.items[-1] if start.at.items else None,
            lap=start.at.laps[-1] if start.at.laps else None,
            config=dict(task.with_),
            model=instance.model or task.model,
            models=instance.models
            or {**self._pipeline.models, **(self._envelope.models or {}), **history.models_asked},
            reuse_s=task.reuse_s if task.reuse_s is not None else reuse_s(self._envelope.reuse),
            budgets=self._budgets(task, history.budget),
            pipeline=self._created.get("pipeline", ""),
            refinements=task.refinements,
            limits=limits,
            deadline_at=now + limits.timeout_s,
            gateway=gateway,
            problems=self._problems(history, start, instance),
            laps=self.laps(history, start),
            changes=self._changes(history, start),
        )

    def _problems(self, history: RunHistory, start: Start, instance: Instance) -> list[str]:
        """What was wrong with the last attempt; in the first of a lap, what remained wrong in the lap before."""
        if instance.problems is not None:
            return instance.problems
        if not start.at.laps or start.at.laps[-1] == 1:
            return []
        before = instance_name(start.step, At(start.at.items, (*start.at.laps[:-1], start.at.laps[-1] - 1)))
        known = history.instances.get(before)
        if known is None or known.state != "done":
            return []
        path = self._run_dir / "tasks" / before / "attempts" / str(known.started) / "problems.json"
        try:
            found = read_json(read_regular(path, max_bytes=MAX_PROBLEMS_BYTES))
        except (OSError, NotAFile, BadJson):
            return []
        return [str(problem) for problem in found] if isinstance(found, list) else []

    def _changes(self, history: RunHistory, start: Start) -> list[str]:
        """What persons asked for, newest last: of this step, or of a loop around it."""
        keys = {start.step, start.instance, *loop_keys(self._pipeline, start.step, start.at)}
        return [text for key, text in history.changes if key in keys]

    def _limits(self, task: Any, more_time: float) -> Limits:
        worker = self._settings.worker
        return Limits(
            timeout_s=(task.timeout_s or worker.timeout_s) * more_time,
            stall_s=(task.stall_s or worker.stall_s) * more_time,
            memory_mb=task.memory_mb or worker.memory_mb,
            output_mb=task.output_mb or worker.output_mb,
        )

    def inputs(self, history: RunHistory, move: Move) -> dict[str, Any]:
        """The outputs an instance may read, by step."""
        return {name: self._ref(history, which) for name, which in inputs_of(self._pipeline, history, move).items()}

    def laps(self, history: RunHistory, move: Move) -> dict[str, list[Any]]:
        """All outputs of the steps of the loops around it, lap by lap, None where there is none."""
        found = laps_of(self._pipeline, history, move)
        return {name: [self._ref(history, which) for which in laps] for name, laps in found.items()}

    def _ref(self, history: RunHistory, which: Any) -> Any:
        if isinstance(which, list):
            return [self._ref(history, one) for one in which]
        instance = history.instances.get(which) if which else None
        if instance is None or instance.state != "done":
            return None
        return FileRef(path=f"tasks/{which}/output.json", sha256=instance.sha256 or "")

    # -- expressions -------------------------------------------------------------------------------------------

    def decide(self, history: RunHistory, moves: Moves) -> list[dict[str, Any]]:
        """Evaluate what the planner asks for; returns the events that record the results, in order.

        Raises:
            ExpressionError: An expression does not fit the data.
        """
        found: list[dict[str, Any]] = []
        for decide in moves.decide:
            value = decide.expression.evaluate(self.scope(history, decide))
            found.append({"event": events.WHEN_DECIDED, "key": decide.key, "value": value})
        for expand in moves.expand:
            found.append({"event": events.EACH_EXPANDED, "key": expand.key, "count": len(self._list(history, expand))})
        for skip in moves.skip:
            found.append({"event": events.STEP_SKIPPED, "instance": skip.instance, "reason": skip.reason})
        return found

    def scope(self, history: RunHistory, move: Move) -> dict[str, Any]:
        """What the names in an expression mean."""
        scope = {"seed": self._seed(), "inputs": Inputs(self._run_dir, self.inputs(history, move))}
        if move.at.items:
            scope["item"] = self._item(history, move)
        if move.at.laps:
            scope["lap"] = move.at.laps[-1]
            scope["laps"] = Inputs(self._run_dir, self.laps(history, move))
        return scope

    def _item(self, history: RunHistory, move: Move) -> Any:
        around = item_expressions(self._pipeline, move)
        return self._list(history, around[-1])[move.at.items[len(around) - 1]]

    def _list(self, history: RunHistory, expand: Expand) -> list[Any]:
        """The list of an `each`, read once; outputs never change, so it is the same at every look."""
        with self._lock:
            known = self._lists.get(expand.key)
        if known is None:
            known = list(expand.expression.evaluate(self.scope(history, expand)))
            with self._lock:
                self._lists[expand.key] = known
        return known

    def _seed(self) -> Any:
        return parse_seed(read_file(self._run_dir / self._seed_file.path)).data


def loop_keys(pipeline: Pipeline, name: str, at: At) -> list[str]:
    """The keys of the loops around a block, outermost first."""
    return [instance_name(repeat.name, pipeline.at(repeat.name, at)) for repeat in pipeline.repeats[name]]
