# Sourced on a rented machine, in a folder of the code: . launch/machine.sh REQUIREMENTS...
# Makes `python` a 3.11 that has what REQUIREMENTS say, as `uv pip install` takes it:
# images have an older one, and not by that name.
command -v uv >/dev/null || pip3 install --quiet uv
[ -e .venv/bin/activate ] || { rm -rf .venv && uv venv --quiet --python 3.11 .venv; }
. .venv/bin/activate
uv pip install --quiet "$@"
