"""Stacks the condensed parts, document upon document, and condenses the tallest again until all fit the budget."""

from evidence import makers

BUDGET_TOKENS = 6_000


def infer(prompt, ctx):
    stacks = {}
    for digest in ctx.inputs.condense:
        stack = stacks.setdefault(digest["document"], {"id": digest["document"], "title": digest["title"], "texts": []})
        stack["texts"].append(digest["digest"].strip())
    texts = {name: "\n\n".join(text for text in stack["texts"] if text) for name, stack in stacks.items()}
    left, waiting, fitting = ctx.config.get("budget_tokens", BUDGET_TOKENS), len(texts), {}
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):  # what short ones leave is shared by the tall
        fitting[name] = ctx.compress(texts[name], max(1, left // waiting))
        left -= ctx.count_tokens(fitting[name])
        waiting -= 1
        ctx.progress(len(fitting), len(texts))
    return {
        "documents": [{"id": name, "title": stack["title"], "text": fitting[name]} for name, stack in stacks.items()],
        "characters": {
            "digests": sum(map(len, texts.values())),
            "compressed": sum(len(text) for name, text in texts.items() if fitting[name] != text),
            "stack": sum(map(len, fitting.values())),
        },
        "made_by": makers(ctx),
    }
