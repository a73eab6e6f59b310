#!/bin/bash
grep -v '^grace,' payments.csv > kept.csv
mv kept.csv payments.csv
awk -F, '{ sum += $2 } END { print sum }' payments.csv > total.txt
