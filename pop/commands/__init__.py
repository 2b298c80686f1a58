"""The commands: one file each, one row each. Help stands here so that ``pop --help`` imports none of them."""

COMMANDS: dict[str, str] = {
    "init": "Make a folder that POP can work in.",
    "check": "Find every mistake in settings, pipelines and tasks before anything runs.",
    "schema": "Print the JSON Schema of a file, for editors.",
    "run": "Run one seed to its end and show how it goes.",
    "up": "Serve the queue until you stop it.",
    "submit": "Put a seed into the queue.",
    "ls": "List what is pending, rejected, current and complete.",
    "show": "Explain one run: its steps, times, costs and errors.",
    "watch": "Follow a run, or all of them, live.",
    "logs": "Print what the steps of a run logged and printed.",
    "tail": "Follow the ledger of finished runs.",
    "cost": "Add up what model calls cost.",
    "graph": "Print a pipeline, or a run, as a Mermaid graph.",
    "cancel": "End a run.",
    "retry": "Let a failed or cancelled run go on from what failed.",
    "gc": "Remove or archive old finished runs.",
    "models": "List the models a step may ask for, and test them.",
    "doctor": "Explain the state of a root in plain words.",
    "completion": "Print the completion script of a shell.",
}
