#!/bin/bash
# All of it is read before any of it runs; what the agent left is looked at, never run, and links are refused.
main() {
    reward=0
    if checked; then reward=1; fi
    echo "$reward" > /logs/verifier/reward.txt
    exit 0
}
checked() {
    [ -d restored/data ] && [ ! -L restored ] && [ ! -L restored/data ] || return 1
    [ "$(find restored -mindepth 1 ! -type f ! -path restored/data | wc -l)" = 0 ] || return 1
    names='SOURCE data/numbers.txt data/state.txt '
    [ "$(find restored -type f -printf '%P\n' | LC_ALL=C sort | tr '\n' ' ')" = "$names" ] || return 1
    [ "$(head -c 100 restored/SOURCE)" = 2024-03-03.tar.gz ] || return 1
    [ "$(head -c 100 restored/data/state.txt)" = 'state of day 03' ] || return 1
    [ "$(sha256sum < restored/data/numbers.txt)" = "$(seq 1 300 | sha256sum)" ] || return 1
    [ "$(find backups -type f | wc -l)" = 4 ] && [ "$(stat -c %s backups/2024-03-04.tar.gz)" = 100 ]
}
main
