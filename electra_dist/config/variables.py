"""Environment variables by which a launcher of ours speaks to the ranks that it starts."""

LAUNCHED = "ELECTRA_DIST_LAUNCHED"
"""When it started them, in seconds since 1970."""

LAUNCH = "ELECTRA_DIST_LAUNCH"
"""A word of its own, by which it knows the attempt that they have claimed."""

END_TIME = "ELECTRA_DIST_END_TIME"
"""The end that --time-limit gave, in seconds since 1970."""

RANK_COMMAND = "ELECTRA_DIST_RANK_COMMAND"
"""What each rank is started with in place of `python -m electra_dist`, in the words of a shell:
`apptainer exec --nv electra.sif electra-dist`."""

FAULTS = "ELECTRA_DIST_FAULTS"
"""Faults on purpose, for tests and drills: see electra_dist/resilience/faults.py."""

MISTAKE_FILE = "ELECTRA_DIST_MISTAKE_FILE"
"""Where rank 0 leaves a mistake of the user that it finds before there is an attempt: srun turns
the exit code 2 into 143 as often as not."""
