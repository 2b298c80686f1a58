"""Keys: what a keys file may say, and what is taken out of texts."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import structlog

from pop.errors import ConfigError
from pop.models.keys import Keys, RedactingStream, is_redacted, redacting
from pop.models.keysfile import find_keys_file, paths_to_hide, read_keys_file
from pop.models.request import Answer, ModelError, Try
from pop.settings import Root, Settings

KEY = 'sk-proj-Ab/9+x"Q\\z&7Tq=ü0123456789'
PLAIN = "sk-test-0123456789-abcdefghij"


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_keys_file_has_plain_and_quoted_values_and_comments(tmp_path: Path) -> None:
    """As people write them; a # inside a value belongs to it."""
    text = (
        "# mine\n\nA_KEY=sk-1#2\nexport B_KEY = sk-3   # the second\r\n"
        'C_KEY=\'it "is" # one\'\nD_KEY="a \\"b\\\\ c"\n  E_KEY=x=y==\n'
    )
    found = read_keys_file(write(tmp_path / "keys.env", text))
    assert found == {
        "A_KEY": "sk-1#2",
        "B_KEY": "sk-3",
        "C_KEY": 'it "is" # one',
        "D_KEY": 'a "b\\ c',
        "E_KEY": "x=y==",
    }


BAD_LINES = {
    b"A_KEY=sk-secret\nB KEY=sk-secret\n": "2: not a NAME=value line",
    b"sk-secret\n": "1: not a NAME=value line",
    b"A_KEY=sk-secret more\n": "1: not a NAME=value line",
    b"A_KEY='sk-secret\n": "1: not a NAME=value line",
    b'A_KEY="sk-secret" x\n': "1: not a NAME=value line",
    b"A_KEY=sk-secret\x1b[0m\n": "1: not a NAME=value line",
    b"A_KEY=sk-secret\x00\t\n": "1: not a NAME=value line",
    b"\n9KEY=sk-secret\n": "2: not a NAME=value line",
    b"A_KEY=\n": "1: A_KEY has no value",
    b"A_KEY=sk-secret\nA_KEY=sk-secret2\n": "2: A_KEY stands there twice",
    b"A_KEY=x\nB_KEY=sk-secret\xff\n": "2: not UTF-8",
}


@pytest.mark.parametrize("text", BAD_LINES)
def test_a_bad_line_is_told_with_its_place_and_without_its_value(tmp_path: Path, text: bytes) -> None:
    """A message may be pasted into an issue."""
    path = write(tmp_path / "keys.env", text)
    with pytest.raises(ConfigError) as caught:
        read_keys_file(path)
    line, _, message = BAD_LINES[text].partition(": ")
    assert (caught.value.where, caught.value.message) == (f"{path}:{line}", message)
    assert "secret" not in str(caught.value)


def test_a_keys_file_is_the_users_alone(tmp_path: Path) -> None:
    """Mode, kind, names and size; the hint is the command that mends it."""
    path = write(tmp_path / "keys.env", "A_KEY=sk-secret\n")
    for mode in (0o644, 0o640, 0o604, 0o700, 0o622):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"mode {mode:04o}") as caught:
            read_keys_file(path)
        assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o400)
    assert read_keys_file(path) == {"A_KEY": "sk-secret"}
    os.link(path, tmp_path / "second")
    with pytest.raises(ConfigError, match="hard link"):
        read_keys_file(path)
    (tmp_path / "link").symlink_to(write(tmp_path / "real", "A_KEY=sk-secret\n"))
    assert read_keys_file(tmp_path / "link") == {"A_KEY": "sk-secret"}
    os.mkfifo(tmp_path / "pipe", 0o600)
    for bad in (tmp_path, tmp_path / "pipe", tmp_path / "none", write(tmp_path / "big", "#" * 2**17)):
        with pytest.raises(ConfigError):
            read_keys_file(bad)
    if os.getuid() == 0:
        os.chown(tmp_path / "real", 12345, 12345)
        with pytest.raises(ConfigError, match="somebody else"):
            read_keys_file(tmp_path / "real")


