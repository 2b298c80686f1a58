"""Lays a scene out as lines of styled text for a terminal of any size."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from textwrap import wrap

from prompt_toolkit.utils import get_cwidth

from pop.display import MARKS
from pop.screen.scene import PARTS, Entry, Scene, Step, money
from pop.screen.view import BOARD, STEP, View

Line = list[tuple[str, str]]
STYLES = {
    "state.running": "ansicyan", "state.queued": "", "state.done": "ansigreen", "state.complete": "ansigreen",
    "state.failed": "ansired", "state.unreadable": "ansired", "state.cancelled": "ansired", "state.waiting": "ansiyellow",
    "state.paused": "ansiyellow", "state.stale": "ansiyellow", "head": "bold", "chosen": "reverse", "note": "ansiyellow",
    "message": "bold",
}  # fmt: skip
WIDE = 76  # columns from which on there is room for a table
SMALL = 16  # lines below which one has to do for the head
ANSWERS = ("a approve", "r reject", "c request changes")
ORDERS = {  # what the foot offers for a run in a state
    "waiting": (*ANSWERS, "x cancel", "p pause"),
    "running": ("x cancel", "p pause"),
    "queued": ("x cancel", "p pause"),
    "paused": ("u resume", "x cancel"),
    "failed": ("t retry",),
    "cancelled": ("t retry",),
}
HELP = """\
Moving
  ↑ ↓ or k j       one row; PgUp PgDn a page; Home End (g G) to either end
  Tab              to the next part of the board
  Enter, → or l    opens a run or a step; unfolds and folds items and laps that stand in one line
  Esc, ← or h      goes back; takes a filter away
  /                filter, as you type: words of id, name, pipeline, error; on the board also
                   waiting, active, pending, failed, complete; within a run step names and states
  ?                this page
  q, Ctrl-C        quit

Where a run waits for you (open it and its gate to read what is asked)
  a                approve          the words may be left out
  r                reject           the words say why
  c                request changes  the words say what is to be done otherwise

Orders to the chosen run; each asks y, and tells which file it wrote
  x                cancel
  p                pause
  u                resume (unpause)
  t                retry a failed or cancelled run

Marks
  · pending   ▸ running   ? waiting for a person   = paused   ✓ done   ✗ failed   x cancelled
  - skipped   ~ to run again   + items or laps in one line

Times of day are UTC. Orders and answers are files in the run's folder, as the commands write them."""


def paint(scene: Scene, view: View, width: int, height: int) -> list[Line]:
    """The whole screen but for the question at its bottom: exactly `height` lines, none wider than `width`."""
    width, height = max(1, width), max(1, height)
    head, foot = _head(scene, view, width, height), _foot(scene, view, width)
    room = max(0, height - len(head) - len(foot))
    view.page_rows = max(1, room - 1)
    if view.help:
        body = _page(view, HELP.split("\n"), width, room)
    elif view.place == STEP:
        opened = view.opened(scene)
        body = _page(view, opened.page if opened and scene.wish.step == view.step else (), width, room)
    elif view.place == BOARD:
        body = _board(scene, view, width, room)
    else:
        body = _run(scene, view, width, room)
    body += [[] for _ in range(room - len(body))]
    lines = [*head, *body[:room], *foot]
    return lines[:height] if len(lines) <= height else [*lines[: height - 1], lines[-1]]


# -- head and foot -------------------------------------------------------------------------------------------------


def _head(scene: Scene, view: View, width: int, height: int) -> list[Line]:
    counts = [f"{scene.counts.get(part, 0)} {part}" for part in PARTS] if scene.counts else []
    counts += [f"{scene.counts['rejected']} rejected"] if scene.counts.get("rejected") else []
    if width < WIDE and scene.counts:
        marks = {"waiting": "?", "active": "▸", "pending": "·", "failed": "✗", "complete": "✓"}
        counts = [f"{mark}{scene.counts.get(part, 0)}" for part, mark in marks.items()]
    served = f"served by {scene.served}" if scene.served else "no daemon is running here (pop up)"
    told = [("", ", ".join(counts) if width >= WIDE else " ".join(counts)), ("", scene.today)]
    if height < SMALL:
        lines = _spread([*told, ("note", "" if scene.served else "no daemon")], width)[:1]
    else:
        lines = _spread([("head", scene.path), ("" if scene.served else "note", served)], width) + _spread(told, width)
    lines += [[("class:note", fit(text, width))] for text in scene.troubles]
    if view.words and view.place == BOARD:
        lines.append([("class:note", fit(f"filter: {view.words}   (Esc takes it away)", width))])
    return lines


