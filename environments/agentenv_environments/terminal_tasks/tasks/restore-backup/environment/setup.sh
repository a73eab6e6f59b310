#!/bin/bash
set -eu
mkdir backups data
for day in 01 02 03 04; do
    echo "state of day $day" > data/state.txt
    seq 1 "$((10#$day * 100))" > data/numbers.txt
    tar -czf "backups/2024-03-$day.tar.gz" data
done
head -c 100 backups/2024-03-04.tar.gz > cut && mv cut backups/2024-03-04.tar.gz
rm -r data
