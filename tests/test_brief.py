"""The shipped example on real documents, through the daemon's own path; and before a pretended model that errs."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_openai import FakeOpenAI, Fault
from tests.test_cli import REPOSITORY, pop

TASKS = REPOSITORY / "pipeline-tasks"
EXTRACTIVE = "extractive, not a language model"


@pytest.fixture(scope="module")
def helpers() -> Iterator[Callable[[str], Any]]:
    """The example's helper modules, as its tasks import them."""
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(TASKS))
    yield importlib.import_module
    sys.path.remove(str(TASKS))
    sys.dont_write_bytecode = wrote


def published(root: Path, seed: Path) -> tuple[dict[str, Any], str]:
    """Runs the shipped pipeline in a root of its own; brief.json and brief.md."""
    for name in ("pipeline.json", "pop.toml"):
        if not (root / name).exists():
            shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(TASKS, root / "pipeline-tasks", ignore=shutil.ignore_patterns("__pycache__"))
    ran = pop("run", "--quiet", seed, root=root)
    errors = [path.read_text() for path in root.glob("pipeline-current/*/tasks/*/error.json")]
    assert ran.returncode == 0, ran.stdout + ran.stderr + "".join(errors)
    (artifacts,) = root.glob("pipeline-complete/*/tasks/publish/artifacts")
    return json.loads((artifacts / "brief.json").read_bytes()), (artifacts / "brief.md").read_text()


@pytest.fixture(scope="module")
def offline_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offline")


@pytest.fixture(scope="module")
def offline(offline_root: Path) -> tuple[dict[str, Any], str]:
    """The shipped brief without key or network."""
    return published(offline_root, REPOSITORY / "examples" / "brief")


def test_a_second_run_asks_what_the_first_asked(offline: Any, offline_root: Path) -> None:
    """So that it finds what was condensed before; nothing the gateway has learnt meanwhile changes a prompt."""
    assert pop("run", "--quiet", REPOSITORY / "examples" / "brief", root=offline_root).returncode == 0
    asked = []
    for run in sorted((offline_root / "pipeline-complete").glob("2*")):
        lines = [line for path in run.glob("tasks/*/attempts/*/calls.jsonl") for line in path.read_text().splitlines()]
        asked.append(sorted(json.loads(line)["prompt_sha256"] for line in lines))
    assert len(asked) == 2 and asked[0] == asked[1] and len(asked[0]) > 60


def claims_of(brief: dict[str, Any]) -> list[dict[str, Any]]:
    return [*brief["overview"], *(one for section in brief["sections"] for one in section["paragraphs"])]


def test_every_claim_of_the_brief_stands_in_its_source(offline: tuple[dict[str, Any], str]) -> None:
    """brief.json names document, line and quote of each, the opening's too; the quote is there, word for word."""
    brief, _ = offline
    assert len(brief["sections"]) >= 3 and len(brief["overview"]) >= 3
    for claim in claims_of(brief):
        lines = (REPOSITORY / "examples" / "brief" / f"{claim['document']}.rst").read_text().splitlines()
        around = " ".join(" ".join(lines[claim["line"] - 1 : claim["line"] + 14]).split())
        assert claim["quote"] in around
        assert claim["quote"].split()[0] in lines[claim["line"] - 1]


def test_every_claim_in_print_has_its_reference(offline: tuple[dict[str, Any], str]) -> None:
    """In the opening and in the sections alike, and every reference has its source below."""
    brief, text = offline
    told, _, sources = text.partition("## Sources")
    opening = told.partition("## In short")[2].partition("\n## ")[0].strip().splitlines()
    assert len(opening) == len(brief["overview"]) and all(re.search(r"\[\d+\]$", line) for line in opening)
    references = [int(number) for number in re.findall(r"\[(\d+)\]", told)]
    assert len(references) == len(claims_of(brief))
    assert set(references) == {int(number) for number in re.findall(r"^(\d+)\. .*, line \d+: “", sources, re.MULTILINE)}