def _spread(parts: list[tuple[str, str]], width: int) -> list[Line]:
    """In one line where they fit, else each in its own."""
    parts = [part for part in parts if part[1]]
    if sum(get_cwidth(text) + 3 for _, text in parts) - 3 <= width:
        line: Line = []
        for style, text in parts:
            line += [("", "   ")] if line else []
            line.append((f"class:{style}" if style else "", text))
        return [line]
    return [[(f"class:{style}" if style else "", fit(text, width))] for style, text in parts]


def _foot(scene: Scene, view: View, width: int) -> list[Line]:
    lines: list[Line] = []
    if view.message:
        lines += [[("class:message", text)] for text in wrapped(view.message, width)[:4]]
    keys = ["? help", "q quit"]
    if view.help or view.place != BOARD:
        keys.append("Esc back")
    if not view.help:
        keys += ORDERS.get(_state(scene, view), ())
    if not view.reads:
        keys += ["Enter open", "/ filter"]
    keys.append("↑↓ move")
    return [*lines, [("", _as_many(keys, width))]]


def _as_many(keys: list[str], width: int) -> str:
    """The keys that fit, whole, in their order; the page of `?` has them all."""
    told = ""
    for key in keys:
        longer = f"{told}  {key}" if told else key
        told = longer if get_cwidth(longer) <= width else told
    return told or fit(keys[0], width)


def _state(scene: Scene, view: View) -> str:
    """In which state the run is that an order would be for."""
    if view.place == BOARD:
        row = view.row(scene)
        return row.state if isinstance(row, Entry) and row.run_id else ""
    opened = view.opened(scene)
    return opened.state if opened else ""


# -- bodies --------------------------------------------------------------------------------------------------------


def _board(scene: Scene, view: View, width: int, room: int) -> list[Line]:
    lines: list[Line | Entry] = []
    chosen = view.row(scene)
    at = 0
    for part, entries in groupby(scene.entries, key=lambda entry: entry.part):
        listed = list(entries)
        found = scene.found.get(part, len(listed))
        more = f"{len(listed)} of {found}, / finds the others" if found > len(listed) else f"{found}"
        lines.append([("class:head", fit(f"{PARTS[part][0]} ({more})", width))])
        for entry in listed:
            at = len(lines) if entry is chosen else at
            lines.append(entry)
    if not lines:
        nothing = (
            "no run fits the filter"
            if view.words
            else "nothing here yet: pop submit FILE, or put a seed into pipeline-pending/"
        )
        return [[], [("", fit(nothing, width))]]
    return [
        _entry(line, line is chosen, width) if isinstance(line, Entry) else line for line in _around(lines, at, room)
    ]


