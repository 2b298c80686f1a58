"""A task in Python alone: what infer returns is the output."""


def infer(prompt, ctx):
    summary = ctx.inputs["summarise"]
    return {"summary": summary, "words": len(summary.split()), "of": len(ctx.seed["text"].split())}
