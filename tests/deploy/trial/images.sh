#!/usr/bin/env bash
# Where no image registry can be reached: stand-ins from Debian's packages, under the names that deploy/ uses.
set -euo pipefail
cd "$(dirname "$0")"
. ./settings.sh
CA=/etc/ssl/certs/ca-certificates.crt
# Packages are unpacked into the build contexts, so these are copies.
contexts=$TRIAL/images
rm -rf "$contexts"
cp -r images "$contexts"
has() { docker image inspect "$1" >/dev/null 2>&1; }

# A small Debian with what this machine's package clients are told: certificates, mirror, local wheels.
base() { # release, name of the image
  has "$2" && return
  local root=$TRIAL/root-$1
  command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends debootstrap >/dev/null
  debootstrap --variant=minbase --include=ca-certificates "$1" "$root" "$(mirror)" >"$TRIAL/debootstrap-$1.log"
  cp "$CA" "$root$CA"
  cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
  cp /etc/apt/apt.conf.d/99* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
  printf '[global]\ncert = %s\n' "$CA" >"$root/etc/pip.conf"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
  local settings="SSL_CERT_FILE=$CA PIP_CERT=$CA REQUESTS_CA_BUNDLE=$CA PIP_DEFAULT_TIMEOUT=180 UV_HTTP_TIMEOUT=180"
  if [ "$1" = bookworm ] && ls /opt/wheels/torch-*+cpu-*.whl >/dev/null 2>&1; then
    mkdir -p "$root/opt/wheels"
    cp /opt/wheels/torch-*+cpu-*.whl "$root/opt/wheels/"
    settings="$settings PIP_FIND_LINKS=/opt/wheels"
  fi
  tar -C "$root" -c . | docker import --change "ENV $settings" --change 'CMD ["bash"]' - "$2" >/dev/null
  rm -rf "$root"
}

# Debian's Prometheus 3 and its Alertmanager are in a later release; their binaries need nothing but a C library.
monitoring() {
  mkdir -p "$TRIAL/monitoring"
  ls "$TRIAL"/monitoring/*.deb >/dev/null 2>&1 || (cd "$TRIAL/monitoring" && release_apt forky download prometheus prometheus-alertmanager)
  for package in "$TRIAL"/monitoring/prometheus_*.deb; do dpkg-deb -x "$package" "$contexts/prometheus/root"; done
  for package in "$TRIAL"/monitoring/prometheus-alertmanager_*.deb; do dpkg-deb -x "$package" "$contexts/alertmanager/root"; done
}

stand_in() { has "$1" || docker build -q -t "$1" "$contexts/$2" >/dev/null; }

base bookworm debian:bookworm-slim
base trixie turnout-trial/debian
monitoring
# The names stand in deploy/compose.yaml and nowhere else.
sed -n 's/^ *image: \([a-z/]*\):\([a-z0-9.]*\).*/\1:\2/p' ../../../deploy/compose.yaml | grep -v ^turnout | sort -u | while read -r image; do
  name=${image%%:*}
  stand_in "$image" "${name##*/}"
done
docker images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