def test_the_offline_brief_reads_as_print(offline: tuple[dict[str, Any], str]) -> None:
    """No marks of reST, no pair of key words for a heading, no heading twice, nothing that points at what is not there."""
    brief, text = offline
    assert not re.search(r"``|:[a-z]+:`", text)
    assert not re.search(r"\]_|`_|\|\w+\|", re.sub(r"`[^`]*`", "`", text))
    headings = [section["heading"] for section in brief["sections"]]
    assert len(set(headings)) == len(headings)
    assert "Structural Pattern Matching" in headings and not any(re.fullmatch(r"\w+ and \w+", one) for one in headings)
    texts = [claim["text"] for claim in claims_of(brief)]
    assert not [one for one in texts if re.match(r"(It(?! is proposed)|They|However|These|Any other|We)\b", one)]
    assert not [claim for claim in claims_of(brief) if claim.get("aside")]


def test_the_brief_says_how_much_came_in_and_who_read_it(offline: tuple[dict[str, Any], str]) -> None:
    """The stack fits the budget the pipeline gives it, and the engine's mark stands in both files."""
    brief, text = offline
    size = brief["characters"]
    assert size["came_in"] == sum(document["characters"] for document in brief["documents"]) > 300_000
    assert size["digests"] < size["came_in"] / 5
    assert 0 < size["stack"] <= 6000 * 4 < size["digests"]
    given = size["given_to_models"]
    assert given["cluster"] == size["stack"] and 0 < given["draft"] + given["opening"] < size["came_in"] / 5
    assert (
        given["condense"] > size["came_in"] - 1000
    )  # all of it is read, long parts twice: for points and for the digest
    (maker,) = brief["made_by"]
    assert (maker["model"], maker["note"]) == ("builtin/extractive-1", EXTRACTIVE) and maker["calls"] > 60
    assert f"*Made by: builtin/extractive-1 ({EXTRACTIVE}).*" in text
    assert f"{size['came_in']:,} characters" in text


SOURCE = "Ferries leave at nine. The boat to Ostrow carries 40 cars\nand two lorries at once. Yes. It is full.\n- None sinks."


@pytest.mark.parametrize(
    ("quote", "weak"),
    [
        ("Ferries leave at nine.", None),
        ("boat to Ostrow carries 40 cars and", None),
        ("It is full.", None),
        ("None sinks.", None),
        ("Ostrow", "neither a whole sentence"),
        ("carries 40 cars", "neither a whole sentence"),
        ("leave at nine.", "neither a whole sentence"),
        ("oat to Ostrow carries 40 cars and two", "word for word"),
        ("The boat to Ostrow carries 50 cars", "word for word"),
        ("", "word for word"),
    ],
)
def test_a_quote_is_a_whole_sentence_or_six_words(helpers: Callable[[str], Any], quote: str, weak: str | None) -> None:
    """A word that occurs somewhere is no evidence, and half a word is no word."""
    found = helpers("evidence").weakness(quote, SOURCE)
    assert found is None if weak is None else weak in found


@pytest.mark.parametrize(
    ("claim", "foreign"),
    [
        ("The boat to Ostrow takes 40 cars.", []),
        ("Altogether 42 cars fit.", ["42"]),
        ("The boat was built by Meyer in Hamburg.", ["Meyer", "Hamburg"]),
        ("Its timetable is the Winter Timetable, No. 7: Ferries for all.", ["7"]),
    ],
)
def test_numbers_and_names_must_be_the_documents_own(
    helpers: Callable[[str], Any], claim: str, foreign: list[str]
) -> None:
    """What the document never mentions is a problem; how a word is written is not."""
    document = {"title": "Winter timetable No", "text": SOURCE}
    assert helpers("evidence").strangers(claim, document) == foreign


@pytest.mark.parametrize(
    ("source", "print_"),
    [
        ("uses ``async def`` of :pep:`492`", "uses `async def` of PEP 492"),
        ("calls :func:`~asyncio.gather` or :class:`!Task`", "calls `asyncio.gather` or `Task`"),
        ("types (implemented in [17]_), see [CIT2002]_.", "types, see."),
        ("the |n| items of `the list <http://x.y>`_ and `PEP 1`_", "the n items of the list and PEP 1"),
        ("a [link](http://x.y) and ``a | b | c``", "a link and `a | b | c`"),
    ],
)
def test_marks_of_the_source_become_plain_for_print(helpers: Callable[[str], Any], source: str, print_: str) -> None:
    """The quote in brief.json keeps them; what people read does not."""
    assert helpers("evidence").printed(source) == print_


