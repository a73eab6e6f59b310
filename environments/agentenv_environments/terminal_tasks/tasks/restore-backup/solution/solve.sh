#!/bin/bash
set -eu
for backup in $(ls -r backups); do
    if gzip -t "backups/$backup" 2>/dev/null; then
        mkdir restored
        tar -xzf "backups/$backup" -C restored
        echo "$backup" > restored/SOURCE
        break
    fi
done
