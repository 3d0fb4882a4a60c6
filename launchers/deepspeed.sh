#!/usr/bin/env bash
# Pretraining under the deepspeed launcher: on this machine, or on the hosts of a hostfile.
#
#   NPROC=8 launchers/deepspeed.sh CONFIG.toml --out RUN
#   HOSTFILE=hosts launchers/deepspeed.sh CONFIG.toml --out /shared/RUN
#
# NPROC        ranks on a node; default: one for each GPU, or what the hostfile says
# HOSTFILE     lines such as "node0 slots=8"; default: this machine only
# NNODES       the first so many hosts of the hostfile; default: all
# LAUNCHER     how it reaches them: pdsh (default, over ssh), openmpi, impi, mpich, slurm
# MASTER_ADDR  rank 0's host; default: the first address that `hostname -I` gives there
#
# Ranks on other hosts get PYTHON*, with GPUs also PATH, LD_LIBRARY* and NCCL*, and the lines
# NAME=VALUE of .deepspeed_env, here or in the home folder. `electra-dist stop RUN` stops a run:
# SIGTERM leaves ranks 30 s, SIGUSR1 kills the launcher. The same with checks: submit deepspeed.
set -euo pipefail

launcher="${LAUNCHER:-pdsh}" port="${MASTER_PORT:-29500}" words=(pretrain "$@")
flags=(--no_local_rank --master_port "$port") # else --local_rank=N comes before our words
program=(--module electra_dist)
[[ -n ${NPROC:-} ]] && flags+=(--num_gpus "$NPROC")
[[ -n ${NNODES:-} ]] && flags+=(--num_nodes "$NNODES")
if [[ -n ${HOSTFILE:-} ]]; then # with one host in it, only --force_multi leaves this machine
    flags+=(--hostfile "$HOSTFILE" --force_multi --launcher "$launcher")
    export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:--o ServerAliveInterval=15 -o ServerAliveCountMax=4}"
fi
[[ -n ${MASTER_ADDR:-} ]] && flags+=(--master_addr "$MASTER_ADDR")
case ${HOSTFILE:+$launcher} in
    openmpi) flags+=("--launcher_args=--bind-to none --mca odls_base_sigkill_timeout 5 -x MASTER_ADDR=${MASTER_ADDR:?} -x MASTER_PORT=$port") ;;
    slurm) flags+=(--no_ssh_check) ;;& # srun needs none; give MASTER_ADDR, else ssh asks for it
    mpich | slurm) program=("$(dirname "$0")/../electra_dist/__main__.py") ;; # they lose --module
    pdsh) # a shell reads the words there; deepspeed itself puts those with a blank in double quotes
        for i in "${!words[@]}"; do
            w="${words[i]//%/%%}" # pdsh replaces %h
            words[i]="$(printf %q "$w")"
            [[ $w == *' '* ]] && w=${w//\\/\\\\} w=${w//\$/\\\$} words[i]=${w//\`/\\\`}
        done ;;
esac
exec deepspeed "${flags[@]}" "${program[@]}" "${words[@]}"
