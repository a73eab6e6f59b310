#!/bin/bash
set -eu
find store -type f -printf '%s\t%P\n' | sort -nr | head -n 3 > report.txt
find store -type f -empty -delete
