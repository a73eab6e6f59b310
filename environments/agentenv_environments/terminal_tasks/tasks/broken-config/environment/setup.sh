#!/bin/bash
set -eu
mkdir service
cat > service/config.json <<'END'
{
  "host": "127.0.0.1",
  "port": "8080",
  "tags": ["a", "b",],
  "limits": {"memory": 512, 'files': 64},
  "debug": False
}
END
