#!/bin/bash
. /tests/common.sh
if [ "$(content total.txt)" = 50 ]; then reward=1; else reward=0; fi
echo "{\"reward\": $reward}" > /logs/verifier/reward.json
