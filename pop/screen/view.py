"""What somebody does at the screen: where they are, what is chosen, which question is open. It reads nothing and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from pop.screen.scene import PARTS, Entry, Opened, Scene, Step, Wish, summed_up

BOARD, RUN, STEP = "board", "run", "step"


@dataclass
class Question:
    """What is asked at the bottom: words (`typed`), or a single y. `verb` is the order or decision, or ``filter``."""

    verb: str
    text: str
    run_id: str = ""
    gate: str = ""
    opening: int = 0
    typed: bool = False


@dataclass
class View:
    """Where somebody is. `chosen` and `at` are the key of the row and where it last stood, by place."""

    only: str | None = None  # the run that alone is shown
    place: str = BOARD
    run_id: str | None = None
    step: str | None = None
    help: bool = False
    words: str = ""
    step_words: str = ""
    question: Question | None = None
    message: str = ""
    scroll: int = 0
    most_scroll: int = 0  # as the last painting found it
    page_rows: int = 10
    unfolded: frozenset[str] = frozenset()
    chosen: dict[str, str] = field(default_factory=dict)
    at: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.only:
            self.place, self.run_id = RUN, self.only

    @property
    def wish(self) -> Wish:
        return Wish(self.words, self.run_id, self.step)

    @property
    def reads(self) -> bool:
        """Whether a text is shown, which is moved as a whole."""
        return self.help or self.place == STEP

    # -- rows ------------------------------------------------------------------------------------------------------

    def rows(self, scene: Scene) -> list[Entry] | list[Step]:
        if self.place == BOARD:
            return list(scene.entries)
        opened = self.opened(scene)
        return summed_up(opened.steps, self.unfolded, self.step_words) if opened else []

    def opened(self, scene: Scene) -> Opened | None:
        """The run that is looked at, where the scene shows that one already."""
        return scene.opened if scene.wish.run_id == self.run_id else None

    @staticmethod
    def key(row: Entry | Step) -> str:
        return row.key if isinstance(row, Entry) else f"{row.name} {row.count > 1}"

    def place_of(self, rows: list[Entry] | list[Step]) -> int:
        """Where the chosen row stands now; where it stood, when it is gone."""
        wanted = self.chosen.get(self.place)
        for number, key in enumerate(map(self.key, rows)):
            if key == wanted:
                self.at[self.place] = number
                return number
        return min(self.at.get(self.place, 0), max(0, len(rows) - 1))

    def row(self, scene: Scene) -> Entry | Step | None:
        rows = self.rows(scene)
        return rows[self.place_of(rows)] if rows else None

    def choose(self, rows: list[Entry] | list[Step], number: int) -> None:
        if rows:
            number = max(0, min(len(rows) - 1, number))
            self.chosen[self.place], self.at[self.place] = self.key(rows[number]), number

    # -- moving ----------------------------------------------------------------------------------------------------

    def move(self, scene: Scene, by: int) -> None:
        if self.reads:
            self.scroll = max(0, min(self.most_scroll, self.scroll + by))
            return
        rows = self.rows(scene)
        self.choose(rows, self.place_of(rows) + by)

    def next_part(self, scene: Scene) -> None:
        """To the first run of the part of the board below, or of the first one again."""
        if self.reads or self.place != BOARD or not scene.entries:
            return
        firsts: dict[str, int] = {}
        for number, entry in enumerate(scene.entries):
            firsts.setdefault(entry.part, number)
        here = scene.entries[self.place_of(list(scene.entries))].part
        parts = [part for part in PARTS if part in firsts]
        self.choose(list(scene.entries), firsts[parts[(parts.index(here) + 1) % len(parts)]])

    def open(self, scene: Scene) -> None:
        """Look into what is chosen: a run, a step, or the items and laps of one."""
        row = self.row(scene)
        if self.reads or row is None:
            return
        if isinstance(row, Entry):
            if row.run_id is None:
                self.message = "a seed in the queue: it becomes a run when the daemon takes it"
                return
            self.place, self.run_id, self.unfolded, self.step_words = RUN, row.run_id, frozenset(), ""
            self.chosen.pop(RUN, None)
            self.at.pop(RUN, None)
        elif row.count > 1:
            self.unfolded ^= {row.family}
        else:
            self.place, self.step, self.scroll = STEP, row.name, 0

    def back(self) -> None:
        if self.help:
            self.help, self.scroll = False, 0
        elif self.place == STEP:
            self.place, self.step, self.scroll = RUN, None, 0
        elif self.place == RUN and self.step_words:
            self.step_words = ""
        elif self.place == RUN and not self.only:
            self.place, self.run_id = BOARD, None
        elif self.place == BOARD and self.words:
            self.words = ""

    # -- what is meant by a key ------------------------------------------------------------------------------------

    def meant_run(self, scene: Scene) -> str | None:
        """The run an order is for."""
        if self.place != BOARD:
            return self.run_id
        row = self.row(scene)
        return row.run_id if isinstance(row, Entry) else None

    def meant_gate(self, scene: Scene) -> str | None:
        """The gate an answer is for, where one is chosen; None: the only one of the run that is open."""
        if self.place == STEP:
            return self.step
        row = self.row(scene) if self.place == RUN else None
        return row.name if isinstance(row, Step) and row.count == 1 and row.state == "waiting" else None
