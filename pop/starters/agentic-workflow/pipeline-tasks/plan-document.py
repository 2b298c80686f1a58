"""The newest plan as a person reads it, in Markdown. What stands here when it is approved is what the programmer gets."""

from workflow import newest


def infer(prompt, ctx):
    plan = newest(ctx, "revise-plan", "plan")
    parts = [f"# {plan['title']}", plan["summary"], "## Requirements, and how they are met"]
    parts += ["\n".join(f"- **{one['id']}** {one['requirement']} → {one['met_by']}" for one in plan["requirements"])]
    parts += ["## Files", *(_file(one) for one in plan["files"])]
    parts += ["## Steps", "\n".join(f"{number}. {step}" for number, step in enumerate(plan["steps"], 1))]
    parts += ["## Tests", "\n".join(f"- **{one['name']}** ({', '.join(one['covers'])}): {one['checks']}" for one in plan["tests"])]
    for title, key in (("Standards", "standards"), ("Compatibility", "compatibility"), ("Assumptions", "assumptions"), ("Risks", "risks")):
        if plan[key]:
            parts += [f"## {title}", "\n".join(f"- {one}" for one in plan[key])]
    return "\n\n".join(parts) + "\n"


def _file(file):
    signatures = "\n".join(f"- `{one['signature']}`: {one['promise']}" for one in file["interfaces"])
    return f"### {file['path']}\n\n{file['purpose']}" + (f"\n\n{signatures}" if signatures else "")
