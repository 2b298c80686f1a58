"""A pipeline as an SVG, coloured by the states of a run where they are known.

Blocks are nested boxes, read like text: an entry stands right of the one it follows, and a full line goes on below.

| block    | looks like                                                              |
|----------|-------------------------------------------------------------------------|
| Task     | a box; what it is called, its task, its condition, how its instances stand |
| Gate     | a hexagon                                                               |
| Sequence | boxes in lines, with arrows; a frame only where it has a condition      |
| Parallel | boxes below each other, between two ends; many of them in lines         |
| Each     | a frame that looks like a pile                                          |
| Repeat   | a frame with its way back below                                         |

`needs` are dashed curves. Like the planner it reads no disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pop.graph import by_step, summed_up
from pop.steps import Block, Each, Gate, Parallel, Pipeline, Repeat, Sequence, Task
from pop.svg import MARKS, PAINT, clipped, document, escaped, number, width_of

WIDTH = 1080.0
GAP_X, GAP_Y = 34.0, 22.0
PAD, TITLE, BACK, PILE = 16.0, 26.0, 30.0, 8.0
LOOP = 20.0  # beside the body of a repeat, for its way back
NAME_SIZE, TEXT_SIZE = 13.0, 11.0
NODE_MIN, NODE_MAX = 104.0, 250.0
MOST_LANES = 10  # of a parallel block that are drawn below each other
MAX_CURVES = 3000

Link = Callable[[str], "str | None"]


@dataclass
class _Box:
    """A block and its place, relative to its parent's until `_Canvas.place`; an arrow comes in at `enter`, leaves at `leave`."""

    block: Block
    width: float
    height: float
    enter: float
    leave: float
    lines: list[str] = field(default_factory=list)
    inner: list[tuple[float, float, _Box]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)  # of a sequence: which children stand in which line
    x: float = 0.0
    y: float = 0.0


def draw(
    pipeline: Pipeline,
    states: Mapping[str, str] | None = None,
    *,
    notes: Mapping[str, str] | None = None,
    link: Link | None = None,
    width: float = WIDTH,
    alone: bool = False,
    label: str = "",
) -> str:
    """The picture.

    Args:
        states: State by instance, as in tasks-status.json; the instances of a step are summed up.
        notes: A short text by step or block: ``lap 2``, ``1.2 s``.
        link: Where a click on a step leads.
        width: Pixels it tries to keep to.
        alone: As a file of its own.
    """
    canvas = _Canvas(pipeline, by_step(states or {}), states is not None, notes or {}, link)
    root = canvas.lay(pipeline.root, width - 2 * PAD)
    canvas.place(root, PAD, PAD)
    body = canvas.drawn(root)
    name = label or f"pipeline {pipeline.name}, {len(pipeline.steps)} steps"
    return document(body, root.width + 2 * PAD, root.height + 2 * PAD, kind="graph", label=name, alone=alone)


