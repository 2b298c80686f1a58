"""What keys let somebody do to runs and gates: the same acts as the commands', told in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from pop.acts import PLANS, DoesNotFit, order
from pop.answering import answer_gate, open_gate_of
from pop.display import open_gates
from pop.errors import PopError, UsageError
from pop.gates import Decision, opened
from pop.runs import Run
from pop.screen.scene import line
from pop.screen.view import Question
from pop.settings import Root
from pop.store import lock_holder

ANSWERS: dict[str, Decision] = {"a": "approve", "r": "reject", "c": "request-changes"}
ORDERS = {"x": "cancel", "p": "pause", "u": "resume", "t": "retry"}
WORDS = {
    "approve": "words, or none",
    "reject": "why, or nothing",
    "request-changes": "what is to be done otherwise",
}


def question_of(run: Run, verb: str, gate: str | None = None) -> Question:
    """What is asked before an order or an answer is given.

    Raises:
        PopError: It makes no sense now: nothing is open, several gates are, the run has ended.
    """
    if verb not in WORDS:
        if (plan := PLANS[verb](run)).verb is None and not plan.withdraws:
            raise DoesNotFit(plan.note or f"{run.run_id}: nothing to {verb}")
        return Question(verb, f"{verb} {line(run.run_id, 200)}? y does it, any other key does not", run.run_id)
    if gate is None and (several := len(open_gates(run.status()))) > 1:
        raise UsageError(f"{several} gates of {run.run_id} are open", hint="open the run and choose the gate")
    instance = open_gate_of(run, gate)
    about = opened(run.step_dir(instance))
    if about and verb not in about.options:
        raise UsageError(f"{instance} takes no {verb}", hint=f"it takes {', '.join(about.options)}")
    text = f"{verb} {line(instance, 100)} of {line(run.run_id, 200)}: {WORDS[verb]}; Enter does it, Esc does not"
    return Question(verb, text, run.run_id, instance, about.opening if about else 0, typed=True)


def do(root: Root, run: Run, question: Question, words: str) -> str:
    """Give the answer or the order that was asked about; returns what is told.

    Raises:
        PopError: It cannot be given, or fits no more.
    """
    if question.verb in WORDS:
        file: Path | None = _answer(run, question, words.strip())
        note = None
    else:
        given = order(run, question.verb)
        file, note = given.file, given.note
    told = [f"wrote {os.path.relpath(file, root.path)}"] if file else []
    told += [note] if note else []
    if file and lock_holder(root.machine_room) is None:
        told.append("no daemon is running here: it takes effect with the next pop up")
    return line("; ".join(told) or f"{question.verb}: nothing to do", 600)


def _answer(run: Run, question: Question, words: str) -> Path:
    if question.verb == "request-changes" and not words:
        raise UsageError("request-changes without a word", hint="say what is to be done otherwise")
    instance = open_gate_of(run, question.gate)
    verb = cast(Decision, question.verb)
    return answer_gate(run, instance, verb, text=words or None, opening=question.opening)[0]


def told(error: PopError | OSError) -> str:
    """An error in one line."""
    if isinstance(error, PopError):
        return line(error.message + (f"   hint: {error.hint}" if error.hint else ""), 600)
    return line(f"{error.strerror or error}: {error.filename or ''}", 600)
