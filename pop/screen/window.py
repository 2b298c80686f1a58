"""The full screen: prompt_toolkit shows what `paint` made and reads the keys; files are looked at in a thread beside it.

It is drawn when something changed, at most four times a second, and at once after a key. Looking takes a sixth of
the time at most, however many runs there are, but for the first reading of a long ledger.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, ConditionalContainer, FormattedTextControl, HSplit, Layout
from prompt_toolkit.layout import Window as Area
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.styles import Style

from pop.display import is_answered
from pop.errors import PopError
from pop.runs import Run
from pop.screen.doing import ANSWERS, ORDERS, do, question_of, told
from pop.screen.look import Reader
from pop.screen.paint import STYLES, paint, wrapped
from pop.screen.scene import Scene
from pop.screen.view import BOARD, RUN, Question, View
from pop.settings import Root

EVERY_S = 0.25
IDLE_EVERY_S = 0.5
BEHIND_S = 0.1  # while the ledger is read for the first time
FILTER = "filter"


class Window:
    """One showing. `run`: that run alone, until it ends or waits."""

    def __init__(self, root: Root, run: Run | None) -> None:
        self._root = root
        self._run = run
        self._reader = Reader(root, run)
        self._view = View(only=run.run_id if run else None)
        self._scene = Scene(path=str(root.path))
        self._wanted = asyncio.Event()
        self._early: bool | BaseException | None = None  # it was to end before it was shown
        self._words = Buffer(multiline=False, on_text_changed=self._typed, accept_handler=self._entered)
        self._main = Area(FormattedTextControl(self._painted, focusable=True, show_cursor=False), wrap_lines=False)
        self._app = self._application()

    def show(self) -> bool:
        """Returns whether it is over as asked for: the run ended, or (without one) somebody left by `q`.

        Raises:
            KeyboardInterrupt: Ctrl-C, a signal, or a terminal that is gone.
        """
        try:
            return asyncio.run(self._show())
        finally:
            self._reader.close()

    async def _show(self) -> bool:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave, KeyboardInterrupt())
        loop.set_exception_handler(lambda _, about: self._leave(about.get("exception") or RuntimeError(str(about))))
        self._scene = await asyncio.to_thread(self._reader.look, self._view.wish)
        if isinstance(self._early, BaseException):
            raise self._early
        looking = asyncio.ensure_future(self._keep_looking())
        try:
            return bool(await self._app.run_async(set_exception_handler=False))
        except (EOFError, OSError) as error:  # the terminal is gone: nobody reads what would be said
            raise KeyboardInterrupt from error
        finally:
            looking.cancel()
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _leave(self, result: bool | BaseException) -> None:
        if not self._app.is_running:
            self._early = result
        elif self._app.is_done:
            return
        elif isinstance(result, BaseException):
            self._app.exit(exception=result)
        else:
            self._app.exit(result=result)

    # -- looking ---------------------------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        """Look again and again; draw when something changed."""
        try:
            while True:
                began, wish = time.monotonic(), self._view.wish
                scene = await asyncio.to_thread(self._reader.look, wish)
                changed = scene != self._scene
                if changed:
                    self._scene = scene
                    self._app.invalidate()
                if self._run:
                    over: bool = await asyncio.to_thread(self._is_over)
                    if over:
                        self._leave(True)
                os.get_terminal_size(sys.stdout.fileno())  # OSError: it is gone
                spent = time.monotonic() - began
                await self._pause(BEHIND_S if scene.behind else max(EVERY_S if changed else IDLE_EVERY_S, 5 * spent))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._leave(error)

    async def _pause(self, seconds: float) -> None:
        """Until it is time to look again, or somebody wants to see something else."""
        try:
            await asyncio.wait_for(self._wanted.wait(), seconds)
        except TimeoutError:
            pass
        self._wanted.clear()

    def _is_over(self) -> bool:
        run = self._reader.run_of(None)
        if run is None:
            return True
        status = self._reader.status(run)
        return not (status.get("state") in ("queued", "running") or is_answered(self._root, run, status))

    # -- the screen ------------------------------------------------------------------------------------------------

    def _application(self) -> Application[bool]:
        asks = Condition(lambda: self._view.question is not None)
        typed = Condition(lambda: bool(self._view.question and self._view.question.typed))
        question = Area(FormattedTextControl(self._question), height=lambda: len(self._asked()))
        words = Area(BufferControl(self._words), height=1)
        body = HSplit([self._main, ConditionalContainer(question, asks), ConditionalContainer(words, typed)])
        depth = ColorDepth.from_env()  # NO_COLOR, PROMPT_TOOLKIT_COLOR_DEPTH
        return Application(
            layout=Layout(body, focused_element=self._main),
            style=Style.from_dict(STYLES),
            key_bindings=self._keys(typed),
            full_screen=True,
            color_depth=depth,
            input=create_input(),
            output=create_output(),
        )

    def _painted(self) -> StyleAndTextTuples:
        size = self._app.output.get_size()
        question = self._view.question
        rows = size.rows - len(self._asked()) - bool(question and question.typed)
        text: StyleAndTextTuples = []
        for number, one in enumerate(paint(self._scene, self._view, size.columns, rows)):
            text += [("", "\n")] if number else []
            text += one
        return text

    def _asked(self) -> list[str]:
        """The lines of the question that is open."""
        question, size = self._view.question, self._app.output.get_size()
        return wrapped(question.text, size.columns)[: max(1, size.rows // 3)] if question else []

    def _question(self) -> StyleAndTextTuples:
        return [("bold", "\n".join(self._asked()))]

    # -- keys ------------------------------------------------------------------------------------------------------

    def _keys(self, typed: Condition) -> KeyBindings:
        """What each key does: where nothing is asked, where a y is awaited, where words are typed, and always."""
        keys, view = KeyBindings(), self._view
        asked = Condition(lambda: view.question is not None and not view.question.typed)
        free = Condition(lambda: view.question is None)
        for names, does in self._moves().items():
            for name in names:
                keys.add(name, filter=free, eager=True)(partial(self._pressed, does))
        for name, verb in (ANSWERS | ORDERS).items():
            keys.add(name, filter=free, eager=True)(partial(self._pressed, partial(self._ask, verb)))
        for name in ("c-c", "<sigint>"):
            keys.add(name, eager=True)(lambda _: self._leave(KeyboardInterrupt()))
        keys.add("escape", filter=typed, eager=True)(lambda _: self._give_up())
        keys.add("<any>", filter=asked)(self._decide)
        return keys

    def _moves(self) -> dict[tuple[str, ...], Callable[[], Any]]:
        """Keys that count while nothing is asked, beside those of orders and answers."""
        view = self._view

        def moved(by: Callable[[], int]) -> Callable[[], None]:
            return lambda: view.move(self._scene, by())

        return {
            ("up", "k"): moved(lambda: -1),
            ("down", "j"): moved(lambda: 1),
            ("pageup",): moved(lambda: -view.page_rows),
            ("pagedown", " "): moved(lambda: view.page_rows),
            ("home", "g"): moved(lambda: -(10**9)),
            ("end", "G"): moved(lambda: 10**9),
            ("tab",): lambda: view.next_part(self._scene),
            ("enter", "right", "l"): lambda: view.open(self._scene),
            ("escape", "left", "h", "backspace"): view.back,
            ("?",): self._help,
            ("/",): self._filter,
            ("q",): lambda: self._leave(self._run is None),
        }

    def _pressed(self, does: Callable[[], Any], _: KeyPressEvent) -> None:
        self._view.message = ""
        does()
        self._wanted.set()

    def _give_up(self) -> None:
        """Escape while words are typed."""
        question, self._view.question = self._view.question, None
        if question and question.verb == FILTER:
            self._filtered("")
        self._app.layout.focus(self._main)

    def _decide(self, event: KeyPressEvent) -> None:
        """The key after a question that takes a y."""
        question, self._view.question = self._view.question, None
        if question and event.data in ("y", "Y"):
            self._do(question, "")
        else:
            self._view.message = "nothing was done"

    def _help(self) -> None:
        self._view.help, self._view.scroll = not self._view.help, 0

    # -- what is typed ---------------------------------------------------------------------------------------------

    def _filter(self) -> None:
        view = self._view
        if view.place in (BOARD, RUN) and not view.help:
            before = view.words if view.place == BOARD else view.step_words
            self._begin(Question(FILTER, "filter: Enter keeps it, Esc takes it away", typed=True), before)

    def _filtered(self, text: str) -> None:
        if self._view.place == BOARD:
            self._view.words = text
        else:
            self._view.step_words = text
        self._wanted.set()

    def _typed(self, buffer: Buffer) -> None:
        if self._view.question and self._view.question.verb == FILTER:
            self._filtered(buffer.text)

    def _entered(self, buffer: Buffer) -> bool:
        question, self._view.question = self._view.question, None
        self._app.layout.focus(self._main)
        if question and question.verb != FILTER:
            self._do(question, buffer.text)
        return False

    def _begin(self, question: Question, text: str = "") -> None:
        self._words.reset()
        self._view.question = question
        if question.typed:
            self._words.insert_text(text)
            self._app.layout.focus(self._words)

    def _ask(self, verb: str) -> None:
        """Ask about an order or an answer, where it makes sense now."""
        run_id = self._view.meant_run(self._scene)
        run = self._reader.run_of(run_id) if run_id else None
        if run is None or self._view.help:
            self._view.message = "choose a run first"
            return
        try:
            self._begin(question_of(run, verb, self._view.meant_gate(self._scene)))
        except (PopError, OSError) as error:
            self._view.message = told(error)

    def _do(self, question: Question, words: str) -> None:
        async def doing() -> None:
            run = self._reader.run_of(question.run_id)
            try:
                if run is None:
                    raise FileNotFoundError(2, "the run is not here any more", question.run_id)
                self._view.message = await asyncio.to_thread(do, self._root, run, question, words)
            except (PopError, OSError) as error:
                self._view.message = told(error)
            self._wanted.set()
            self._app.invalidate()

        self._view.message = f"{question.verb} …"
        self._app.create_background_task(doing())
