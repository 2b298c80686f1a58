"""What can be seen wrong in a template without rendering it: names, filters, tests, and keys the given data lacks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes

from pop.errors import ConfigError, did_you_mean
from pop.places import shown
from pop.templates import ENVIRONMENT, key_of, owner_of, spelled_of, syntax_error


@dataclass(frozen=True)
class Template:
    """A template's text and where it begins in its file (below the front matter, or inside it)."""

    text: str
    path: Path
    first_line: int = 1
    indent: int = 0

    def place(self, line: int, column: int | None = None) -> str:
        place = f"{shown(self.path)}:{line + self.first_line - 1}"
        return f"{place}:{column + self.indent}" if column else place

    def tree(self) -> nodes.Template:
        """Raises: TemplateSyntaxError: It cannot be read."""
        return ENVIRONMENT.parse(self.text)

    def place_of(self, name: str, line: int = 1) -> str:
        """A name inside the template's brackets, from `line` on; prose before it may hold the same word."""
        start = sum(map(len, self.text.splitlines(keepends=True)[: line - 1]))
        word = re.compile(rf"\b{re.escape(name)}\b")
        spans = (span.span() for span in re.finditer(r"\{[{%].*?[%}]\}", self.text, re.DOTALL))
        found = (word.search(self.text, max(start, begin), end) for begin, end in spans)
        match = next(filter(None, found), None)
        if match is None:
            return self.place(line)
        at = match.start()
        return self.place(self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at))

    def mistake(self, message: str, where: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"template: {message}", where=where, hint=hint, code="bad-template")


def check_template(template: Template, names: Iterable[str] | None) -> list[ConfigError]:
    """Every mistake that can be seen without data: syntax, unknown names, filters and tests.

    Args:
        names: What the template can name; None when that is not known before it runs.
    """
    try:
        tree = template.tree()
    except TemplateSyntaxError as error:
        return [syntax_error(error, template.path, template.first_line)]
    found = [] if names is None else _unknown_names(template, set(names))
    found += _unknown_words(template, tree) or _not_compiled(template)
    return found + [_no_other_file(template, node) for node in tree.find_all(_OTHER_FILES)]


def _unknown_names(template: Template, known: set[str]) -> list[ConfigError]:
    unknown = sorted(_names_read(template) - known - set(ENVIRONMENT.globals))
    return [
        template.mistake(f"unknown name {name!r}", template.place_of(name), did_you_mean(name, known))
        for name in unknown
    ]


def _names_read(template: Template) -> set[str]:
    """The names a template reads and does not set; Jinja finds them only where all filters and tests exist."""
    tree = template.tree()
    for node in tree.find_all((nodes.Filter, nodes.Test)):
        node.name = "string" if isinstance(node, nodes.Filter) else "defined"
    try:
        return meta.find_undeclared_variables(tree)
    except TemplateSyntaxError:  # told by `_not_compiled`
        return set()


def _unknown_words(template: Template, tree: nodes.Template) -> list[ConfigError]:
    """Filters and tests that do not exist; Jinja itself notices those inside an `if` at run time only."""
    found = []
    for node in tree.find_all((nodes.Filter, nodes.Test)):
        kind, known = ("filter", ENVIRONMENT.filters) if isinstance(node, nodes.Filter) else ("test", ENVIRONMENT.tests)
        name = node.name
        if name not in known:
            where = template.place_of(name, node.lineno)
            found.append(template.mistake(f"unknown {kind} {name!r}", where, did_you_mean(name, known)))
    return found


def _not_compiled(template: Template) -> list[ConfigError]:
    try:
        ENVIRONMENT.compile(template.text)
    except TemplateSyntaxError as error:
        return [syntax_error(error, template.path, template.first_line)]
    return []


_OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


def _no_other_file(template: Template, node: nodes.Node) -> ConfigError:
    word = {"FromImport": "from ... import"}.get(type(node).__name__, type(node).__name__.lower())
    return template.mistake(f"a prompt is one file; {word} is not available", template.place(node.lineno))


def check_inputs(
    template: Template, steps: Collection[str], *, of: str = "inputs", why: str = "comes before this one"
) -> list[ConfigError]:
    """Names after ``inputs.`` that are none of `steps`; a text that cannot be parsed has none.

    Args:
        of: The name they stand behind.
        why: What the steps are, for the error.
    """
    try:
        tree = template.tree()
    except TemplateSyntaxError:
        return []
    known = {step.replace("-", "_") for step in steps}
    methods = {name for name in dir(Mapping) if not name.startswith("_")}
    unknown = {name for name in _keys_of(tree, of) if name.replace("-", "_") not in known | methods}
    return [
        template.mistake(f"no step {name!r} {why}", template.place_of(name), did_you_mean(name, known))
        for name in sorted(unknown)
    ]


def _keys_of(tree: nodes.Template, of: str) -> Iterator[str]:
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if isinstance(owner_of(node), nodes.Name) and spelled_of(owner_of(node)) == of:
            key = key_of(node)
            if key is not None and not key.isdecimal():
                yield key


def check_without_value(template: Template, names: Mapping[str, str]) -> list[ConfigError]:
    """Uses of names that are null at this place, each with why; not of those the template itself asks about."""
    try:
        tree = template.tree()
    except TemplateSyntaxError:
        return []
    read = _names_read(template) - set(_asked_about(tree))
    return [template.mistake(why, template.place_of(name)) for name, why in names.items() if name in read]


