#!/usr/bin/env bash
# The virtual environment of the real atroposlib, which the tests of interoperation and its benchmarks run against.
#
#   scripts/atropos-venv.sh    make it, unless it is there and as described here; does nothing unless CI=true or --force
#
# It is a folder of its own (AGENTENV_ATROPOS_VENV, .venv-atropos by default), so that what atroposlib needs does not mix
# with what we need. On a machine without it those tests skip, and where AGENTENV_REQUIRE_ATROPOS=1 they fail.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${AGENTENV_ATROPOS_VENV:-.venv-atropos}
BASE_PYTHON=${BASE_PYTHON:-python3}
# atroposlib caps nothing, and two of its dependencies have moved on: with transformers 5 a rendered chat template is
# no list of ids any more, and openai after 2.32 refuses the empty API key that it gives by default.
PACKAGES=(atroposlib==0.4.0 'transformers>=4.56,<5' 'openai>=2,<2.33' pytest pytest-asyncio)
STAMP=$VENV/.installed
WANTED=$(printf '%s\n' "${PACKAGES[@]}")

if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$WANTED" ]; then exit 0; fi
if [ "${CI:-}" != true ] && [ "${1:-}" != --force ]; then
    [ -x "$VENV/bin/python" ] ||
        echo "no atroposlib in $VENV; its tests will skip (scripts/atropos-venv.sh --force makes it)"
    exit 0
fi
echo "making $VENV with ${PACKAGES[0]}"
"$BASE_PYTHON" -m venv --clear "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${PACKAGES[@]}"
printf '%s\n' "$WANTED" >"$STAMP"
