# Sourced by the scripts beside it. Sets ROOT (of the repository) and PY (a Python that
# has requirements.txt). Knows two variables:
#   PYTHON             the interpreter to start from (default: a 3.12 or 3.11 on PATH)
#   FLUID_ENV=current  use that interpreter as it is and install only what it lacks
# Written for bash 3.2, the one that macOS has.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_fail() {
  echo "error: $*" >&2
  exit 2
}

_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

_find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    _new_enough "$PYTHON" || _fail "PYTHON=$PYTHON is not Python 3.11 or newer"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.12 python3.11 python3 python; do
    if _new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  _fail "Python 3.11 or 3.12 is needed; install one, or name it: PYTHON=/path/to/python"
}

# _watch LOG COMMAND...: runs a slow command, output to LOG, a line now and then.
_watch() {
  local log=$1 start=$SECONDS next=15 job
  shift
  "$@" >"$log" 2>&1 &
  job=$!
  # A background job of a script ignores Ctrl-C unless it is passed on.
  trap 'kill $job 2>/dev/null; exit 130' INT TERM
  while kill -0 "$job" 2>/dev/null; do
    sleep 1
    if [ $((SECONDS - start)) -ge $next ]; then
      echo "  ... $((SECONDS - start)) s, $(grep -c '^Collecting' "$log") packages found"
      next=$((next + 15))
    fi
  done
  trap - INT TERM
  if ! wait "$job"; then
    tail -n 15 "$log" >&2
    _fail "installation failed; the whole output is in $log"
  fi
}

_use_venv() {
  local base venv="$ROOT/.venv" stamp
  base=$(_find_python) || exit 2
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    { [ -n "${PYTHON:-}" ] && [ "$(_version "$base")" != "$(_version "$venv/bin/python")" ]; }; then
    echo "making .venv with Python $(_version "$base")"
    "$base" -m venv --clear "$venv" ||
      _fail "cannot make $venv; on Debian or Ubuntu: apt-get install python3-venv"
  fi
  PY="$venv/bin/python"
  stamp="$venv/requirements.installed"
  if ! cmp -s "$ROOT/requirements.txt" "$stamp"; then
    echo "installing requirements.txt into .venv (the first time takes some minutes)"
    _watch "$venv/install.log" "$PY" -m pip install --disable-pip-version-check \
      --progress-bar off -r "$ROOT/requirements.txt"
    cp "$ROOT/requirements.txt" "$stamp"
  fi
}

_use_current() {
  # Inside an activated environment `python` is that environment's, whatever its version.
  PY=${PYTHON:-python}
  command -v "$PY" >/dev/null 2>&1 || PY=python3
  _new_enough "$PY" || _fail "FLUID_ENV=current: $PY is not Python 3.11 or newer"
  "$PY" "$ROOT/launch/install_missing.py" "$ROOT/requirements.txt" ||
    _fail "installation into the current environment failed"
}

if [ "${FLUID_ENV:-}" = current ]; then
  _use_current
elif [ -n "${FLUID_ENV:-}" ]; then
  _fail "FLUID_ENV is '$FLUID_ENV'; it is either unset or 'current'"
else
  _use_venv
fi
