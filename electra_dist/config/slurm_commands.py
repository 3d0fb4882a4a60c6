"""Ask Slurm: run one of its commands, read what it prints.

A rank asks when its job ends, a batch script asks for states and requeues, a login node asks what a
job is doing. They live in layers that may not import each other, so what they share is down here.
No answer is never an error: each caller says what it does without one.
"""

import logging
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

ASK_SECONDS = 20.0
"""As long as a busy slurmctld may take to answer."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a Slurm command has said."""

    code: int | None
    """None: it did not answer in time, or is not installed."""
    words: str
    """What it printed; behind that its complaint, unless the code is 0."""

    @property
    def printed(self) -> str:
        """What it printed; nothing if it failed."""
        return self.words if self.code == 0 else ""


Ask = Callable[[Sequence[str]], Answer]


def ask_slurm(words: Sequence[str], seconds: float = ASK_SECONDS) -> Answer:
    """Run sinfo, squeue, scontrol ... with these words."""
    # Sites may have other times by default ("relative"); times are read by `datetime`.
    environ = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            words, env=environ, capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.debug("%s gives no answer (%s)", words[0], error)
        return Answer(code=None, words=str(error))
    complaint = done.stderr if done.returncode else ""
    return Answer(code=done.returncode, words=(done.stdout + complaint).strip())


def job_fields(printed: str) -> dict[str, str]:
    """The fields of `scontrol show job`, those of one word; Command in full, blanks and all."""
    fields = dict(re.findall(r"(?<!\S)([A-Za-z:]+)=(\S*)", printed))
    command = re.search(r"^\s*Command=(.*)$", printed, re.MULTILINE)
    return {**fields, "Command": command[1].strip()} if command else fields
