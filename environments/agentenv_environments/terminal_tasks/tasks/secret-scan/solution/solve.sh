#!/bin/bash
set -eu
pattern='password *= *"[^"]*"'
(cd project && grep -rnE "\b$pattern" . | sed -E 's|^\./([^:]*):([0-9]+):.*|\1,\2|' | LC_ALL=C sort -t, -k1,1 -k2,2n) > findings.csv
find project -type f -exec sed -i -E "s/\b$pattern/password = \"REDACTED\"/" {} +
