"""A run as one HTML file that needs nothing else, below `MAX_BYTES` whatever the run holds; or as a short Markdown text.

What did not fit is left out from the end of the least important: steps that went well after those that did not, long
texts before short ones, pictures last. The report says what was cut, and where it stands.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pop import safehtml
from pop.diaries import ModelSum, beginning, whole
from pop.display import dollars, next_move, usage_line
from pop.drawing import draw
from pop.durations import in_words
from pop.errors import PopError
from pop.events import rfc3339
from pop.gantt import gantt
from pop.records import Usage
from pop.runlook import RunLook, StepRow, rows_of, usage_of
from pop.runs import Run
from pop.settings import Root
from pop.stale import place_of
from pop.steplook import CallLook, Shown, StepLook, instances_of, look_into, readable
from pop.store import NotAFile, contained
from pop.svg import STYLE
from pop.timeline import moment

MAX_BYTES = 1_950_000
MAX_PICTURE = 400_000  # of the graph, and of the timeline
MAX_IMAGE = 120_000  # bytes of a picture that stands in the report itself
MAX_ROWS = 1_000
IN_VAIN = 10  # steps in a row that did not fit: the rest is not tried
TEXTS = (16_000, 3_000, 600)  # characters of one text: as many as fit

HERE = STYLE.parent.parent
_LOOK_FIRST = ("failed", "waiting", "running", "cancelled", "stale")


# -- words for templates -------------------------------------------------------------------------------------------


def cost(usage: Usage) -> str:
    """``$0.0021``, with a word about calls whose price nobody knows."""
    if usage.unpriced_calls:
        known = f"{dollars(usage.cost_usd)} + " if usage.cost_usd else ""
        return f"{known}{usage.unpriced_calls} unpriced"
    return dollars(usage.cost_usd)


def model_cost(one: ModelSum) -> str:
    return cost(Usage(cost_usd=one.cost_usd, unpriced_calls=one.unpriced))


def call_cost(call: CallLook) -> str:
    if call.cached or call.error_class:
        return ""
    return dollars(call.cost_usd) if call.cost_usd is not None else "unknown"


def at(value: object) -> Markup:
    """An RFC 3339 time, which the dashboard's script makes local."""
    if moment(value) is None:
        return Markup("{}").format(safehtml.plain(value or "–", 40))
    text = str(value)
    return Markup('<time datetime="{}">{} {} UTC</time>').format(text, text[:10], text[11:19])


def _preview(file: Shown, most: int) -> Markup:
    return safehtml.preview(file.name, file.data, file.size, most)


def _difference(parts: tuple[str, str, str]) -> Markup:
    return safehtml.difference(*parts)


FILTERS: dict[str, Callable[..., Any]] = {
    "plain": safehtml.plain,
    "text": safehtml.text,
    "markdown": safehtml.markdown,
    "tree": safehtml.json_tree,
    "diff_text": safehtml.diff_text,
    "difference": _difference,
    "preview": _preview,
    "lasting": in_words,
    "cost": cost,
    "model_cost": model_cost,
    "call_cost": call_cost,
    "usage": usage_of,
    "at": at,
}


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS
    return made


# -- pictures ------------------------------------------------------------------------------------------------------

Url = Callable[[str], "str | None"]
Detail = tuple[str, str, Markup]  # an instance, its state, its part


def graph_of(look: RunLook, url: Url, most: int = MAX_PICTURE) -> Markup | None:
    """The pipeline with its states; None where it cannot be drawn, or would be too large."""
    if look.pipeline is None:
        return None
    drawn = draw(look.pipeline, look.states, notes=look.notes, link=url, label=f"graph of {look.run.run_id}")
    return Markup(drawn) if len(drawn) <= most else None


def timeline_of(look: RunLook, url: Url, most: int = MAX_PICTURE) -> Markup | None:
    """The timeline, by step where it would be too large by instance."""
    for rows, lanes in ((120, 1000), (0, 1000), (0, 200), (0, 40)):
        drawn = gantt(look.line, look.states, link=url, most=rows, lanes=lanes)
        if len(drawn) <= most:
            return Markup(drawn)
    return None


# -- HTML ----------------------------------------------------------------------------------------------------------


def report(root: Root, look: RunLook, *, now: float) -> str:
    """The file's text, in UTF-8 at most `MAX_BYTES` long."""
    for share in (1.0, 0.5, 0.1, 0.0):
        made = _Report(root, look, now, share).html()
        if len(made.encode("utf-8", "replace")) <= MAX_BYTES:
            break
    return made


