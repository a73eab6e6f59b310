#!/bin/bash
set -eu
grep 'Failed password' auth.log | sed 's/.* from \([0-9.]*\) port.*/\1/' | sort | uniq -c | awk '$1 >= 3' |
    LC_ALL=C sort -k1,1nr -k2,2 | awk '{print $2}' > offenders.txt
