#!/bin/bash
awk -F, '{ sum += $2 } END { print sum }' payments.csv > total.txt
