#!/usr/bin/env bash
# Pretraining under Open MPI's mpirun: on this machine, or over ssh on several hosts.
#
#   NPROC=2 launchers/mpirun.sh CONFIG.toml --out RUN
#   HOSTS=node0:8,node1:8 MASTER_ADDR=node0 NPROC=16 launchers/mpirun.sh CONFIG.toml --out RUN
#
# NPROC         ranks in all; default: 2
# HOSTS         hosts and their slots; default: this machine only
# MASTER_ADDR   host of rank 0, needed with HOSTS: MPI does not tell the ranks where rank 0 is
# MPIRUN_FLAGS  more flags, separated by blanks: "--oversubscribe -x NCCL_SOCKET_IFNAME=eth0"
# PYTHON        the interpreter that has electra_dist, on all hosts; default: python
#
# --bind-to none: mpirun would bind each rank to one core, and its threads with it.
# odls_base_sigkill_timeout: when one rank has left, the others have 10 s and not 2. To stop a run:
# electra-dist stop RUN, or SIGUSR1 to mpirun, which hands it on; SIGTERM kills ranks as early.
set -euo pipefail

read -r -a flags <<<"${MPIRUN_FLAGS:-}"
flags+=(-np "${NPROC:-2}" --bind-to none --mca odls_base_sigkill_timeout 5)
if [[ -n "${HOSTS:-}" ]]; then
    flags+=(--host "$HOSTS" -x "MASTER_ADDR=${MASTER_ADDR:?set it to the host of rank 0}")
fi
if [[ -n "${MASTER_PORT:-}" ]]; then
    flags+=(-x "MASTER_PORT=$MASTER_PORT")
fi
if [[ -n "${PYTHONPATH:-}" ]]; then
    flags+=(-x "PYTHONPATH=$PYTHONPATH")
fi
python="$(command -v "${PYTHON:-python}")" # whole: ssh takes no PATH along

exec mpirun "${flags[@]}" "$python" -m electra_dist pretrain "$@"
