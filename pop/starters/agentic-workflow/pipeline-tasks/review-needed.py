"""Whether a person reviews the code before it is refined, as the seed's `code_review` says.

| code_review    | a person is asked                                                                             |
|----------------|-----------------------------------------------------------------------------------------------|
| when-needed    | before the first refinement; later only when all tools pass: what is left is judgement          |
| always, never  | before each refinement, before none                                                            |

Nobody is asked who has just spoken about the same files, at the final approval or where the loop did not converge.
"""


def infer(prompt, ctx):
    ask, why = _ask(ctx, ctx.inputs["verdict"], ctx.inputs["context"]["code_review"])
    return {"ask": ask, "why": why}


def _ask(ctx, verdict, asked):
    if len(ctx.letter.changes) > verdict["persons_words"]:
        return False, "a person has just said what is to be changed"
    if verdict["accepted"]:
        return False, "the code was accepted"
    if asked != "when-needed":
        return asked == "always", f"the seed's code_review is {asked!r}"
    if ctx.lap in (None, 1):
        return True, "before the first refinement a person looks at the code"
    if verdict["tools_passed"]:
        return True, "the tools pass, and the validator does not accept the code: a matter of judgement"
    return False, "tools failed again: there is nothing to decide"
