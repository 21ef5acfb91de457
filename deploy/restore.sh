#!/usr/bin/env bash
# Puts a backup into a deployment that is down and has no volumes yet, and starts it: deploy/restore.sh FOLDER
# Runs that were under way continue from their newest saved checkpoint.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export COMPOSE_FILE=${COMPOSE_FILE:-$here/compose.yaml}
fail() { printf 'restore: %s\n' "$*" >&2; exit 1; }
folder=${1:-}
for name in home.tar database.dump; do [ -f "$folder/$name" ] || fail "$folder has no $name; name a folder that deploy/backup.sh made."; done
[ -z "$(docker compose ps -q)" ] || fail "the deployment is up; take it down first."
run=(docker compose run --rm -T --no-deps)
"${run[@]}" --entrypoint sh api -c '[ -z "$(ls -A /var/lib/turnout)" ]' || fail "there are runs already, which a backup would mix with."
"${run[@]}" --entrypoint tar api -C /var/lib/turnout -x <"$folder/home.tar"
docker compose up --detach --wait postgres
docker compose exec -T postgres pg_restore -h 127.0.0.1 -U turnout --dbname=turnout --no-owner <"$folder/database.dump"
docker compose up --detach --wait
