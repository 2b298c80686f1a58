"""Context preparation: reads what the seed names, within bounds, and condenses what is too long. Asks no agent.

    {"requirements": "requirements.md", "documentation": ["docs"], "examples": ["example_code"], "standards": ["STYLE.md"],
     "project": {"title": "...", "developer_type": "...", "context": "..."}, "code_review": "when-needed"}

A location is a file or a folder below what came with the seed (files/), else below the folder of the root that the step
names (``"with": {"folder": "project"}``). It cannot lead out of them, and links are not followed.
"""

import json
from pathlib import Path

from checks import missing_tools
from workflow import check_all_agents

from pop.errors import AttemptFailed, PopError, did_you_mean
from pop.store import contained, read_regular

KINDS = ("requirements", "documentation", "examples", "standards")
TOKENS = {"requirements": 8000, "documentation": 6000, "examples": 4000, "standards": 3000}
TEXTS = (".md", ".rst", ".txt", ".py", ".pyi", ".toml", ".json", ".yaml", ".yml", ".cfg", ".ini")
CODE_REVIEW = ("when-needed", "always", "never")
PROJECT = {"title": "", "developer_type": "Python developer", "context": ""}
MAX_FILES, MAX_FILE_BYTES, MAX_BYTES = 200, 262_144, 4 * 2**20
STANDARDS = """Code is for Python 3.11 and later and passes `ruff check` (rules E, F, W, I, B, UP, SIM; 100 columns).
Public functions and classes have type hints and a docstring that says what they promise and what they raise.
Names say what a thing is; functions are short; no dead code, no commented-out code, no global state that changes.
Errors are raised where they are found, as exceptions that name the offending value. Only the standard library is used
unless the requirements name a package. Tests use pytest, one behaviour each, and cover the edges and the errors."""


def infer(prompt, ctx):
    seed = ctx.seed
    _check_seed(seed)
    check_all_agents(Path(ctx.letter.tasks_dir), json.loads((Path(ctx.letter.run_dir) / "pipeline.json").read_bytes()))
    _check_tools(ctx)
    found = {kind: _read(seed.get(kind), kind, ctx) for kind in KINDS}
    if not "".join(text for _, text in found["requirements"]).strip():
        raise _bad("there are no requirements", 'name them: {"requirements": "requirements.md"}')
    if not found["standards"]:
        found["standards"] = [("(the workflow's own)", STANDARDS)]
    total = sum(len(text) for documents in found.values() for _, text in documents)
    if total > MAX_BYTES:
        raise _bad(f"the seed names {total} characters", f"name less; at most {MAX_BYTES} are read")
    prepared = {kind: _fitting(documents, kind, ctx) for kind, documents in found.items()}
    return {
        **prepared,
        "project": {**PROJECT, **seed.get("project", {})},
        "code_review": seed.get("code_review", "when-needed"),
    }


def _check_seed(seed):
    if not isinstance(seed, dict):
        raise _bad("the seed's data must be an object", 'write {"requirements": "requirements.md", ...}')
    known = (*KINDS, "project", "code_review")
    for key in seed:
        if key not in known:
            raise _bad(f"unknown key {key[:80]!r}", did_you_mean(key[:80], known))
    project = seed.get("project", {})
    if not isinstance(project, dict) or not all(isinstance(value, str) for value in project.values()):
        raise _bad("seed.project must be an object of texts", f"keys: {', '.join(PROJECT)}")
    for key in project:
        if key not in PROJECT:
            raise _bad(f"unknown key {key[:80]!r} in seed.project", did_you_mean(key[:80], PROJECT))
    if seed.get("code_review", "when-needed") not in CODE_REVIEW:
        raise _bad(f"seed.code_review is one of {', '.join(CODE_REVIEW)}")


def _check_tools(ctx):
    """The checks cannot be done without them; better told now than after the first plan was paid for."""
    missing, python = missing_tools(ctx.config.get("python"))
    if missing:
        names = " and ".join(missing)
        hint = f"{python} -m pip install {' '.join(missing)}, then approve this gate (or pop retry)"
        raise AttemptFailed("bad_input", f"the checks need {names}, which {python} does not have", hint=hint)


def _bad(message, hint=None):
    return AttemptFailed("bad_input", message, where="seed.json", hint=hint)


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(named, kind, ctx):
    """The texts at the locations the seed names: ``[(path, text)]``, at most `MAX_FILES`."""
    if named is None:
        return []
    places = [named] if isinstance(named, str) else named
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise _bad(f"seed.{kind} must be a path or a list of paths")
    documents = {}
    for place in places:
        base, path = _locate(place, kind, ctx)
        for file in [path] if path.is_file() else _below(path):
            documents[file.relative_to(base).as_posix()] = _text(file, kind)
            if len(documents) > MAX_FILES:
                raise _bad(f"seed.{kind} names more than {MAX_FILES} files", "name fewer, or a smaller folder")
    return list(documents.items())


def _locate(place, kind, ctx):
    """Where a location lies, and below which folder it is looked for."""
    bases = [ctx.files, Path(ctx.letter.tasks_dir).parent / ctx.config.get("folder", "project")]
    bases = [base for base in bases if base is not None and base.is_dir()]
    for base in bases:
        try:
            path = contained(base, place.rstrip("/"))
        except PopError as error:
            raise _bad(f"seed.{kind}: {error.message}", "name a place below files/ without links") from None
        if path.exists():
            return base, path
    there = [path.name for base in bases for path in base.iterdir()]
    looked = " nor ".join(f"{base.name}/" for base in bases) or "files/, as nothing came with the seed"
    raise _bad(f"seed.{kind}: there is no {place!r} in {looked}", did_you_mean(place, there))


def _below(folder):
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        hidden = any(part.startswith((".", "__pycache__")) for part in inside)
        linked = any(folder.joinpath(*inside[: n + 1]).is_symlink() for n in range(len(inside)))
        if path.suffix in TEXTS and not hidden and not linked and path.is_file():
            yield path


def _text(path, kind):
    try:
        return read_regular(path, max_bytes=MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _bad(f"seed.{kind}: {path.name} is not UTF-8") from None
    except (OSError, PopError) as error:
        hint = f"a file may have {MAX_FILE_BYTES} bytes"
        raise _bad(f"seed.{kind}: cannot read {path.name}: {error}", hint) from None


# -- fitting -----------------------------------------------------------------------------------------------------------


def _fitting(documents, kind, ctx):
    """One text for a kind, each document under its path; the longest are condensed until the budget holds."""
    left = ctx.config.get("tokens", {}).get(kind, TOKENS[kind])
    sizes = {path: ctx.count_tokens(text) for path, text in documents}
    fitted, condensed = {}, []
    for waiting, (path, text) in zip(range(len(documents), 0, -1), sorted(documents, key=lambda d: sizes[d[0]])):
        share = max(60, left // waiting)
        if sizes[path] > share:
            text, condensed = ctx.compress(text, share), [*condensed, path]
        fitted[path] = text
        left = max(0, left - min(sizes[path], share))
    if condensed:
        ctx.log.warning(f"{kind} were condensed to fit", documents=condensed)
    parts = [f"### {path}{' (condensed)' if path in condensed else ''}\n\n{fitted[path].strip()}" for path, _ in documents]
    return {"text": "\n\n".join(parts), "sources": list(fitted), "condensed": condensed}
