#!/bin/bash
set -eu
mkdir -p store/a/b store/.cache
head -c 5000 /dev/zero > store/a/five
head -c 7000 /dev/zero > store/.cache/seven
head -c 100 /dev/zero > store/small
head -c 6000 /dev/zero > "store/a/b/six thousand"
: > store/empty
: > store/a/b/.nothing
