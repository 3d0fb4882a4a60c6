#!/usr/bin/env bash
# Pretraining on this machine alone: electra-dist starts its ranks itself.
#
#   launchers/local.sh CONFIG.toml --out RUN
#   NPROC=4 launchers/local.sh --recipe small --data.corpus CORPUS --out RUN
#
# NPROC   ranks; default: one for each GPU, or 1
# PYTHON  the interpreter that has electra_dist; default: python
set -euo pipefail

PYTHON="${PYTHON:-python}"
if [[ -z "${NPROC:-}" ]] && command -v nvidia-smi >/dev/null; then
    NPROC="$(nvidia-smi --list-gpus | wc -l)"
fi

exec "$PYTHON" -m electra_dist pretrain "$@" --nproc "${NPROC:-1}"
