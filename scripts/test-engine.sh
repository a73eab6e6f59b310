#!/usr/bin/env bash
# The Docker engine and the image that the tests of the Docker backend use.
#
#   scripts/test-engine.sh start    an engine that answers, and the image in it; starts an engine where CI=true
#   scripts/test-engine.sh stop     end the engine that `start` has started
#
# On a machine without an engine `start` says so and the tests skip. Where CI=true it installs and starts one, and a
# test that would skip fails.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${AGENTENV_TEST_IMAGE:-agentenv-test:debian12}
STATE=.test-engine
PACKAGES=python3,tmux,less,vim-tiny,procps

answers() { timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

start_engine() {
    mkdir -p "$STATE"
    echo "starting a Docker engine"
    setsid dockerd >"$STATE/dockerd.log" 2>&1 &
    echo $! >"$STATE/dockerd.pid"
    for _ in $(seq 60); do
        answers && return
        kill -0 "$(cat "$STATE/dockerd.pid")" 2>/dev/null || break
        sleep 1
    done
    echo "the Docker engine did not start; the end of its log:" >&2
    tail -n 20 "$STATE/dockerd.log" >&2
    exit 1
}

build_image() {
    docker image inspect "$IMAGE" >/dev/null 2>&1 && return
    if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
        echo "no image $IMAGE: it is made by root with debootstrap; tests that need it will skip"
        return
    fi
    echo "making the image $IMAGE"
    local root
    root=$(mktemp -d)
    # shellcheck disable=SC2064 - the folder of now
    trap "rm -rf '$root'" EXIT
    debootstrap --variant=minbase --include="$PACKAGES" bookworm "$root/fs" >"$root/log" 2>&1 ||
        { tail -n 20 "$root/log" >&2; exit 1; }
    rm -rf "$root"/fs/var/cache/apt/archives/*.deb "$root"/fs/var/lib/apt/lists/*
    tar -C "$root/fs" -c . | docker import - "$IMAGE" >/dev/null
}

case "${1:-}" in
start)
    if ! answers; then
        [ "${CI:-}" = true ] || { echo "no Docker engine answers; its tests will skip"; exit 0; }
        start_engine
    fi
    build_image
    ;;
stop)
    [ -f "$STATE/dockerd.pid" ] || exit 0
    pid=$(cat "$STATE/dockerd.pid")
    rm -f "$STATE/dockerd.pid"
    kill "$pid" 2>/dev/null || exit 0
    for _ in $(seq 30); do kill -0 "$pid" 2>/dev/null || exit 0; sleep 1; done
    kill -9 "$pid"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