def _entry(entry: Entry, chosen: bool, width: int) -> Line:
    state = f"class:state.{entry.state}"
    mark = MARKS.get(entry.state, " ")
    if width < WIDE:
        cells = [(state, mark, 1), ("", _called(entry, max(8, width - 24)), max(8, width - 24)), ("", entry.share.rjust(5), 5), ("", entry.about, 0)]  # fmt: skip
    else:
        name = min(44, max(31, width // 4))
        known = entry.run_id if entry.run_id and get_cwidth(entry.run_id) <= name else _called(entry, name)
        cells = [
            (state, mark, 1), ("", known, name), (state, entry.state, 10),
            ("", entry.share.rjust(5), 5), ("", entry.took.rjust(9), 9),
        ]  # fmt: skip
        cells += [("", entry.at.rjust(8), 8)] if width >= 90 else []
        cells += [("", entry.cost.rjust(9), 9)] if width >= 100 else []
        cells += [("", entry.about, 0)]
    return _cells(cells, chosen, width)


def _called(entry: Entry, width: int) -> str:
    """The name of a run and the end of its id, which tells runs of one name apart."""
    if not entry.run_id:
        return entry.name
    return f"{fit(entry.name, width - 5)} {entry.run_id[-4:]}" if width > 8 else entry.name


def _run(scene: Scene, view: View, width: int, room: int) -> list[Line]:
    opened = view.opened(scene)
    if opened is None:
        gone = scene.wish.run_id == view.run_id
        return [[("class:note", fit("this run is not here any more (Esc)", width) if gone else "")]]
    head: list[Line] = [[("class:head", fit(opened.title, width))]]
    about = "   ".join(text for text in (opened.share, opened.took, opened.usage) if text)
    head.append(
        [(f"class:state.{opened.state}", f"{MARKS.get(opened.state, ' ')} {opened.state}"), ("", f"   {about}")]
    )
    notes = [text for note in opened.notes for text in wrapped(note, width)]
    head += [[("class:note", text)] for text in notes[: max(1, room // 4)]]
    if view.step_words:
        head.append([("class:note", fit(f"steps: {view.step_words}   (Esc takes it away)", width))])
    rows = view.rows(scene)
    logs = opened.logs[-_log_rows(room - len(head), len(rows)) :] if _log_rows(room - len(head), len(rows)) else ()
    tail: list[Line] = [[("class:head", "log")], *([("", fit(text, width))] for text in logs)] if logs else []
    space = max(1, room - len(head) - len(tail))
    at = view.place_of(rows)
    steps = [row for row in rows if isinstance(row, Step)]
    listed = [_step(row, number == at, width, view) for number, row in enumerate(steps)]
    shown = list(_around(listed, at, space))
    shown += [[] for _ in range(space - len(shown))] if tail else []
    return [_cut(line, width) for line in [*head, *shown, *tail]]


def _log_rows(room: int, steps: int) -> int:
    """How many log lines are shown: a third of the room, more where the steps leave it, none where there is none."""
    return 0 if room < 6 else max(room // 3, room - steps - 2) - 1


def _step(step: Step, chosen: bool, width: int, view: View) -> Line:
    state = f"class:state.{step.state}"
    inner = step.count == 1 and step.family in view.unfolded and step.name != step.family
    sign = ("- " if step.family in view.unfolded else "+ ") if step.count > 1 else "  " * (1 + inner)
    lap = f"lap {step.lap}" if step.lap else ""
    attempt = f"attempt {step.attempt}" if step.attempt > 1 else ""
    if width < WIDE:
        said = "  ".join(text for text in (step.stage, lap, attempt, step.about) if text)
        return _cells(
            [(state, step.mark, 1), ("", f"{sign}{step.name}", max(10, width // 2 - 4)), (state, step.state, 9), ("", said, 0)],
            chosen, width,
        )  # fmt: skip
    name = min(48, max(26, width // 4))
    cost = money(step.cost)
    cells = [
        (state, step.mark, 1), ("", f"{sign}{step.name}", name), (state, step.state, 9), ("", step.took.rjust(9), 9),
        ("", cost.rjust(9), 9 if cost or width >= 100 else 0),
    ]  # fmt: skip
    said = "  ".join(text for text in (step.stage, lap, attempt, step.about) if text)
    return _cells([cell for cell in cells if cell[2]] + [("", said, 0)], chosen, width)


def _page(view: View, texts: Iterable[str], width: int, room: int) -> list[Line]:
    """A text that is moved as a whole."""
    lines = [part for text in texts for part in wrapped(text, width)]
    view.most_scroll = max(0, len(lines) - room)
    view.scroll = min(view.scroll, view.most_scroll)
    return [[("", text)] for text in lines[view.scroll : view.scroll + room]]


# -- lines ---------------------------------------------------------------------------------------------------------


def _around(lines: list, at: int, room: int) -> list:  # type: ignore[type-arg]
    """As many lines as there is room for, with the chosen one among them and near the middle."""
    start = max(0, min(at - room // 2, len(lines) - room))
    return lines[start : start + room]


def _cells(cells: list[tuple[str, str, int]], chosen: bool, width: int) -> Line:
    """Columns of a width each, the last one (0) as wide as there is room; a chosen line is marked to its end."""
    line: Line = []
    left = width
    for style, text, columns in cells:
        columns = min(columns or left, left)
        if columns <= 0:
            break
        shown = fit(text, columns)
        padded = shown + " " * (columns - get_cwidth(shown))
        line.append((f"class:chosen {style}".strip() if chosen else style, padded))
        left -= columns
        if left > 0:
            line.append(("class:chosen" if chosen else "", " "))
            left -= 1
    return line


def _cut(line: Line, width: int) -> Line:
    kept: Line = []
    for style, text in line:
        if width <= 0:
            break
        kept.append((style, fit(text, width)))
        width -= get_cwidth(kept[-1][1])
    return kept


def fit(text: str, width: int) -> str:
    """As much of a text as fits, with a mark where something is left out."""
    if len(text) <= width and text.isascii():
        return text
    if get_cwidth(text[: 2 * width]) <= width and len(text) <= 2 * width:
        return text
    taken, left = [], width - 1
    for sign in text:
        left -= get_cwidth(sign)
        if left < 0:
            break
        taken.append(sign)
    return "".join(taken) + "…" if width > 0 else ""


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of a width; its indentation stays."""
    if get_cwidth(text) <= width:
        return [text]
    indent = text[: len(text) - len(text.lstrip())][: width // 2]
    lines = wrap(text, width, subsequent_indent=indent, drop_whitespace=True) or [""]
    return [fit(one, width) for one in lines]
