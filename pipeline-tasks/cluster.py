"""Gives every point to the theme whose words it shares most."""

import re
from collections import Counter

POINTS_PER_THEME = 14


def _words(text):
    return Counter(word.lower().rstrip("s") for word in re.findall(r"[A-Za-z][A-Za-z_]{3,}", text))


def validate_quality(output, ctx):
    known = {digest["document"] for digest in ctx.inputs.condense}
    for number, theme in enumerate(output["themes"]):
        for name in theme["documents"]:
            if name not in known:
                yield f"/themes/{number}/documents names {name!r}, which is no document here"


def finalize(output, ctx):
    points = [point for digest in ctx.inputs.condense for point in digest["points"]]
    marks = [_words(" ".join([theme["title"], *theme["keywords"]])) for theme in output["themes"]]
    groups = [[] for _ in marks]
    for point in points:
        spoken = _words(f"{point['point']} {point['quote']}")
        shared = [sum(min(2, spoken[word]) for word in mark) for mark in marks]
        best = max(range(len(marks)), key=lambda index: (shared[index], -len(groups[index])))
        if shared[best]:
            groups[best].append((shared[best], point))
    themes = []
    for theme, group in zip(output["themes"], groups):
        chosen = [point for _, point in sorted(group, key=lambda pair: -pair[0])[:POINTS_PER_THEME]]
        if len(chosen) >= 2:
            chosen.sort(key=lambda point: (point["document"], point["line"]))
            themes.append({"title": theme["title"], "keywords": theme["keywords"], "points": chosen})
    return {"themes": themes}
