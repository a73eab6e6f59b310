#!/bin/bash
# All of it is read before any of it runs; what the agent left is looked at, never run, and links are refused.
main() {
    reward=0
    if checked; then reward=1; fi
    echo "$reward" > /logs/verifier/reward.txt
    exit 0
}
checked() {
    [ -f offenders.txt ] && [ ! -L offenders.txt ] || return 1
    [ "$(head -c 200 offenders.txt)" = "$(printf '10.0.0.9\n10.0.0.12\n10.0.0.7')" ]
}
main
