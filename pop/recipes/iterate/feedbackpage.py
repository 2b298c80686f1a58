"""A feedback report as a page of Markdown, which is what the command prints, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pop.display import dollars
from pop.errors import safe
from pop.recipes.iterate.feedback import AgentReport, Issue, Pattern, Proposal, Report

MOST_ISSUES = 30


def page(report: Report) -> str:
    """The whole report."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# Feedback on {report.workflow}"
    yield ""
    yield f"Run {report.run_id}, {report.state}, {report.at}."
    for note in report.notes:
        yield f"Note: {safe(note, 400, one_line=True)}."
    yield ""
    yield "## Iterations"
    yield ""
    yield from _table(
        ("iteration", "state", "laps", "criteria met by lap"),
        [
            (one.name, one.state, f"{one.laps} of {one.rounds}", _met(one.met_by_lap, one.criteria))
            for one in report.iterations
        ],
    )
    yield ""
    yield "## Agents"
    yield ""
    yield from _table(
        ("agent", "state", "targets", "made", "rate", "tokens", "expected", "budget", "cost", "time", "issues"),
        [_row(agent) for agent in report.agents],
    )
    yield ""
    yield "## Issues"
    yield ""
    yield from _issues(report.issues) if report.issues else ["None."]
    yield ""
    yield "## Patterns"
    yield ""
    runs = len(report.earlier_runs)
    yield from (_pattern(one) for one in report.patterns) if report.patterns else ["None was seen twice."]
    yield ""
    yield f"Looked at with this run: {runs} earlier one{'s' * (runs != 1)} of the same folder."
    yield ""
    yield "## Proposals"
    yield ""
    if not report.proposals:
        yield "None."
    for proposal in report.proposals:
        yield from proposal_lines(proposal)


def proposal_lines(proposal: Proposal) -> Iterator[str]:
    """A proposal with its diff."""
    yield f"### {proposal.id}: {safe(proposal.title, 200, one_line=True)}"
    yield ""
    yield f"Because: {safe(proposal.why, 600, one_line=True)}"
    yield ""
    if proposal.by_hand:
        yield f"To be changed by hand: {safe(proposal.by_hand, 600, one_line=True)}"
    else:
        longest = max((len(line) - len(line.lstrip("`")) for line in proposal.diff.splitlines()), default=0)
        fence = "`" * max(3, longest + 1, 4 if "```" in proposal.diff else 3)
        yield f"{fence}diff"
        yield safe(proposal.diff).rstrip("\n")
        yield fence
    yield ""


def _row(agent: AgentReport) -> tuple[str, ...]:
    return (
        agent.step,
        agent.state,
        str(agent.targets),
        f"{agent.completed}/{agent.deliverables}",
        f"{100 * agent.rate:.0f} %",
        f"{agent.tokens:,}",
        f"{agent.estimated_tokens:,}",
        f"{agent.token_budget:,}",
        "unknown" if agent.cost_usd is None else dollars(agent.cost_usd),
        f"{agent.seconds:.1f} s",
        str(len(agent.issues)),
    )


def _met(laps: Sequence[int], of: int | None) -> str:
    return f"{', '.join(map(str, laps))} of {of}" if laps else "not checked"


def _issues(issues: Sequence[Issue]) -> Iterator[str]:
    for issue in issues[:MOST_ISSUES]:
        path = f" `{safe(issue.path, 200, one_line=True)}`" if issue.path else ""
        where = f" ({issue.where})" if issue.where else ""
        told = safe(issue.evidence, 400, one_line=True)
        yield f"- {issue.kind.replace('_', ' ')}, {issue.step}, lap {issue.lap}{path}: {told}{where}"
    if len(issues) > MOST_ISSUES:
        yield f"- and {len(issues) - MOST_ISSUES} more, which the .json lists"


def _pattern(pattern: Pattern) -> str:
    runs = {one.run_id for one in pattern.seen}
    places = ", ".join(f"{one.iteration} lap {one.lap}" for one in pattern.seen[:6])
    among = f" in {len(runs)} runs" if len(runs) > 1 else ""
    rule = f" ({safe(pattern.rule, 200, one_line=True)})" if pattern.rule else ""
    return f"- {pattern.role}: {pattern.kind.replace('_', ' ')}{rule}, {pattern.times} times{among}: {places}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table that reads well as plain text."""
    listed = [tuple(safe(cell, 120, one_line=True).replace("|", "\\|") for cell in row) for row in rows]
    widths = [max(len(row[n]) for row in [tuple(head), *listed]) for n in range(len(head))]
    yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True)) + " |"
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in listed:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
