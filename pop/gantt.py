"""A timeline as an SVG: a row per instance, or per step where there are many; each kind of time has its colour."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from pop.durations import in_words
from pop.svg import MARKS, clipped, document, escaped, number
from pop.timeline import KINDS, Attempt, Kind, Row, Span, Timeline

WIDTH = 1080.0
LABEL, RIGHT, TOP, ROW = 210.0, 64.0, 26.0, 20.0
SIZE = 11.0
MOST_ROWS = 120  # instances that have a row of their own
MOST_PARTS = 400  # of one row; what lies within a pixel is drawn once
MOST_STEPS = 1000
REST_SHARE = 0.3  # of the width, for all rests together
MOST_RESTS = 40
BIN = 3.0  # pixels of a lane that shows many instances

COLOURS: Mapping[Kind, str] = {
    "queue": "#ccd2da", "permit": "#e8a93a", "model": "#4577cf", "own": "#3b9a67", "person": "#a678cd",
}  # fmt: skip
WORDS: Mapping[Kind, str] = {
    "queue": "waiting for a place",
    "permit": "waiting for a permit or the gateway",
    "model": "a model answers",
    "own": "own work",
    "person": "a person is asked",
}

Link = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Lane:
    """What one row of the picture shows."""

    name: str
    state: str
    attempts: tuple[tuple[str, Attempt], ...] = ()
    instances: int = 1
    seconds: Mapping[Kind, float] = field(default_factory=dict)


def lanes_of(line: Timeline, states: Mapping[str, str], most: int = MOST_ROWS) -> list[Lane]:
    """A lane per instance, or per step where these would be too many; in the order they began."""
    if len(line.rows) <= most:
        return [
            Lane(
                row.instance,
                states.get(row.instance, "pending"),
                tuple((row.instance, one) for one in row.attempts),
                1,
                row.seconds(),
            )
            for row in line.rows
        ]
    by_step: dict[str, list[Row]] = {}
    for row in line.rows:
        by_step.setdefault(row.step, []).append(row)
    return [_lane_of(step, rows, states) for step, rows in by_step.items()]


def _lane_of(step: str, rows: list[Row], states: Mapping[str, str]) -> Lane:
    held = {states.get(row.instance, "pending") for row in rows}
    order = ("failed", "running", "waiting", "cancelled", "stale", "pending", "done", "skipped")
    state = next((one for one in order if one in held), "pending")
    sums: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for row in rows:
        for kind, seconds in row.seconds().items():
            sums[kind] += seconds
    return Lane(step, state, tuple((row.instance, one) for row in rows for one in row.attempts), len(rows), sums)


def gantt(
    line: Timeline,
    states: Mapping[str, str] | None = None,
    *,
    link: Link | None = None,
    width: float = WIDTH,
    most: int = MOST_ROWS,
    lanes: int = MOST_STEPS,
    alone: bool = False,
) -> str:
    """The picture.

    Args:
        states: State by instance, as in tasks-status.json.
        link: Where a click on an instance, or a step, leads.
        most: Instances that get a row of their own; of more, the rows are by step.
        lanes: Rows that are drawn.
    """
    all_lanes = lanes_of(line, states or {}, most)
    scale = _Scale(line, LABEL, width - RIGHT)
    shown, left_out = all_lanes[:lanes], len(all_lanes) - lanes
    height = TOP + ROW * max(len(shown), 1) + (ROW if left_out > 0 else 0) + 34
    body = [_ticks(scale, height - 30), *_rests(line.rests, scale, height - 30)]
    for place, lane in enumerate(shown):
        body.append(_lane(lane, TOP + ROW * place, scale, link, width))
    if left_out > 0:
        text = f"{left_out:,} more steps are not drawn"
        body.append(_text(text, 8, TOP + ROW * len(shown) + 14, "minor"))
    body.append(_legend(height - 10, "shorter than it was" if scale.shortened else ""))
    label = f"timeline, {in_words(line.end - line.begin)}, {len(line.rows)} steps"
    return document("".join(body), width, height, kind="timeline", label=label, alone=alone)


@dataclass(frozen=True)
class _Part:
    """A stretch of time and where it is drawn; one `at_rest` is drawn shorter than it was."""

    begin: float
    end: float
    left: float
    right: float
    at_rest: bool = False


class _Scale:
    """From time to pixels. Where a run rested for most of its time, for people, its rests are drawn shorter."""

    def __init__(self, line: Timeline, left: float, right: float) -> None:
        begin, end = line.begin, max(line.end, line.begin + 0.001)
        rests = [rest for rest in line.rests if rest.kind == "person" and begin <= rest.begin < rest.end <= end]
        resting = sum(rest.seconds for rest in rests)
        most = REST_SHARE * (end - begin)
        self.shortened = most < resting < end - begin and len(rests) <= MOST_RESTS
        share = REST_SHARE * (right - left) / resting if self.shortened else 0.0
        rate = (right - left) * (1 - REST_SHARE if self.shortened else 1)
        rate /= end - begin - (resting if self.shortened else 0)
        self.parts, place, x = list[_Part](), begin, left
        for rest in sorted(rests) if self.shortened else []:
            if rest.begin > place:
                self.parts.append(_Part(place, rest.begin, x, x + (rest.begin - place) * rate))
                x = self.parts[-1].right
            self.parts.append(_Part(rest.begin, rest.end, x, x + rest.seconds * share, True))
            place, x = rest.end, self.parts[-1].right
        self.parts.append(_Part(place, end, x, right))
        self.begin, self.end, self.rate, self._ends = begin, end, rate, [part.end for part in self.parts]

    def x(self, at: float) -> float:
        part = self.parts[min(bisect_left(self._ends, at), len(self.parts) - 1)]
        share = (min(max(at, part.begin), part.end) - part.begin) / max(part.end - part.begin, 1e-9)
        return part.left + share * (part.right - part.left)


def _lane(lane: Lane, y: float, scale: _Scale, link: Link | None, width: float) -> str:
    mark = MARKS.get(lane.state, "·")
    name = lane.name if lane.instances == 1 else f"{lane.name} ({lane.instances:,})"
    total = sum(seconds for kind, seconds in lane.seconds.items() if kind != "queue")
    told = "; ".join(
        [f"{name}: {lane.state}"]
        + [f"{WORDS[kind]} {in_words(seconds)}" for kind, seconds in lane.seconds.items() if seconds >= 0.001]
    )
    parts = [
        f'<title>{escaped(told)}</title><rect class="hit" fill="none" pointer-events="all" x="0" y="{number(y)}" '
        f'width="{number(width)}" height="{ROW:g}"/>',
        f'<text font-size="{SIZE:g}" fill="#1b1f24" x="8" y="{number(y + 14)}"><tspan class="mark">{mark}</tspan> '
        f"{escaped(clipped(name, LABEL - 36, SIZE))}</text>",
        *_bars(lane, y, scale),
        f'<text class="minor" fill="#4b535c" font-size="{SIZE:g}" text-anchor="end" x="{number(width - 6)}" '
        f'y="{number(y + 14)}">{in_words(total)}</text>',
    ]
    target = link(lane.name) if link else None
    inside = "".join(parts)
    inside = (
        f'<a href="{escaped(target, 2000)}" tabindex="-1">{inside}</a>' if target else inside
    )  # the table has it too
    return f'<g class="lane s-{lane.state}">{inside}</g>'


def _bars(lane: Lane, y: float, scale: _Scale) -> list[str]:
    """The attempts' time, waiting thinner than work, and a mark where one failed."""
    parts = _many(lane, y, scale) if lane.instances > 1 else []
    thick = ROW - 8
    for _, attempt in lane.attempts:
        for span in attempt.spans if lane.instances == 1 else ():
            x0, x1 = scale.x(span.begin), scale.x(span.end)
            low = thick * 0.3 if span.kind == "queue" else 0.0
            parts.append(
                f'<rect class="t-{span.kind}" fill="{COLOURS[span.kind]}" x="{number(x0)}" y="{number(y + 4 + low)}" '
                f'width="{number(max(x1 - x0, 0.6))}" height="{number(thick - 2 * low)}"/>'
            )
        if attempt.end and attempt.outcome not in _WELL:
            parts.append(
                f'<path class="bad" fill="#b02a2a" d="M{number(scale.x(attempt.end))} {number(y + 2)}l4-3v6z"/>'
            )
    return parts if len(parts) <= MOST_PARTS else _many(lane, y, scale)


