"""The newest plan as a person reads it, in Markdown. What stands here when it is approved is what the programmer gets."""

from wording import code, paragraphs, prose
from workflow import newest


def infer(prompt, ctx):
    plan = newest(ctx, "revise-plan", "plan")
    parts = [f"# {prose(plan['title'])}", paragraphs(plan["summary"]), "## Requirements, and how they are met"]
    rows = ((prose(one[key]) for key in ("id", "requirement", "met_by")) for one in plan["requirements"])
    parts += ["\n".join(f"- **{name}** {requirement} → {met_by}" for name, requirement, met_by in rows)]
    parts += ["## Files", *(_file(one) for one in plan["files"])]
    parts += ["## Steps", "\n".join(f"{number}. {prose(step)}" for number, step in enumerate(plan["steps"], 1))]
    parts += ["## Tests", "\n".join(f"- {code(one['name'])} ({prose(', '.join(one['covers']))}): {prose(one['checks'])}" for one in plan["tests"])]
    for title, key in (("Standards", "standards"), ("Compatibility", "compatibility"), ("Assumptions", "assumptions"), ("Risks", "risks")):
        if plan[key]:
            parts += [f"## {title}", "\n".join(f"- {prose(one)}" for one in plan[key])]
    return "\n\n".join(parts) + "\n"


def _file(file):
    signatures = "\n".join(f"- {code(one['signature'])}: {prose(one['promise'])}" for one in file["interfaces"])
    return f"### {code(file['path'])}\n\n{paragraphs(file['purpose'])}" + (f"\n\n{signatures}" if signatures else "")
