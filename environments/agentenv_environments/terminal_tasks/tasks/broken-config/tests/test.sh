#!/bin/bash
# All of it is read before any of it runs; what the agent left is looked at, never run, and links are refused.
main() {
    reward=0
    if checked; then reward=1; fi
    echo "$reward" > /logs/verifier/reward.txt
    exit 0
}
checked() {
    [ -f service/config.json ] && [ ! -L service/config.json ] || return 1
    python3 -I -S - <<'END'
import json, sys
expected = {"host": "127.0.0.1", "port": 8080, "tags": ["a", "b"], "limits": {"memory": 512, "files": 64}, "debug": False}
try:
    with open("service/config.json", encoding="utf-8") as file:
        found = json.loads(file.read(10_000))
except (OSError, ValueError, RecursionError):
    sys.exit(1)
sys.exit(json.dumps(found, sort_keys=True) != json.dumps(expected, sort_keys=True))
END
}
main
