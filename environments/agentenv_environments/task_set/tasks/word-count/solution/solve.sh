#!/bin/bash
cat texts/*.txt | wc -w | tr -d ' ' > count.txt
