#!/usr/bin/env bash
# Fills in launch/jobset.yaml and submits it to GKE:
#   NAME=poems IMAGE=IMAGE ACCELERATOR=tpu7x TOPOLOGY=2x2x2 WORKERS=2 \
#     bash launch/gke.sh [--dry-run] --gin_file=FILE --workdir=DIR
# ACCELERATOR and TOPOLOGY are those of the node pool. WORKERS is the number of
# machines in a slice, CHIPS the number of chips in a machine (default 4), SLICES
# the number of slices (default 1). --dry-run only prints the filled file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export CHIPS="${CHIPS:-4}" SLICES="${SLICES:-1}" ARGUMENTS=''
apply=(kubectl apply -f -)
if [ "${1:-}" = --dry-run ]; then shift; apply=(cat); fi
for argument in "$@"; do
  ARGUMENTS+="${ARGUMENTS:+, }'${argument//\'/\'\'}'"  # Quoted as in YAML.
done
text="$(cat jobset.yaml)"
for key in NAME IMAGE ACCELERATOR TOPOLOGY WORKERS CHIPS SLICES ARGUMENTS; do
  [ -n "${!key:-}" ] || { echo "error: $key must be set: see the head of launch/gke.sh" >&2; exit 2; }
  text="${text//@$key@/"${!key}"}"
done
"${apply[@]}" <<< "$text"
