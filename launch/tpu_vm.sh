#!/usr/bin/env bash
# Runs a command on all workers of TPU VMs, through preemptions:
#   bash launch/tpu_vm.sh VERB --name=NAME --zone=ZONE [FLAGS] [-- COMMAND]
# VERB
#   run     creates or reuses the TPU, copies the tree, installs the lock, starts
#           COMMAND on every worker, follows worker 0; creates the TPU again when
#           it was preempted; collects the logs at the end
#   logs    collects the logs of all workers into logs/NAME
#   stop    ends COMMAND with a checkpoint; the TPU stays
#   delete  deletes the TPU; the bucket stays
# FLAGS
#   --type=TYPE      v4-N, v5litepod-N, v5p-N or v6e-N, as gcloud calls it
#   --slices=N       slices of this type, joined by the network (default 1)
#   --spot, --reserved   the default is on demand
#   --bucket=BUCKET  is mounted as ~/bucket on every worker; a work directory
#                    there outlives the TPU
#   --project=PROJECT    the default is that of gcloud
#   --dry-run        prints every command and runs none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LOGS="${LOGS:-logs}"
PORT=8476  # Processes find each other at this port of the first worker.
POLL_SECONDS="${POLL_SECONDS:-30}"
EXIT_PREEMPTED=75
EXIT_LOST=69  # Another process was lost, perhaps by a preemption.
VERB="${1:-}"
NAME='' ZONE='' TYPE='' SLICES=1 TIER='' BUCKET='' PROJECT='' DRY_RUN='' COMMAND=()

fail() { echo "error: $*" >&2; exit 2; }
say() { printf '== %s\n' "$*"; }

# Prints words as a shell reads them, with quotes where they are needed.
quoted() {
  local word words=()
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) words+=("${word@Q}") ;;
      *) words+=("$word") ;;
    esac
  done
  echo "${words[*]}"
}

# Runs a command; a dry run prints it instead.
act() {
  if [ -n "$DRY_RUN" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

read_flags() {
  shift || true
  while [ $# -gt 0 ]; do
    case "$1" in
      --name=?*) NAME="${1#*=}" ;;
      --zone=?*) ZONE="${1#*=}" ;;
      --type=?*) TYPE="${1#*=}" ;;
      --slices=[1-9]*) SLICES="${1#*=}" ;;
      --spot | --reserved) TIER="$1" ;;
      --bucket=?*) BUCKET="${1#*=}"; BUCKET="${BUCKET#gs://}" ;;
      --project=?*) PROJECT="${1#*=}" ;;
      --dry-run) DRY_RUN=1 ;;
      --) shift; COMMAND=("$@"); break ;;
      *) fail "unknown flag $1: the head of launch/tpu_vm.sh lists all flags" ;;
    esac
    shift
  done
  [ -n "$NAME" ] && [ -n "$ZONE" ] || fail '--name=NAME and --zone=ZONE must be given'
  WHERE=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
}

# Google recommends this image for each kind of TPU.
runtime_version() {
  case "$TYPE" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    tpu7x-*) fail 'tpu7x is offered on GKE alone: use launch/gke.sh' ;;
    *) fail "--type=$TYPE must be v4-N, v5litepod-N, v5p-N or v6e-N" ;;
  esac
}

queue() { act gcloud compute tpus queued-resources "$@" "${WHERE[@]}" --quiet; }

node() { if [ "$SLICES" = 1 ]; then echo "$NAME"; else echo "$NAME-$1"; fi; }

# Runs a line of shell on workers: on_workers SLICE WORKER LINE.
on_workers() {
  act gcloud compute tpus tpu-vm ssh "$(node "$1")" "${WHERE[@]}" --worker="$2" --command="$3"
}

# Calls a function for all slices at once; fails if it fails for one of them.
on_slices() {
  local slice pids=() pid failed=0
  for ((slice = 0; slice < SLICES; slice++)); do
    if [ -n "$DRY_RUN" ]; then "$1" "$slice"; else "$1" "$slice" & pids+=($!); fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=1; done
  return "$failed"
}

# Sets STATE to the state of the request; to NONE only if there is none. Any other
# error of gcloud says nothing about the TPU, so the question is repeated. It is
# given up only if gcloud has never answered.
STATE=''
look() {
  [ -z "$DRY_RUN" ] || { STATE=NONE; return; }
  local answer tries=0
  while true; do
    if answer="$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format='value(state.state)' 2>&1)"; then
      # Warnings of gcloud may stand beside the state, a word in capital letters.
      answer="$(grep -xE '[A-Z_]+' <<< "$answer" | tail -n 1)" || answer='no state'
      [ "$answer" = 'no state' ] || { STATE="$answer"; return; }
    elif [[ "$answer" == *NOT_FOUND* ]]; then
      STATE=NONE
      return
    fi
    tries=$((tries + 1))
    [ -n "$STATE" ] || [ "$tries" -lt 5 ] || fail "the state of $NAME is not known: $answer"
    say "the state of $NAME is not known now, so it is asked again: $answer"
    sleep "$POLL_SECONDS"
  done
}

create() {
  local image nodes=("--node-id=$NAME")
  image="$(runtime_version)"
  [ "$SLICES" = 1 ] || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
  queue create "$NAME" "${nodes[@]}" "--accelerator-type=$TYPE" "--runtime-version=$image" ${TIER:+"$TIER"}
}

