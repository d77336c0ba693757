#!/usr/bin/env bash
# Measures on one GPU when sparsity pays: bash launch/sparsity_gpu.sh [WORKDIR]
# PYTHON (default: python) must have a jax for this GPU. Make the token stores
# beforehand, where the corpora are and no GPU is needed:
#   python -m launch.data cache zh_mix --vocab_size=8192 --cache_dir=STORES
# STORES can then be copied to a machine that has neither corpora nor a network,
# and WUDAO_CACHE=STORES must be set there. Else the first run makes the stores.
# The script ends after at most 8 minutes, and the same command goes on where it
# ended. Three runs share the GPU, each with 30% of its memory. The page
# WORKDIR/ladder.html has the gain by corpus with its standard error, the share
# of steps that a sparse model needs, and the loads by corpus. If runs are left,
# the page has those that have ended, and the exit code is 75.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WORKDIR="${1:-runs/ladder_gpu}"

# After SIGTERM each run saves a checkpoint, then the page is written.
timeout --preserve-status --kill-after=60 420 "${PYTHON:-python}" -m launch.ladder \
  --gin_file=runs/ladder_gpu.gin --experts=1,16,64 --seeds=3 --tokens=71.1e6 \
  --sweep_tokens=8e6 --learning_rates=0.02,0.04 --at_once=3 \
  --workdir="$WORKDIR"
