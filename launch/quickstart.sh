#!/usr/bin/env bash
# The small study, from a fresh clone to a report: bash launch/quickstart.sh [WORKDIR]
# Started again, it goes on where it was.
set -eu
WORKDIR=${1:-}
case "$WORKDIR" in
  "" | /*) ;;
  *) WORKDIR="$PWD/$WORKDIR" ;;
esac
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
WORKDIR=${WORKDIR:-$ROOT/runs/quickstart}
cd "$ROOT"
exec "$PY" -m launch.sweep --config configs/sweeps/quickstart.py \
  --workdir "$WORKDIR" --on local --jobs 2 --report
