#!/usr/bin/env bash
# `make demo`: the brief pipeline on real documents, through the daemon's own path.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/pop run examples/brief
result=$(ls -d pipeline-complete/*-brief-*/tasks/publish/artifacts/brief.md | tail -n 1)
echo
echo "The brief: $result"
echo "----------------------------------------------------------------"
head -n 19 "$result" | cut -c 1-400
echo "----------------------------------------------------------------"
echo "Every run is a folder:  ls $(dirname "$(dirname "$(dirname "$(dirname "$result")")")")"
echo "The ledger:             tail -n 1 pipeline-complete/runs.jsonl"
