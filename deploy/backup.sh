#!/usr/bin/env bash
# Saves the Compose deployment while it runs: deploy/backup.sh FOLDER
# Checkpoints first, then the database, so that the database knows all of them. Runs' published weights and the queues
# need no backup: they are made again. Secrets are not in it; keep a copy of deploy/secrets elsewhere.
# COMPOSE_FILE and COMPOSE_PROJECT_NAME say which deployment; without them it is deploy/compose.yaml.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export COMPOSE_FILE=${COMPOSE_FILE:-$here/compose.yaml}
fail() { printf 'backup: %s\n' "$*" >&2; exit 1; }
folder=${1:-}
[ -n "$folder" ] || fail "name a folder that does not exist yet: deploy/backup.sh FOLDER"
[ ! -e "$folder" ] || fail "$folder exists already; name another."
umask 077
mkdir -p "$folder"
# tar ends with 1 where a file changed or went while it was read: a checkpoint that was just being written or deleted.
docker compose exec -T api tar -C /var/lib/turnout -c --exclude=./runs/*/weights --exclude=./turnout.db* . >"$folder/home.tar" ||
  [ $? = 1 ] || fail "the files could not be saved; is the deployment up?"
docker compose exec -T postgres pg_dump -h 127.0.0.1 -U turnout --format=custom turnout >"$folder/database.dump" ||
  fail "the database could not be saved."
printf 'Saved to %s: %s of files, %s of database.\n' "$folder" "$(du -sh "$folder/home.tar" | cut -f1)" "$(du -sh "$folder/database.dump" | cut -f1)"
