"""What can be seen wrong in a plan without understanding it."""

from checks import is_test, path_problem


def plan_problems(plan):
    """Sentences for the planner; a plan without them can be judged by the validator."""
    ids = [one["id"] for one in plan["requirements"]]
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        yield f"/requirements: the id {name!r} stands twice"
    covered = {name for test in plan["tests"] for name in test["covers"]}
    for name in dict.fromkeys(ids):
        if name not in covered:
            yield f"/tests: no test covers {name}"
    for name in sorted(covered - set(ids)):
        yield f"/tests: {name!r} is no id of a requirement"
    paths = [one["path"] for one in plan["files"]]
    for path in paths:
        problem = path_problem(path)
        if problem:
            yield f"/files: {path!r} {problem}"
    if not any(is_test(path) for path in paths):
        yield "/files: there is no file for the tests (tests/test_*.py)"
    if not any(path.endswith(".py") and not is_test(path) for path in paths):
        yield "/files: there is no Python module beside the tests"
