#!/bin/bash
total=$(wc -l < requests.log)
errors=$(awk '$3 >= 500' requests.log | wc -l)
printf '{"total": %d, "errors": %d, "busiest": "%s"}\n' "$total" "$errors" "$ROUTE" > report.json