def test_the_default_place_is_below_config(tmp_path: Path) -> None:
    """XDG_CONFIG_HOME is respected; a setting goes before it and must be absolute."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert find_keys_file(Settings(), environ) is None
    (tmp_path / "pop").mkdir()
    path = write(tmp_path / "pop" / "keys.env", "")
    assert find_keys_file(Settings(), environ) == path
    chosen = Settings.model_validate({"gateway": {"keys_file": "~/mine.env"}})
    assert find_keys_file(chosen, environ) == Path.home() / "mine.env"
    with pytest.raises(ConfigError, match="no absolute path"):
        find_keys_file(Settings.model_validate({"gateway": {"keys_file": "mine.env"}}), environ)


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    """The file goes before the environment; the old key is taken out of texts all the same."""
    path = write(tmp_path / "keys.env", f"A_KEY={PLAIN}\n")
    keys = Keys({"A_KEY": "from-outside-1", "B_KEY": "from-outside-2"}, path)
    assert (keys.environ["A_KEY"], keys.environ["B_KEY"]) == (PLAIN, "from-outside-2")
    assert (keys.source("A_KEY"), keys.source("B_KEY"), keys.source("C_KEY")) == (
        "the keys file",
        "the environment",
        None,
    )
    assert not keys.fresh()
    write(path, "A_KEY=sk-second-key-1\n")
    assert keys.fresh() and keys.environ["A_KEY"] == "sk-second-key-1"
    write(path, "A_KEY sk-third\n")
    assert not keys.fresh() and keys.problem and keys.environ["A_KEY"] == "sk-second-key-1"
    path.unlink()
    assert not keys.fresh() and keys.environ["A_KEY"] == "sk-second-key-1"
    write(path, "A_KEY=sk-fourth-key-1\n")
    assert keys.fresh() and keys.problem is None
    said = keys.redact(f"{PLAIN} sk-second-key-1 sk-fourth-key-1 from-outside-1")
    assert said == "[redacted] [redacted] [redacted] [redacted]"


def test_a_keys_file_in_reach_of_tasks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside the root, where tasks may write, or among too many neighbours; also by way of a link."""
    root = Root(tmp_path / "root")
    (tmp_path / "many").mkdir()
    (tmp_path / "out").mkdir()
    root.path.mkdir()
    for number in range(2001):
        (tmp_path / "many" / str(number)).touch()

    def refused(path: Path) -> str:
        settings = Settings.model_validate({"gateway": {"keys_file": str(path)}})
        with pytest.raises(ConfigError) as caught:
            paths_to_hide(root, settings, [str(tmp_path / "out")])
        return caught.value.message

    inside = write(root.path / "keys.env", "A_KEY=x\n")
    assert refused(inside) == "the keys file lies inside the root"
    (tmp_path / "link").symlink_to(inside)
    assert refused(tmp_path / "link") == "the keys file lies inside the root"
    assert refused(write(tmp_path / "out" / "k", "A_KEY=x\n")) == "the keys file lies where tasks may write"
    from pop.confine import landlock_version

    if landlock_version():
        assert "more than 2000" in refused(write(tmp_path / "many" / "k", "A_KEY=x\n"))
    assert paths_to_hide(root, Settings(), []) == [] or find_keys_file(Settings())


# -- taking out --------------------------------------------------------------------------------------------------------


def alignments(key: str, encode: Callable[[bytes], bytes]) -> list[str]:
    return [encode(b"x" * before + key.encode() + b"yz").decode() for before in range(4)]


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": lambda key: json.dumps(key)[1:-1],
    "json utf-8": lambda key: json.dumps(key, ensure_ascii=False)[1:-1],
    "json slashes": lambda key: json.dumps(key, ensure_ascii=False)[1:-1].replace("/", "\\/"),
    "json in json": lambda key: json.dumps(json.dumps(key))[3:-3],
    "json all escaped": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "html": html.escape,
    "url": lambda key: quote(key, safe=""),
    "url path": quote,
    "url plus": quote_plus,
    "url lower": lambda key: "".join(
        c if (c.isalnum() and c.isascii()) or c in "-._~" else "".join(f"%{b:02x}" for b in c.encode()) for c in key
    ),
    "hex": lambda key: key.encode().hex(),
    "hex upper": lambda key: key.encode().hex().upper(),
}


@pytest.mark.parametrize("key", [KEY, PLAIN, "12345678", "abcdefgh1"])
@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_taken_out_in_each_form(form: str, key: str) -> None:
    """Wherever it stands, and however often."""
    keys = Keys({"A_KEY": key + ("x" if key.isdigit() else "")})
    text = FORMS[form](key + ("x" if key.isdigit() else ""))
    assert keys.redact(text) == "[redacted]"
    assert keys.redact(f'<<{text}"{text}{text}>>') == '<<[redacted]"[redacted]>>'


