"""`pop check` on whole roots and on seeds: one row for each mistake that a user should hear of before anything runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pop.commands.run import _refuse_broken
from pop.errors import ConfigError, SeedRejected
from pop.rootcheck import RootCheck
from pop.seeds import parse_seed
from pop.settings import Root, load_settings
from tests.test_cli import pop

GOOD = {
    "pop.toml": '[models.large]\nprovider = "openai"\nmodel = "gpt-5"\n',
    "pipeline.json": '{"tasks": ["outline"]}',
    "pipeline-tasks/outline.md": "{{ seed.text }}",
    "pipeline-tasks/review.md": "{{ seed.text }}",
    "pipeline-tasks/revise.md": "{{ seed.text }}",
}
LOOP = (
    '{"tasks": [{"repeat": ["review", "revise"], "until": "inputs.review.score > 8", "at_most": 3}, {"approve": "ok"}]}'
)


def told(root: Path, files: dict[str, str], seed: str | None = None) -> str:
    for name, text in {**GOOD, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    look = RootCheck(Root(root))
    return "\n".join(map(str, look.problems() if seed is None else look.seed_problems(root / seed)))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"pipeline-tasks/outline.md": "---\nsystem: x\nmodel: larg\n---\nx"},
            "no model 'larg'\n  where: pipeline-tasks/outline.md:3:8  model\n  hint: did you mean 'large'?",
        ),
        ({"pipeline-tasks/outline.md": "---\nsytem: x\nmodel: larg\n---\nx"}, "outline.md:3:8  model"),
        (
            {"pipeline-tasks/idle.md": "---\nmodel: larg\n---\nx"},
            "no model 'larg'\n  where: pipeline-tasks/idle.md:2:8  model\n  hint: did you mean 'large'?",
        ),
        (
            {"pipeline-tasks/idle.md": "---\nmodel: oepnai/gpt-5\n---\nx"},
            "no model 'oepnai/gpt-5'\n  where: pipeline-tasks/idle.md:2:8  model\n  hint: did you mean 'openai/gpt-5'?",
        ),
        (
            {"pipeline.json": '{"tasks": [\n {"task": "outline", "model": "larg"}]}'},
            "no model 'larg'\n  where: pipeline.json:2:31  tasks[0].model\n  hint: did you mean 'large'?",
        ),
        (
            {"pipeline.json": '{"tasks": ["outline"],\n "models": {"defalt": "large"}}'},
            "called 'defalt'\n  where: pipeline.json:2:13  models.defalt\n  hint: did you mean 'default'?",
        ),
        (
            {"pipeline.json": '{"tasks": ["outline"],\n "models": {"default": "larg"}}'},
            "no model 'larg'\n  where: pipeline.json:2:24  models.default\n  hint: did you mean 'large'?",
        ),
        ({"pipelines/Weekly.json": GOOD["pipeline.json"]}, "pipelines/Weekly.json\n  hint: names are lower-case"),
        ({"pipelines/default.json": GOOD["pipeline.json"]}, "never read\n  where: pipelines/default.json"),
        ({"pipelines/b.json": '{"tasks": ["outlin"]}'}, "where: pipelines/b.json:1:12  tasks[0]"),
        ({"pipeline-tasks/outlin.schema.json": "{}"}, "where: pipeline-tasks/outlin.schema.json"),
        ({"pipeline-tasks/outline.md": "{{ item.x }}"}, "where: pipeline-tasks/outline.md:1:4"),
        (
            {
                "pipeline.json": '{"tasks": ["outline", "measure"]}',
                "pipeline-tasks/measure.py": "\n\n\ndef inferr(prompt, ctx):\n    pass\n",
            },
            "inferr() is no stage\n  where: pipeline-tasks/measure.py:4:5\n  hint: did you mean 'infer'?",
        ),
        (
            {"pipeline.json": '{"tasks": ["outline", {"task": "outline", "name": "b", "modle": "x"}]}',
             "pipeline-tasks/outline.md": "{{ inputs.b }}"},
            "no step 'b' comes before this one",
        ),
        ({"pipeline-tasks/outline.md": "{{ lap }}"}, "`lap` has a meaning only inside a `repeat`; a step of this task"),
        ({"pipeline-tasks/outline.md": "x {{ laps.a }}"}, "where: pipeline-tasks/outline.md:1:6"),
        (
            {"pipeline.json": LOOP, "pipeline-tasks/revise.md": "{{ laps.reveiw }}"},
            "no step 'reveiw' stands in the loops around this one\n  where: pipeline-tasks/revise.md:1:9\n"
            "  hint: did you mean 'review'?",
        ),
        ({"pipeline.json": LOOP, "pipeline-tasks/review.md": "{{ inputs.c }}"}, "no step 'c' comes before this one"),
        ({"pipeline.json": LOOP.replace('"review"', '"reveiw"')}, "no task 'reveiw'"),
        (
            {"pipeline.json": '{"tasks": ["outline"],\n "recover": {"timeout": "model:larg"}}'},
            "no model 'larg'\n  where: pipeline.json:2:25  recover.timeout\n  hint: did you mean 'large'?",
        ),
        ({"pipeline.json": '{"tasks": ["outline"],\n "views": ["x"]}'}, "no view 'x'\n  where: pipeline.json:2:12  views"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_root_is_found_with_its_place(tmp_path: Path, files: dict[str, str], says: str) -> None:
    """File, line, column, path and the nearest name."""
    assert says in told(tmp_path, files)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"pipeline.json": '{"tasks": [{"task": "outline", "model": "openai/gpt-5"}], "models": {"default": "large"}}'},
        {
            "pipeline.json": '{"tasks": ["outline"], "models": {"fast": "large"}}',
            "pipeline-tasks/outline.md": "---\nmodel: fast\n---\nx",
        },
        {
            "pipeline.json": '{"tasks": ["outline"], "models": {"judge": "large"}}',
            "pipeline-tasks/outline.py": "def finalize(output, ctx):\n    return ctx.model('judge')(output).text\n",
        },
        {
            "pipeline.json": '{"tasks": [{"each": "seed.parts", "do": "outline"}]}',
            "pipeline-tasks/outline.md": "{{ item.x }}",
        },
        {
            "pipeline.json": LOOP,
            "pipeline-tasks/review.md": "Lap {{ lap }}: {{ inputs.revise }} {{ inputs.review }} {{ laps.revise | length }}",
            "pipeline-tasks/revise.md": "{{ inputs.review.notes }} {% for one in changes %}{{ one }}{% endfor %}",
        },
        {"pipeline-tasks/outline.md": "{% if lap %}{{ lap }}{% endif %}{{ changes | json }}"},
        {
            "pipeline.json": '{"tasks": [{"task": "outline", "recover": {"auth": "model:thrifty"}}], '
            '"models": {"thrifty": "large"}}',
        },
    ],
)
def test_what_is_right_in_a_root_is_not_complained_about(tmp_path: Path, files: dict[str, str]) -> None:
    """A check that cries wolf is switched off."""
    assert told(tmp_path, files) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('x = "\n', ["pop.toml:1:6"]),
        ("[models\n", ["not valid TOML", "pop.toml:1:8"]),
        ("a = [", ["not valid TOML", "pop.toml:1:6"]),
        ("[worker]\n  memry_mb = 1\n", ["pop.toml:2:3  worker.memry_mb", "did you mean 'memory_mb'?"]),
        ("[worker]\nmemory_mb = 1\n", ["pop.toml:2:1  worker.memory_mb"]),
        ('[models.large]\nprovder = "openai"\n', ["unknown key 'provder'", "pop.toml:2:1  models.large.provder"]),
        ('[models.a]\nprice = { input = 1, ouput = 2 }\n', ["pop.toml:2:22  models.a.price.ouput", "'output'"]),
        ('[models]\ndefault = "larg"\n[models.large]\nprovider = "builtin"\n', ["pop.toml:2:1  models.default", "'large'"]),
        ('[models.large]\n\nprovider = "opena"\n', ["pop.toml:3:1  models.large.provider", "did you mean 'openai'?"]),
        ('[models.large]\nprovider = "openai"\n', ["needs `model`", "pop.toml:1:2  models.large"]),
        ('[models.a]\nfirst = ["b"]\n', ["no model 'b'", "pop.toml:2:1  models.a.first"]),
        ("[models]\nlarge = 3\n", ["pop.toml:2:1  models.large"]),
        ("[budget]\nrun_usd = -1\n", ["budget.run_usd", "pop.toml:2:1  budget.run_usd"]),
        ("[budget]\nrun_euro = 1\n", ["unknown key 'run_euro'", "run_usd"]),
        ("[providers.p]\nkind = 'opnai'\n[models.a]\nprovider='p'\nmodel='m'\n", ["no kind of provider", "openai"]),
        ("[recover]\n", ["`recover` belongs into a pipeline", "pop.toml:1:2", "top of pipeline.json"]),
        ("[models.a]\nprovider='builtin'\nrequests_per_minute = 0\n", ["requests_per_minute", ":3:1"]),
        ("[models.a]\nladder = []\n", ["`ladder` is empty"]),
        ("[models.default]\nprovider='command'\ncommand=['no-such-program']\n", ["no program 'no-such-program'", ":3:1"]),
        ("[models.default]\nprovider='replay'\nmodel='2026'\n", ["unknown-run: no run '2026'", ":3:1  models.default.model"]),
        ("[models.default]\nprovider='command'\ncommand=['cat']\n[budget]\nrun_usd=1\n", ["no-price", ":1:2"]),
        ("[gateway]\nkeys_file = '/nowhere/keys.env'\n", ["no keys file", "where: /nowhere/keys.env"]),
        ("[gateway]\nkeys_file = 'keys.env'\n", ["is no absolute path", ":2:1  gateway.keys_file"]),
        ("[models.default]\nprovider='command'\ncommand=['cat']\nheaders = {}\n", ["means nothing", ":4:1"]),
        ("[models.a]\nstructured = 'often'\n", ["structured", "object+schema"]),
        ('x = """\n[worker]\n"""\n[worker]\nenv = 3\n', ["unknown key 'x'", "pop.toml:5:1  worker.env"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_settings_is_found_with_its_place(tmp_path: Path, text: str, says: list[str]) -> None:
    """Once, with line and column, and no second error that follows from it."""
    found = told(tmp_path, {"pop.toml": text})
    assert [word for word in says if word not in found] == []
    assert found.count("where:") == (2 if "unknown key 'x'" in says else 1)


def test_a_keys_file_that_others_can_read_is_a_mistake(tmp_path: Path) -> None:
    """No gateway would start with it."""
    keys, root = tmp_path / "keys.env", tmp_path / "root"
    keys.write_text("A_KEY=sk-0123456789\n")
    keys.chmod(0o644)
    found = told(root, {"pop.toml": f'[gateway]\nkeys_file = "{keys}"\n'})
    assert "mode 0644" in found and f"chmod 600 {keys}" in found


def test_a_wrong_address_in_the_environment_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once, for all models that would go there."""
    monkeypatch.setenv("OPENAI_BASE_URL", "nonsense")
    found = told(
        tmp_path, {"pipeline.json": '{"tasks": [{"task": "outline", "model": "openai/gpt-5"}]}', "pop.toml": ""}
    )
    assert found.count("OPENAI_BASE_URL 'nonsense' is no URL") == 1


