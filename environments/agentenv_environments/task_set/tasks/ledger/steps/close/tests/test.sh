#!/bin/bash
. /tests/common.sh
reward=0
if [ "$(content total.txt)" = 20 ] && [ "$(content payments.csv)" = "ada,12edsger,8" ]; then reward=1; fi
echo "{\"reward\": $reward}" > /logs/verifier/reward.json