class _Report:
    """One try; `share` of the room is given to what may be left out."""

    def __init__(self, root: Root, look: RunLook, now: float, share: float) -> None:
        self.root, self.look, self.now, self.share = root, look, now, share
        self.rows = rows_of(look.tasks, 300)
        self.cut: list[str] = list(look.troubles)
        self.anchors: dict[str, str] = {}
        for row in self.rows[:MAX_ROWS]:
            self.anchors.setdefault(place_of(row.name)[0], row.name)
        self.anchors |= {row.name: row.name for row in self.rows[:MAX_ROWS]}
        self.parts = _templates().get_template("run_parts.html").module

    def html(self) -> str:
        look = self.look
        graph, line = self._pictures()
        if len(self.rows) > MAX_ROWS:
            self.cut.append(f"{len(self.rows) - MAX_ROWS:,} lines of the table of steps (pop show {look.run.run_id})")
        rows = self.rows[:MAX_ROWS]
        frame = self._frame(graph, line, rows, ["x" * 2000], [])
        details = self._details(MAX_BYTES - len(frame.encode("utf-8", "replace")))
        return self._frame(graph, line, rows, self.cut, details)

    def _pictures(self) -> tuple[Markup | None, Markup | None]:
        room = int(MAX_PICTURE * self.share)
        graph, line = graph_of(self.look, self._url, room), timeline_of(self.look, self._url, room)
        if graph is None and self.look.pipeline is not None:
            self.cut.append(f"the graph (pop graph {self.look.run.run_id} --svg)")
        if line is None:
            self.cut.append("the timeline")
        return graph, line

    def _url(self, name: str) -> str | None:
        """To the line of the table."""
        found = self.anchors.get(name) or self.anchors.get(place_of(name)[0])
        return f"#row-{found}" if found else None

    def _frame(
        self, graph: Markup | None, line: Markup | None, rows: list[StepRow], cut: list[str], details: list[Detail]
    ) -> str:
        look, root = self.look, self.root
        failed = look.status.get("state") in ("failed", "cancelled")
        return (
            _templates()
            .get_template("report.html")
            .render(
                look=look,
                status=look.status,
                usage=usage_line(look.status.get("usage") or {}),
                next_move=next_move(root, look.run, look.status) if failed else None,
                graph=graph,
                line=line,
                rows=rows,
                cut=cut[:200],
                details=details,
                described={name for name, _, _ in details},
                url=self._url,
                made_at=rfc3339(self.now),
                style=_style(),
                times=[(kind, seconds) for kind, seconds in look.line.seconds().items() if seconds],
                wall=look.line.end - look.line.begin,
            )
        )

    def _details(self, room: int) -> list[Detail]:
        """The steps' own parts, as many as fit: what went wrong first, then one of each step, then the others."""
        room = int((room - 40_000) * self.share)
        here, made, missing, shortened = instances_of(self.look.run), dict[str, Markup](), list[str](), list[str]()
        names, in_vain = [name for name in _in_order(self.look) if name in here], 0
        for count, name in enumerate(names):
            fair = max(3 * room // (2 * min(len(names) - count, 60)), 12_000)
            full = room < 4_000 or in_vain >= IN_VAIN
            found, most = (None, 0) if full else self._fitting(name, min(fair, room))
            in_vain = 0 if found is not None else in_vain + 1
            if found is None:
                missing.append(name)
                continue
            made[name] = found
            room -= len(found.encode("utf-8", "replace")) + 300
            if most != TEXTS[0]:
                shortened.append(name)
        place = f"pipeline-{self.look.run.place}/{self.look.run.run_id}/tasks"
        for what, left_out in (("the details of", missing), ("parts of long texts of", shortened)):
            if left_out:
                self.cut.append(f"{what} {_listed(left_out)}: they stand in {place}/")
        states = self.look.states
        return [(name, states[name], made[name]) for name in states if name in made]

    def _fitting(self, name: str, room: int) -> tuple[Markup | None, int]:
        """A step's part in at most so many bytes, and how long its texts are; None where it does not fit at all."""
        step = look_into(self.look.run, name, self.look.tasks.get(name, {}))
        for most in TEXTS:
            made = self._step(step, most)
            if len(made.encode("utf-8", "replace")) <= room:
                return made, most
        return None, 0

    def _step(self, step: StepLook, most: int) -> Markup:
        body = self.parts.step_body(step, self._image if most == TEXTS[0] else _nothing, most)  # type: ignore[attr-defined]
        return Markup(body)

    def _image(self, path: str) -> str | None:
        """A picture as an address that holds it."""
        try:
            data, size = beginning(contained(self.look.run.path, path), MAX_IMAGE)
        except NotAFile:
            return None
        kind = safehtml.image_type(data)
        return f"data:{kind};base64,{base64.b64encode(data).decode()}" if kind and size <= MAX_IMAGE else None


def _listed(names: list[str]) -> str:
    """``12 steps: a, b, ...``."""
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"{len(names):,} step{'s' * (len(names) != 1)} ({shown})"


def _nothing(_path: str) -> None:
    return None


def _in_order(look: RunLook) -> list[str]:
    """The instances, the most interesting first."""
    bad = [name for state in _LOOK_FIRST for name, task in look.tasks.items() if task.get("state") == state]
    firsts: dict[str, str] = {}
    for name, task in look.tasks.items():
        if task.get("state") in ("done", "skipped"):
            firsts.setdefault(place_of(name)[0], name)
    troubled = [
        name for name, task in look.tasks.items() if whole(task.get("refinements")) or whole(task.get("attempt")) > 1
    ]
    rest = [name for name, task in look.tasks.items() if task.get("state") != "skipped"]
    return list(dict.fromkeys([*bad, *firsts.values(), *troubled, *rest]))


@cache
def _style() -> Markup:
    """The dashboard's own style."""
    return Markup(
        "\n".join((HERE / "static" / name).read_text("utf-8") for name in ("pop.css", "pictures.css", "run.css"))
    )


# -- Markdown ------------------------------------------------------------------------------------------------------


def short_text(root: Root, look: RunLook, *, now: float) -> str:
    """The same in short, for a message or a ticket: what happened, what it cost, what came out."""
    status = look.status
    name = _word(status.get("name") or look.run.run_id)
    lines = [
        f"# {name}",
        "",
        f"`{look.run.run_id}`, pipeline `{_code(status.get('pipeline'))}`: **{_word(status.get('state'))}**",
        "",
    ]
    times = [f"{key[:-3]} {_code(status[key], 40)}" for key in ("created_at", "finished_at") if status.get(key)]
    lines += [f"- {', '.join(times)}, {in_words(look.line.end - look.line.begin)}"] if times else []
    lines += [f"- {usage_line(status.get('usage') or {})}"]
    if look.origin:
        lines += [f"- forked from `{_code(look.origin['run'])}`"]
    lines += (
        [f"- answers were replayed: {', '.join(f'`{_code(one)}`' for one in look.replayed)}"] if look.replayed else []
    )
    lines += [f"- note: {_word(note, 400)}" for note in status.get("notes") or []]
    lines += _troubles(root, look)
    lines += ["", "## Steps", "", "| step | state | time | calls | cost |", "|---|---|---|---|---|"]
    rows = rows_of(look.tasks, 40)
    lines += [_row(row) for row in rows[:60]]
    lines += [f"| and {len(rows) - 60} more | | | | |"] if len(rows) > 60 else []
    if look.decisions:
        lines += ["", "## Decisions", ""]
        lines += [
            f"- `{_code(one.instance)}`: {_word(one.decision)} by {_word(one.by)}"
            + (f": {_word(one.text, 300)}" if one.text else "")
            for one in look.decisions[-20:]
        ]
    lines += _outputs(look)
    return "\n".join(lines) + "\n"


def _troubles(root: Root, look: RunLook) -> list[str]:
    error = look.error
    if error is None:
        return []
    lines = ["", "## What went wrong", "", f"{_word(error.error_class)}: {_word(error.message, 1000)}", ""]
    lines += [f"- {key}: {_word(words, 400)}" for key, words in (("where", error.where), ("hint", error.hint)) if words]
    return [*lines, f"- next: `{_code(next_move(root, look.run, look.status), 400)}`"]


def _row(row: StepRow) -> str:
    name = f"{row.name} ({row.done} of {row.instances})" if row.instances > 1 else row.name
    calls = row.usage.calls + row.usage.cached_calls
    spent = in_words(row.seconds) if row.seconds else ""
    return (
        f"| `{_code(name)}` | {_word(row.state, 40)} | {spent} | {calls or ''} | {cost(row.usage) if calls else ''} |"
    )


def _outputs(look: RunLook) -> list[str]:
    """The last step's output and artifacts, at a glance."""
    done = [name for name, task in look.tasks.items() if task.get("state") == "done"]
    if not done:
        return []
    step = look_into(look.run, done[-1], look.tasks[done[-1]])
    lines = ["", f"## Output of `{_code(done[-1])}`", ""]
    lines += [f"- artifact `{_code(file.path, 300)}`, {file.size:,} bytes" for file in step.artifacts[:20]]
    words = next((file.words for file in step.artifacts if file.kind in ("markdown", "text")), None)
    words = words if words is not None else readable(step.output) if step.output else ""
    shown = safehtml.plain(words, 3_000)
    fence = "`" * max(3, 1 + max((len(run) for run in _ticks(shown)), default=0))
    return [*lines, "", fence, shown.rstrip("\n"), *(["…"] if len(words) > 3_000 else []), fence]


def _ticks(text: str) -> Iterator[str]:
    run = ""
    for one in text:
        if one == "`":
            run += one
        elif run:
            yield run
            run = ""
    yield run


def _word(value: object, most: int = 200) -> str:
    """A text that Markdown shows as it is, on one line."""
    shown = " ".join(safehtml.plain(value, most).split())
    return "".join(f"\\{one}" if one in "\\`*_{}[]<>()#+-!|~&" else one for one in shown)


def _code(value: object, most: int = 200) -> str:
    return " ".join(safehtml.plain(value, most).split()).replace("`", "'").replace("|", "¦")


def look_of(run: Run, now: float) -> RunLook:
    """For a report: the run as it stands now.

    Raises:
        PopError: Nothing of it can be read.
    """
    from pop.runlook import look_at

    look = look_at(run, now=now)
    if look.status.get("state") == "unreadable" and not look.journal:
        raise PopError("nothing of this run can be read", where=run.path, hint="pop doctor", code="unreadable")
    return look
