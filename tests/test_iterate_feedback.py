"""`pop iterate feedback`: how each agent did, what went wrong twice, and what is proposed about it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from ruamel.yaml import YAML

from pop.recipes.iterate.criteria import parse
from pop.recipes.iterate.evidence import Evidence, Failure, Piece
from pop.recipes.iterate.feedback import Report, assess, patterns_of
from pop.recipes.iterate.feedbackpage import page
from pop.recipes.iterate.improvements import LEARNED, with_rule
from pop.recipes.iterate.manifest import Manifest
from pop.recipes.iterate.snapshots import Work
from pop.recipes.iterate.yamledit import CannotEdit, append_item, set_value
from tests.fake_openai import FakeOpenAI
from tests.iterated import WORKFLOW, install, kill, known, lay_out, manifest, pop, settings, submit
from tests.living import LivingRoot

RISKS = {"draft": '- [ ] `*.md` (exists, has "## Risks")\n'}
AT = "2026-11-21T00:00:00.000Z"


def draft(**about: Any) -> list[Manifest]:
    """One iteration: a writer of two files, and a critic with one."""
    roles = {"writer": {"a.md": ["a.txt"], "b.md": ["b.txt"]}, "critic": {"c.md": ["c.txt"]}}
    return [manifest("draft", roles, **about)]


def piece(step: str, index: int, *, lap: int = 1, text: str | None = "text", state: str = "done", **more: Any) -> Piece:
    task: dict[str, Any] = {"state": state, "attempt": 1, "seconds": 1.0, "refinements": more.pop("refinements", 0)}
    asked = {"cached_calls": 1} if more.pop("stored", False) else {"calls": 1}
    task["usage"] = {**asked, "input_tokens": more.pop("tokens", 10), "output_tokens": 0, "cost_usd": 0.5}
    return Piece(Work(step, index, lap, f"{step}.{index}@{lap}", task), text, **more)


def seen(*pieces: Piece, state: str = "complete", **about: Any) -> Evidence:
    by_step: dict[str, list[Piece]] = {}
    for one in pieces:
        by_step.setdefault(one.work.step, []).append(one)
    return Evidence(about.pop("run_id", "r"), {"name": "r", "state": state}, by_step, **about)


def kinds(report: Report, step: str = "draft-writer") -> list[str]:
    return [issue.kind for issue in report.issues if issue.step == step]


WHOLE = (piece("draft-writer", 0), piece("draft-writer", 1), piece("draft-critic", 0))


def test_what_went_well_has_no_issues() -> None:
    """Targets, what was made, tokens, cost and seconds are counted; nothing is found where nothing is."""
    report = assess(draft(), seen(*WHOLE), at=AT)
    writer = report.agents[0]
    assert (writer.targets, writer.completed, writer.rate, writer.tokens) == (2, 2, 1.0, 20)
    assert (writer.cost_usd, writer.seconds, writer.estimated_tokens, writer.state) == (1.0, 2.0, 200, "done")
    assert report.issues == [] and patterns_of(report, []) == []


def test_partial_completion_and_silence() -> None:
    """What is missing is named; a worker that was at work when the run ended, and an empty answer, stopped silently."""
    running = piece("draft-writer", 1, state="running", text=None)
    report = assess(draft(), seen(piece("draft-writer", 0, text=" \n"), running, state="failed"), at=AT)
    assert sorted(kinds(report)) == ["partial_completion", "silent_stop", "silent_stop"]
    assert report.agents[0].missing == ["b.md"] and report.agents[0].rate == 0.5
    assert report.agents[1].state == "not begun" and kinds(report, "draft-critic") == []
    going = assess(draft(), seen(piece("draft-writer", 0), running, state="running"), at=AT)
    assert kinds(going) == [] and going.agents[0].state == "running", "while it runs nothing is missing"


@pytest.mark.parametrize(
    ("error_class", "kind"),
    [
        ("budget", "budget_hit"),
        ("invalid_output", "invalid_format"),
        ("truncated", "silent_stop"),
        ("worker_died", "silent_stop"),
        ("timeout", "stall"),
        ("stalled", "stall"),
        ("refused", "failed"),
        ("interrupted", None),
    ],
)
def test_failed_attempts_are_issues_with_their_evidence(error_class: str, kind: str | None) -> None:
    """Each says which attempt failed and why; that the daemon stopped is nobody's mistake."""
    failure = Failure("draft-writer.0@1", 2, error_class, "what happened", ("a problem",))
    report = assess(draft(), seen(*WHOLE, failures={"draft-writer.0@1": [failure]}), at=AT)
    assert kinds(report) == ([kind] if kind else [])
    if kind:
        issue = report.issues[0]
        assert "attempt 2 failed" in issue.evidence and "a problem" in issue.evidence
        assert issue.where == "tasks/draft-writer.0@1/attempts/2" and issue.path == "a.md"


