#!/bin/bash
# All of it is read before any of it runs; what the agent left is looked at, never run, and links are refused.
main() {
    reward=0
    if checked; then reward=1; fi
    echo "$reward" > /logs/verifier/reward.txt
    exit 0
}
checked() {
    [ -d photos ] && [ ! -L photos ] || return 1
    expected='2020-12-24_017.jpg 2021-11-03_001.jpg 2021-11-03_002.jpg 2022-01-01_100.jpg notes.txt '
    [ "$(cd photos && find . -mindepth 1 -type f -printf '%P\n' | LC_ALL=C sort | tr '\n' ' ')" = "$expected" ] || return 1
    [ "$(find photos -mindepth 1 ! -type f | wc -l)" = 0 ] || return 1
    [ "$(head -c 100 photos/2020-12-24_017.jpg)" = 'picture 24-12-2020_017' ] || return 1
    [ "$(head -c 100 photos/2021-11-03_001.jpg)" = 'picture 03-11-2021_001' ] || return 1
    [ "$(head -c 100 photos/2021-11-03_002.jpg)" = 'picture 03-11-2021_002' ] || return 1
    [ "$(head -c 100 photos/2022-01-01_100.jpg)" = 'picture 01-01-2022_100' ] || return 1
    [ "$(head -c 100 photos/notes.txt)" = 'keep me' ]
}
main
