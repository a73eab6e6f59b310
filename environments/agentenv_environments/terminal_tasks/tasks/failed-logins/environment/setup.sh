#!/bin/bash
set -eu
for i in 1 2 3 4 5; do echo "Jan 10 10:0$i:00 host sshd[$i]: Failed password for root from 10.0.0.9 port 40$i ssh2"; done > auth.log
for i in 1 2 3; do echo "Jan 10 10:1$i:00 host sshd[$i]: Failed password for invalid user bob from 10.0.0.7 port 41$i ssh2"; done >> auth.log
for i in 1 2 3; do echo "Jan 10 10:2$i:00 host sshd[$i]: Failed password for alice from 10.0.0.12 port 42$i ssh2"; done >> auth.log
for i in 1 2; do echo "Jan 10 10:3$i:00 host sshd[$i]: Failed password for alice from 10.0.0.3 port 43$i ssh2"; done >> auth.log
for i in 1 2 3 4; do echo "Jan 10 10:4$i:00 host sshd[$i]: Accepted password for alice from 10.0.0.4 port 44$i ssh2"; done >> auth.log
