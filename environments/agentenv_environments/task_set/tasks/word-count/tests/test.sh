#!/bin/bash
# AgentRunner's form: a number between 0 and 1 in reward.txt; half of it for the right place, half for the number.
reward=0
if [ -f count.txt ] && [ ! -L count.txt ]; then
    reward=0.5
    if [ "$(head -c 20 count.txt | tr -d '[:space:]')" = 6 ]; then reward=1.0; fi
fi
echo "$reward" > /logs/verifier/reward.txt