ABSENT = '[models.agent]\nprovider = "command"\ncommand = ["no-such-program"]\n'


def test_a_model_that_cannot_answer_counts_only_where_a_prompt_asks_for_it(tmp_path: Path) -> None:
    """Otherwise it is a note, as a missing key is."""
    agent = {"pop.toml": ABSENT + '[models.again]\nprovider = "replay"\nmodel = "2026"\n'}
    assert told(tmp_path, agent) == ""
    notes = RootCheck(Root(tmp_path)).notes()
    assert [note.partition(":")[0] for note in notes] == [
        "model 'agent', which no prompt asks for", "model 'again', which no prompt asks for",
    ]  # fmt: skip
    assert "no-such-program" in notes[0] and "pop.toml:3:1" in notes[0]
    asking = {**agent, "pipeline.json": '{"tasks": [{"task": "outline", "model": "agent"}]}'}
    found = told(tmp_path, asking)
    assert "no-program: there is no program 'no-such-program' on the PATH\n" in found and "hint: correct" in found
    seed = {"seed.json": SEED % '"models": {"default": "agent"}'}
    assert "no-program" in told(tmp_path, {**agent, **seed}, "seed.json")


def test_a_model_that_only_a_recovery_asks_for_counts_too(tmp_path: Path) -> None:
    """The attempt that asks it would fail."""
    recovering = '{"tasks": ["outline"], "recover": {"timeout": ["retry", "model:agent"]}}'
    found = told(tmp_path, {"pop.toml": ABSENT, "pipeline.json": recovering})
    assert "no-program: there is no program 'no-such-program' on the PATH\n" in found


