#!/bin/bash
printf '%s\n' 's=0' 'for n; do s=$((s + n)); done' 'echo $s' > sum.sh
