#!/usr/bin/env bash
# Whether Docker Compose understands every combination of files that docs/operations.md names.
set -euo pipefail
cd "$(dirname "$0")"
export TURNOUT_REWARD_URL=http://judge.example JUDGE_UPSTREAM=https://judge.example JUDGE_MODEL=judge
for files in compose.yaml compose.yaml:compose.cpu.yaml compose.yaml:compose.reward.yaml compose.yaml:compose.judge.yaml; do
  COMPOSE_FILE=$files docker compose --profile tls --profile alerts --profile tracker config -q
done
