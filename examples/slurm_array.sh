#!/bin/bash
# A study as three jobs of SLURM: the tasks of an array extract, those of another compare, and one puts all together.
#
#     STUDY=study.yaml PARTS=16 bash slurm_array.sh submit
#
# Nothing but a folder that all nodes see is needed: no server, no database, no Dask. A task that ran out of time is submitted
# again; what it had finished is kept. Put what your cluster needs (--partition, --account, modules, a virtual environment) where
# it says so below.
#
# Checked: by shellcheck, and its three stages are run task by task in the tests (tests/test_scale.py), by hand in the place of
# SLURM. Not run: sbatch itself; no SLURM was at hand.
#
#SBATCH --job-name=repalign
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --output=repalign-%x-%A_%a.log

set -euo pipefail

STUDY="${STUDY:-study.yaml}"
PARTS="${PARTS:-16}"

# For instance: source venv/bin/activate
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" # the same for all tasks: threads move the last digits

case "${STAGE:-${1:-submit}}" in
submit)
    export STUDY PARTS
    extract=$(STAGE="extract" sbatch --parsable --array="1-$PARTS" "$0")
    compare=$(STAGE="compare" sbatch --parsable --array="1-$PARTS" --dependency="afterok:$extract" "$0")
    join=$(STAGE="join" sbatch --parsable --dependency="afterok:$compare" "$0")
    echo "extract: $extract, compare: $compare, join: $join"
    ;;
extract)
    repalign extract "$STUDY" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
    ;;
compare)
    repalign run "$STUDY" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
    ;;
join)
    repalign run "$STUDY" --part join
    ;;
*)
    echo "STAGE is submit, extract, compare or join" >&2
    exit 2
    ;;
esac
