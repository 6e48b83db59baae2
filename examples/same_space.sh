#!/bin/sh
# Guard of an index in CI: do freshly made vectors lie in the space of the stored ones?
#
#     sh examples/same_space.sh stored.parquet fresh.parquet
#
# Both hold the same texts, 170 or more, by a column `id`: `stored` as they lie in the index, `fresh` as the code of today embeds them.
# Ends with 0 if they do, 3 if they do not (another model, pooling, prefix or precision), 1 if that could not be checked.
repalign migrate "$1" "$2" --require same --json > migrate.json
status=$?
case $status in
  0) echo "same space" ;;
  3) echo "NOT the same space: embed everything again, or go back to the model that made the index" >&2 ;;
  *) echo "could not be checked" >&2 ;;
esac
exit $status
