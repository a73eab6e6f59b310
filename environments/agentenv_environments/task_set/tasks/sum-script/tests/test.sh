#!/bin/bash
# The reward is written last, when nothing that the script under test may have started is alive.
right=$(/usr/bin/env python3 -I /tests/check.py)
kill -9 -1 2>/dev/null
if [ "$right" = "all right" ]; then reward=1; else reward=0; fi
rm -rf /logs/verifier/*
echo "{\"reward\": $reward}" > /logs/verifier/reward.json
echo "$right"
