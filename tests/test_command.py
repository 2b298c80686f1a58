"""A local program as a model: real processes, also hostile ones."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pop.models.entries import ModelEntry
from pop.models.providers import Setup, command
from pop.models.providers.command import CommandProvider, command_problem, prompt_of
from pop.models.request import Answer, Message, ModelError, ModelRequest, Origin
from tests.test_cli import pop

ORIGIN = Origin(run_id="r", instance="ask", generation=1, attempt=1)
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}, "n": {"type": "integer"}}}


class Desk:
    """A command provider in a folder, for programs written in Python."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.provider = CommandProvider(Setup(dict(os.environ), root))

    def entry(self, *argv: str, **about: Any) -> ModelEntry:
        return ModelEntry("agent", "command", argv[0], command=argv, **about)

    def program(self, code: str, **about: Any) -> ModelEntry:
        return self.entry(sys.executable, "-c", f"import os, sys, time\n{code}", **about)

    def ask(self, entry: ModelEntry, *messages: Message | str, schema: dict[str, Any] | None = None) -> Answer:
        return asyncio.run(self.provider.answer(request(*messages, schema=schema), entry, ORIGIN, None))

    def fails(self, entry: ModelEntry, *messages: Message | str) -> ModelError:
        with pytest.raises(ModelError) as caught:
            self.ask(entry, *(messages or ("x",)))
        return caught.value


def request(*messages: Message | str, schema: dict[str, Any] | None = None) -> ModelRequest:
    listed = [one if isinstance(one, Message) else Message(role="user", content=one) for one in messages]
    return ModelRequest(model="agent", messages=listed, schema=schema)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def living(mark: str) -> list[psutil.Process]:
    """The processes that show a word in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if mark in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(mark: str, within_s: float = 3.0) -> bool:
    give_up = time.monotonic() + within_s
    while living(mark) and time.monotonic() < give_up:
        time.sleep(0.02)
    return not living(mark)


def test_the_prompt_goes_in_and_the_answer_comes_out(desk: Desk) -> None:
    """Text for text; what nobody counted is estimated, and the price is unknown."""
    answer = desk.ask(desk.entry("cat"), "Grüße, 世界\n")
    assert (answer.text, answer.provider, answer.provider_model) == ("Grüße, 世界", "command", "cat")
    assert answer.estimated and answer.input_tokens == 3 and answer.cost_usd is None and answer.prices is None


def test_several_messages_become_sections_and_a_schema_words(desk: Desk) -> None:
    """The system's section comes first; the schema comes last."""
    talk = [
        Message(role="user", content="Q"),
        Message(role="assistant", content="A"),
        Message(role="user", content="R"),
    ]
    asked = prompt_of(request(*talk, Message(role="system", content="Be terse."), schema=SCHEMA))
    head, _, schema = asked.partition("\n\nAnswer with one JSON value that obeys this JSON Schema, and nothing else:\n")
    assert head == "## system\n\nBe terse.\n\n## user\n\nQ\n\n## assistant\n\nA\n\n## user\n\nR"
    assert json.loads(schema) == SCHEMA
    assert desk.ask(desk.entry("cat"), "Q", schema={"type": "null"}).form == "prompt"


def test_an_envelope_tells_tokens_and_cost(desk: Desk) -> None:
    """All of it is optional but the text."""
    whole = {
        "text": "hi", "input_tokens": 5, "output_tokens": 2, "cached_input_tokens": 1, "reasoning_tokens": 1,
        "cost_usd": 0.5, "model": "agent-9", "finish_reason": "length",
    }  # fmt: skip
    answer = desk.ask(desk.entry("cat"), json.dumps(whole))
    assert {name: getattr(answer, name) for name in whole if name != "model"} == {
        name: value for name, value in whole.items() if name != "model"
    }
    assert (answer.provider_model, answer.prices, answer.estimated) == ("agent-9", "command", False)
    part = desk.ask(desk.entry("cat"), '\n {"text": "hi", "output_tokens": 2}\n')
    assert (part.text, part.output_tokens, part.estimated, part.cost_usd) == ("hi", 2, True, None)


@pytest.mark.parametrize(
    "printed",
    [
        '{"text": "hi", "mood": 1}', '{"input_tokens": 1}', '{"text": 5}', '{"text": "a", "text": "b"}',
        '{"text": "hi", "input_tokens": -1}', '{"text": "hi", "input_tokens": true}', '{"text": "hi", "cost_usd": "1"}',
        '{"text": "hi", "cost_usd": 1e999}', '{"text": "hi", "finish_reason": "tired"}', '{"text": "hi"} and more',
        "[1]", "{" * 100_000, '{"text":' * 20_000,
    ],
)  # fmt: skip
def test_what_is_no_envelope_is_plain_text(desk: Desk, printed: str) -> None:
    """Strictly: another key, a wrong type, anything around it."""
    answer = desk.ask(desk.entry("cat"), printed)
    assert answer.text == printed and answer.estimated


