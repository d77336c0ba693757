#!/usr/bin/env bash
# Trains a small sparse model on the built-in corpus, scores it and samples it:
#   bash launch/quickstart.sh [WORKDIR]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
WORKDIR="${1:-runs/quickstart}"
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8

say "training on 8 emulated CPU devices (data 2 x expert 4) into $WORKDIR"
"$PYTHON" -m launch.train --gin_file=gin_configs/runs/quickstart.gin --workdir="$WORKDIR"

export JAX_NUM_CPU_DEVICES=1
say "bits per character of the held-out documents"
"$PYTHON" -m launch.evaluate --checkpoint="$WORKDIR" --task=builtin --split=validation

say "a couplet's second line, and a quatrain"
"$PYTHON" -m launch.sample --checkpoint="$WORKDIR" --form=couplet --prompt='春雨細如絲' --num=3
"$PYTHON" -m launch.sample --checkpoint="$WORKDIR" --form=quatrain5 --prompt='夜雨' --num=2

say "open $WORKDIR/report.html"
