#!/usr/bin/env bash
# Pretraining under the deepspeed launcher: on this machine, or over ssh on the hosts of a hostfile.
#
#   NPROC=8 launchers/deepspeed.sh CONFIG.toml --out RUN
#   HOSTFILE=hosts MASTER_ADDR=node0 launchers/deepspeed.sh CONFIG.toml --out RUN
#
# NPROC     ranks on a node; default: one for each GPU
# HOSTFILE  lines such as "node0 slots=8"; default: this machine only
# NNODES    the first so many hosts of the hostfile; default: all
#
# --no_local_rank: without it the launcher puts --local_rank=N before our arguments.
# Its signals: SIGTERM ends the ranks at once and SIGUSR1 kills it. To stop a run: electra-dist stop.
set -euo pipefail

flags=(--no_local_rank --module --master_port "${MASTER_PORT:-29500}")
if [[ -n "${HOSTFILE:-}" ]]; then
    flags+=(--hostfile "$HOSTFILE" --num_nodes "${NNODES:--1}")
fi
if [[ -n "${MASTER_ADDR:-}" ]]; then
    flags+=(--master_addr "$MASTER_ADDR")
fi
if [[ -n "${NPROC:-}" ]]; then
    flags+=(--num_gpus "$NPROC")
fi

exec deepspeed "${flags[@]}" electra_dist pretrain "$@"
