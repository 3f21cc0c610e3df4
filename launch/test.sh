#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [arguments of pytest]
# Files go to up to four processes, as most of a test is compiling on one core.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
exec "$PY" -m pytest -n auto --maxprocesses=4 --dist loadfile \
  --no-loadscope-reorder "$@"
