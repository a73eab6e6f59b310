#!/bin/bash
# What the script under test may do meanwhile must not matter. So bash has read all of this before it begins, the verdict
# is an exit status, and the reward is written when nothing else is alive any more.
main() {
    reward=0
    if python3 -I /tests/check.py; then reward=1; fi
    kill -9 -1 2>/dev/null
    rm -rf /logs/verifier/reward.json /logs/verifier/reward.txt
    echo "{\"reward\": $reward}" > /logs/verifier/reward.json
    exit 0
}
main
