#!/bin/bash
set -eu
printf '%s\n' '{"host": "127.0.0.1", "port": 8080, "tags": ["a", "b"], "limits": {"memory": 512, "files": 64}, "debug": false}' > service/config.json
