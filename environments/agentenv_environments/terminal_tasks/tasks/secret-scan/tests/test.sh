#!/bin/bash
# All of it is read before any of it runs; what the agent left is looked at, never run, and links are refused.
main() {
    reward=0
    if checked; then reward=1; fi
    echo "$reward" > /logs/verifier/reward.txt
    exit 0
}
checked() {
    [ -f findings.csv ] && [ ! -L findings.csv ] && [ ! -L project ] || return 1
    [ "$(head -c 300 findings.csv)" = "$(printf 'app/deep/db.ini,3\napp/deep/db.ini,5\napp/settings.py,3')" ] || return 1
    names='app/deep/db.ini app/settings.py docs/readme.md '
    [ "$(find project ! -type d -printf '%P\n' | LC_ALL=C sort | tr '\n' ' ')" = "$names" ] || return 1
    [ "$(find project ! -type d ! -type f | wc -l)" = 0 ] || return 1
    r='password = "REDACTED"'
    [ "$(head -c 300 project/app/settings.py)" = "$(printf 'import os\nuser = "root"\n%s' "$r")" ] || return 1
    [ "$(head -c 300 project/app/deep/db.ini)" = "$(printf '[db]\nhost = "db"\n%s\nport = 1\n%s' "$r" "$r")" ] || return 1
    [ "$(head -c 300 project/docs/readme.md)" = "$(printf 'The password is kept elsewhere.\npasswords = "many"')" ]
}
main
