"""Starts the wizard: ``python orchestrator.py`` is ``pop new`` in this folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Use this repository's own environment where this Python has none of what POP needs."""
    here = Path(__file__).resolve().parent
    try:
        import pop.recipes.wizard.flow  # noqa: F401 - all that the wizard needs is there
        from pop.cli import main as pop_main
    except ModuleNotFoundError:
        python = here / ".venv" / "bin" / "python"
        if not python.exists() or python in (Path(sys.executable), Path(sys.prefix, "bin", "python")):
            sys.exit("POP is not installed here: make install, or pip install .")
        os.execv(python, [str(python), __file__, *sys.argv[1:]])
    os.environ.setdefault("POP_ROOT", str(here))
    sys.argv = ["pop", "new", *sys.argv[1:]]
    pop_main()


if __name__ == "__main__":
    main()