def test_a_loop_that_nothing_in_it_can_end_is_noted(tmp_path: Path) -> None:
    """No mistake: `at_most` ends it all the same."""
    pipeline = LOOP.replace("inputs.review.score > 8", "seed.x == 1").replace("[{", '["outline", {', 1)
    assert told(tmp_path, {"pipeline.json": pipeline}) == ""
    notes = [note for note in RootCheck(Root(tmp_path)).notes() if "seed.x == 1" in note]
    place = "pipeline.json:1:65  tasks[1].until"
    assert notes == [f"`seed.x == 1` is the same in every lap of 'review-loop': it reads no step of the loop ({place})"]
    for good in ("lap == 2", "laps.revise | length > 1", "inputs.revise != 'x'"):
        told(tmp_path, {"pipeline.json": LOOP.replace("inputs.review.score > 8", good)})
        assert not [note for note in RootCheck(Root(tmp_path)).notes() if good in note]


def test_a_budget_in_usd_of_a_seed_needs_prices_too(tmp_path: Path) -> None:
    """For the models that this seed makes the steps ask."""
    files = {"pop.toml": '[models.agent]\nprovider = "command"\ncommand = ["cat"]\n'}
    budget = '"budget": {"run_usd": 1}'
    files["seed.json"] = SEED % f'"models": {{"default": "agent"}}, {budget}'
    found = told(tmp_path, files, "seed.json")
    assert "no-price: there is a budget in USD (the seed's), and nobody knows what 'agent' costs" in found
    assert told(tmp_path, {**files, "seed.json": SEED % budget}, "seed.json") == ""
    files["seed.json"] = SEED % '"models": {"default": "agent"}, "budget": {"run_calls": 1}'
    assert told(tmp_path, files, "seed.json") == ""


