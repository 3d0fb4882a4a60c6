"""A run folder and a store of its first attempt."""

from pathlib import Path

import pytest

from electra_dist.checkpoint.store import CheckpointStore
from electra_dist.runtime.attempt import Attempt
from tests.unit.checkpoint.fake_engine import a_store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def store(run: Path) -> CheckpointStore:
    return a_store(Attempt.claim(run))
