#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [arguments of pytest]
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
exec "$PY" -m pytest "$@"