def test_a_folder_in_the_place_of_a_file_is_no_crash(tmp_path: Path) -> None:
    """Nor is a link that leads nowhere."""
    (tmp_path / "pipelines" / "x.json").mkdir(parents=True)
    (tmp_path / "pipeline-tasks" / "y.md").mkdir(parents=True)
    (tmp_path / "pipeline-tasks" / "z.py").symlink_to("nowhere")
    assert told(tmp_path, {}).splitlines()[1:] == ["  where: pipelines/x.json"]


def test_settings_that_are_no_text_are_told(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are a mistake, not a crash."""
    (tmp_path / "pop.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
        load_settings(Root(tmp_path))


SEED = '{"data": {"text": "x"},\n %s}'


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        (SEED % '"pipeline": "weekly"', "no pipeline 'weekly'\n  where: {seed}:2:14  pipeline"),
        (SEED % '"models": {"default": "larg"}', ":2:24  models.default\n  hint: did you mean 'large'?"),
        (SEED % '"models": {"defalt": "large"}', ":2:13  models.defalt\n  hint: did you mean 'default'?"),
        (SEED % '"pipline": "x", "priority": 9999', "unknown key 'pipline' in an envelope\n  where: {seed}:2:2  pipline"),
        (SEED % '"pipline": "x", "priority": 9999', "did you mean 'pipeline'?"),
        (SEED % '"pipline": "x", "priority": 9999', ":2:30  priority"),
        (SEED % '"budget": {"run_usd": -1}', ":2:24  budget.run_usd"),
        (SEED % '"budget": {"run_us": 1}', ":2:12  budget\n  hint: did you mean 'run_usd'?"),
        ('{"dta": {"text": "x"}, "pipeline": "weekly", "text": ""}', ":1:2  dta\n  hint: did you mean 'data'?"),
        ('{"Data": {"text": "x"}, "models": {}}', ":1:2  Data\n  hint: did you mean 'data'?"),
        ('{"txt": "x"}', "seed has no key 'text' in seed.json\n  where: pipeline-tasks/outline.md:1:9\n  hint: did you"),
        ('{"text": "x", "tags": 1}', "`seed.tags`: must be a list, gave a number\n  where: pipeline.json:1:32  tasks[1].each"),
        ('{"text": "x', "not yet a seed"),
        ("[1]", "a seed is a JSON object"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_seed_is_found_with_its_place(tmp_path: Path, seed: str, says: str) -> None:
    """`pop check SEED` knows what the run would stumble over."""
    files = {"pipeline.json": '{"tasks": ["outline", {"each": "seed.tags", "do": "outline", "name": "b"}]}'}
    files["pipeline.json"] = files["pipeline.json"].replace('"do": "outline"', '"do": {"task": "outline", "name": "c"}')
    found = told(tmp_path, {**files, "seed.json": seed}, "seed.json")
    assert says.replace("{seed}", str(tmp_path / "seed.json")) in found


def test_a_seed_without_envelope_may_have_any_keys(tmp_path: Path) -> None:
    """`date` is no misspelt `data`, and a ticket's priority is its own."""
    assert told(tmp_path, {"seed.json": '{"text": "x", "date": "2026", "priority": "high"}'}, "seed.json") == ""


def test_a_good_seed_has_no_mistakes(tmp_path: Path) -> None:
    """As a file, a folder and a zip; steps behind a condition may lack what they read."""
    files = {"pipeline.json": '{"tasks": ["outline", {"task": "b", "when": "seed.b is defined"}]}'}
    files |= {"pipeline-tasks/b.md": "{{ seed.b }}", "f/seed.json": SEED % '"models": {"default": "large"}'}
    assert told(tmp_path, files, "f/seed.json") == "" == told(tmp_path, files, "f")
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.write(tmp_path / "f/seed.json", "seed.json")
    assert told(tmp_path, files, "f.zip") == ""


def test_what_only_a_second_lap_reads_need_not_be_in_a_seed(tmp_path: Path) -> None:
    """A step that waits for the verdict may never run; one that leads to it does."""
    files = {"pipeline.json": LOOP, "seed.json": '{"text": "x"}'}
    assert told(tmp_path, {**files, "pipeline-tasks/revise.md": "{{ seed.b }}"}, "seed.json") == ""
    assert "no key 'b'" in told(tmp_path, {**files, "pipeline-tasks/review.md": "{{ seed.b }}"}, "seed.json")


def test_a_seed_is_measured_by_the_limits_of_its_root(tmp_path: Path) -> None:
    """Not by the defaults."""
    files = {"pop.toml": "[seeds]\nmax_mb = 0.001\n", "seed.json": '{"text": "' + "x" * 2000 + '"}'}
    assert "more than the limit" in told(tmp_path, files, "seed.json")


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ('"run_usd": -1', r"budget\.run_usd"),
        ('"run_usd": 1e999', "1e999 is too large"),
        ('"run_calls": 1.5', "'run_calls' must be a whole number"),
        ('"step_tokens": 0.1', "'step_tokens' must be a whole number"),
    ],
)
def test_a_budget_that_is_no_amount_is_refused_at_admission(budget: str, says: str) -> None:
    """It could never be kept."""
    with pytest.raises(SeedRejected, match=says):
        parse_seed(b'{"data": 1, "budget": {%s}}' % budget.encode())


