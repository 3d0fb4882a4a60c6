"""One Slurm for all tests of this folder."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from capabilities import CAPABILITIES
from tests.cluster.limits import LimitJobs
from tests.cluster.site import NUM_STEPS, TINY, Site
from tests.cluster.slurm_lab import slurm_lab
from tests.made_up import corpus


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A Slurm of four nodes with four fake GPUs each, shared by all tests."""
    folder = tmp_path_factory.mktemp("slurm")
    config = folder / "tiny.toml"
    made = corpus(folder / "made", length=32, num_documents=60)
    config.write_text(TINY.format(corpus=made, num_steps=NUM_STEPS))
    # A short path: the names of unix sockets end at 107 characters.
    with slurm_lab(Path(tempfile.mkdtemp(prefix="lab")) / "s", num_gpus=4) as lab:
        yield Site(lab, config, folder)


@pytest.fixture(scope="session", autouse=True)
def limit_jobs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LimitJobs | None]:
    """Six jobs that sleep for three minutes: they start with the first test, if they are wanted."""
    is_wanted = any(item.name == "test_six_limits" for item in request.session.items)
    if not (is_wanted and CAPABILITIES["slurm"].is_there()):
        yield None
        return
    with LimitJobs.submitted(tmp_path_factory.mktemp("limits"), 6) as jobs:
        yield jobs
