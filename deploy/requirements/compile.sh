#!/usr/bin/env bash
# Writes the lock files from pyproject.toml. Run it after changing dependencies; review the difference; commit both.
# Locks name no index, and torch without its local version, so the same file serves CPU and CUDA builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${UV:-.venv/bin/uv}
compile() { # name, extras and constraints...
  local name=$1
  shift
  "$uv" pip compile --quiet --python-version 3.11 --no-annotate --no-header \
    --override deploy/requirements/overrides.txt pyproject.toml "$@" |
    sed 's/+cpu$//' >"deploy/requirements/$name.lock.new"
  mv "deploy/requirements/$name.lock.new" "deploy/requirements/$name.lock"
  echo "$name: $(wc -l <"deploy/requirements/$name.lock") packages"
}
compile dev --extra cpu --extra dev
compile cpu --extra cpu --constraint deploy/requirements/dev.lock
UV_FIND_LINKS='' compile gpu --extra gpu
