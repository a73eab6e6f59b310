#!/bin/bash
set -eu
mkdir photos
for stamp in 03-11-2021_001 03-11-2021_002 24-12-2020_017 01-01-2022_100; do echo "picture $stamp" > "photos/IMG_$stamp.jpg"; done
echo 'keep me' > photos/notes.txt
