#!/usr/bin/env bash
# launch/tpu_vm.sh runs this on each worker: bash launch/tpu_worker.sh VERB ARGS
#   install [BUCKET]  installs the lock, and mounts the bucket as ~/bucket
#   start SLICE SLICES COORDINATOR COMMAND   starts COMMAND in the background
#   follow            shows its log until it ends
#   code              prints its exit code, or `running`
#   stop              asks it to save and to end, if it still runs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$HOME/.local/bin:$PATH"
METADATA="${METADATA:-http://metadata.google.internal/computeMetadata/v1/instance/attributes}"

attribute() { curl -sf -H Metadata-Flavor:Google "$METADATA/$1"; }

# The images have Python 3.10. uv installs the Python that the lock is made for.
install() {
  if ! command -v python3.11 > /dev/null; then
    python3 -m pip install --user --quiet \
      "uv==$(sed -n 's/^uv==\([^ ]*\).*/\1/p' launch/requirements.txt)"
    uv python install 3.11
  fi
  bash launch/environment.sh
  if [ -n "${1:-}" ] && ! mountpoint -q ~/bucket; then
    mkdir -p ~/bucket
    gcsfuse --implicit-dirs "$1" ~/bucket
  fi
}

# Whether the supervisor of a command runs. After a restart of the machine
# another process may have its number.
is_running() {
  [ -s logs/pid ] && grep -qs launch.supervise "/proc/$(cat logs/pid)/cmdline"
}

# Process numbers count the workers of the first slice, then those of the next.
start() {
  local slice="$1" slices="$2" coordinator="$3" workers
  shift 3
  if is_running; then
    echo 'a command already runs here: it is followed, and no other one starts'
    return
  fi
  workers="$(attribute worker-network-endpoints | tr ',' '\n' | grep -c .)"
  export NUM_PROCESSES=$((workers * slices))
  export PROCESS_ID=$((workers * slice + $(attribute agent-worker-number)))
  export JAX_COORDINATOR_ADDRESS="$coordinator"
  export PATH="$PWD/.venv/bin:$PATH"  # COMMAND says `python`.
  mkdir -p logs
  rm -f logs/code logs/pid
  # shellcheck disable=SC2016 # The inner shell expands these.
  nohup setsid bash -c '
    python -m launch.supervise --log=logs/attempts.jsonl -- "$@" &
    echo $! > logs/pid
    code=0; wait $! || code=$?
    echo $code > logs/code' start "$@" >> logs/log.txt 2>&1 < /dev/null &
  until [ -s logs/pid ]; do sleep 0.1; done
}

# Stops the supervisor, and waits until it has ended. Then another command can
# start.
stop() {
  local i
  if is_running; then kill -TERM "$(cat logs/pid)" || true; fi
  for ((i = 0; i < 60; i++)); do is_running || return 0; sleep 1; done
  echo 'the command still saves after 60 s: try again later' >&2
  return 1
}

case "${1:-}" in
  install) install "${2:-}" ;;
  start) shift; start "$@" ;;
  follow) tail -n 100 -F --pid="$(cat logs/pid)" logs/log.txt ;;
  code) cat logs/code 2> /dev/null || echo running ;;
  stop) stop ;;
  *) sed -n '2,7s/^# \{0,1\}//p' launch/tpu_worker.sh >&2; exit 2 ;;
esac
