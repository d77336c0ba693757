# The entry points source this file. It sets ROOT and PYTHON, and makes the
# virtual environment of the lock file if it is missing or out of date.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
LOCK="$ROOT/launch/requirements.txt"
PYTHON="$VENV/bin/python"
cd "$ROOT"

say() { printf '\033[1m== %s\033[0m\n' "$*"; }

find_python() {
  for name in python3.11 python3.12 python3; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "Python 3.11 or 3.12 is required: install one and put it on PATH." >&2
  return 1
}

make_environment() {
  local name stamp
  stamp="$(cat "$LOCK" setup.py | sha256sum | cut -d' ' -f1)"
  if [ "$(cat "$VENV/.stamp" 2>/dev/null)" = "$stamp" ]; then
    say "environment: $VENV (as locked)"
    return
  fi
  name="$(find_python)"
  say "environment: installing the lock into $VENV with $("$name" --version), about 4 GB, once"
  "$name" -m venv --clear "$VENV"
  # uv is in the lock too; it installs the other packages in parallel.
  sed -n '/^uv==/,/[^\\]$/p' "$LOCK" > "$VENV/uv.txt"
  "$PYTHON" -m pip install --quiet --require-hashes -r "$VENV/uv.txt"
  VIRTUAL_ENV="$VENV" "$VENV/bin/uv" pip install --quiet --require-hashes -r "$LOCK"
  VIRTUAL_ENV="$VENV" "$VENV/bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .
  echo "$stamp" > "$VENV/.stamp"
}

make_environment
