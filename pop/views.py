"""Further files in a run's folder, derived from its history, for pipelines that ask for them: ``"views": [NAME]``.

A view is ``view(run_dir, journal, status) -> {file name: whole content}``. It is called whenever the status of the run is
written, gets the events so far and that status, and reads outputs in `run_dir`; it writes nothing itself. One row each;
an installed package adds one by the entry point ``pop.views``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeAlias

from pop.errors import ConfigError, did_you_mean, safe

GROUP = "pop.views"
View: TypeAlias = Callable[[Path, Sequence[dict[str, Any]], dict[str, Any]], dict[str, bytes]]

VIEWS: Mapping[str, str] = {"agentic-workflow": "pop.recipes.agentic_workflow:view"}


class BrokenView(ConfigError):
    """What an installed package calls a view is none."""

    code = "broken-view"


@cache
def known_views() -> Mapping[str, str]:
    """Where each view is, by its name: the rows above and those of installed packages, which cannot take a row's name."""
    try:
        installed = {point.name: point.value for point in entry_points(group=GROUP)}
    except Exception:  # a damaged package among all that are installed
        installed = {}
    return {**installed, **VIEWS}


def load_view(name: str) -> View:
    """The view called `name`.

    Raises:
        ConfigError: There is none of that name.
        BrokenView: It cannot be imported, or called.
    """
    target = known_views().get(name)
    if target is None:
        hint = did_you_mean(name[:80], known_views())
        raise ConfigError(f"no view {name[:80]!r}", hint=hint, code="unknown-view")
    try:
        found: View = EntryPoint(name, target, GROUP).load()
    except (Exception, SystemExit) as error:
        raise _broken(name, target, f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise _broken(name, target, f"{target} cannot be called")
    return found


def _broken(name: str, target: str, why: str) -> BrokenView:
    where = f"entry point {GROUP}: {name} = {target}"
    hint = "mend or remove the package that brings it"
    return BrokenView(f"the view {name!r} cannot be used: {safe(why, 500)}", where=where, hint=hint)
