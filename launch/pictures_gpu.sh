#!/usr/bin/env bash
# Trains a tokenizer and a model of pictures on one GPU, and scores both:
#   bash launch/pictures_gpu.sh [WORKDIR [TOKENIZER_STEPS [MODEL_STEPS]]]
# The numbers of steps aim at 8 minutes on an H100, but nobody has measured them
# yet. Give smaller ones if the first steps are slow.
# Python must have jax for GPUs: pip install -e '.[data,cuda]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python}"
say() { printf '== %s\n' "$*"; }
WORKDIR="${1:-runs/pictures_gpu}"
CODES="$WORKDIR/codes"

say "training a tokenizer in $WORKDIR/tokenizer"
"$PYTHON" -m launch.train --gin_file=runs/image_tokenizer_gpu.gin \
  --workdir="$WORKDIR/tokenizer" --gin.TRAIN_STEPS="${2:-6000}"

say "scores of the tokenizer, with an independent judge"
"$PYTHON" -m launch.images tokenizer-report --checkpoint="$WORKDIR/tokenizer"
"$PYTHON" -m launch.images encode --checkpoint="$WORKDIR/tokenizer" --output="$CODES"

say "training a model in $WORKDIR/model"
"$PYTHON" -m launch.train --gin_file=runs/pictures_gpu.gin \
  --workdir="$WORKDIR/model" --gin.TRAIN_STEPS="${3:-6000}" \
  --gin.TASK_MODULES="('$CODES/picture_tasks.py',)" \
  --gin.IMAGE_TOKENIZER="'$CODES/image_tokenizer.bin'"

say "scores of the model"
"$PYTHON" -m launch.images score --checkpoint="$WORKDIR/model"
