#!/usr/bin/env bash
# Runs the linter and the tests: bash launch/test.sh [--fast | --all]
# --fast leaves out tests marked `slow`, --all adds those marked `nightly`.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case "${1:-}" in
  --fast) chosen='not slow and not nightly' ;;
  '') chosen='not nightly' ;;
  --all) chosen='' ;;
  *) echo "usage: bash launch/test.sh [--fast | --all]" >&2; exit 2 ;;
esac
export JAX_PLATFORMS=cpu

say "lint"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .

say "tests"
# With worksteal, neighbouring tests run on the same worker. So they share the
# programs that their fixtures compile.
"$PYTHON" -m pytest -q -n 2 --dist worksteal -m "$chosen" --durations=5
