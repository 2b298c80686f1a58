"""The pages of a generated folder: CONTEXT.md for agents, COMPLETION_CRITERIA.md for the check, README.md for people."""

from __future__ import annotations

from collections.abc import Sequence

from pop.errors import safe
from pop.recipes.iterate.manifest import CONTEXT, CRITERIA, FILE, PROMPTS, Agent, Manifest
from pop.recipes.iterate.workflow import Iteration, Workflow

AT_MOST = 12  # rows of a table before it is cut


def context_page(workflow: Workflow, iteration: Iteration) -> str:
    """What every agent of an iteration is told: the work as a whole, and where in it they stand."""
    by_name = {one.name: one for one in workflow.iterations}
    after = [one for one in workflow.iterations if iteration.name in one.dependencies]
    lines = [f"# Context: {iteration.name}", "", f"The workflow **{workflow.name}**: {_line(workflow.description)}", ""]
    lines += [f"The goal of this iteration: {_line(iteration.goal)}", ""]
    if iteration.dependencies:
        lines += ["## What went before", ""]
        lines += [f"- **{name}**: {_line(by_name[name].goal)}" for name in iteration.dependencies]
        lines += ["", "What was made there from your material comes with it. Build on it; do not repeat it.", ""]
    lines += ["## Who works here", "", "| role | works on | makes |", "|---|---|---|"]
    lines += [
        f"| {agent.role} | {_codes(agent.targets)} | {_codes(agent.deliverables)} |" for agent in iteration.agents
    ]
    if after:
        lines += ["", "## What comes after", ""]
        lines += [f"- **{one.name}**: {_line(one.goal)}" for one in after]
    return "\n".join([*lines, ""])


def criteria_page(iteration: Iteration, criteria: Sequence[str]) -> str:
    """The checklist that is also the check's input."""
    lines = [
        f"# Completion criteria: {iteration.name}",
        "",
        f"{_line(iteration.goal)}",
        "",
        "Each line is one criterion. `pop iterate validate` checks what a rule in brackets says, and lists prose as",
        "unchecked. Edit it freely: lines that do not begin with `- [ ]` are for people.",
        "",
        *(f"- [ ] {one}" for one in criteria),
        "",
    ]
    return "\n".join(lines)


def iteration_page(manifest: Manifest, notices: Sequence[str], of: Workflow) -> str:
    """README.md of an iteration: who makes what from what, how much it takes, what to look at and edit."""
    deliverables = sum(len(agent.deliverables) for agent in manifest.agents)
    number = [one.name for one in of.iterations].index(manifest.iteration) + 1
    lines = [
        f"# {manifest.iteration}",
        "",
        f"Iteration {number} of {len(of.iterations)} in `{manifest.workflow}`. {_line(manifest.goal)}",
        "",
        f"{_count(len(manifest.agents), 'agent')} {'makes' if len(manifest.agents) == 1 else 'make'} "
        f"{_count(deliverables, 'deliverable')}, "
        f"{_after(manifest)}, in at most {_count(manifest.rounds, 'round')}; when the criteria are not met then: "
        f"{_otherwise(manifest)}",
        "",
        *agents_table(manifest.agents),
        "",
        *_notices(notices),
        "## The files here",
        "",
        "| file | what it is |",
        "|---|---|",
        f"| [{CONTEXT}]({CONTEXT}) | what every agent is told about the work as a whole |",
        f"| [{CRITERIA}]({CRITERIA}) | when the iteration is done: a checklist that is checked by a program |",
        f"| {PROMPTS}/ | the system prompt of each agent: the place to say more, or less |",
        f"| [{FILE}]({FILE}) | who makes which file from which targets, with tokens and risk |",
        "| pipeline.json | what runs this iteration alone; it is made of the manifest |",
        "",
        "All of it may be edited before it runs. Generating again leaves what you edited as it is.",
        "",
        "## What is made",
        "",
        "| deliverable | by | from |",
        "|---|---|---|",
    ]
    rows = [(one, agent) for agent in manifest.agents for one in agent.deliverables]
    for one, agent in rows[:AT_MOST]:
        sources = [*one.targets, *(f"{reading.iteration}/{reading.path}" for reading in one.reads)]
        more = f" and {len(sources) - 3:,} more" if len(sources) > 3 else ""
        lines.append(f"| `{_cell(one.path)}` | {agent.prompt.removesuffix('.md')} | {_codes(sources[:3])}{more} |")
    if len(rows) > AT_MOST:
        lines.append(f"| and {len(rows) - AT_MOST:,} more | | see {FILE} |")
    return "\n".join([*lines, ""])


