#!/bin/bash
printf 'ada,12\ngrace,30\nedsger,8\n' > payments.csv
