"""Environment variables by which a launcher of ours speaks to the ranks that it starts."""

LAUNCHED = "ELECTRA_DIST_LAUNCHED"
"""When it started them, in seconds since 1970."""

LAUNCH = "ELECTRA_DIST_LAUNCH"
"""A word of its own, by which it knows the attempt that they have claimed."""

END_TIME = "ELECTRA_DIST_END_TIME"
"""The end that --time-limit gave, in seconds since 1970."""
