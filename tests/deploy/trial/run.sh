#!/usr/bin/env bash
# From a clean machine to a verdict: an engine, images, the trial (`make test-deploy`). Takes the machine's own Docker
# engine where one answers, else a private one, which needs root, Debian and 20 GB under TRIAL.
set -uo pipefail
cd "$(dirname "$0")"
. ./settings.sh
mkdir -p "$TRIAL"
./engine.sh start || exit 1
. ./settings.sh
docker version --format 'Docker engine {{.Server.Version}}'
docker pull -q debian:bookworm-slim >/dev/null 2>&1 || ./images.sh || exit 1
"${PYTHON:-python3}" trial.py "$@"
code=$?
./engine.sh stop
exit $code
