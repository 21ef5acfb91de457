#!/usr/bin/env bash
# engine.sh start: where no Docker engine answers, starts a private one from Debian's packages, which it unpacks under
# TRIAL and does not install; needs root. engine.sh stop: ends that engine and removes what it left on the machine.
set -euo pipefail
cd "$(dirname "$0")"
. ./settings.sh

unpack() {
  local debs=$TRIAL/debs package
  command -v iptables >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends iptables >/dev/null
  mkdir -p "$debs"
  (cd "$debs" && release_apt trixie download docker.io docker-cli docker-compose docker-buildx containerd)
  # These two of the machine's own release: others need a newer C library.
  (cd "$debs" && apt-get -qq update && apt-get -qq download runc tini)
  for package in "$debs"/*.deb; do dpkg-deb -x "$package" "$TRIAL/engine"; done
  mkdir -p "$TRIAL/client/cli-plugins" "$TRIAL/run"
  ln -sf "$TRIAL"/engine/usr/libexec/docker/cli-plugins/docker-* "$TRIAL/client/cli-plugins/"
  # With this name in its path the engine hands out NVIDIA's GPUs; this one adds nothing to the containers.
  printf '#!/bin/sh\nexit 0\n' >"$TRIAL/engine/usr/bin/nvidia-container-runtime-hook"
  chmod +x "$TRIAL/engine/usr/bin/nvidia-container-runtime-hook"
}

start() {
  if docker info --format '{{.ServerVersion}}' 2>/dev/null | grep -q '^[0-9]'; then return; fi
  [ "$(id -u)" = 0 ] || { echo "No Docker engine answers, and to start a private one takes root." >&2; exit 1; }
  [ -x "$TRIAL/engine/usr/sbin/dockerd" ] || unpack
  . ./settings.sh
  sysctl -qw net.ipv4.ip_forward=1
  setsid nohup dockerd --host "$DOCKER_HOST" --data-root "$TRIAL/data" --exec-root "$TRIAL/run/exec" --pidfile "$TRIAL/run/docker.pid" \
    --init-path "$TRIAL/engine/usr/bin/tini-static" --userland-proxy-path "$TRIAL/engine/usr/sbin/docker-proxy" \
    >"$TRIAL/run/dockerd.log" 2>&1 &
  for _ in $(seq 120); do docker info >/dev/null 2>&1 && return; sleep 0.5; done
  tail -5 "$TRIAL/run/dockerd.log" >&2
  exit 1
}

# Chains and rules that the engine put into the machine's packet filter.
forget_rules() {
  local tool table rule chain
  for tool in iptables ip6tables; do
    for table in filter nat raw; do
      $tool -w -t $table -S 2>/dev/null | grep -E '^-A (INPUT|FORWARD|PREROUTING|OUTPUT|POSTROUTING) .*(DOCKER|docker0|br-[0-9a-f]{12})' |
        sed 's/^-A/-D/' | while read -r rule; do $tool -w -t $table $rule || true; done
      for verb in F X; do
        for chain in $($tool -w -t $table -S 2>/dev/null | sed -n 's/^-N \(DOCKER.*\)/\1/p'); do $tool -w -t $table -$verb "$chain" || true; done
      done
    done
    $tool -w -P FORWARD ACCEPT 2>/dev/null || true
  done
}

stop() {
  [ -f "$TRIAL/run/docker.pid" ] || return 0
  docker ps -aq | xargs -r docker rm -fv >/dev/null
  docker network prune -f >/dev/null
  kill -TERM "$(cat "$TRIAL/run/docker.pid")"
  for _ in $(seq 60); do [ -f "$TRIAL/run/docker.pid" ] || break; sleep 0.5; done
  ip link delete docker0 2>/dev/null || true
  forget_rules
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  *) echo "engine.sh start|stop" >&2; exit 2 ;;
esac
