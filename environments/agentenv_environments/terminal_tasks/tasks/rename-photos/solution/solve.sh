#!/bin/bash
set -eu
for path in photos/IMG_*.jpg; do
    name=${path#photos/IMG_}
    date=${name%%_*}
    mv "$path" "photos/${date:6:4}-${date:3:2}-${date:0:2}_${name#*_}"
done
