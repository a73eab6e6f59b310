#!/bin/bash
# All of it is read before any of it runs; what the agent left is looked at, never run, and links are refused.
main() {
    reward=0
    if checked; then reward=1; fi
    echo "$reward" > /logs/verifier/reward.txt
    exit 0
}
checked() {
    [ -f report.txt ] && [ ! -L report.txt ] && [ ! -L store ] || return 1
    [ "$(head -c 300 report.txt)" = "$(printf '7000\t.cache/seven\n6000\ta/b/six thousand\n5000\ta/five')" ] || return 1
    names='.cache/seven|7000 a/b/six thousand|6000 a/five|5000 small|100 '
    [ "$(find store ! -type d -printf '%P|%s\n' | LC_ALL=C sort | tr '\n' ' ')" = "$names" ] || return 1
    [ "$(find store ! -type d ! -type f | wc -l)" = 0 ]
}
main