def test_scope_drift_is_what_the_definition_says() -> None:
    """An input of another agent that nothing given names, another role's section, a much too long answer, further files."""
    criteria = {"draft": parse('- [ ] `c.md` (has "## Verdict")\n- [ ] `a.md` (has "## Notes")\n')}

    def drift(text: str, **more: Any) -> list[str]:
        evidence = seen(piece("draft-writer", 0, text=text, **more), *WHOLE[1:], criteria=criteria)
        issues = assess(draft(), evidence, at=AT).issues
        assert all(issue.kind == "scope_drift" for issue in issues)
        return [issue.evidence for issue in issues]

    assert drift("as c.txt says") == ["it names c.txt, which it was not given"]
    assert drift("as c.txt says", given="read c.txt as well") == []
    assert drift("as b.txt says") == [], "it is its own"
    assert drift("nac.txt and c.txts") == []
    assert drift("# X\n\n## verdict\n") == ["it has the section 'Verdict', which is asked of critic"]
    assert drift("## Notes\n") == []
    assert drift("long", output_tokens=101) == ["its answer has 101 tokens; 100 were expected with the prompt"]
    assert drift("x", extra=("more.md",)) == ["it wrote 1 more file(s): more.md"]


def test_budget_refinements_and_stalls() -> None:
    """Tokens beyond the budget, a deliverable that was mended twice, an alert of the monitor."""
    pieces = (piece("draft-writer", 0, refinements=1), piece("draft-writer", 0, lap=2), *WHOLE[1:])
    alerts = [{"event": "agent.stalled", "step": "draft-writer", "lap": 1, "text": "draft-writer has stalled"}]
    report = assess(draft(budget=25), seen(*pieces, alerts=alerts), at=AT)
    assert kinds(report) == ["budget_hit", "repeated_refinements", "stall"]
    assert "used 30 tokens, its budget is 25, 200 were expected" in report.issues[0].evidence


def check_output(*unmet: tuple[str, str]) -> dict[str, Any]:
    listed = [{"text": rule, "path": path, "rule": rule, "status": "unmet", "evidence": "no"} for path, rule in unmet]
    return {"met": not unmet, "met_count": 3 - len(unmet), "criteria": listed}


def test_the_same_mistake_twice_is_a_pattern() -> None:
    """In two laps, or in two runs; once in each of two roles is none, nor is what this run did not do."""
    rule = 'has "## Risks"'
    one = {"draft": {1: check_output(("a.md", rule), ("a.md", rule), ("b.md", rule), ("c.md", rule))}}
    two = {"draft": {**one["draft"], 2: check_output(("a.md", rule))}}
    once = assess(draft(), seen(*WHOLE, checks=one), at=AT)
    assert [(issue.role, issue.rule) for issue in once.issues] == [("writer", rule), ("critic", rule)]
    assert "1 more deliverable(s) likewise" in once.issues[0].evidence
    assert patterns_of(once, []) == []
    twice = assess(draft(), seen(*WHOLE, checks=two, run_id="s"), at=AT)
    assert [(one.role, one.times) for one in patterns_of(twice, [])] == [("writer", 2)]
    assert [(one.role, one.times) for one in patterns_of(twice, [once])] == [("writer", 3), ("critic", 2)]
    well = assess(draft(), seen(*WHOLE, run_id="t"), at=AT)
    assert patterns_of(well, [once, twice]) == []
    assert "writer: unmet criterion" in page(twice.model_copy(update={"patterns": patterns_of(twice, [once])}))


def test_an_answer_from_the_store_is_no_second_mistake() -> None:
    """A further run that asked nobody says nothing new of the template; what it asked anew does."""
    checks = {"draft": {1: check_output(("a.md", "exists"), ("c.md", "exists"))}}
    first = assess(draft(), seen(*WHOLE, checks=checks), at=AT)
    again = (piece("draft-writer", 0, stored=True), piece("draft-writer", 1), piece("draft-critic", 0))
    second = assess(draft(), seen(*again, checks=checks, run_id="s"), at=AT)
    assert [(one.role, one.times) for one in patterns_of(second, [first])] == [("critic", 2)]
    assert patterns_of(second, []) == []


