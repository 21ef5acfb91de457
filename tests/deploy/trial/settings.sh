# Sourced by the scripts of the trial. Everything that they make is under TRIAL; an engine of the machine is never touched
# beyond the project "turnout-trial".
TRIAL=${TRIAL:-${TMPDIR:-/var/tmp}/turnout-trial}
export TRIAL
if [ -x "$TRIAL/engine/usr/sbin/dockerd" ]; then
  export PATH=$TRIAL/engine/usr/bin:$TRIAL/engine/usr/sbin:$PATH
  export DOCKER_HOST=unix://$TRIAL/run/docker.sock DOCKER_CONFIG=$TRIAL/client
fi
# The package mirror that this machine's own apt uses.
mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v -e security -e file: | sort -u | head -n 1; }
# An apt of another Debian release, for downloads only: release_apt trixie update
release_apt() {
  local release=$1 room=$TRIAL/apt/$1
  shift
  if [ ! -f "$room/apt.conf" ]; then
    mkdir -p "$room/lists/partial" "$room/cache/archives/partial"
    : >"$room/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $release main" >"$room/sources.list"
    printf '%s "%s";\n' Dir::Etc::SourceList "$room/sources.list" Dir::Etc::SourceParts /dev/null Dir::State::Lists "$room/lists" \
      Dir::State::Status "$room/status" Dir::Cache "$room/cache" >"$room/apt.conf"
    apt-get -c "$room/apt.conf" -qq update
  fi
  apt-get -c "$room/apt.conf" -qq "$@"
}