def test_an_answer_that_looks_like_an_envelope_is_the_answer_where_the_schema_says_so(desk: Desk) -> None:
    """A schema with a property "text" gets its object; with a key beyond the schema it is an envelope again."""
    echo = "print(open('answer').read())"
    for printed, text in (('{"text": "hi"}', '{"text": "hi"}'), ('{"text": "{}", "output_tokens": 1}', "{}")):
        code = f"open('answer', 'w').write({printed!r})\n{echo}"
        assert desk.ask(desk.program(code), "x", schema=SCHEMA).text == text


def test_the_environment_holds_no_other_models_key(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the look of its name, nor by pop.toml's word; the model's own key it gets, and all else."""
    names = ["OPENAI_API_KEY", "GH_TOKEN", "DB_PASSWORD", "my_secret", "HOSTED", "AGENT_KEY", "PLAIN"]
    for name in names:
        monkeypatch.setenv(name, "value-of-" + name)
    (desk.root / "pop.toml").write_text(
        '[models.hosted]\nprovider = "openai"\nmodel = "m"\napi_key_env = "HOSTED"\n[providers.x]\napi_key_env = "AGENT_KEY"\n'
    )
    desk = Desk(desk.root)
    code = f"print([name for name in {names} if name in os.environ], 'HOME' in os.environ)"
    assert desk.ask(desk.program(code), "x").text == f"['PLAIN'] {'HOME' in os.environ}"
    assert desk.ask(desk.program(code, key_env="AGENT_KEY"), "x").text.startswith("['AGENT_KEY', 'PLAIN']")
    keys_file = CommandProvider(Setup({**os.environ, "FROM_THE_FILE": "x"}, desk.root))
    printed = asyncio.run(keys_file.answer(request("x"), desk.entry("env"), ORIGIN, None))
    assert "FROM_THE_FILE" not in printed.text and "PLAIN=" in printed.text


def test_a_key_of_its_own_that_is_not_set_is_said_before_anything_runs(desk: Desk) -> None:
    """The variable and the model are named."""
    error = desk.fails(desk.program("open('/proc/self/nowhere')", key_env="NO_SUCH_KEY"))
    assert error.error_class == "auth" and "NO_SUCH_KEY" in error.message and "'agent'" in error.message


def test_each_call_has_a_folder_of_its_own_which_goes(desk: Desk) -> None:
    """Whatever lies in it."""
    code = "os.makedirs('a/b'); open('a/b/c', 'w').write('x'); print(os.getcwd(), os.listdir('.'))"
    first, second = (desk.ask(desk.program(code), "x").text.split(" ", 1) for _ in range(2))
    assert first[1] == second[1] == "['a']" and first[0] != second[0]
    assert not os.path.exists(first[0]) and not os.path.exists(second[0])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["no-such-agent"], "there is no program 'no-such-agent' on the PATH"),
        (["./missing.sh"], "the program './missing.sh' does not exist"),
        (["./plain.txt"], "the program './plain.txt' is not executable"),
        (["./"], "the program './' is no file"),
        (["sh", "-c", "no-such-tool"], "ended with exit code 127, which says that a program cannot be run: "),
        (["sh", "-c", "./plain.txt"], "ended with exit code 127"),
        (["./noformat"], "is in no form that the system can run"),
        (["./nointerpreter"], "cannot be run: No such file or directory"),
    ],
)
def test_a_program_that_cannot_be_run_is_a_mistake_of_the_settings(desk: Desk, argv: list[str], words: str) -> None:
    """bad_input: asking again cures nothing; the program is named."""
    (desk.root / "plain.txt").write_text("hello")
    for name, text in (("noformat", "\x00\x01\x02\x03"), ("nointerpreter", "#!/no/such/shell\n")):
        (desk.root / name).write_text(text)
        (desk.root / name).chmod(0o755)
    error = desk.fails(desk.entry(*argv))
    assert (error.error_class, error.curable, error.code) == ("bad_input", False, "no-program")
    assert words in error.message and error.hint and error.where == "model 'agent'"


def test_check_can_say_so_before_anything_runs(desk: Desk) -> None:
    """`command_problem` runs nothing; a path is meant from the root, as is {root} in any argument."""
    environ = dict(os.environ)
    assert command_problem(desk.entry("sh"), environ) is None
    assert "no program 'no-such'" in str(command_problem(desk.entry("no-such"), environ))
    assert command_problem(ModelEntry("m", "openai", "m"), environ) is None
    script = desk.root / "tools" / "agent.sh"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "said $1"\n')
    script.chmod(0o755)
    for name in ("tools/agent.sh", "{root}/tools/agent.sh", str(script)):
        assert command_problem(desk.entry(name), environ, desk.root) is None
        assert desk.ask(desk.entry(name, "{root}/x"), "x").text == f"said {desk.root}/x"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.stderr.write('first\\n' * 5000 + 'last \\x1b[31mwords'); sys.exit(3)", "exit code 3: "),
        ("sys.exit(1)", "exit code 1, and said nothing"),
        ("print('out of credit'); sys.exit(1)", "exit code 1: out of credit"),
        ("os.kill(os.getpid(), 9)", "was ended by signal 9"),
    ],
)
def test_a_failure_may_be_cured_and_tells_the_last_words(desk: Desk, code: str, words: str) -> None:
    """Bounded, and without what steers a terminal."""
    error = desk.fails(desk.program(code))
    assert (error.error_class, error.curable) == ("unavailable", True)
    assert words in error.message and "\x1b" not in error.message and len(error.message) < 2000
    if "last" in code:
        assert error.message.endswith("last \ufffd[31mwords")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("pass", "it printed no answer: ''"),
        ("print(' \\n\\n ')", "it printed no answer"),
        ('print(\'{"text": ""}\')', 'it printed no answer: \'{"text": ""}\''),
        ("sys.stdout.buffer.write(b'so \\xff\\xfe far')", "no UTF-8 (at 3): 'so \ufffd\ufffd far'"),
        ("sys.stdout.buffer.write(b'\\xff' * 100_000)", "no UTF-8 (at 0)"),
    ],
)
def test_rubbish_is_shown(desk: Desk, code: str, words: str) -> None:
    """The first 200 characters of it."""
    error = desk.fails(desk.program(code))
    assert (error.error_class, error.code, error.curable) == ("unavailable", "rubbish", True)
    assert words in error.message and len(error.message) < 300


def test_an_endless_answer_is_cut_off(desk: Desk) -> None:
    """Its process is ended; so is one that complains without end, whose answer counts all the same."""
    began = time.monotonic()
    error = desk.fails(desk.program("mark = 'flood-4711'\nwhile True: print('y' * 100_000)"))
    assert (error.error_class, error.code, error.curable) == ("unavailable", "too-much-output", False)
    assert gone("flood-4711") and time.monotonic() - began < 20
    loud = desk.program("for _ in range(300): sys.stderr.write('e' * 100_000)\nprint('done')")
    assert desk.ask(loud, "x").text == "done"


def test_a_program_need_not_read_its_prompt(desk: Desk) -> None:
    """Ten megabytes nobody reads, and ten that come back."""
    prompt = "ten megabytes " * 750_000
    assert desk.ask(desk.program("os.close(0); print('done')"), prompt).text == "done"
    assert desk.ask(desk.program("print('done')"), prompt).text == "done"
    assert desk.ask(desk.entry("cat"), prompt).text == prompt
    assert desk.ask(desk.program("print(len(sys.stdin.read()))"), prompt).text == str(len(prompt))


def cancel_after(desk: Desk, entry: ModelEntry, seconds: float) -> float:
    """Seconds from the cancellation to its end."""

    async def run() -> float:
        task = asyncio.ensure_future(desk.provider.answer(request("x"), entry, ORIGIN, None))
        await asyncio.sleep(seconds)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - began

    return asyncio.run(run())


GRANDCHILD = "import subprocess\nsubprocess.Popen([sys.executable, '-c', {code!r}])\n"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); mark = '{mark}'; time.sleep(600)"


def test_a_call_that_is_given_up_leaves_nobody(desk: Desk) -> None:
    """A hanging program, one that hears no TERM, and a grandchild that hears none."""
    hanging = desk.program("mark = 'hang-4712'\ntime.sleep(600)")
    assert cancel_after(desk, hanging, 0.3) < 0.9 and gone("hang-4712", 0.5)
    deaf = desk.program(DEAF.format(mark="deaf-4713"))
    assert command.GRACE_S * 0.9 < cancel_after(desk, deaf, 0.5) < command.GRACE_S + 1 and gone("deaf-4713", 0.5)
    family = desk.program(GRANDCHILD.format(code=DEAF.format(mark="family-4714")) + "time.sleep(600)")
    cancel_after(desk, family, 0.5)
    assert gone("family-4714", 0.5)
    cancel_after(desk, desk.program("mark = 'early-4715'\ntime.sleep(600)"), 0.0)
    assert gone("early-4715", 0.5)


def test_what_it_leaves_behind_is_ended_and_does_not_hold_the_answer(desk: Desk) -> None:
    """A grandchild that keeps its output open; and one outside the group, which POP cannot know, holds nothing up."""
    began = time.monotonic()
    code = GRANDCHILD.format(code="import time; mark = 'left-4716'; time.sleep(600)") + "print('done')"
    assert desk.ask(desk.program(code), "x").text == "done"
    assert gone("left-4716", 0.5) and time.monotonic() - began < 3
    away = "import os, time; mark = 'away-4717'; os.setsid(); time.sleep(60)"
    code = GRANDCHILD.format(code=away) + "time.sleep(0.3); print('done')"
    try:
        assert desk.ask(desk.program(code), "x").text == "done"
        assert time.monotonic() - began < 10
    finally:
        for process in living("away-4717"):
            process.kill()


def test_the_program_ends_with_the_gateway(desk: Desk) -> None:
    """Also when that is killed."""
    script = (
        "import asyncio, os, sys\nfrom pathlib import Path\n"
        "from tests.test_command import Desk\n"
        f"desk = Desk(Path({str(desk.root)!r}))\n"
        "desk.ask(desk.program(\"mark = 'orphan-' + '4718'\\nopen('/dev/stderr'); time.sleep(600) # ' + 'orphan-4718\"), 'x')"
    )
    import subprocess

    gateway = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent.parent)
    give_up = time.monotonic() + 20
    while len(living("orphan-4718")) < 2 and time.monotonic() < give_up:
        time.sleep(0.02)
    assert len(living("orphan-4718")) == 2
    gateway.kill()
    gateway.wait()
    assert gone("orphan-4718")


def test_fifty_at_once(desk: Desk) -> None:
    """Each gets its own answer; no descriptor, child or folder is left."""
    before, children = len(os.listdir("/proc/self/fd")), psutil.Process().children()

    async def run() -> list[Answer]:
        entry = desk.program("time.sleep(0.2); print(sys.stdin.read().upper())")
        asked = [desk.provider.answer(request(f"call {n}"), entry, ORIGIN, None) for n in range(50)]
        return await asyncio.gather(*asked)

    answers = asyncio.run(run())
    assert [answer.text for answer in answers] == [f"CALL {n}" for n in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # the loop's own
    assert psutil.Process().children() == children


def test_a_program_answers_a_step_through_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script lies in the root; no key of the gateway reaches it, and no folder of it is left."""
    monkeypatch.setenv("SOME_API_KEY", "sk-some-0123456789")
    assert pop("init", tmp_path / "root").returncode == 0
    root = tmp_path / "root"
    (root / "agent.sh").write_text(
        "#!/bin/sh\nread line\nkey=${SOME_API_KEY:-no key}\n"
        'printf \'{"text": "%s in %s", "input_tokens": 7, "output_tokens": 2, "cost_usd": 0.25}\' "$key" "$(pwd)"\n'
    )
    (root / "agent.sh").chmod(0o755)
    (root / "pop.toml").write_text('[models.default]\nprovider = "command"\ncommand = ["./agent.sh"]\n')
    ran = pop("run", "--json", root / "examples" / "hello.json", root=root)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    status = json.loads(ran.stdout)
    assert (status["usage"]["cost_usd"], status["usage"]["input_tokens"]) == (0.25, 7)
    (said,) = Path(status["path"]).glob("tasks/summarise/attempts/1/*-infer.md")
    words, _, folder = said.read_text().strip().partition(" in ")
    assert words == "no key" and folder.startswith(tempfile.gettempdir()) and not os.path.exists(folder)


def test_a_program_that_hangs_is_ended_at_the_models_timeout(tmp_path: Path) -> None:
    """With what it started; the run says so."""
    root = tmp_path / "root"
    assert pop("init", root).returncode == 0
    code = GRANDCHILD.format(code="import time; mark = 'late-4719'; time.sleep(600)") + "time.sleep(600)"
    argv = json.dumps([sys.executable, "-c", f"import sys, time\n{code}"])
    model = f'provider = "command"\ncommand = {argv}\ntimeout_s = 2\ntries = 1\n'
    (root / "pop.toml").write_text(f"[models.default]\n{model}[worker]\nattempts = 1\n")
    ran = pop("run", "--json", root / "examples" / "hello.json", root=root)
    assert ran.returncode == 4, ran.stdout + ran.stderr
    error = json.loads(ran.stdout)["error"]
    assert error["error_class"] == "unavailable" and "2 s" in error["message"]
    assert gone("late-4719", 0.5)
