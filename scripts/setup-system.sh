#!/usr/bin/env bash
# Install what the sandboxes need from the distribution's packages, or say what to install.
set -euo pipefail

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
[ -x /usr/bin/python3 ] || missing+=(python3)
if ! command -v python3.13 python3.12 python3.11 python3 >/dev/null 2>&1; then missing+=(python3); fi
if [ -x /usr/bin/python3 ] && ! python3 -c 'import ensurepip' 2>/dev/null; then missing+=(python3-venv); fi
# Tests that need these skip without them; continuous integration always has them.
if [ "${CI:-}" = true ]; then
    for program in chromium tmux dockerd:docker.io docker:docker.io debootstrap mkfs.btrfs:btrfs-progs mkfs.xfs:xfsprogs; do
        command -v "${program%%:*}" >/dev/null || missing+=("${program##*:}")
    done
    # The static one: its file is all that is in an image of the tests.
    linked=$(ldd "$(command -v busybox)" 2>&1 || true)
    [[ $linked == *"not a dynamic"* || $linked == *"statically linked"* ]] || missing+=(busybox-static)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "please install: apt-get install ${missing[*]}    (as root), then run this again" >&2
    exit 1
fi
