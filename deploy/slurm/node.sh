#!/usr/bin/env bash
# What runs on one node of the job: node.sh address|main|learner|rollout. Started by turnout.sbatch.
set -euo pipefail
umask 077

# The address in the network of the learners' traffic: that of NODE_INTERFACE, if it is set.
if [ -z "${NODE_ADDRESS:-}" ] && [ -n "${NODE_INTERFACE:-}" ]; then
  NODE_ADDRESS=$(ip -4 -o address show dev "$NODE_INTERFACE" | awk '{ sub("/.*", "", $4); print $4; exit }')
fi
address=${NODE_ADDRESS:-$(hostname -I | cut -d' ' -f1)}
node=${SLURMD_NODENAME:-$(hostname -s)}
if [ "$1" = address ]; then
  echo "$address"
  exit
fi

home=${TURNOUT_HOME:?}
secret() { cat "$home/secrets/$1"; }
TURNOUT_SERVICE_TOKEN=$(secret service-token)
export TURNOUT_SERVICE_TOKEN TURNOUT_HOST=$address TURNOUT_LOG_FORMAT=${TURNOUT_LOG_FORMAT:-text}
export TURNOUT_ROOTS=${TURNOUT_ROOTS:-$PWD:$home}
queue_port=${QUEUE_PORT:-6379}

children=()
# COMMAND ...: start it again whenever it ends, until this script is ended.
keep() {
  (
    trap 'trap - TERM; kill "$child" 2>/dev/null; wait "$child"; exit' TERM
    while true; do
      "$@" &
      child=$!
      wait "$child" || true
      sleep 2 &
      child=$!
      wait "$child" || true
    done
  ) &
  children+=($!)
}
# KIND INSTANCE PORT [NAME=VALUE ...]: keep a service. Secrets go by its environment, which other users cannot read.
service() {
  local kind=$1 instance=$2 port=$3
  shift 3
  export TURNOUT_INSTANCE=$instance TURNOUT_PORT=$port
  TURNOUT_REDIS_URL="redis://$kind:$(secret "queue-$kind")@$MAIN_ADDRESS:$queue_port/0"
  export TURNOUT_REDIS_URL
  # shellcheck disable=SC2163 # its arguments are assignments
  if [ $# -gt 0 ]; then export "$@"; fi
  keep "$PYTHON" -m "services.$kind"
}
stop() {
  kill "${children[@]}" 2>/dev/null || true
  wait "${children[@]}" 2>/dev/null || true
}
trap 'stop; exit' TERM INT

case $1 in
  main)
    mapfile -t queue <"$home/queue/command"
    keep "${queue[@]}" --port "$queue_port" --bind "$address"
    service api api-0 8400 TURNOUT_API_KEY="$(secret api-key)"
    service verifier verifier-0 0
    service learner learner-0 8401 TURNOUT_LEARNER_MACHINES="$LEARNER_NODES"
    ;;
  learner)
    service learner "learner-$node" 8401 TURNOUT_LEARNER_MAIN="http://$MAIN_ADDRESS:8401"
    ;;
  rollout)
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-0}"
    size=${ROLLOUT_GPUS_PER_SERVER:-1}
    if [ $((${#gpus[@]} % size)) -ne 0 ]; then
      echo "$node has ${#gpus[@]} GPUs, which ROLLOUT_GPUS_PER_SERVER=$size does not divide into groups." >&2
      exit 2
    fi
    for ((first = 0; first < ${#gpus[@]}; first += size)); do
      group=$(IFS=,; echo "${gpus[*]:first:size}")
      service rollout "rollout-$node-${gpus[first]}" 0 CUDA_VISIBLE_DEVICES="$group"
    done
    ;;
  *)
    echo "node.sh takes address, main, learner or rollout, not $1." >&2
    exit 2
    ;;
esac
wait
