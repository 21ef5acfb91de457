#!/usr/bin/env bash
# Writes the lock files from pyproject.toml. Run it after changing dependencies; review the difference; commit both.
# Pins that still fit stay as they are; `UPGRADE=1` takes the newest of everything.
# Locks name no index, and torch without its local version, so the same file serves CPU and CUDA builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${UV:-.venv/bin/uv}
options=(--quiet --no-annotate --no-header --override deploy/requirements/overrides.txt)
compile() { # name, extras and constraints...
  local name=$1
  shift
  local lock=deploy/requirements/$name.lock new
  new=$(mktemp)
  if [ -z "${UPGRADE:-}" ] && [ -f "$lock" ]; then cp "$lock" "$new"; fi
  "$uv" pip compile "${options[@]}" --python-version 3.11 --constraint deploy/requirements/constraints.txt \
    --output-file "$new" pyproject.toml "$@" >/dev/null
  sed 's/+cpu$//' "$new" >"$lock"
  rm "$new"
  echo "$name: $(wc -l <"$lock") packages"
}
# torch's build for CPUs comes from local wheels that pip knows of, elsewhere from uv's own option (as in install.sh).
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
cpu=()
if [ -z "$links" ]; then cpu=(--torch-backend cpu); fi
export UV_FIND_LINKS=${links// /,}
compile dev --extra cpu --extra dev "${cpu[@]}"
compile cpu --extra cpu --constraint deploy/requirements/dev.lock "${cpu[@]}"
compile core --constraint deploy/requirements/dev.lock # API and verifier: no torch
UV_FIND_LINKS='' compile gpu --extra gpu
# The GPU image has Python 3.12: the same pins must fit there.
UV_FIND_LINKS='' "$uv" pip compile "${options[@]}" --python-version 3.12 deploy/requirements/gpu.lock >/dev/null