_WELL = ("done", "running", "waiting", "approve", "request-changes")


def _many(lane: Lane, y: float, scale: _Scale) -> list[str]:
    """How many instances did what at a time: columns whose height is their number."""
    left, right = scale.parts[0].left, scale.parts[-1].right
    bins = int((right - left) / BIN) + 1
    steps: dict[Kind, list[float]] = {kind: [0.0] * (bins + 2) for kind in KINDS}
    for _, attempt in lane.attempts:
        for span in attempt.spans:
            a, b = (scale.x(span.begin) - left) / BIN, (scale.x(span.end) - left) / BIN
            _add(steps[span.kind], a, max(b, a + 0.02))
    counts: dict[Kind, list[float]] = {kind: _summed(rise)[:bins] for kind, rise in steps.items()}
    busy = [sum(counts[kind][place] for kind in _FROM_BELOW) for place in range(bins)]
    most, below, parts = max(busy), [0.0] * bins, []
    waited = [place for place, count in enumerate(counts["queue"]) if count]
    if waited:
        path = "".join(
            f"M{number(left + place * BIN)} {number(y + ROW / 2 - 2)}h{BIN:g}v4h-{BIN:g}z" for place in waited
        )
        parts.append(f'<path class="t-queue" fill="{COLOURS["queue"]}" d="{path}"/>')
    for kind in _FROM_BELOW:
        path = ""
        for place, count in enumerate(counts[kind]):
            if count:
                high, low = max((ROW - 4) * count / most, 0.3), (ROW - 4) * below[place] / most
                path += f"M{number(left + place * BIN)} {number(y + ROW - 2 - low)}v-{high:.1f}h{BIN:g}v{high:.1f}z"
                below[place] += count
        if path:
            parts.append(f'<path class="t-{kind}" fill="{COLOURS[kind]}" d="{path}"/>')
    return parts


