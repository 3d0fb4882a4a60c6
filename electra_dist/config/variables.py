"""Environment variables by which a launcher of ours speaks to the ranks that it starts."""

LAUNCHED = "ELECTRA_DIST_LAUNCHED"
"""When it started them, in seconds since 1970."""

LAUNCH = "ELECTRA_DIST_LAUNCH"
"""A word of its own, by which it knows the attempt that they have claimed."""

END_TIME = "ELECTRA_DIST_END_TIME"
"""The end that --time-limit gave, in seconds since 1970."""

SRUN_FLAGS = "ELECTRA_DIST_SRUN_FLAGS"
"""More words for srun, as a shell would read them: --container-image ..."""

RANK_PROGRAM = "ELECTRA_DIST_RANK_PROGRAM"
"""What starts Python in a rank under srun, as a shell would read it: apptainer exec ... python."""
