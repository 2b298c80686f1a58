"""Gives every point to the theme that names its document and whose words it shares most."""

import math
import re
from collections import Counter
from itertools import zip_longest

from evidence import extractive, makers, says_what, stands_alone

POINTS_PER_THEME = 14
COPIED_PER_THEME = 8


def validate_quality(output, ctx):
    known = {document["id"] for document in ctx.inputs.stack["documents"]}
    for number, theme in enumerate(output["themes"]):
        for name in theme["documents"]:
            if name not in known:
                yield f"/themes/{number}/documents names {name!r}, which is no document here"


def finalize(output, ctx):
    points = [point for digest in ctx.inputs.condense for point in digest["points"]]
    if extractive(ctx):
        points = _readable(points)
    grouped = _by_document if extractive(ctx) else _by_point
    groups = grouped(_rated(output["themes"], points), points) if output["themes"] and points else []
    themes = [_theme(theme, group) for theme, group in zip(output["themes"], groups, strict=False) if len(group) >= 2]
    if points and not themes:  # too little was said for themes
        everything = {"title": ctx.seed.get("title") or "What the documents say", "keywords": []}
        themes = [_theme(everything, points[:POINTS_PER_THEME])]
    return {"themes": themes, "made_by": makers(ctx)}


def _theme(about, points):
    chosen = sorted(points, key=lambda point: (point["document"], bool(point["aside"]), point["line"]))
    return {**about, "documents": sorted({point["document"] for point in chosen}), "points": chosen}


def _readable(points):
    """Of each document the sentences that can be read outside their place; where there is none, all it has."""
    alone = [point for point in points if stands_alone(point["point"])]
    mute = {point["document"] for point in points} - {point["document"] for point in alone}
    return [point for point in points if point in alone or point["document"] in mute]


def _rated(themes, points):
    """For each point, how much it shares with each theme: whether that names its document, and the words they share.

    A word counts for more the fewer documents use it.
    """
    marks = [_words(" ".join([theme["title"], *theme["keywords"]])) for theme in themes]
    spoken = [_words(f"{point['point']} {point['quote']}") for point in points]
    users = {}
    for point, words in zip(points, spoken, strict=True):
        for word in words:
            users.setdefault(word, set()).add(point["document"])
    count = len({point["document"] for point in points})
    weight = {word: math.log(1 + count / len(names)) for word, names in users.items()}
    rated = []
    for point, words in zip(points, spoken, strict=True):
        shared = [sum(min(2, words[word]) * weight[word] for word in mark if word in words) for mark in marks]
        rated.append(
            [(point["document"] in theme["documents"], value) for theme, value in zip(themes, shared, strict=True)]
        )
    return rated


def _words(text):
    return Counter(word.lower().rstrip("s") for word in re.findall(r"[A-Za-z][A-Za-z_]{3,}", text))


def _by_point(rated, points):
    """Each point in its best theme; of each theme the points that share most, what leads first, what stood aside last."""
    groups = [[] for _ in rated[0]]
    for point, rates in zip(points, rated, strict=True):
        best = max(range(len(rates)), key=lambda at: (rates[at], -len(groups[at])))
        named, shared = rates[best]
        if shared or named:
            groups[best].append((shared + 3 * point["lead"] - 3 * bool(point["aside"]), point))
    return [[point for _, point in sorted(group, key=lambda pair: -pair[0])[:POINTS_PER_THEME]] for group in groups]


def _by_document(rated, points):
    """Sentences that were only copied read best beside their neighbours: whole documents are given to themes.

    The documents of a theme take turns, each beginning with what leads; what stood aside is left to those who can
    weigh it, unless a document has nothing else.
    """
    of_theme = {}
    for name in dict.fromkeys(point["document"] for point in points):
        own = [(point, rates) for point, rates in zip(points, rated, strict=True) if point["document"] == name]
        sums = [sum(_weighed(rates[at]) for _, rates in own) for at in range(len(rated[0]))]
        best = sums.index(max(sums))
        of_theme.setdefault(best, []).append(_in_turn([(point, rates[best][1]) for point, rates in own]))
    groups = [[] for _ in rated[0]]
    for at, queues in of_theme.items():
        while len(groups[at]) < COPIED_PER_THEME and any(queues):
            groups[at] += [queue.pop(0) for queue in queues if queue]
    return groups


def _weighed(rate):
    named, shared = rate
    return shared * (2 if named else 1)


def _in_turn(own):
    """A document's points, by turns one that leads and one that shares most with the theme."""
    leads = sorted((point for point, _ in own if point["lead"]), key=lambda point: not says_what(point["point"]))
    others = [point for point, _ in sorted(own, key=lambda pair: -pair[1]) if not point["lead"]]
    adopted = [point for point in others if not point["aside"]]
    others = adopted or ([] if leads else others)
    return [point for pair in zip_longest(leads, others) for point in pair if point]
