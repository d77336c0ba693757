#!/usr/bin/env bash
# Trains and scores larger models of pictures on one GPU, one part after another:
#   bash launch/pictures_gpu.sh [PART [WORKDIR [TOKENIZER_STEPS [MODEL_STEPS]]]]
# PART is one of
#   pictures  a tokenizer and a model of shapes and clothes (the default)
#   patches   a model that reads pixels, with the tokenizer of `pictures`
#   twin      sparse and dense, three seeds each, with the same tokenizer
#   hanzi     a tokenizer and a model of characters
#   emoji     a tokenizer and a model of emoji
# A part is ended after 460 seconds, and the same command goes on where it ended.
# Nobody has measured yet how far a part gets in this time. Give smaller numbers
# of steps if the first steps are slow.
# Python must have jax for GPUs: pip install -e '.[data,cuda]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z "${IS_LIMITED:-}" ]]; then
  export IS_LIMITED=1
  exec timeout --signal=TERM --kill-after=20 460 bash launch/pictures_gpu.sh "$@"
fi
PYTHON="${PYTHON:-python}"
PART="${1:-pictures}"
WORKDIR="${2:-runs/pictures_gpu}"
TOKENIZER_STEPS="${3:-6000}"
MODEL_STEPS="${4:-6000}"
say() { printf '== %s\n' "$*"; }

# tokenizer NAME FILE: trains, scores and applies a tokenizer.
tokenizer() {
  say "a tokenizer in $WORKDIR/$1_codes"
  "$PYTHON" -m launch.train --gin_file="runs/$2.gin" \
    --workdir="$WORKDIR/$1_codes" --gin.TRAIN_STEPS="$TOKENIZER_STEPS" \
    --gin.WIDTHS='(64, 128)' --gin.BATCH_SIZE=128
  "$PYTHON" -m launch.images tokenizer-report --checkpoint="$WORKDIR/$1_codes"
  encode "$1_codes" "$1_codes/codes"
}

# encode TOKENIZER CODES FLAGS: writes codes, if they are not there.
encode() {
  [[ -f "$WORKDIR/$2/picture_tasks.py" ]] || "$PYTHON" -m launch.images encode \
    --checkpoint="$WORKDIR/$1" --output="$WORKDIR/$2" "${@:3}"
}

# model NAME CODES FLAGS: trains and scores a model.
model() {
  say "a model in $WORKDIR/$1"
  "$PYTHON" -m launch.train --workdir="$WORKDIR/$1" "${@:3}" \
    --gin.TRAIN_STEPS="$MODEL_STEPS" \
    --gin.TASK_MODULES="('$WORKDIR/$2/picture_tasks.py',)" \
    --gin.IMAGE_TOKENIZER="'$WORKDIR/$2/image_tokenizer.bin'"
  "$PYTHON" -m launch.images score --checkpoint="$WORKDIR/$1"
}

case "$PART" in
  pictures)
    tokenizer pictures image_tokenizer_gpu
    model pictures pictures_codes/codes --gin_file=runs/pictures_gpu.gin
    ;;
  patches)
    encode pictures_codes patch_codes --patches
    model patches patch_codes --gin_file=runs/pictures_gpu.gin \
      --gin_file=runs/patches.gin
    ;;
  twin)
    CODES="$WORKDIR/pictures_codes/codes"
    "$PYTHON" -m launch.ladder --gin_file=runs/pictures_gpu.gin \
      --workdir="$WORKDIR/twin" --seeds=3 --tokens=16.4e6 --at_once=3 \
      --learning_rates=3e-3 --arm='dense:DENSE_TWIN=True' --arm='grouped:' \
      --gin.TASK_MODULES="('$CODES/picture_tasks.py',)" \
      --gin.IMAGE_TOKENIZER="'$CODES/image_tokenizer.bin'"
    ;;
  hanzi)
    tokenizer hanzi image_tokenizer_hanzi
    model hanzi hanzi_codes/codes --gin_file=runs/hanzi_cpu.gin \
      --gin_file=runs/pictures_larger.gin
    ;;
  emoji)
    tokenizer emoji image_tokenizer_emoji
    model emoji emoji_codes/codes --gin_file=runs/emoji_cpu.gin \
      --gin_file=runs/pictures_larger.gin --gin.GROUP_SIZE=1280
    ;;
  *)
    say "PART must be pictures, patches, twin, hanzi or emoji, got $PART." >&2
    exit 2
    ;;
esac
