"""The two kinds of failure that the command line tells apart."""


class UserError(Exception):
    """The user's mistake: shown as one sentence, without a trace; the exit code is 2.

    The message names the field or file, the value found, the rule it breaks and what to do instead.
    """


class Superseded(Exception):
    """A later attempt has claimed this run folder: this process must write no more, and leave."""