@dataclass
class _Canvas:
    pipeline: Pipeline
    states: Mapping[str, Counter[str]]
    coloured: bool
    notes: Mapping[str, str]
    link: Link | None
    placed: dict[str, _Box] = field(default_factory=dict)
    flow: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)

    # -- sizes and places ------------------------------------------------------------------------------------------

    def lay(self, block: Block, room: float) -> _Box:
        """Sizes from the inside out; `room` is the width there is."""
        if isinstance(block, Task | Gate):
            return self._node(block)
        title = self._title(block)
        if isinstance(block, Sequence) and not title:
            return self._lines(block, block.inner, room)
        inside = room - 2 * PAD - (2 * LOOP if isinstance(block, Repeat) else 0)
        if isinstance(block, Parallel):
            many = len(block.inner) > MOST_LANES
            held = self._lines(block, block.inner, inside) if many else self._lanes(block, inside)
        elif isinstance(block, Sequence):
            held = self._lines(block, block.inner, inside)
        else:
            held = self.lay(block.inner[0], inside)
        return self._framed(block, held, title)

    def _node(self, step: Task | Gate) -> _Box:
        lines = [text for text in self._texts(step) if text]
        widest = max([width_of(step.name, NAME_SIZE) + 18, *(width_of(line, TEXT_SIZE) for line in lines)])
        extra = 26.0 if isinstance(step, Gate) else 0.0
        width = min(max(widest + 28, NODE_MIN), NODE_MAX) + extra
        height = 34 + 15.0 * len(lines) + (6 if self._is_many(step.name) else 0)
        height = max(height, 40.0) if isinstance(step, Gate) else height
        return _Box(step, width, height, height / 2, height / 2, lines)

    def _texts(self, step: Task | Gate) -> Iterator[str]:
        if isinstance(step, Task) and step.task != step.name:
            yield step.task
        if isinstance(step, Gate):
            yield "a person decides"
        if step.when:
            yield f"when {step.when.text}"
        if self._is_many(step.name):
            counts = self.states[step.name]
            yield f"{counts['done']} of {counts.total()} done"
        yield self.notes.get(step.name, "")

    def _is_many(self, name: str) -> bool:
        return name in self.states and self.states[name].total() > 1

    def _title(self, block: Block) -> str:
        """What stands above a frame; a block without one has none."""
        parts = [f"each {block.over.text}"] if isinstance(block, Each) else []
        if isinstance(block, Repeat):
            parts.append(f"repeat until {block.until.text}")
        if isinstance(block, Parallel):
            parts.append("at once" if len(block.inner) <= MOST_LANES else f"at once: {len(block.inner)}")
        if block.when:
            parts.append(f"when {block.when.text}")
        if block.name in self.notes and parts:
            parts.append(self.notes[block.name])
        return "  ·  ".join(" ".join(part.split()) for part in parts)

    def _lines(self, block: Block, entries: tuple[Block, ...], room: float) -> _Box:
        """In lines, like words."""
        boxes = [self.lay(entry, room) for entry in entries]
        rows, used = list[list[int]](), room + 1
        for place, box in enumerate(boxes):
            if used + GAP_X + box.width > room:
                rows.append([])
                used = -GAP_X
            rows[-1].append(place)
            used += GAP_X + box.width
        inner, top, width, axis, first = list[tuple[float, float, _Box]](), 0.0, 0.0, 0.0, 0.0
        for line, row in enumerate(rows):
            up = max(boxes[place].enter for place in row)
            down = max(boxes[place].height - boxes[place].enter for place in row)
            x, axis = 0.0, top + up
            first = axis if line == 0 else first
            for place in row:
                inner.append((x, axis - boxes[place].enter, boxes[place]))
                x += boxes[place].width + GAP_X
            width, top = max(width, x - GAP_X), top + up + down + GAP_Y
        last = inner[-1] if inner else None
        leave = last[1] + last[2].leave if last else 0.0
        return _Box(block, max(width, 1), max(top - GAP_Y, 1), first, leave, inner=inner, rows=rows)

    def _lanes(self, block: Parallel, room: float) -> _Box:
        """Below each other, with room for the ways in and out at both sides."""
        boxes = [self.lay(child, room - 2 * GAP_X) for child in block.inner]
        widest, top, inner = max(box.width for box in boxes), 0.0, list[tuple[float, float, _Box]]()
        for box in boxes:
            inner.append((GAP_X + (widest - box.width) / 2, top, box))
            top += box.height + 12
        height = top - 12
        return _Box(block, widest + 2 * GAP_X, height, height / 2, height / 2, inner=inner)

    def _framed(self, block: Block, held: _Box, title: str) -> _Box:
        loop, pile = isinstance(block, Repeat), PILE if isinstance(block, Each) else 0.0
        least = 190.0 if loop else 0.0  # the words on the way back
        width = max(held.width + (2 * LOOP if loop else 0), least, min(width_of(title, TEXT_SIZE) + 8, 420.0)) + 2 * PAD
        height = TITLE + held.height + PAD + (BACK if loop else 0)
        shift = (width - held.width) / 2
        if held.block is block:  # its own lines or lanes
            inner = [(x + shift, y + TITLE, box) for x, y, box in held.inner]
        else:
            inner = [(shift, TITLE, held)]
        port = TITLE + held.enter
        return _Box(block, width + pile, height + pile, port, port, [title], inner, held.rows)

    def place(self, box: _Box, x: float, y: float) -> None:
        """Make places absolute."""
        box.x, box.y = x, y
        self.placed[box.block.name] = box
        for dx, dy, child in box.inner:
            self.place(child, x + dx, y + dy)

    # -- drawing ---------------------------------------------------------------------------------------------------

    def drawn(self, root: _Box) -> str:
        self._draw(root)
        self._draw_needs()
        paths = f'<path class="flow" fill="none" stroke="#737b84" stroke-width="1.5" d="{"".join(self.flow)}"/>'
        paths += f'<path class="head" fill="#737b84" d="{"".join(self.heads)}"/>'
        curves = "".join(self.needs)
        if curves:
            paths += f'<path class="needs" fill="none" stroke="#7a4fb0" stroke-width="1.3" stroke-dasharray="5 3" d="{curves}"/>'
        return "".join(self.frames) + paths + "".join(self.nodes)

    def _draw(self, box: _Box) -> None:
        block = box.block
        if isinstance(block, Task | Gate):
            self.nodes.append(self._node_svg(box, block))
            return
        if box.lines:
            self.frames.append(self._frame_svg(box))
        for _, _, child in box.inner:
            self._draw(child)
        if isinstance(block, Parallel) and not box.rows:
            self._fork(box)
        elif isinstance(block, Sequence):
            self._arrows(box)
        if isinstance(block, Repeat):
            self._way_back(box, block)

    def _arrows(self, box: _Box) -> None:
        """From each entry to the one that follows it."""
        children = [child for _, _, child in box.inner]
        for row in box.rows:
            for place in row:
                if place == 0 or children[place].block.needs is not None:
                    continue
                if place == row[0]:
                    self._around(box, children[place - 1], children[place])
                else:
                    self._curve(children[place - 1], children[place])

    def _curve(self, a: _Box, b: _Box) -> None:
        x0, y0, x1, y1 = a.x + a.width, a.y + a.leave, b.x, b.y + b.enter
        middle = (x0 + x1) / 2
        path = f"H{number(x1 - 4)}" if y0 == y1 else f"C{_at(middle, y0)} {_at(middle, y1)} {_at(x1 - 4, y1)}"
        self.flow.append(f"M{_at(x0, y0)}{path}")
        self._head(x1, y1)

    def _around(self, box: _Box, a: _Box, b: _Box) -> None:
        """From the end of a line to the beginning of the next."""
        x0, y0, x1, y1 = a.x + a.width, a.y + a.leave, b.x, b.y + b.enter
        top = min((child.y for _, _, child in box.inner if child.y >= a.y + a.height), default=y1)
        middle, left, right = min(top, b.y) - GAP_Y / 2, x1 - 12, x0 + 12
        r = 6.0
        self.flow.append(
            f"M{_at(x0, y0)}H{number(right - r)}Q{_at(right, y0)} {_at(right, y0 + r)}V{number(middle - r)}"
            f"Q{_at(right, middle)} {_at(right - r, middle)}H{number(left + r)}Q{_at(left, middle)} "
            f"{_at(left, middle + r)}V{number(y1 - r)}Q{_at(left, y1)} {_at(left + r, y1)}H{number(x1 - 4)}"
        )
        self._head(x1, y1)

    def _fork(self, box: _Box) -> None:
        """The ways in and out of blocks that start at once."""
        y, left, right = box.y + box.enter, box.x + PAD / 2, box.x + box.width - PAD / 2
        start = min(child.x for _, _, child in box.inner) - 8
        end = max(child.x + child.width for _, _, child in box.inner) + 8
        for _, _, child in box.inner:
            into, out = child.y + child.enter, child.y + child.leave
            if child.block.needs is None:
                bend = _at((left + start) / 2, y), _at((left + start) / 2, into)
                self.flow.append(
                    f"M{_at(box.x, y)}H{number(left)}C{bend[0]} {bend[1]} {_at(start, into)}H{number(child.x - 4)}"
                )
                self._head(child.x, into)
            bend = _at((right + end) / 2, out), _at((right + end) / 2, y)
            self.flow.append(
                f"M{_at(child.x + child.width, out)}H{number(end)}C{bend[0]} {bend[1]} {_at(right, y)}H{number(box.x + box.width)}"
            )

    def _way_back(self, box: _Box, repeat: Repeat) -> None:
        body = box.inner[0][2]
        last = body.inner[-1][2] if body.rows else body
        words = f"again, at most {repeat.at_most} laps"
        wide, middle = width_of(words, TEXT_SIZE) + 12, box.x + box.width / 2
        left, right = (
            min(body.x - LOOP, middle - wide / 2 - 10),
            max(body.x + body.width + LOOP, middle + wide / 2 + 10),
        )
        bottom = box.y + box.height - BACK / 2 - 1
        y0, y1, r = last.y + last.leave, body.y + body.enter, 8.0
        self.flow.append(
            f"M{_at(last.x + last.width, y0)}H{number(right - r)}Q{_at(right, y0)} {_at(right, y0 + r)}V{number(bottom - r)}"
            f"Q{_at(right, bottom)} {_at(right - r, bottom)}H{number(left + r)}Q{_at(left, bottom)} {_at(left, bottom - r)}"
            f"V{number(y1 + r)}Q{_at(left, y1)} {_at(left + r, y1)}H{number(body.x - 4)}"
        )
        self._head(body.x, y1)
        self.nodes.append(
            f'<rect class="gap" fill="#fff" x="{number(middle - wide / 2)}" y="{number(bottom - 8)}" '
            f'width="{number(wide)}" height="16"/><text class="minor" fill="#4b535c" font-size="{TEXT_SIZE:g}" '
            f'text-anchor="middle" x="{number(middle)}" y="{number(bottom + 4)}">{words}</text>'
        )

    def _draw_needs(self) -> None:
        left = MAX_CURVES
        for name, needed in self.pipeline.waits.items():
            for block in needed[:left]:
                self._need(self.placed[block.name], self.placed[name])
            left = max(0, left - len(needed))

    def _need(self, a: _Box, b: _Box) -> None:
        below = b.y > a.y + a.height
        x0, x1 = a.x + a.width / 2, b.x + b.width / 2
        y0 = a.y + a.height
        if below:
            y1 = b.y
            bend = max(24.0, (y1 - y0) / 2)
            self.needs.append(f"M{_at(x0, y0)}C{_at(x0, y0 + bend)} {_at(x1, y1 - bend)} {_at(x1, y1 - 3)}")
            self.heads.append(f"M{_at(x1, y1)}l-4-7h8z")
            return
        y1 = b.y + b.height
        bend = max(y0, y1) + min(18.0 + abs(x1 - x0) / 12, 60.0)
        self.needs.append(f"M{_at(x0, y0)}C{_at(x0, bend)} {_at(x1, bend)} {_at(x1, y1 + 3)}")
        self.heads.append(f"M{_at(x1, y1)}l-4 7h8z")

    def _head(self, x: float, y: float) -> None:
        self.heads.append(f"M{_at(x, y)}l-7-4v8z")

    def _frame_svg(self, box: _Box) -> str:
        block, title = box.block, box.lines[0]
        kind = type(block).__name__.lower()
        off = PILE if isinstance(block, Each) else 0.0
        x, y, w, h = box.x, box.y, box.width - off, box.height - off
        pile = "".join(
            f'<rect class="frame pile" fill="#fff" stroke="#c5cbd3" x="{number(x + d)}" y="{number(y + d)}" rx="10" '
            f'width="{number(w)}" height="{number(h)}"/>'
            for d in ((off, off / 2) if off else ())
        )
        return (
            f'<g class="{kind}"><title>{escaped(title)}</title>{pile}<rect class="frame" fill="#fff" stroke="#c5cbd3" '
            f'x="{number(x)}" y="{number(y)}" rx="10" width="{number(w)}" height="{number(h)}"/>'
            f'<text class="minor" fill="#4b535c" font-size="{TEXT_SIZE:g}" x="{number(x + PAD)}" y="{number(y + 17)}">'
            f"{escaped(clipped(title, w - 2 * PAD, TEXT_SIZE))}</text></g>"
        )

    def _node_svg(self, box: _Box, step: Task | Gate) -> str:
        counts = self.states.get(step.name)
        state = (summed_up(counts) if counts else "pending") if self.coloured else ""
        fill, stroke = PAINT[state or "pending"]
        x, y, w, h = box.x, box.y, box.width, box.height
        paint = f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"'
        dashes = ' stroke-dasharray="4 3"' if state in ("skipped", "stale", "cancelled") else ""
        if isinstance(step, Gate):
            points = " ".join(
                _at(*one)
                for one in (
                    (x + 14, y),
                    (x + w - 14, y),
                    (x + w, y + h / 2),
                    (x + w - 14, y + h),
                    (x + 14, y + h),
                    (x, y + h / 2),
                )
            )
            shape = f'<polygon class="shape" {paint}{dashes} points="{points}"/>'
        else:
            shape = (
                f'<rect class="shape" {paint}{dashes} x="{number(x)}" y="{number(y)}" width="{number(w)}" '
                f'height="{number(h)}" rx="6"/>'
            )
        left = x + 14 + (13 if isinstance(step, Gate) else 0)
        room = w - 28 - (26 if isinstance(step, Gate) else 0)
        mark = MARKS.get(state, "")
        shown = clipped(step.name, room - (18 if mark else 0), NAME_SIZE)
        texts = [
            f'<text class="name" fill="#1b1f24" font-size="{NAME_SIZE:g}" x="{number(left)}" y="{number(y + 22)}">'
            + (f'<tspan class="mark" fill="{stroke}">{mark}</tspan> ' if mark else "")
            + f"{escaped(shown)}</text>"
        ]
        for line, text in enumerate(box.lines):
            texts.append(
                f'<text class="minor" fill="#4b535c" font-size="{TEXT_SIZE:g}" x="{number(left)}" '
                f'y="{number(y + 38 + 15 * line)}">{escaped(clipped(text, room, TEXT_SIZE))}</text>'
            )
        bar = self._bar(counts, left, y + h - 9, room) if counts and counts.total() > 1 else ""
        inside = f"<title>{escaped(self._told(step, state, box.lines))}</title>{shape}{''.join(texts)}{bar}"
        target = self.link(step.name) if self.link else None
        inside = f'<a href="{escaped(target, 2000)}">{inside}</a>' if target else inside
        kind = "gate" if isinstance(step, Gate) else "task"
        return f'<g class="node {kind}{f" s-{state}" if state else ""}">{inside}</g>'

    def _bar(self, counts: Counter[str], x: float, y: float, width: float) -> str:
        """How the instances of a step stand, as parts of a bar."""
        parts, total = [], counts.total()
        for state in ("done", "skipped", "running", "waiting", "failed", "stale", "cancelled", "pending"):
            if counts[state]:
                part = width * counts[state] / total
                parts.append(
                    f'<rect class="part s-{state}" fill="{PAINT[state][1]}" x="{number(x)}" y="{number(y)}" '
                    f'width="{number(max(part - 0.5, 0.5))}" height="4"/>'
                )
                x += part
        return "".join(parts)

    def _told(self, step: Task | Gate, state: str, lines: list[str]) -> str:
        kind = "gate" if isinstance(step, Gate) else "step"
        return "; ".join([f"{kind} {step.name}" + (f": {state}" if state else ""), *lines])


def _at(x: float, y: float) -> str:
    return f"{number(x)} {number(y)}"