def test_an_unmet_format_is_an_invalid_format() -> None:
    """`markdown`, `json` and the like are about the form, whatever their file."""
    checks = {"draft": {1: check_output(("a.md", "well-formed"), ("b.md", "json"), ("c.md", ">1KB"))}}
    report = assess(draft(), seen(*WHOLE, checks=checks), at=AT)
    assert kinds(report) == ["invalid_format", "invalid_format"] and kinds(report, "draft-critic") == [
        "unmet_criterion"
    ]


# -- changing files ----------------------------------------------------------------------------------------------------


def changed_lines(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines that went, and lines that came."""
    old, new = before.splitlines(), after.splitlines()
    return [line for line in old if line not in new], [line for line in new if line not in old]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_yaml_keeps_every_other_character(newline: str) -> None:
    """Comments, order, quotes and line ends stay; what was meant is what is read."""
    text = WORKFLOW.replace("\n", newline)
    cases: list[tuple[list[str | int], Any, list[str], list[str]]] = [
        (["agent_roles", "writer", "token_budget"], 12000, ["    token_budget: 9000"], ["    token_budget: 12000"]),
        (["agent_roles", "writer", "complexity_threshold"], 2.5, [], ["    complexity_threshold: 2.5"]),
        (
            ["agent_roles", "sre", "capabilities"],
            ["One: two"],
            [],
            ["  sre:", "    capabilities:", '      - "One: two"'],
        ),
        (["workflow", "iterations", 1, "rounds"], 3, [], ["      rounds: 3"]),
        (["workflow", "iterations", 0, "rounds"], 3, ["      rounds: 2"], ["      rounds: 3"]),
        (["workflow", "iterations", 0, "agents", 0, "allocation"], "balanced", [], ["          allocation: balanced"]),
        (
            ["agent_roles", "critic", "token_budget"],
            5,
            ["  critic: {perspective: You judge notes.}"],
            ["  critic: {perspective: You judge notes., token_budget: 5}"],
        ),
    ]
    for keys, value, gone, came in cases:
        after = set_value(text, keys, value)
        assert changed_lines(text, after) == (gone, came)
        assert after.count("\r\n") == (after.count("\n") if newline == "\r\n" else 0)
        inner = YAML(typ="safe", pure=True).load(after)
        for key in keys:
            inner = inner[key]
        assert inner == value
    after = append_item(text, ["agent_roles", "writer", "constraints"], "Be kind: always.")
    assert changed_lines(text, after) == ([], ['      - "Be kind: always."'])
    assert "# they are read on a telephone" in after


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a: |\n  x\n", ["a"]),
        ("a: [1]\n", ["a"]),
        ("- a\n", ["a"]),
        ("a: {b: c\n", ["a"]),
        ("a: &x {b: 1}\nc: *x\n", ["c", "b", "d"]),
        ("a: 1\n", ["a", "b"]),
    ],
)
def test_a_change_that_would_touch_more_is_refused(text: str, keys: list[Any]) -> None:
    """Then a person makes it by hand."""
    with pytest.raises(CannotEdit):
        set_value(text, keys, 1)


def test_rules_are_written_behind_each_other() -> None:
    """The section is made once; braces of a rule are no template; what stands behind the section stays there."""
    once = with_rule("You write.", "Be kind.")
    assert once == f"You write.\n\n{LEARNED}\n\n- Be kind.\n"
    twice = with_rule(once + "\n## More\n\ntext\n", "No {{ braces }}.")
    assert (
        twice
        == f"You write.\n\n{LEARNED}\n\n- Be kind.\n- {{% raw %}}No {{{{ braces }}}}.{{% endraw %}}\n\n## More\n\ntext\n"
    )


# -- real runs ---------------------------------------------------------------------------------------------------------

Served = Callable[..., tuple[LivingRoot, Path]]


@pytest.fixture
def served(make_living: Callable[..., LivingRoot], fake_openai: FakeOpenAI) -> Served:
    """A root with a generated folder in it, which a daemon serves; the workflow stands in workflows/stories/."""

    def make(manifests: list[Manifest], targets: dict[str, str], criteria: dict[str, str] | None = None) -> Any:
        tasks = {"x.py": "def infer(prompt, ctx):\n    return 1\n"}
        living = make_living(pipeline={"tasks": ["x"]}, tasks=tasks, settings=settings(fake_openai.base_url))
        own = living.path / "workflows" / "stories"
        own.mkdir(parents=True)
        (own / "workflow.yaml").write_text(WORKFLOW)
        folder = lay_out(living.path, manifests, targets, criteria or {})
        install(living, folder)
        living.up()
        return living, folder

    return make


def feedback(living: LivingRoot, folder: Path, *arguments: str) -> dict[str, Any]:
    result = pop(living, "iterate", "feedback", folder, "--json", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


THREE = {"a.txt": "alpha", "b.txt": "beta", "c.txt": "gamma"}


def test_a_report_on_a_real_run(served: Served) -> None:
    """Numbers are those of the run; a criterion missed in two laps becomes a rule of the template, applied on request."""
    living, folder = served(draft(rounds=3), THREE, RISKS)
    run_id = submit(living, folder)
    living.wait_complete(1)
    text = pop(living, "iterate", "feedback", folder)
    assert text.returncode == 0 and "| draft-writer |" in text.stdout, text.stdout + text.stderr
    assert (folder / "feedback" / f"{run_id}.md").read_text() in text.stdout
    report = json.loads((folder / "feedback" / f"{run_id}.json").read_bytes())
    writer = report["agents"][0]
    assert (writer["completed"], writer["deliverables"], writer["laps"]) == (2, 2, 3)
    record = living.ledger()[0]
    assert sum(one["tokens"] for one in report["agents"]) == (
        record["usage"]["input_tokens"] + record["usage"]["output_tokens"]
    )
    assert sum(one["cost_usd"] for one in report["agents"]) == pytest.approx(record["usage"]["cost_usd"])
    assert {one["role"] for one in report["patterns"] if one["kind"] == "unmet_criterion"} == {"writer", "critic"}
    proposals = {one["id"]: one for one in report["proposals"]}
    assert {"template-critic", "template-writer"} <= set(proposals)
    assert (
        '+- Your file must meet this, which was missed before: has "## Risks".' in proposals["template-writer"]["diff"]
    )
    refused = pop(living, "iterate", "feedback", folder, "--apply")
    assert refused.returncode == 2 and "--yes" in refused.stderr
    unknown = pop(living, "iterate", "feedback", folder, "--apply", "--yes", "--only", "template-writter")
    assert unknown.returncode == 2 and "did you mean 'template-writer'?" in unknown.stderr
    applied = pop(living, "iterate", "feedback", folder, "--apply", "--yes", "--only", "template-writer")
    assert applied.returncode == 0, applied.stderr
    template = living.path / "workflows" / "stories" / "templates" / "writer.md.j2"
    assert f"changed    {template}" in applied.stdout and "pop iterate generate" in applied.stdout
    assert template.read_text().count("- Your file must meet this") == 1
    assert (living.path / "workflows" / "stories" / "workflow.yaml").read_text() == WORKFLOW
    again = feedback(living, folder)
    assert "template-writer" not in {one["id"] for one in again["proposals"]}, "the template says so already"
    assert "template-critic" in {one["id"] for one in again["proposals"]}
    assert pop(living, "iterate", "check", living.path / "workflows" / "stories").returncode == 0


def test_a_killed_agent_and_one_that_died(served: Served) -> None:
    """kill -9 and os._exit: the attempts are told as silent stops, what is missing as partial completion."""
    living, folder = served(draft(), {**THREE, "b.txt": "SLEEP", "c.txt": "DIE"})
    run_id = submit(living, folder)

    def over() -> bool:
        kill(living, run_id, "draft-writer.1@1")
        return bool(living.status()["state"] == "failed")

    living.wait(over, "the end")
    report = feedback(living, folder)
    assert report["state"] == "failed"
    writer, critic = report["agents"]
    assert writer["rate"] == 0.5 and writer["missing"] == ["b.md"] and critic["rate"] == 0
    for agent in (writer, critic):
        assert {"silent_stop", "partial_completion"} <= {issue["kind"] for issue in agent["issues"]}
    assert any("SIGKILL" in issue["evidence"] for issue in writer["issues"])


def test_a_budget_that_was_hit_is_raised_by_a_proposal(served: Served) -> None:
    """The estimate said little, the calls took more: the role's budget is proposed, comments stay."""
    words = "word " * 400
    living, folder = served(draft(budget=1200), {"a.txt": words, "b.txt": words + "b", "c.txt": "gamma"})
    own = living.path / "workflows" / "stories" / "workflow.yaml"
    own.write_text(WORKFLOW.replace("9000", "1200"))
    submit(living, folder)
    living.wait_state("failed")
    report = feedback(living, folder)
    assert any(issue["kind"] == "budget_hit" for issue in report["agents"][0]["issues"]), report["agents"][0]
    proposal = next(one for one in report["proposals"] if one["kind"] == "budget")
    assert proposal["role"] == "writer" and "-    token_budget: 1200" in proposal["diff"]
    applied = feedback(living, folder, "--apply", "--yes", "--only", proposal["id"])
    assert applied["applied"] == [proposal["id"]]
    gone, came = changed_lines(WORKFLOW.replace("9000", "1200"), own.read_text())
    assert gone == ["    token_budget: 1200"] and len(came) == 1 and "# the one who writes" in own.read_text()


def test_a_stalled_agent_is_in_the_report(served: Served) -> None:
    """What the monitor saw stands in alerts.jsonl, and so in the report."""
    living, folder = served(draft(), {**THREE, "c.txt": "SLEEP"})
    submit(living, folder)
    living.wait(lambda: living.status()["tasks"]["draft-writer.1@1"]["state"] == "done", "the writer")
    while pop(living, "iterate", "monitor", folder, "--stall", "500ms", "--until", "agent").returncode != 5:
        pass
    early = feedback(living, folder)
    assert early["state"] == "running" and "the run is not over" in early["notes"][0]
    (living.path / "go").touch()
    living.wait_complete(1)
    critic = feedback(living, folder)["agents"][1]
    assert [issue["kind"] for issue in critic["issues"]] == ["stall"]
    assert "draft-critic has stalled: no progress since" in critic["issues"][0]["evidence"]


def test_two_runs_make_a_pattern_and_a_removed_run_is_remembered(served: Served) -> None:
    """The same miss in two runs of one lap each; the report of a run that is gone is what was kept of it."""
    living, folder = served(draft(), THREE, RISKS)
    first = submit(living, folder)
    living.wait_complete(1)
    assert feedback(living, folder)["patterns"] == []
    second = submit(living, folder, count=2)
    living.wait_complete(2)
    report = feedback(living, folder)
    assert report["run_id"] == second and report["earlier_runs"] == [first]
    assert {one["role"]: one["times"] for one in report["patterns"]} == {"writer": 2, "critic": 2}
    assert feedback(living, folder, "--run", first)["patterns"] == []
    living.stop(living.daemons[0])
    for path in known(living):
        shutil.rmtree(path)
    kept = feedback(living, folder)
    assert kept["patterns"] == report["patterns"] and "the run was removed" in kept["notes"][-1]
    shutil.rmtree(folder / "feedback")
    gone = pop(living, "iterate", "feedback", folder)
    assert gone.returncode == 2 and "removed: " in gone.stderr


def test_a_file_that_was_changed_since_is_left_alone(served: Served) -> None:
    """The person has read other words than those that stand there now: nothing is written, the next look is fresh."""
    living, folder = served(draft(), THREE, RISKS)
    for count in (1, 2):
        submit(living, folder, count=count)
        living.wait_complete(count)
    report = feedback(living, folder)
    assert "template-writer" in {one["id"] for one in report["proposals"]}
    template = living.path / "workflows" / "stories" / "templates" / "writer.md.j2"
    template.parent.mkdir()
    template.write_text("My own words for {{ role.name }}.\n")
    refused = pop(living, "iterate", "feedback", folder, "--apply", "--yes")
    assert refused.returncode == 2 and "changed-since: writer.md.j2 has changed" in refused.stderr
    assert template.read_text() == "My own words for {{ role.name }}.\n"
    assert not (template.parent / "critic.md.j2").exists(), "all or none"
    feedback(living, folder)
    feedback(living, folder, "--apply", "--yes")
    assert template.read_text().startswith("My own words for {{ role.name }}.\n\n" + LEARNED)
    assert (template.parent / "critic.md.j2").exists()


def test_a_workflow_of_the_package_is_copied_first(served: Served) -> None:
    """What came with POP is not touched: the root gets its own, which then counts."""
    living, folder = served(draft(), THREE, RISKS)
    shutil.rmtree(living.path / "workflows")
    package = Path(sys.modules["pop"].__file__ or "").parent / "recipes" / "iterate" / "catalogue"
    name = sorted(path.parent.name for path in package.glob("*/workflow.yaml"))[0]
    text = (package / name / "workflow.yaml").read_text()
    role = YAML(typ="safe", pure=True).load(text)["workflow"]["iterations"][0]["agents"][0]["role"]
    shutil.rmtree(folder)
    one = manifest("draft", {role: {"a.md": ["a.txt"], "b.md": ["b.txt"]}}).model_copy(update={"workflow": name})
    lay_out(living.path, [one], THREE, RISKS)
    install(living, folder)
    for count in (1, 2):
        submit(living, folder, count=count)
        living.wait_complete(count)
    report = feedback(living, folder)
    assert any("first copies the workflow" in note for note in report["notes"])
    assert not (living.path / "workflows").exists()
    feedback(living, folder, "--apply", "--yes", "--only", f"template-{role}")
    own = living.path / "workflows" / name
    assert (own / "workflow.yaml").read_text() == text
    changed = [path for path in own.rglob("*.j2") if LEARNED in path.read_text()]
    assert len(changed) == 1
    assert text == (package / name / "workflow.yaml").read_text()
    assert not [path for path in package.rglob("*.j2") if LEARNED in path.read_text()]


def test_on_a_terminal_it_asks(served: Served) -> None:
    """No is the answer that changes nothing."""
    living, folder = served(draft(), THREE, RISKS)
    for count in (1, 2):
        submit(living, folder, count=count)
        living.wait_complete(count)
    argv = ["-m", "pop", "iterate", "feedback", str(folder), "--apply"]
    for answer, said in (("n", "nothing was changed"), ("y", "changed    ")):
        child = pexpect.spawn(
            sys.executable, argv, cwd=str(living.path), encoding="utf-8", timeout=30, dimensions=(60, 200)
        )
        child.expect("LEARNED|Learned from earlier runs")
        child.expect("Make these .* changes")
        child.sendline(answer)
        child.expect(said)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    assert (living.path / "workflows" / "stories" / "templates" / "writer.md.j2").exists()


def test_what_cannot_be_is_told(served: Served) -> None:
    """Not run yet, options that do not go together, a workflow with mistakes: said, with the next move."""
    living, folder = served(draft(), THREE, RISKS)
    result = pop(living, "iterate", "feedback", folder)
    assert result.returncode == 2 and "not-run: " in result.stderr
    assert pop(living, "iterate", "feedback", folder, "--yes").returncode == 2
    for count in (1, 2):
        submit(living, folder, count=count)
        living.wait_complete(count)
    (living.path / "workflows" / "stories" / "workflow.yaml").write_text("workflow: {}\n")
    report = feedback(living, folder)
    assert report["proposals"] == [] and report["patterns"]
    assert any("nothing is proposed" in note for note in report["notes"])


def test_from_generate_to_a_better_prompt(make_living: Callable[..., LivingRoot], fake_openai: FakeOpenAI) -> None:
    """Generated, run, watched, reported, applied, generated again: the agent's prompt states the rule it missed."""
    tasks = {"x.py": "def infer(prompt, ctx):\n    return 1\n"}
    living = make_living(pipeline={"tasks": ["x"]}, tasks=tasks, settings=settings(fake_openai.base_url))
    (living.path / "stories.yaml").write_text(WORKFLOW)
    for name in ("one", "two"):
        (living.path / f"{name}.txt").write_text(f"The story of {name}.\n")
    folder = living.path / "work"
    made = pop(living, "iterate", "generate", "stories.yaml", "--output", "work")
    assert made.returncode == 0, made.stderr
    assert "missed before" not in (folder / "draft" / "agent-prompts" / "writer.md").read_text()
    ran = pop(living, "iterate", "run", folder)
    assert ran.returncode == 4, ran.stdout + ran.stderr
    watched = pop(living, "iterate", "monitor", folder)
    assert watched.returncode == 4 and "iteration draft failed in lap 2" in watched.stdout, watched.stdout
    report = feedback(living, folder)
    assert report["iterations"][0]["state"] == "failed" and report["iterations"][1]["state"] == "not begun"
    assert {one["rule"] for one in report["patterns"] if one["kind"] == "unmet_criterion"} == {'has "## Risks"'}
    applied = pop(living, "iterate", "feedback", folder, "--apply", "--yes", "--only", "template-writer")
    assert applied.returncode == 0, applied.stderr
    again = next(line for line in applied.stdout.splitlines() if line.startswith("next"))
    command = again.removeprefix("next").partition("   (")[0].split()
    remade = pop(living, *command[1:])
    assert remade.returncode == 0, remade.stderr
    assert "which was missed before" in (folder / "draft" / "agent-prompts" / "writer.md").read_text()
