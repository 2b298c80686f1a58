"""What the wizard does when a component is missing: a model writes it, or a marked placeholder says that none did."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from pop.recipes.wizard.generate import Rubbish, cleaned
from tests.fake_openai import FakeOpenAI, Fault
from tests.test_cli import pop
from tests.wizardry import GOAL, GOOD, MAP, MISSING, make_root, server


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def new(root: Path, *more: str, name: str = "Safe_Service") -> subprocess.CompletedProcess[str]:
    return pop("new", "--name", name, "--goal", GOAL, "--no-input", *more, root=root)


def component(root: Path) -> Path:
    return root / "components" / f"{MISSING}.txt"


def template(root: Path, name: str = "Safe_Service") -> str:
    return (root / "output" / name / "01_PROMPT_TEMPLATE.md").read_text()


def test_a_missing_component_is_written_shown_and_saved_under_its_own_name(
    tmp_path: Path, fake_openai: FakeOpenAI
) -> None:
    """The library heals itself, the map stays as it is, and the next run asks nobody."""
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    before = (root / "goal_map.json").read_bytes()
    fake_openai.answers = [GOOD]
    config = tmp_path / "project.yaml"
    config.write_text(f"describe:\n  {MISSING}: as few rights as will do\n")
    made = new(root, "--config", str(config))
    assert made.returncode == 0, made.stderr
    assert GOOD in made.stderr and GOOD in template(root) and "TODO" not in template(root)
    assert component(root).read_text() == f"{GOOD}\n"
    assert (root / "goal_map.json").read_bytes() == before
    (body,) = fake_openai.bodies
    asked = body["messages"][-1]["content"]
    assert "as few rights as will do" in asked and GOAL in asked and asked.count("<document id=") == 3
    record = json.loads((root / "output" / "Safe_Service" / "environment.json").read_text())
    (about,) = [row for row in record["components"] if row["source"] == "generated"]
    assert (about["name"], about["model"], about["brief"]) == ("least_privilege", "m", "as few rights as will do")
    assert new(root, name="Second").returncode == 0 and GOOD in template(root, "Second")
    assert fake_openai.total == 1


def test_where_the_map_names_none_the_standard_name_is_used(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """For each kind; all are asked for at once."""
    bare = {"goals": {"BARE": {"purpose": "See what happens."}}}
    root = make_root(tmp_path / "root", server(fake_openai), bare)
    fake_openai.answers = [GOOD, GOOD, GOOD]
    made = pop("new", "--name", "B", "--goal", "bare", "--json", root=root)
    assert made.returncode == 0, made.stderr
    wanted = {f"{kind}s/autogen_{kind}_for_bare" for kind in ("persona", "protocol", "constraint")}
    assert {f"{row['kind']}/{row['name']}" for row in json.loads(made.stdout)["components"]} == wanted
    assert all((root / "components" / f"{ref}.txt").is_file() for ref in wanted)


def nobody_listens() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


WRONG = {
    "401": ([Fault(status=401, body=b'{"error": {"message": "no\\u001b[31m key"}}')], [], "auth"),
    "500": ([Fault(status=500)] * 9, [], "unavailable"),
    "429": ([Fault(status=429, headers={"retry-after": "0"})] * 9, [], "rate_limited"),
    "cut connection": ([Fault(close=True)] * 9, [], "unavailable"),
    "no JSON": ([Fault(body=b"<html>It works!</html>")] * 9, [], "unavailable"),
    "refusal": ([Fault(refusal="I will not.")] * 2, [], "declined"),
    "content filter": ([Fault(finish_reason="content_filter")] * 2, [], "declined"),
    "refusal in words": ([], ["I'm sorry, but I can't help with that request."] * 2, "declined"),
    "cut off": ([Fault(finish_reason="length")] * 2, [GOOD] * 2, "too long"),
    "empty": ([], ["", " \n "], "empty"),
    "empty fence": ([], ["```\n```"] * 2, "empty"),
    "too long": ([], ["word " * 9000] * 2, "too long"),
    "binary": ([], ["You are\x00\x01\x02 kind to all of them, always."] * 2, "binary"),
    "escapes": ([], ["\x1b[2J\x1b[31mYou are kind to all of them."] * 2, "binary"),
    "half a fence": ([], ["```text\n" + GOOD] * 2, "fence"),
    "no words": ([], ["%%%% 12 34 {}"] * 2, "no text"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_server_does_wrong_becomes_a_marked_placeholder(
    what: str, tmp_path: Path, fake_openai: FakeOpenAI
) -> None:
    """The wizard says so, logs it, goes on, keeps nothing, and heals with the next run."""
    fake_openai.faults, fake_openai.answers, said = list(WRONG[what][0]), list(WRONG[what][1]), WRONG[what][2]
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    made = new(root)
    assert made.returncode == 0, made.stderr
    assert f"{MISSING} was not written: " in made.stderr and said in made.stderr
    assert "\x1b" not in made.stdout + made.stderr + template(root)
    assert f"> **TODO: {MISSING} is missing.**" in template(root) and said in template(root)
    assert not component(root).exists()
    folder = root / "output" / "Safe_Service"
    assert f"- [ ] **{MISSING}** (placeholder)" in (folder / "TODO.md").read_text()
    (line,) = (root / ".pop" / "log" / "wizard.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "component.missing" and said in json.loads(line)["why"]
    fake_openai.faults, fake_openai.answers = [], [GOOD]
    healed = new(root, "--yes")
    assert healed.returncode == 0, healed.stderr
    assert GOOD in template(root) and component(root).is_file() and not (folder / "TODO.md").exists()


@pytest.mark.parametrize("key", [True, False])
def test_without_a_server_or_without_a_key_it_goes_on_too(key: bool, tmp_path: Path) -> None:
    """Connection refused, and a model whose key is not set."""
    here = f'base_url = "{nobody_listens()}"\n' if key else ""
    settings = f'[models.default]\nprovider = "openai"\nmodel = "gpt-5"\ntries = 1\n{here}'
    root = make_root(tmp_path / "root", settings, MAP)
    made = new(root)
    assert made.returncode == 0, made.stderr
    assert ("unavailable" if key else "auth") in made.stderr
    assert f"TODO: {MISSING}" in template(root) and not component(root).exists()


def test_a_gateway_that_does_not_start_is_no_end_either(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """What is wrong with pop.toml is said, and stands in TODO.md."""
    root = make_root(tmp_path / "root", "[models.default]\nprovder = 1\n", MAP)
    made = new(root)
    assert made.returncode == 0 and f"TODO: {MISSING}" in template(root), made.stderr


def test_rubbish_is_told_to_the_model_once(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """A fence around the whole answer is no rubbish: it is taken off."""
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    fake_openai.answers = ["", f"```markdown\n{GOOD}\n```"]
    assert new(root).returncode == 0
    assert component(root).read_text() == f"{GOOD}\n" and "```" not in template(root)
    assert "the answer is empty" in fake_openai.bodies[1]["messages"][-1]["content"]


def test_the_embedded_engine_gives_a_marked_skeleton_that_is_not_kept(tmp_path: Path) -> None:
    """Sentences of neighbouring components, with their names."""
    root = make_root(tmp_path / "root", "", MAP)
    made = new(root)
    assert made.returncode == 0, made.stderr
    assert "It is a skeleton: only the embedded engine is there, which is extractive" in made.stderr
    assert f"> **SKELETON for {MISSING}**" in template(root) and "End of the skeleton" in template(root)
    assert not component(root).exists()
    assert f"**{MISSING}** (skeleton)" in (root / "output" / "Safe_Service" / "TODO.md").read_text()


def test_a_model_that_is_not_there_is_told_before_anything_else(tmp_path: Path) -> None:
    """It was mistyped, so nobody is asked."""
    root = make_root(tmp_path / "root", '[models.fast]\nprovider = "builtin"\n', MAP)
    made = new(root, "--model", "fsat")
    assert made.returncode == 2 and "did you mean 'fast'?" in made.stderr and not (root / "output").exists()


# -- one voice -----------------------------------------------------------------------------------------------------------


def weave(root: Path) -> subprocess.CompletedProcess[str]:
    return pop("new", "--name", "W", "--goal", "AUDIT/REVIEW", "--no-input", "--synthesize", root=root)


def test_a_model_weaves_the_parts_and_the_plain_text_stays_beside(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """The place of the request is none of its business."""
    root = make_root(tmp_path / "root", server(fake_openai))
    plain = pop("new", "--name", "P", "--goal", "AUDIT/REVIEW", "--no-input", root=root)
    assert plain.returncode == 0
    sections = {
        name: [line for line in (root / "output" / "P" / name).read_text().splitlines() if line.startswith("## ")]
        for name in ("00_PERSONA.md", "01_PROMPT_TEMPLATE.md")
    }
    heads = "\n".join(sections["00_PERSONA.md"] + sections["01_PROMPT_TEMPLATE.md"])
    fake_openai.answers = [f"{heads}\n\nOne voice says it all, calmly and in order."] * 3
    made = weave(root)
    assert made.returncode == 0, made.stderr
    folder = root / "output" / "W"
    assert "One voice says it all" in (folder / "00_PERSONA.md").read_text()
    assert "One voice says it all" in (folder / "01_PROMPT_TEMPLATE.md").read_text()
    assert (folder / "01_PROMPT_TEMPLATE.md").read_text().count("<!-- the request begins -->") == 1
    assert (folder / "00_PERSONA.plain.md").read_bytes() == (root / "output" / "P" / "00_PERSONA.md").read_bytes()
    assert json.loads((folder / "environment.json").read_text())["synthesized"]["persona"] == "m"


@pytest.mark.parametrize("answer", ["A text that has lost its sections, all of them.", "", "I'm sorry, I can't."])
def test_a_text_that_lost_something_is_not_taken(answer: str, tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """The plain one stands, and TODO.md says why."""
    root = make_root(tmp_path / "root", server(fake_openai))
    fake_openai.answers = [answer] * 6
    made = weave(root)
    folder = root / "output" / "W"
    assert made.returncode == 0 and "were not woven" in made.stderr
    assert "--synthesize" in (folder / "TODO.md").read_text() and not (folder / "00_PERSONA.plain.md").exists()
    assert "## Who you are" in (folder / "00_PERSONA.md").read_text()


def test_the_embedded_engine_weaves_nothing(tmp_path: Path) -> None:
    """It copies sentences."""
    root = make_root(tmp_path / "root")
    assert "it copies, it cannot weave" in weave(root).stderr


# -- what counts as a text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [GOOD, f"```\n{GOOD}\n```", f"~~~text\n{GOOD}\n~~~\n", GOOD.replace(" ", "\r\n", 1)])
def test_good_answers_are_taken(text: str) -> None:
    """Line ends and an outer fence do not matter."""
    assert " ".join(cleaned(text).split()) == GOOD


@pytest.mark.parametrize(
    "text", ["", "```\n", "Sorry, no.", "As an AI language model I must not do that.", "a\u202eb " * 9]
)
def test_bad_answers_are_not(text: str) -> None:
    """Nor what turns the direction of the text."""
    with pytest.raises(Rubbish):
        cleaned(text)


# -- pop components generate -----------------------------------------------------------------------------------------------


def test_what_is_missing_can_be_written_before_anybody_asks(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """All that the map names and no library has; once more there is nothing to do."""
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    fake_openai.answers = [GOOD]
    made = pop("components", "generate", "--json", root=root)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {"generated": [f"components/{MISSING}.txt"], "missing": []}
    assert "nothing is missing" in pop("components", "generate", root=root).stderr
    again = pop("components", "generate", MISSING, root=root)
    assert again.returncode == 2 and "is there already" in again.stderr and fake_openai.total == 1


def test_what_no_model_wrote_is_not_kept_there_either(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """Exit code 4; a component of one's own needs a goal, and gets the description."""
    root = make_root(tmp_path / "root", server(fake_openai), MAP)
    fake_openai.faults = [Fault(status=401)]
    made = pop("components", "generate", root=root)
    assert made.returncode == 4 and f"{MISSING} was not written: auth" in made.stderr and not component(root).exists()
    own = ("components", "generate", "personas/night_watch", "--describe", "awake when others sleep")
    assert "--goal NAME" in pop(*own, root=root).stderr
    fake_openai.answers = [GOOD]
    assert pop(*own, "--goal", GOAL, root=root).stdout == "components/personas/night_watch.txt\n"
    assert "awake when others sleep" in fake_openai.bodies[-1]["messages"][-1]["content"]
    assert pop("components", "generate", "protocls/x", root=root).returncode == 3