def _asked_about(tree: nodes.Template) -> Iterator[str]:
    """Names whose own value decides an `if`, that are tested with `is`, or have a default."""
    for node in tree.find_all((nodes.If, nodes.CondExpr, nodes.Test, nodes.Filter)):
        tested = getattr(node, "test", None) or getattr(node, "node", None)
        if (isinstance(node, nodes.Filter) and node.name not in ("default", "d")) or tested is None:
            continue
        bare = [tested, *(part for part in tested.find_all((nodes.Not, nodes.And, nodes.Or)))]
        for part in bare:
            for inner in (part, *part.iter_child_nodes()):
                if isinstance(inner, nodes.Name):
                    yield inner.name


def _read_of_seed(template: Template) -> Iterator[nodes.Node]:
    """What a template certainly reads, where `seed` in it is the run's seed; nothing of one that cannot be read."""
    try:
        tree = template.tree()
    except TemplateSyntaxError:
        return
    if not any(name.name == "seed" and name.ctx != "load" for name in tree.find_all(nodes.Name)):
        yield from _certainly_read(tree)


def missing_from_seed(template: Template, seed: Any) -> list[ConfigError]:
    """Keys that the template certainly reads and that this seed lacks, e.g. ``seed.txt``."""
    found = {}
    for node in _read_of_seed(template):
        lacks = _lacking(node, seed)
        if lacks:
            owner, key, keys = lacks
            where = template.place_of(key, node.lineno)
            found[where] = template.mistake(f"{owner} has no key {key!r}", where, did_you_mean(key, keys))
    return list(found.values())


def excluded_by(template: Template, schema: Any) -> list[ConfigError]:
    """Keys that the template certainly reads and that no seed of this JSON Schema can have."""
    found = {}
    for node in _read_of_seed(template):
        key, owner = key_of(node), _schema_of(owner_of(node), schema)
        if key is not None and owner is not None and _is_closed(owner) and key not in owner.get("properties", {}):
            where = template.place_of(key, node.lineno)
            of = spelled_of(owner_of(node)) or "seed"
            message = f"{of} has no key {key!r} by the pipeline's seed schema"
            found[where] = template.mistake(message, where, did_you_mean(key, owner.get("properties", {})))
    return list(found.values())


def _schema_of(node: nodes.Node, schema: Any) -> dict[str, Any] | None:
    """What the schema itself says of a value; None where it does not, or says it in a roundabout way."""
    match node:
        case nodes.Name(name="seed"):
            return schema if isinstance(schema, dict) else None
        case nodes.Getattr(node=inner) | nodes.Getitem(node=inner):
            owner, key = _schema_of(inner, schema), key_of(node)
            found = owner.get("properties", {}).get(key) if owner is not None else None
            return found if isinstance(found, dict) else None
    return None


def _is_closed(schema: dict[str, Any]) -> bool:
    """Whether it allows its `properties` alone, and certainly an object."""
    return schema.get("additionalProperties") is False and not schema.get("patternProperties")


def read_of_seed(template: Template) -> dict[str, bool]:
    """The seed's keys that a template reads, e.g. ``text`` for ``seed.text``, and whether it does in any case."""
    try:
        tree = template.tree()
    except TemplateSyntaxError:
        return {}
    certain = set(_keys_below(_certainly_read(tree)))
    return {key: key in certain for key in _keys_below(tree.find_all((nodes.Getattr, nodes.Getitem)))}


def _keys_below(found: Iterable[nodes.Node]) -> Iterator[str]:
    for node in found:
        match owner_of(node):
            case nodes.Name(name="seed", ctx="load"):
                key = key_of(node)
                yield from (key,) if key is not None else ()


def _certainly_read(node: nodes.Node) -> Iterator[nodes.Node]:
    """The nodes that are worked out whatever the data says: no branches, nothing that asks `is defined`."""
    for child in node.iter_child_nodes():
        match child:
            case nodes.If(test=test) | nodes.CondExpr(test=test):
                yield from _certainly_read(nodes.Output([test]))
            case nodes.And(left=left) | nodes.Or(left=left):
                yield from _certainly_read(nodes.Output([left]))
            case nodes.Filter(name="default" | "d") | nodes.Test(name="defined" | "undefined") | nodes.Macro():
                continue
            case nodes.For(iter=over):
                yield from _certainly_read(nodes.Output([over]))
            case nodes.Call(node=nodes.Getattr(node=inner), args=arguments):  # seed.items()
                yield from _certainly_read(nodes.Output([inner, *arguments]))
            case nodes.Getattr() | nodes.Getitem():
                yield child
                yield from _certainly_read(child)
            case _:
                yield from _certainly_read(child)


_NOTHING = object()


def _lacking(node: nodes.Node, seed: Any) -> tuple[str, str, list[str]] | None:
    """What lacks which key, and the keys it has, where `node` is a chain that begins with the seed."""
    key = key_of(node)
    owner = _value(owner_of(node), seed)
    if key is None or not isinstance(owner, Mapping) or key in owner:
        return None
    return spelled_of(owner_of(node)) or "seed", key, [str(name) for name in owner]


def _value(node: nodes.Node, seed: Any) -> Any:
    match node:
        case nodes.Name(name="seed"):
            return seed
        case nodes.Getattr(node=inner) | nodes.Getitem(node=inner):
            owner, key = _value(inner, seed), key_of(node)
            return owner[key] if isinstance(owner, Mapping) and key in owner else _NOTHING
    return _NOTHING
