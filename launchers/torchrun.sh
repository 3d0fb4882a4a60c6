#!/usr/bin/env bash
# Pretraining under torchrun. On several nodes: start it on each of them, with NODE_RANK 0, 1, ...
#
#   NPROC=8 launchers/torchrun.sh CONFIG.toml --out RUN
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 NPROC=8 launchers/torchrun.sh CONFIG.toml --out RUN
#
# NPROC   ranks on a node; default: gpu (one for each GPU; give a number where there is none)
# PYTHON  the interpreter that has electra_dist; default: python
#
# torchrun turns every exit code into 1: read RUN/attempts/NNNN/exit.json for the cause.
# SIGUSR1 is not forwarded unless asked for, and a rank needs longer than 30 s to save:
# SHUTDOWN_SECONDS is how long ranks may take after SIGTERM.
set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" \
    --node-rank "${NODE_RANK:-0}" \
    --nproc-per-node "${NPROC:-gpu}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" \
    --master-port "${MASTER_PORT:-29500}" \
    --max-restarts 0 \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout "${SHUTDOWN_SECONDS:-300}" \
    -m electra_dist pretrain "$@"
