"""``pop iterate run``: one POP run of a generated folder, followed, with what it makes delivered as it goes.

What a call does depends on the newest run of the folder:

| the newest run                      | then                                                                          |
|-------------------------------------|-------------------------------------------------------------------------------|
| none, or the folder has changed     | a new run; questions that an earlier one asked are answered from the store    |
| at work, or in the queue            | it is followed                                                                |
| waits for a person                  | that is told, exit code 5; once it is answered, it goes on                    |
| failed, cancelled                   | it goes on from what failed (``pop retry``)                                   |
| complete                            | nothing is to be done; ``--fresh`` asks everything anew                       |
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from pop.changes import Changes, changes_of, refuse_without_models
from pop.commands._shared import as_json, print_json, with_root
from pop.commands.iterate._options import with_agents_models
from pop.commands.iterate._result import ENDED, RESTS, Result, shown, tell
from pop.commands.iterate._serving import Server, answered
from pop.errors import (
    PopError,
    UsageError,
)
from pop.recipes.iterate import launch
from pop.recipes.iterate.deliver import Deliverer
from pop.recipes.iterate.folder import Folder, read_folder
from pop.recipes.iterate.installing import compiled, install, refuse_unknown_models
from pop.runs import Run
from pop.settings import Root

DELIVER_S = 1.0  # between two deliveries
Look = Callable[[Run], None]


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--iteration", "-i", metavar="NAME", help="Run this iteration alone, on earlier deliverables as they lie in DIR."
)
@click.option(
    "--replace", is_flag=True, help="Move a pipeline or task of the same name aside that is not ours, or was edited."
)
@click.option("--fresh", is_flag=True, help="Make a new run, and ask the models anew also where nothing has changed.")
@with_agents_models
@click.option("--no-follow", is_flag=True, help="Submit it and return.")
@as_json
@with_root
def command(
    folder: Path,
    iteration: str | None,
    replace: bool,
    fresh: bool,
    models: tuple[str, ...],
    no_follow: bool,
    as_json: bool,
    root: str | None,
) -> int:
    """Run what `pop iterate generate` wrote into DIR, to its end or until it waits for a person (exit code 5).

    Run again it goes on where it stood, and pays for nothing twice. What agents make appears in DIR while it goes; files that you
    edited are left as they are.
    """
    asked = Asked(folder, iteration, replace, fresh, models, not no_follow, quiet=as_json)
    result = run_folder(root_of(folder, root), asked)
    print_json(result.to_json()) if as_json else tell(result)
    return result.code


def root_of(folder: Path, given: str | None) -> Root:
    """The root of this call."""
    return launch.root_of(folder, given or (click.get_current_context().find_root().obj or {}).get("root"))


@dataclass(frozen=True)
class Asked:
    """What is to be run, and how. `look` is called with the run while it goes, a few times a second."""

    folder: Path
    iteration: str | None = None
    replace: bool = False
    fresh: bool = False
    models: tuple[str, ...] = ()
    follow: bool = True
    quiet: bool = False
    look: Look | None = None


def run_folder(root: Root, asked: Asked) -> Result:
    """See the module.

    Raises:
        PopError: DIR, the root or the models have mistakes; nothing was submitted then.
    """
    from pop.commands.run import _end_as_by_ctrl_c

    folder = read_folder(asked.folder, inputs=False)
    if asked.iteration is not None:
        folder.iteration(asked.iteration)
    _end_as_by_ctrl_c()
    with _alone(folder.path):
        return _Work(root, folder, asked).run()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One `pop iterate run` of a folder at a time: two would submit it twice."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        hint = f"pop iterate monitor {shown(path)} shows how far it is"
        raise UsageError("another pop iterate run works on this folder", where=path, hint=hint, code="busy") from None
    finally:
        os.close(fd)


class _Work:
    def __init__(self, root: Root, folder: Folder, asked: Asked) -> None:
        self.root, self.folder, self.asked = root, folder, asked
        self.result = Result(root, folder)
        self._deliverer = Deliverer(root, folder.path)

    def run(self) -> Result:
        seed = launch.waiting_seed(self.root, self.folder.path)
        if seed is not None:
            self.result.said.append(f"the seed {seed} waits in the queue already")
            return self._follow(seed, None)
        newest = self._newest()
        if newest is not None and not self.asked.fresh and (taken := self._take_up(newest)):
            return taken
        return self._begin()

    def _newest(self) -> Run | None:
        """The newest run of the same iterations.

        Raises:
            UsageError: One of others is under way.
        """
        path, wanted = self.folder.path, self._wanted
        last = launch.newest_run(self.root, path)
        if last is not None and launch.seed_of(last).get("iterations") != wanted:
            if (state := last.status().get("state")) in ("queued", "running", *RESTS):
                hint = f"pop iterate run {shown(path)} goes on with it; pop cancel {last.run_id} ends it"
                raise UsageError(f"the run {last.run_id} of this folder is {state}", where=path, hint=hint, code="busy")
        same = [run for run in launch.runs_of(self.root, path) if launch.seed_of(run).get("iterations") == wanted]
        return same[-1] if same else None

    @property
    def _wanted(self) -> list[str]:
        return list(self.folder.manifests) if self.asked.iteration is None else [self.asked.iteration]

    def _take_up(self, run: Run) -> Result | None:
        """The newest run, where it is the one that is asked for; None when a new one is."""
        status = run.status()
        state, changed = status.get("state"), self._changed(run)
        if state in ("queued", "running") or (state in RESTS and answered(run, status)):
            if changed:
                self.result.said.append(
                    f"{run.run_id} goes on as it began; what was edited since counts for the next run"
                )
            return self._follow(None, run)
        if state in RESTS:
            self.result.run = run
            self._deliver()
            return self.result
        if changed or state == "unreadable":
            return None
        if state in ("failed", "cancelled"):
            self._retry(run)
            return self._follow(None, run)
        self.result.run = run
        self._deliver()
        self.result.said.append(f"{run.run_id} is complete and nothing has changed since; --fresh asks everything anew")
        return self.result

    def _changed(self, run: Run) -> bool:
        with tempfile.TemporaryDirectory(prefix="pop-iterate-") as around:
            try:
                return self._lay_out(Path(around, "seed")) != launch.seed_of(run).get("fingerprint")
            except PopError:
                if run.status().get("state") in ("queued", "running", *RESTS):
                    return True  # it does not need them any more
                raise

    def _lay_out(self, target: Path) -> str:
        pipeline = compiled(self.root, self.folder, self.asked.iteration)
        return launch.seed_folder(
            self.folder, target, pipeline, self.asked.iteration, models=self._models(), fresh=self.asked.fresh
        )

    def _models(self) -> Mapping[str, str]:
        """As ``-m`` gave them, unchecked."""
        pairs = (text.partition("=") for text in self.asked.models)
        return {(role if sign else "*"): name if sign else role for role, sign, name in pairs}

    def _retry(self, run: Run) -> None:
        self._order(run, "retry")
        self.result.said.append(f"{run.run_id} goes on from what failed: nothing has changed since")

    def _order(self, run: Run, verb: str) -> None:
        """Give an order to a run at rest; where no daemon would carry it out, it is carried out here."""
        from pop.acts import withdraw
        from pop.commands.run import _is_served
        from pop.orders import Order, Orders, write_order
        from pop.store import Disk, hold_root

        if _is_served(self.root):
            write_order(Disk(), run.path, verb, "pop iterate run")
            return
        self.root.machine_room.mkdir(mode=0o700, exist_ok=True)
        with hold_root(self.root.machine_room, "pop run"):
            Orders(self.root, Disk()).apply_to_resting(Order(run.path, verb, "pop iterate run", None))
            withdraw(run, verb)

    # -- a new run -----------------------------------------------------------------------------------------------------

    def _begin(self) -> Result:
        from pop.commands.run import _is_served, _refuse_broken

        read_folder(self.folder.path)  # with all that it needs
        wanted = self._wanted
        refuse_unknown_models(self.root, self.folder, wanted)
        self._tell_base(wanted)
        aside = install(self.root, self.folder, self.asked.iteration, replace=self.asked.replace)
        self.result.said += [f"moved aside: {path.relative_to(self.root.path)}" for path in aside]
        _refuse_broken(self.root)
        name = compiled(self.root, self.folder, self.asked.iteration).name
        changes = changes_of(self.root, self.asked.models, pipeline=name if self.asked.models else None)
        served = _is_served(self.root)
        return self._follow(self._submit(name, changes, wanted, keys=not served), None)

    def _tell_base(self, wanted: list[str]) -> None:
        """A manifest says where targets are read; from far away only with a word."""
        near = (self.root.path.resolve(), self.folder.path.parent)
        for base in dict.fromkeys(self.folder.base(name) for name in wanted):
            if not any(base.is_relative_to(folder) for folder in near):
                self.result.said.append(f"the targets are read from {base}")

    def _submit(self, name: str, changes: Changes, wanted: list[str], *, keys: bool) -> str:
        from pop.drops import submit

        look = partial(refuse_without_models, self.root, keys=keys)
        with tempfile.TemporaryDirectory(prefix="pop-iterate-") as around:
            draft = Path(around, f"{name}.{secrets.token_hex(4)}")
            self._lay_out(draft)
            launch.note_start(self.folder.path, draft.name, wanted)
            submit(self.root, str(draft), changes or None, look=look)
            return draft.name

    # -- following -----------------------------------------------------------------------------------------------------

    def _follow(self, seed: str | None, run: Run | None) -> Result:
        from pop.commands.run import _is_served
        from pop.display import Progress

        self.result.run = run
        if not self.asked.follow:
            self._find(seed)
            if not _is_served(self.root):
                self.result.said.append(
                    "no daemon is running here: pop up serves the queue, or pop iterate run without --no-follow"
                )
            return self.result
        with Progress(quiet=self.asked.quiet) as progress, Server(self.root) as server:
            next_delivery = 0.0
            while True:
                try:
                    server.serve(seed, self.result.run)
                    if self._find(seed):
                        run = self.result.run = self._here()
                        progress.show(run)
                        if time.monotonic() > next_delivery:
                            next_delivery = self._deliver()
                            self.asked.look and self.asked.look(run)
                    elif seed is not None:
                        server.refuse_gone(seed)
                    if self._is_over(server):
                        break
                    time.sleep(0.1)
                except KeyboardInterrupt:
                    self.result.interrupted = True
                    if not server.stop():
                        break
        if self.result.run:
            run = self.result.run = self._here()
            self._record(run)
            self._deliver()
            self.asked.look and self.asked.look(self.result.run)
        if self.result.interrupted and self.result.status.get("state") in ("queued", "running"):
            self.result.said.append("interrupted; what is done stays done")
        return self.result

    def _record(self, run: Run) -> None:
        """Once more, where somebody removed DIR/runs.jsonl meanwhile."""
        iterations = launch.seed_of(run).get("iterations") or self._wanted
        with suppress(OSError):  # DIR itself has gone
            launch.record_run(self.folder.path, run.run_id, str(run.status().get("name")), iterations)

    def _here(self) -> Run:
        assert self.result.run
        return self.result.run.here()

    def _find(self, seed: str | None) -> bool:
        """Whether there is a run; one that has just begun is recorded."""
        if self.result.run is None and seed is not None and (run := launch.run_of_seed(self.root, seed)):
            self.result.run = run
            launch.waiting_seed(self.root, self.folder.path)
        return self.result.run is not None

    def _deliver(self) -> float:
        """Deliver what is new; returns when to do so again, monotonic seconds."""
        began = time.monotonic()
        assert self.result.run
        new, total = self._deliverer.deliver(self.result.run), self.result.delivered
        total.written += [place for place in new.written if place not in total.written]
        total.kept |= new.kept
        total.unchanged = [place for place in new.unchanged if place not in total.written and place not in total.kept]
        total.refused = sorted({*total.refused, *new.refused})
        return time.monotonic() + max(DELIVER_S, 10 * (time.monotonic() - began))

    def _is_over(self, server: Server) -> bool:
        from pop.commands.run import _in_ledger
        from pop.display import is_answered

        run = self.result.run
        if run is None:
            return self.result.interrupted and server.is_gone
        if run.place == "complete":
            return _in_ledger(self.root, run.run_id)
        if server.is_own:
            return server.is_gone
        status = run.status()
        state = status.get("state")
        if state in RESTS:
            return not (is_answered(self.root, run, status) or "resume" in run.waiting_orders())
        return state in ENDED and not run.waiting_orders()
