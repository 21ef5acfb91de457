#!/usr/bin/env bash
# Makes every secret of the Compose deployment that deploy/secrets does not hold yet: one a file, long and random.
#   deploy/secrets.sh                 what is missing
#   deploy/secrets.sh rotate NAME     another value for one of them; says what to restart
# The folder is closed to others (0700). The files in it are not, since containers read them as users of their own.
set -euo pipefail
cd "$(dirname "$0")"
folder=${TURNOUT_SECRETS:-secrets}
fail() { printf 'secrets: %s\n' "$*" >&2; exit 1; }
random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
# What an older deployment has in deploy/.env is kept.
old() { [ ! -f .env ] || sed -n "s/^$1=//p" .env | tail -n 1; }
# In place, not by renaming: containers have the file itself mounted.
put() { printf '%s' "$2" >"$folder/$1"; chmod 644 "$folder/$1"; }
value() {
  case $1 in
    api_key) echo "${2:-$(old TURNOUT_API_KEY)}" ;;
    service_token) echo "${2:-$(old TURNOUT_SERVICE_TOKEN)}" ;;
    postgres_password) echo "${2:-$(old POSTGRES_PASSWORD)}" ;;
    reward_token) old TURNOUT_REWARD_TOKEN; return ;;
    hf_token) old HF_TOKEN; return ;;
    judge_key|tracker) return ;;
    alert_webhook) echo http://127.0.0.1:9/set-me-in-deploy-secrets-alert_webhook; return ;;
    queue_*) echo "redis://${1#queue_}:$(random)@valkey:6379/0"; return ;;
  esac
}
make() {
  local made
  made=$(value "$1" "${2:-}")
  case $1 in reward_token|judge_key|hf_token|tracker) ;; *) [ -n "$made" ] || made=$(random) ;; esac
  put "$1" "$made"
}
database_url() { put database_url "postgresql+psycopg://turnout:$(sed 's/%/%25/g; s/@/%40/g; s/:/%3A/g; s#/#%2F#g' "$folder/postgres_password")@postgres/turnout"; }
names=(api_key read_key service_token postgres_password grafana_password alert_webhook reward_token judge_key hf_token tracker
  queue_rollout queue_verifier queue_learner queue_api queue_operator)

umask 077
mkdir -p "$folder"
chmod 700 "$folder"
if [ "${1:-}" = rotate ]; then
  name=${2:-}
  [[ " ${names[*]} " = *" $name "* ]] || fail "there is no secret '$name'; choose one of ${names[*]}."
  case $name in alert_webhook|reward_token|judge_key|hf_token|tracker) fail "$name comes from elsewhere: write it into deploy/$folder/$name." ;; esac
  make "$name" "$(random)"
  case $name in
    api_key) echo "Restart: api." ;;
    read_key) echo "Restart: api prometheus." ;;
    service_token) echo "Restart: api rollout verifier learner prometheus." ;;
    queue_*) echo "Run queue-users again, then restart: valkey ${name#queue_}." ;;
    grafana_password) echo "Grafana keeps what it has: docker compose -f deploy/compose.yaml exec grafana grafana cli admin reset-admin-password NEW" ;;
    postgres_password) database_url; cat <<'END'
PostgreSQL keeps what it has. Change it there too, then restart: api.
echo "ALTER USER turnout PASSWORD '$(cat deploy/secrets/postgres_password)'" |
  docker compose -f deploy/compose.yaml exec -T postgres psql -h 127.0.0.1 -U turnout
END
    ;;
  esac
  exit
fi
for name in "${names[@]}"; do [ -f "$folder/$name" ] || make "$name"; done
database_url
