#!/bin/bash
set -eu
mkdir -p project/app/deep project/docs
printf 'import os\nuser = "root"\npassword = "hunter2"\n' > project/app/settings.py
printf '[db]\nhost = "db"\npassword="s3cret"\nport = 1\npassword   =   "again"\n' > project/app/deep/db.ini
printf 'The password is kept elsewhere.\npasswords = "many"\n' > project/docs/readme.md