@pytest.mark.parametrize("key", [KEY, PLAIN, "abcdefgh1"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_found_at_each_alignment(key: str, encode: Callable[[bytes], bytes]) -> None:
    """What is left tells at most a part of one character at either end."""
    keys = Keys({"A_KEY": key})
    texts = [*alignments(key, encode), encode(b":" + key.encode()).decode(), encode(b"user:" + key.encode()).decode()]
    for text in [*texts, *(quote(text, safe="") for text in texts)]:
        left = keys.redact(f"Basic {text}").removeprefix("Basic ")
        assert left.count("[redacted]") == 1 and len(left.replace("[redacted]", "")) <= 16
        assert not any(text[at : at + 8] in left for at in range(8, len(text) - 16))


@pytest.mark.parametrize("form", ["plain", "json", "url", "hex"])
def test_what_a_cut_left_of_a_secret_is_taken_out(form: str) -> None:
    """From 12 of its characters on; less than that is left."""
    keys = Keys({"A_KEY": PLAIN})
    for length in range(12, len(PLAIN)):
        assert keys.redact(f"at {FORMS[form](PLAIN[:length])} cut") == "at [redacted] cut"
        assert keys.redact(f"at {FORMS[form](PLAIN[-length:])} cut") == "at [redacted] cut"
    assert keys.redact(PLAIN[:11]) == PLAIN[:11]
    for length in range(12, len(PLAIN)):
        assert "[redacted]" in keys.redact(base64.b64encode(b"user:" + PLAIN[:length].encode()).decode()[:-2] + "…")


def test_what_is_no_secret_stays(tmp_path: Path) -> None:
    """Short values, words, numbers and paths would be taken out of every text."""
    for value in ["short", "1234567", "12345678", "not-needed", "true", str(tmp_path), "~/keys/mine", "100000000.5"]:
        assert not is_redacted(value), value
    for value in ["12345678a", "1234567890123456", "/Ab3+xyzKJHJKH/87", "password", "correct horse"]:
        assert is_redacted(value), value
    keys = Keys({"MAX_TOKENS": "10000000", "SSH_KEY": "/etc/ssh/key", "HOME": "/home/someone", "LANG": "en_GB.UTF-8"})
    text = "10000000 /etc/ssh/key /home/someone en_GB.UTF-8"
    assert keys.redact(text) == text


def test_secrets_of_pop_toml_are_known_too() -> None:
    """Headers, passwords in URLs and whatever `api_key_env` names; public headers stay."""
    settings = Settings.model_validate(
        {
            "providers": {
                "p": {
                    "base_url": "http://me:pass%2Fword-1@localhost/v1?v=2026-11-21&key=of-the-url-77",
                    "headers": {"X": "Bearer abcdefgh-1"},
                }
            },
            "models": {
                "m": {
                    "provider": "p",
                    "model": "x",
                    "api_key_env": "MINE",
                    "headers": {
                        "Authorization": "Basic " + base64.b64encode(b"user:the-password").decode(),
                        "Accept": "application/json",
                        "HTTP-Referer": "https://example.org/a",
                        "X-Title": "My very good application for letters",
                    },
                }
            },
        }
    )
    keys = Keys({"MINE": "my-own-secret", "HTTPS_PROXY": "http://u:proxy-password@proxy:3128"})
    assert keys.redact("my-own-secret") == "my-own-secret"
    keys.learn(settings)
    for secret in ("my-own-secret", "abcdefgh-1", "the-password", "pass%2Fword-1", "pass/word-1", "of-the-url-77"):
        assert keys.redact(f"<{secret}>") == "<[redacted]>", secret
    assert keys.redact("<proxy-password>") == "<[redacted]>"
    kept = "2026-11-21 application/json https://example.org/a My very good application for letters http://u:"
    assert keys.redact(kept) == kept
    keys.also(["another-secret-1"])
    assert keys.redact("another-secret-1") == "[redacted]"


def test_json_values_are_redacted_inside() -> None:
    """Texts at any depth, and names; other values stay what they are."""
    keys = Keys({"A_KEY": PLAIN})
    value = {"a": [PLAIN, 5, None, True, {"b " + PLAIN: (1.5, f"x{PLAIN}")}]}
    assert keys.redact_value(value) == {"a": ["[redacted]", 5, None, True, {"b [redacted]": [1.5, "x[redacted]"]}]}
    deep: Any = PLAIN
    for _ in range(100_000):
        deep = [deep]
    assert keys.redact_value(deep) == "[redacted]"


def test_answers_and_errors_are_redacted_whole() -> None:
    """An answer says so; one without a secret is the same object."""
    keys = Keys({"A_KEY": PLAIN})
    answer = Answer(text="fine", model="m", provider="p", provider_model="x", key="k")
    assert keys.redact_answer(answer) is answer
    tries = [Try(model="m", error_class="auth", message=f"401 {PLAIN}", ms=1.0)]
    told = keys.redact_answer(
        answer.model_copy(
            update={"text": json.dumps({"a": PLAIN}), "extra": {"h": [PLAIN]}, "note": PLAIN, "tries": tries}
        )
    )
    assert PLAIN not in told.model_dump_json() and json.loads(told.text) == {"a": "[redacted]"}
    assert told.warnings == ["the answer held an API key, which was taken out"] and told.key == "k"
    tried = keys.redact_answer(answer.model_copy(update={"tries": tries}))
    assert tried.warnings == [] and tried.tries[0].message == "401 [redacted]"
    error = ModelError(
        "auth", f"401 {PLAIN}", where=f"at {PLAIN}", hint=f"not {PLAIN}", code=f"c-{PLAIN}", curable=True
    )
    error.tries = tries
    error.__cause__ = ValueError(PLAIN)
    clean = keys.redact_error(error)
    assert PLAIN not in f"{clean}{clean!r}{clean.to_json()}{clean.tries}{clean.__cause__}"
    assert (clean.error_class, clean.curable, clean.message) == ("auth", True, "401 [redacted]")


@pytest.mark.parametrize("after", [False, True])
def test_logs_are_redacted(after: bool) -> None:
    """Fields, exceptions with their tracebacks, and values of any type; before the renderer or behind it."""
    keys, out = Keys({"A_KEY": KEY, "B_KEY": PLAIN}), io.StringIO()
    renderer = structlog.processors.JSONRenderer()
    tail: list[Any] = [renderer, redacting(keys)] if after else [redacting(keys), renderer]
    log = structlog.wrap_logger(
        structlog.WriteLogger(out), processors=[structlog.processors.format_exc_info, *tail], wrapper_class=None
    )
    try:
        raise ValueError(f"no {PLAIN}", Path(f"/x/{PLAIN}"))
    except ValueError as error:
        log.error("broken", exc_info=True, path=Path(f"/{PLAIN}"), error=error, inner={"a": [KEY]}, n=5)
    value = json.loads(out.getvalue())
    assert "Traceback" in value["exception"] and value["n"] == 5 and value["inner"] == {"a": ["[redacted]"]}
    assert PLAIN not in out.getvalue() and KEY not in json.dumps(value, ensure_ascii=False)


def test_a_stream_is_redacted() -> None:
    """For what Python itself and libraries print."""
    out = io.StringIO()
    stream: Any = RedactingStream(Keys({"A_KEY": PLAIN}), out)
    print(f"oh {PLAIN}", file=stream, flush=True)
    assert out.getvalue() == "oh [redacted]\n" and stream.writable()


def test_a_private_key_of_several_lines_is_taken_out_by_its_lines() -> None:
    """The line that says what it is stands in many texts."""
    keys = Keys({"PRIVATE_KEY": "-----BEGIN PRIVATE KEY-----\nMIIEabcdefgh\nijklmnop12\n-----END PRIVATE KEY-----\n"})
    said = keys.redact("-----BEGIN PRIVATE KEY-----\nMIIEabcdefgh\\nijklmnop12")
    assert said == "-----BEGIN PRIVATE KEY-----\n[redacted]\\n[redacted]"


def test_a_megabyte_is_redacted_in_twenty_milliseconds() -> None:
    """With three keys. The processor's time counts, the best of ten; a processor that is slow just now gets longer."""
    keys = Keys({f"K{n}_KEY": f"sk-{n}-" + "0123456789abcdef" * 3 + str(n) for n in range(3)})
    text = ('{"text": "The quick brown fox jumps over the lazy dog", "n": 0123456789}' * 15_000)[: 2**20]
    assert keys.redact(text) is text
    assert best(lambda: keys.redact(text)) <= max(0.020, 4 * best(lambda: sum(range(500_000))))


def best(work: Callable[[], object], times: int = 10) -> float:
    taken = []
    for _ in range(times):
        began = time.thread_time()
        work()
        taken.append(time.thread_time() - began)
    return min(taken)
