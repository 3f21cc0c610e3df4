#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [arguments of pytest]
# Without arguments lint, format and types come first; they take seconds.
# Files go to up to four processes, as most of a test is compiling on one core.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

# _check MEND COMMAND...: runs a module; where it fails, says what to run to mend it.
_check() {
  local mend=$1
  shift
  "$PY" -m "$@" && return
  echo "error: $* failed; $mend" >&2
  failed=1
}

failed=0
if [ $# = 0 ]; then
  _check "to mend what can be: $PY -m ruff check --fix" ruff check --quiet
  _check "to mend it: $PY -m ruff format" ruff format --check --quiet
  _check "correct the types until this passes: $PY -m mypy" mypy
  [ $failed = 0 ] || exit 1
fi
exec "$PY" -m pytest -n auto --maxprocesses=4 --dist loadfile \
  --no-loadscope-reorder "$@"
