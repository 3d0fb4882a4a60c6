"""See limits.py."""

from pathlib import Path

import pytest

from tests.cluster.limits import LimitJobs

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm]


def test_six_limits(limit_jobs: LimitJobs) -> None:
    """They have run beside the other tests, from the first one on."""
    limit_jobs.check()


@pytest.mark.slow
def test_forty_limits(tmp_path: Path) -> None:
    with LimitJobs.submitted(tmp_path, 40) as jobs:
        jobs.check()