def _add(rise: list[float], a: float, b: float) -> None:
    """One from `a` to `b`, as differences between columns."""
    for at, one in ((a, 1.0), (b, -1.0)):
        column = min(int(at), len(rise) - 2)
        part = column + 1 - min(at, column + 1)
        rise[column] += one * part
        rise[column + 1] += one * (1 - part)


def _summed(rise: list[float]) -> list[float]:
    """Each column's number; what is left of rounding is nothing."""
    return [value if value > 1e-6 else 0.0 for value in accumulate(rise)]


_FROM_BELOW: tuple[Kind, ...] = ("model", "own", "permit", "person")


def _rests(rests: Iterable[Span], scale: _Scale, bottom: float) -> list[str]:
    """Where the whole run was queued or waited for people, behind all rows."""
    return [
        f'<rect class="t-rest" fill="#a678cd" opacity=".14" x="{number(scale.x(rest.begin))}" y="{TOP:g}" '
        f'width="{number(max(scale.x(rest.end) - scale.x(rest.begin), 0.5))}" height="{number(bottom - TOP)}">'
        f"<title>at rest, for a person: {in_words(rest.seconds)}</title></rect>"
        for rest in rests
        if rest.kind == "person"
    ]


def _ticks(scale: _Scale, bottom: float) -> str:
    """The time since the run was created, where something happened; above a shortened rest how long it was."""
    awake = sum(part.end - part.begin for part in scale.parts if not part.at_rest)
    step = next((one for one in _STEPS if awake / one <= 8), awake / 8)
    marks, free = [], 0.0
    for part in scale.parts:
        first = int((part.begin - scale.begin) / step) + (1 if part.begin > scale.begin else 0)
        ticks = [] if part.at_rest else [scale.begin + number * step for number in range(first, first + 12)]
        for at in ticks:
            x = scale.x(at)
            if at > part.end or x < free:
                continue
            marks.append(f'<path class="rule" stroke="#e3e6ea" d="M{number(x)} {TOP - 4:g}V{number(bottom)}"/>')
            words = in_words(at - scale.begin) if at > scale.begin else time.strftime("%H:%M:%S", time.gmtime(at))
            marks.append(_text(words, x, 14, "minor", anchor="middle"))
            free = x + 56
        if part.at_rest and part.right - part.left > 40:
            middle = (part.left + part.right) / 2
            marks.append(_text(f"⋯ {in_words(part.end - part.begin)} ⋯", middle, 14, "minor", anchor="middle"))
            free = middle + 56
    return "".join(marks)


_STEPS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600,
    2 * 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 30 * 86400,
)  # fmt: skip


def _legend(y: float, rests: str) -> str:
    parts, x = [], 8.0
    for kind in KINDS:
        words = WORDS[kind] + (f" ({rests})" if kind == "person" and rests else "")
        parts.append(
            f'<rect class="t-{kind}" fill="{COLOURS[kind]}" x="{number(x)}" y="{number(y - 9)}" width="11" height="11"/>'
        )
        parts.append(_text(words, x + 16, y, "minor"))
        x += 16 + len(words) * SIZE * 0.602 + 20
    return "".join(parts)


def _text(text: str, x: float, y: float, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" fill="#4b535c" font-size="{SIZE:g}" text-anchor="{anchor}" x="{number(x)}" '
        f'y="{number(y)}">{escaped(text)}</text>'
    )
