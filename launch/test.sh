#!/usr/bin/env bash
# Lint, the fast tests, the slow tests: bash launch/test.sh [--fast]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case "${1:-}" in
  '' | --fast) ;;
  *) echo "usage: bash launch/test.sh [--fast]" >&2; exit 2 ;;
esac
export JAX_PLATFORMS=cpu

say "lint"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .

say "fast tests"
"$PYTHON" -m pytest -q -n 2 -m 'not slow' --durations=5
if [ "${1:-}" != --fast ]; then
  say "slow tests"
  "$PYTHON" -m pytest -q -n 2 -m slow --durations=5
fi