def test_what_steers_a_terminal_is_not_printed(helpers: Callable[[str], Any]) -> None:
    """Escape codes and marks that turn the reading order around; letters of every script stay."""
    printed = helpers("evidence").printed
    assert printed("\x1b]0;evil\x07Safe \u202eabc\u202c words.") == "]0;evilSafe abc words."
    assert (
        printed("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )


def test_a_section_below_a_rejected_one_stands_aside_too(helpers: Callable[[str], Any]) -> None:
    """In reST by the order of underlines, in Markdown by the number of marks; code is no heading."""
    rest = "Title\n=====\n\nAbstract\n--------\na\n\nRejected Ideas\n--------------\nb\n\nTwo\n~~~\nc\n\nEnd\n---\nd\n"
    marks = "# T\n## Summary\na\n## Alternatives\nb\n### Two\n```\n# no heading\n```\nc\n## End\nd\n"
    for text in (rest, marks):
        ranges = helpers("sources").places(text)
        stands = {
            text.splitlines()[line - 1]: (helpers("sources").place_of(line, ranges) or {}).get("kind")
            for line in range(1, text.count("\n") + 1)
        }
        assert [stands[name] for name in "abcd"] == ["lead", "aside", "aside", None]


@pytest.mark.parametrize(
    ("title", "aside"),
    [
        ("Rejected Ideas", True),
        ("Rejected alternative proposals", True),
        ("Alternative approaches", True),
        ("Open Issues", True),
        ("Backwards Compatibility", True),
        ("Discussion", True),
        ("Alternative energy", False),
        ("A history of Rome", False),
        ("Weak references", False),
        ("Why it matters", False),
    ],
)
def test_a_title_stands_aside_as_a_whole(helpers: Callable[[str], Any], title: str, aside: bool) -> None:
    """A word in it does not make a section one of rejected ideas."""
    assert [place["kind"] for place in helpers("sources").places(f"# T\n\n## {title}\n\nx\n")] == ["aside"] * aside


FERRY = """# The ferry

## Summary

The ferry to Ostrow carries 40 cars and leaves from the north quay.
Tickets are sold on board and cost ``3 crowns`` each.

## Rejected ideas

A bridge to Ostrow would cost far more than ten ferries.
"""
HARBOUR = """# The harbour

## Summary

The harbour office closes the north quay when the wind exceeds 60 knots.
"""
POINTS = {
    "ferry": [
        "The ferry to Ostrow carries 40 cars and leaves from the north quay.",
        "Tickets are sold on board and cost ``3 crowns`` each.",
        "A bridge to Ostrow would cost far more than ten ferries.",
    ],
    "harbour": ["The harbour office closes the north quay when the wind exceeds 60 knots."],
}
CROSSING = {"text": "Forty metres long, the ferry takes 40 cars.", "quote": POINTS["ferry"][0], "source": "ferry"}
BRIDGE = {"text": "A bridge was too dear.", "quote": POINTS["ferry"][2], "source": "ferry"}
WIND = {"text": "Above 60 knots the quay is closed.", "quote": POINTS["harbour"][0], "source": "harbour"}
MADE_UP = {**WIND, "quote": "The harbour never closes, whatever the wind may be."}
OPENING = {"text": "The quay closes in high wind.", "quote": POINTS["harbour"][0], "document": "harbour"}


class Writer(FakeOpenAI):
    """A model that answers each step of the brief; `drafts` and `openings` are its versions, the last one again and again."""

    def __init__(self, drafts: list[list[dict[str, str]]], openings: list[list[dict[str, str]]]) -> None:
        super().__init__()
        self.versions = {"draft": drafts, "opening": openings}
        self.asked: list[str] = []
        self._turn = threading.Lock()

    def answer(self, body: dict[str, Any], key: str) -> tuple[Fault | None, bytes]:
        with self._turn:
            self.answers = [self._write(body)]
            return super().answer(body, key)

    def _write(self, body: dict[str, Any]) -> str:
        wanted = (body.get("response_format") or {}).get("json_schema", {"name": "critique"})["name"]
        self.asked.append(wanted)
        said = body["messages"][-1]["content"]
        if wanted == "condense":
            name = "ferry" if '<document id="ferry"' in said else "harbour"
            return json.dumps(
                {"points": [{"point": quote.replace("``", ""), "quote": quote} for quote in POINTS[name]]}
            )
        if wanted == "cluster":
            theme = {"title": "Crossing", "keywords": ["ferry", "quay"], "documents": ["ferry", "harbour"]}
            return json.dumps({"themes": [theme]})
        if wanted in self.versions:
            versions = self.versions[wanted]
            version = versions.pop(0) if len(versions) > 1 else versions[0]
            return json.dumps(
                {"heading": "How to cross", "paragraphs": version} if wanted == "draft" else {"claims": version}
            )
        return "- copy the quotes word for word"


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[..., tuple[dict[str, Any], str, list[str]]]]:
    """Runs the brief on two documents with a pretended model; brief.json, brief.md, and which steps asked it."""
    writers = []

    def write(
        drafts: list[list[dict[str, str]]], openings: list[list[dict[str, str]]]
    ) -> tuple[dict[str, Any], str, list[str]]:
        writers.append(Writer(drafts, openings))
        url = writers[0].base_url
        entry = 'provider = "openai"\nbase_url = "{url}"\nmodel = "{name}"\n'
        settings = '[models]\ndefault = "small"\n'
        for name in ("small", "large"):
            settings += f"[models.{name}]\n" + entry.format(url=url, name=f"pretended-{name}")
        (tmp_path / "pop.toml").write_text(settings)
        pipeline = json.loads((REPOSITORY / "pipeline.json").read_text())
        (opening,) = (step for step in pipeline["tasks"] if isinstance(step, dict) and step.get("task") == "opening")
        opening["model"] = "large"
        (tmp_path / "pipeline.json").write_text(json.dumps(pipeline))
        seed = tmp_path / "seed"
        seed.mkdir()
        (seed / "seed.json").write_text(json.dumps({"name": "crossing", "data": {"title": "Crossing to Ostrow"}}))
        (seed / "ferry.md").write_text(FERRY)
        (seed / "harbour.md").write_text(HARBOUR)
        return *published(tmp_path, seed), writers[0].asked

    yield write
    for writer in writers:
        writer.close()


def test_a_good_writer_is_printed_as_written(written: Callable[..., tuple[dict[str, Any], str, list[str]]]) -> None:
    """Paragraphs keep their order and words, what was rejected says so, and both models are named."""
    brief, text, asked = written([[WIND, CROSSING, BRIDGE]], [[OPENING]])
    assert asked.count("draft") == asked.count("opening") == 1 and "critique" not in asked
    (section,) = brief["sections"]
    assert section["heading"] == "How to cross" and not section["extractive"]
    assert [(one["document"], one["line"]) for one in section["paragraphs"]] == [
        ("harbour", 5),
        ("ferry", 5),
        ("ferry", 10),
    ]
    assert "*From “Rejected ideas”:* A bridge was too dear. [3]" in text
    assert "- The quay closes in high wind. [1]" in text and "Above 60 knots the quay is closed. [1]" in text
    assert [maker["model"] for maker in brief["made_by"]] == ["openai/pretended-small", "openai/pretended-large"]
    assert brief["left_out"] == [] and EXTRACTIVE not in text


def test_a_made_up_quote_is_repaired_by_the_loop(written: Callable[..., tuple[dict[str, Any], str, list[str]]]) -> None:
    """The section is asked for again with the editor's word, the opening with the program's; nothing is left out."""
    brief, text, asked = written(
        [[CROSSING, MADE_UP], [CROSSING, WIND]],
        [[{**OPENING, "quote": "wind"}], [{**OPENING, "text": "It closes at 70 knots."}], [OPENING]],
    )
    assert asked.count("draft") == 2 and asked.count("critique") == 1 and asked.count("opening") == 3
    assert [one["document"] for one in brief["sections"][0]["paragraphs"]] == ["ferry", "harbour"]
    assert brief["overview"][0]["text"] == OPENING["text"] and brief["left_out"] == []
    assert "never closes" not in text and "70" not in text


def test_what_is_never_repaired_is_left_out(written: Callable[..., tuple[dict[str, Any], str, list[str]]]) -> None:
    """Neither a made-up quote, nor a number or a source of the writer's own is printed; brief.json says why."""
    late = {**OPENING, "text": "It closes at 70 knots."}
    brief, text, _ = written(
        [[CROSSING, MADE_UP]], [[OPENING, late, {**OPENING, "text": "Nobody wrote this.", "document": "nowhere"}]]
    )
    assert [one["document"] for one in brief["sections"][0]["paragraphs"]] == ["ferry"]
    assert [claim["text"] for claim in brief["overview"]] == [OPENING["text"]]
    assert "never closes" not in text and "70 knots" not in text and WIND["text"] not in text
    whys = [claim["why"] for claim in brief["left_out"]]
    assert len(whys) == 3 and "no document 'nowhere'" in whys[2]
    assert "word for word" in whys[0] and "harbour does not speak of 70" in whys[1]
    assert "3 claims without evidence were left out" in text


def test_a_few_lines_make_a_brief_of_one_section(tmp_path: Path) -> None:
    """Too little for themes is no failure, and a document without a sentence is passed over.

    Of each document the sentences that stand alone are copied, and others only where it has none.
    """
    (tmp_path / "few.json").write_text(
        json.dumps(
            {
                "documents": [
                    {
                        "title": "Note",
                        "text": "We met on Monday about it. The plan costs 40 crowns and is due on Friday.",
                    },
                    {"title": "Diary", "text": "We went there again and we saw them all."},
                    {"title": "Code", "text": "    x = 1\n    y = 2\n"},
                ]
            }
        )
    )
    brief, text = published(tmp_path, tmp_path / "few.json")
    assert [section["heading"] for section in brief["sections"]] == ["Note; Diary"]
    assert "## In short" in text and "The plan costs 40 crowns and is due on Friday. [1]" in text
    assert "We met on Monday" not in text and "**Diary.** We went there again" in text


def collected(root: Path, data: dict[str, Any], files: dict[str, str]) -> tuple[int, str, list[str]]:
    """Runs only `collect` over a folder seed; exit code, what was said, and the documents' ids."""
    shutil.copy(REPOSITORY / "pop.toml", root / "pop.toml")
    shutil.copytree(REPOSITORY / "pipeline-tasks", root / "pipeline-tasks")
    (root / "pipeline.json").write_text('{"name": "collect", "tasks": ["collect"]}')
    seed = root / "seed"
    for name, text in {"seed.json": json.dumps({"name": "docs", "data": data}), **files}.items():
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        (seed / name).write_text(text)
    ran = pop("run", "--quiet", seed, root=root)
    outputs = list(root.glob("pipeline-complete/*/tasks/collect/output.json"))
    ids = [document["id"] for document in json.loads(outputs[0].read_bytes())["documents"]] if outputs else []
    errors = [path.read_text() for path in root.glob("pipeline-current/*/tasks/collect/error.json")]
    return ran.returncode, ran.stdout + ran.stderr + "".join(errors), ids


def test_two_files_of_one_stem_stay_two_documents(tmp_path: Path) -> None:
    """A claim's source must say which of them it means, so both are called by their whole path."""
    code, said, ids = collected(
        tmp_path, {"title": "x"}, {"a/notes.md": "One thing.", "b/notes.md": "Another.", "c.txt": "C."}
    )
    assert code == 0, said
    assert ids == ["a/notes.md", "b/notes.md", "c"]


def test_a_document_without_text_is_the_seeds_mistake(tmp_path: Path) -> None:
    """The run fails as bad_input and names the entry; it is no bug of the task."""
    code, said, _ = collected(tmp_path, {"documents": [{"title": "no text"}]}, {})
    assert code == 4
    assert "bad_input" in said and "seed.documents[0]" in said


def test_two_documents_of_one_id_are_refused(tmp_path: Path) -> None:
    """Otherwise a quote of the second would be traced to the first."""
    twice = [{"id": "a", "text": "One thing."}, {"id": "a", "text": "Another."}]
    code, said, _ = collected(tmp_path, {"documents": twice}, {})
    assert code == 4
    assert "bad_input" in said and "two documents are called" in said
