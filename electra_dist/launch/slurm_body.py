"""The parts of a batch script that are the same in each: slurm/pretrain.sbatch has them too."""

CACHES = """\
# Compiled kernels stay on the node: a shared home is slow, and its locks are everybody's.
cache=${scratch:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/electra_dist-$UID
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}"""

LAUNCH = """\
# USR1: the time limit is near. TERM: scancel, or Slurm requeues the job. Both go on to the ranks.
signals=()
launcher=
hand_on() {
    signals+=("$1")
    if [[ -n $launcher ]]; then
        kill -s "$1" "$launcher" 2>/dev/null
    fi
}
trap 'hand_on USR1' USR1
trap 'hand_on TERM' TERM

newest=$(find "$run/attempts" -maxdepth 1 -name '[0-9]*' -printf '%f\\n' 2>/dev/null |
    sort -n | tail -n 1)
electra-dist pretrain "${words[@]}" --launcher srun &
launcher=$!
for signal in "${signals[@]}"; do # came before there was a launcher
    kill -s "$signal" "$launcher" 2>/dev/null
done
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher" # a signal ends the wait, not the launcher
done
wait "$launcher"
code=$?

# Finished, crashed, or again? Decided on RUN/attempts/NNNN/exit.json and on the signals above.
exec electra-dist requeue "$run" --after-attempt "${newest:-0}" --launcher-code "$code" \\
    --signals "${signals[*]}" --max-fruitless "$max_fruitless"
"""