# Waits until the TPU is ready. Requests it if there is no request, or if the
# last request has failed or was suspended.
ensure_active() {
  while true; do
    look
    say "queued resource $NAME: $STATE"
    case "$STATE" in
      ACTIVE) return ;;
      NONE) create ;;
      FAILED | SUSPENDED | SUSPENDING) queue delete "$NAME" --force; create ;;
    esac
    [ -z "$DRY_RUN" ] || { say 'wait until it is ACTIVE'; return; }
    sleep "$POLL_SECONDS"
  done
}

copy() {
  act gcloud compute tpus tpu-vm scp "$ARCHIVE" "$(node "$1"):wudao.tgz" "${WHERE[@]}" --worker=all
}

install() {
  on_workers "$1" all "mkdir -p wudao && tar xzf wudao.tgz -C wudao && bash wudao/launch/tpu_worker.sh install${BUCKET:+ $BUCKET}"
}

start() {
  on_workers "$1" all "bash wudao/launch/tpu_worker.sh start $1 $SLICES $COORDINATOR:$PORT $(quoted "${COMMAND[@]}")"
}

deploy() {
  on_slices copy && on_slices install && COORDINATOR="$(coordinator)" && on_slices start
}

# Shows the log of the first worker until its command ends.
follow() { on_workers 0 0 'bash wudao/launch/tpu_worker.sh follow'; }

# Prints the exit code of the command, or `running`. Prints nothing if the worker
# does not answer.
code() { on_workers 0 0 'bash wudao/launch/tpu_worker.sh code' | tail -n 1; }

collect() {
  act mkdir -p "$LOGS/$NAME/$1"
  # One scp for all workers would write every log to the same file.
  local workers worker
  workers="$(count_workers "$1")"
  for ((worker = 0; worker < workers; worker++)); do
    act gcloud compute tpus tpu-vm scp --recurse "$(node "$1"):wudao/logs" "$LOGS/$NAME/$1/$worker" "${WHERE[@]}" --worker="$worker"
  done
}

count_workers() {
  [ -z "$DRY_RUN" ] || { echo 2; return; }
  gcloud compute tpus tpu-vm describe "$(node "$1")" "${WHERE[@]}" \
    --format='value(networkEndpoints[].ipAddress)' | tr ';,' '\n\n' | wc -l
}

stop() { on_workers "$1" all 'bash wudao/launch/tpu_worker.sh stop'; }

coordinator() {
  [ -z "$DRY_RUN" ] || { echo 10.0.0.1; return; }
  gcloud compute tpus tpu-vm describe "$(node 0)" "${WHERE[@]}" \
    --format='value(networkEndpoints[0].ipAddress)'
}

run() {
  [ ${#COMMAND[@]} -gt 0 ] || fail '-- COMMAND must follow the flags'
  case " ${COMMAND[*]}" in
    *' --workdir'*) ;;
    *) fail 'COMMAND must have --workdir=DIR, which all workers can reach' ;;
  esac
  runtime_version > /dev/null
  ARCHIVE="${TMPDIR:-/tmp}/wudao-$NAME.tgz"
  act tar czf "$ARCHIVE" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=./data --exclude=./logs .
  if [ -n "$DRY_RUN" ]; then
    ensure_active; deploy; follow; code; on_slices stop; on_slices collect
    return
  fi
  while true; do
    ensure_active
    local tries=0
    until deploy || ! is_active; do
      tries=$((tries + 1))
      [ "$tries" -lt 5 ] || fail 'the workers could not be set up: see above'
      sleep "$POLL_SECONDS"
    done
    until ended; do follow || sleep "$POLL_SECONDS"; done
    if [ -n "$CODE" ] && is_active; then
      # The command has ended on worker 0. Supervisors of other workers could
      # start it again.
      on_slices stop || say 'some workers could not be stopped'
      on_slices collect || say 'some logs could not be collected'
      say "the command has ended with code $CODE; the TPU stays until: bash launch/tpu_vm.sh delete --name=$NAME --zone=$ZONE"
      return "$CODE"
    fi
    say 'the TPU is gone: it is created again, and the run resumes'
  done
}

is_active() { look; [ "$STATE" = ACTIVE ]; }

# Succeeds if the command or the TPU has ended, and sets CODE to the exit code of
# the command, or to nothing. A preemption ends the command before the TPU, with
# code 75 or 69. Then the TPU is watched for a while.
ended() {
  local now i
  CODE=''
  is_active || return 0
  now="$(code || true)"
  case "$now" in
    '' | *[!0-9]*) return 1 ;;  # It runs, or the worker has not answered.
  esac
  CODE="$now"
  case "$CODE" in
    "$EXIT_PREEMPTED" | "$EXIT_LOST") for i in 1 2 3 4 5 6; do is_active || break; sleep "$POLL_SECONDS"; done ;;
  esac
}

case "$VERB" in
  run | logs | stop | delete) read_flags "$@" ;;
  *) sed -n '2,21s/^# \{0,1\}//p' launch/tpu_vm.sh >&2; exit 2 ;;
esac
case "$VERB" in
  run) run ;;
  logs) on_slices collect ;;
  stop) on_slices stop ;;
  delete) queue delete "$NAME" --force ;;
esac
