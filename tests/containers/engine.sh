#!/usr/bin/env bash
# A Docker engine and a base image for the container tests, on a Debian machine (root, no init system) that has neither.
#   engine.sh up      packages, daemon, base image; the last line is the engine's address
#   engine.sh base    the base image alone, in the engine that DOCKER_HOST names
#   engine.sh down    ends the daemon of `up`; its data stays in the cache
# Everything lies in ${XDG_CACHE_HOME:-~/.cache}/tuneship-engine. Packages come from wherever apt is configured to find them.
set -euo pipefail

STATE=${XDG_CACHE_HOME:-$HOME/.cache}/tuneship-engine
SOCKET=unix://$STATE/docker.sock
BASE_IMAGE=${BASE_IMAGE:-tuneship-test/python:3.11-bookworm}
APT=(apt-get -qq -o=Dpkg::Use-Pty=0)
export DEBIAN_FRONTEND=noninteractive

say() { printf '[%3d s] %s\n' "$SECONDS" "$*" >&2; }

complete() { command -v dockerd && docker buildx version && docker compose version; } >/dev/null 2>&1

install_engine() {
  complete && return
  say "packages of the engine"
  "${APT[@]}" update
  "${APT[@]}" install -y --no-install-recommends containerd runc iptables tini
  # shellcheck source=/dev/null
  if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
    install_from_next_release docker.io docker-cli docker-buildx docker-compose
  else
    "${APT[@]}" install -y --no-install-recommends docker.io docker-cli docker-buildx docker-compose
  fi
  hash -r
  complete || { say "the packages are there, and docker with buildx and compose is not"; exit 1; }
}

# Bookworm has no compose plugin. Those packages of the next release need no newer libraries than bookworm's.
install_from_next_release() {
  local apt=$STATE/apt mirror
  # shellcheck disable=SC2016  # $(SITE) is apt's
  mirror=$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' | sort -u | head -n 1)
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/packages"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$apt/sources.list"
  local options=(-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
    -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/nonexistent)
  "${APT[@]}" "${options[@]}" update
  (cd "$apt/packages" && rm -f ./*.deb && "${APT[@]}" "${options[@]}" download "$@")
  "${APT[@]}" install -y --no-install-recommends "$apt"/packages/*.deb
}

answers() { docker --host "$SOCKET" version >/dev/null 2>&1; }

# what a daemon that was killed leaves behind makes the next one fail
sweep() {
  awk -v below="$STATE/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r -n 1 umount -l
  rm -rf "$STATE/exec" "$STATE/docker.pid"
}

start_daemon() {
  answers && return
  say "dockerd"
  sweep
  setsid dockerd --host "$SOCKET" --data-root "$STATE/data" --exec-root "$STATE/exec" --pidfile "$STATE/docker.pid" \
    >"$STATE/dockerd.log" 2>&1 </dev/null &
  for _ in $(seq 240); do
    answers && return
    sleep 0.25
  done
  say "dockerd does not answer; its last words:"
  tail -n 15 "$STATE/dockerd.log" >&2
  exit 1
}

# Debian's own Python in the smallest Debian, with this machine's trusted certificates: what python:3.11-slim-bookworm is
# where images can be pulled.
make_base_image() {
  docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 && return
  say "base image $BASE_IMAGE"
  command -v mmdebstrap >/dev/null || "${APT[@]}" install -y --no-install-recommends mmdebstrap
  local sources=/etc/apt/sources.list.d/debian.sources archive=$STATE/base.tar
  [ -f "$sources" ] || sources=/etc/apt/sources.list
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv \
    --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs' \
    bookworm "$archive" "$sources"
  docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin' \
    --change 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' "$archive" "$BASE_IMAGE" >/dev/null
  rm -f "$archive"
}

stop_daemon() {
  if [ -f "$STATE/docker.pid" ]; then
    local pid
    pid=$(cat "$STATE/docker.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
  fi
  sweep
}

mkdir -p "$STATE"
case ${1:-} in
  up)
    install_engine
    start_daemon
    export DOCKER_HOST=$SOCKET
    make_base_image
    say "ready"
    echo "$SOCKET"
    ;;
  base) make_base_image ;;
  down) stop_daemon ;;
  *)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
