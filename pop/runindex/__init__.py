"""An index of all runs, so that a page of them costs the same with a hundred and with a hundred thousand.

It is derived: ``.pop/index.db`` may be deleted at any time, also under a server that works with it, and several processes
may use it at once. What it is made from:

| what                            | how it is noticed                                             |
|---------------------------------|---------------------------------------------------------------|
| ``pipeline-complete/runs.jsonl``  | read from where the last look ended; a file that is another one, or shorter, is read anew |
| ``pipeline-current/<run>/``       | one stat of ``tasks-status.json`` for each; read when it changed |
| a run that left pipeline-current | the ledger's line, else its record.json, else it is gone       |
| ``pipeline-pending/``, ``rejected/`` | the names, listed anew when the folder changed; kept in memory |

`refresh` works for a while and comes back, so that a page can be shown while a long ledger is read for the first time:
`behind_bytes` says how much is left.
"""

from __future__ import annotations

from pop.runindex.index import PAGE, RunIndex
from pop.runindex.rows import GROUPS, Asked, Found, Row, Tally

__all__ = ["GROUPS", "PAGE", "Asked", "Found", "Row", "RunIndex", "Tally"]
