#!/usr/bin/env bash
# Measures on one GPU when sparsity pays: bash launch/sparsity_gpu.sh [WORKDIR]
# PYTHON (default: python) must have a jax for this GPU. The token stores of
# zh_mix should be in $WUDAO_CACHE; otherwise the first run makes them.
# The script ends after at most 8 minutes, and the same command goes on where it
# ended. The page WORKDIR/ladder.html has the gain by corpus with its standard
# error, the share of steps that a sparse model needs, and the loads by corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WORKDIR="${1:-runs/ladder_gpu}"

timeout --signal=TERM --kill-after=20 460 "${PYTHON:-python}" -m launch.ladder \
  --gin_file=runs/ladder_gpu.gin --experts=1,16,64 --seeds=3 --tokens=71.1e6 \
  --sweep_tokens=8e6 --learning_rates=0.005,0.01,0.02 --at_once=9 \
  --workdir="$WORKDIR"