def test_a_run_is_refused_only_for_the_models_it_asks(tmp_path: Path) -> None:
    """Before anything starts: an absent program, a missing price; with the seed's and the command line's models."""
    root = tmp_path / "root"
    agent = '[models.paid]\nprovider = "command"\ncommand = ["cat"]\n'
    seeds = {
        "usd.json": SEED % '"budget": {"run_usd": 1}, "models": {"default": "paid"}',
        "plain.json": '{"text": "x"}',
    }
    pipelines = {"pipelines/other.json": '{"tasks": [{"task": "outline", "model": "agent"}]}'}
    told(
        root, {"pop.toml": ABSENT + agent, "pipeline-tasks/outline.md": "Say x: {{ seed.text }}", **pipelines, **seeds}
    )
    unpriced = pop("run", str(root / "usd.json"), root=root)
    assert unpriced.returncode == 3 and "no-price" in unpriced.stderr and "the seed's" in unpriced.stderr
    absent = pop("run", str(root / "plain.json"), "-p", "other", root=root)
    assert absent.returncode == 3 and "no-program" in absent.stderr
    assert not list((root / "pipeline-pending").glob("*"))
    for words in (["plain.json", "-m", "paid"], ["plain.json", "-p", "other", "-m", "paid"]):
        ran = pop("run", str(root / words[0]), *words[1:], root=root)
        assert ran.returncode == 0, ran.stderr


def test_goal_map_and_components_of_a_root_are_looked_at(tmp_path: Path) -> None:
    """Only where the root has its own; a run, which reads neither, is not refused for them."""
    told(tmp_path, {})
    assert "all is well: 5 files" in pop("check", root=tmp_path).stderr
    own = tmp_path / "components" / "personas"
    own.mkdir(parents=True)
    (own / "empty.txt").write_text("")
    (own / "fine.txt").write_text("You are fine.\n")
    (tmp_path / "goal_map.json").write_text('{"goals": {\n  "A_GOAL": {"purpose": "x", "persnoa": "y"}}}')
    found = pop("check", root=tmp_path)
    assert found.returncode == 3 and "2 problem(s)" in found.stderr
    assert "goal_map.json:2:30  goals.A_GOAL.persnoa" in found.stdout and "personas/empty.txt" in found.stdout
    _refuse_broken(Root(tmp_path))
    (own / "empty.txt").unlink()
    (tmp_path / "goal_map.json").unlink()
    assert "all is well: 6 files" in pop("check", root=tmp_path).stderr