def workflow_page(
    workflow: Workflow, manifests: Sequence[Manifest], notices: Sequence[str], *, folder: str, base: str, source: str
) -> str:
    """README.md of the whole: what will happen, what it takes, what to do next."""
    tokens = sum(agent.tokens for manifest in manifests for agent in manifest.agents)
    calls = sum(len(agent.deliverables) for manifest in manifests for agent in manifest.agents)
    lines = [
        f"# {workflow.name}",
        "",
        _line(workflow.description),
        "",
        f"Made by `pop iterate generate` of `{source}`, with targets from `{base}`. Nothing has run yet: read it, edit "
        "what you like, and run it.",
        "",
        "| iteration | after | agents | deliverables | tokens | highest risk |",
        "|---|---|---|---|---|---|",
    ]
    for one in manifests:
        made = sum(len(agent.deliverables) for agent in one.agents)
        after = ", ".join(one.dependencies) or "the start"
        total = sum(agent.tokens for agent in one.agents)
        worst = max(one.agents, key=lambda agent: agent.share)
        lines.append(
            f"| [{one.iteration}]({one.iteration}/README.md) | {after} | {len(one.agents)} | {made:,} | {total:,} | "
            f"{worst.risk} ({worst.share:.0%}) |"
        )
    lines += [
        "",
        f"{_count(calls, 'model call')} and about {tokens:,} tokens in one round; further rounds make again only what "
        "the criteria found wanting.",
        "",
        *_notices(notices),
        "## What to do next",
        "",
        "```",
        f"pop iterate run {folder}          # one POP run: its models, budgets and daemon are the root's",
        f"pop iterate monitor {folder}      # how far each agent is",
        f"pop iterate validate {folder}     # what was made, held to the criteria",
        f"pop iterate feedback {folder}     # how each agent did, and what to change",
        "```",
        "",
        "Before that, look at the prompts (`*/agent-prompts/`), the criteria (`*/COMPLETION_CRITERIA.md`) and the",
        "allocation (`*/manifest.json`). Change them there for this time, or change `workflow.yaml` and `templates/`",
        f"here and generate again: `pop iterate generate {folder}/workflow.yaml`. A file that you edited is never",
        "overwritten: the new text goes beside it as `<name>.new`.",
    ]
    return "\n".join([*lines, ""])


def agents_table(agents: Sequence[Agent]) -> list[str]:
    """A Markdown table: who, how much, how near to the budget."""
    rows = ["| agent | targets | deliverables | tokens | of its budget | risk |", "|---|---|---|---|---|---|"]
    for agent in agents[: AT_MOST * 5]:
        targets = len({target for one in agent.deliverables for target in one.targets})
        readings = len({(one.step, one.index) for made in agent.deliverables for one in made.reads})
        counted = f"{targets:,}" + (f" + {readings:,} earlier" if readings else "")
        name = agent.prompt.removesuffix(".md")
        rows.append(
            f"| [{name}]({PROMPTS}/{agent.prompt}) | {counted} | {len(agent.deliverables):,} | {agent.tokens:,} "
            f"| {agent.share:.0%} of {agent.token_budget:,} | {agent.risk} |"
        )
    if len(agents) > AT_MOST * 5:
        rows.append(f"| and {len(agents) - AT_MOST * 5:,} more | | | | | see {FILE} |")
    return rows


def _notices(notices: Sequence[str]) -> list[str]:
    return ["## Mind", "", *(f"- {one}" for one in notices), ""] if notices else []


def _after(manifest: Manifest) -> str:
    return f"after {', '.join(manifest.dependencies)}" if manifest.dependencies else "from the start"


def _otherwise(manifest: Manifest) -> str:
    return {
        "fail": "the run fails, and `pop retry` grants more.",
        "ask": "a person is asked (`pop approve`, `pop request-changes`).",
        "keep-best": "the best round stands, and the run goes on.",
    }[manifest.otherwise]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{_cell(name)}`" for name in names)


def _cell(text: str) -> str:
    return safe(text, 300, one_line=True).replace("|", "\\|").replace("`", "'")


def _line(text: str) -> str:
    return " ".join(text.split())
