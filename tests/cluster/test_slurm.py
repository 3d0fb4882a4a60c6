"""Job scripts and the command line in a real Slurm of four virtual nodes."""

import json
from pathlib import Path

import pytest

from tests.cluster.conftest import Site

pytestmark = [pytest.mark.cluster, pytest.mark.needs_slurm]


def test_a_job_trains_to_the_end_as_without_slurm(site: Site, tmp_path: Path) -> None:
    """2 nodes of 2 ranks, slurm/pretrain.sbatch as it is."""
    run = tmp_path / "run"
    job = site.submit(run, tasks=2)
    site.finished(job, run, attempts=1, tasks=2)
    facts = json.loads((run / "environment.json").read_text())
    assert (facts["launcher"], facts["world_size"]) == ("slurm", 4)
