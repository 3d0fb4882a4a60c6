"""One Slurm for all tests of this folder, and the tiny run that they submit."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import ROOT, SlurmLab, slurm_lab
from tests.made_up import corpus

TINY = """
recipe = "tiny"
[model]
num_layers = 1
hidden_size = 32
embedding_size = 16
generator_num_layers = 1
generator_hidden_size = 16
[data]
corpus = "{corpus}"
sequence_length = 32
[batch]
global_batch_size = 16
micro_batch_size = 4
[schedule]
num_steps = 40
warmup_steps = 4
[engine]
kind = "reference"
zero_stage = 1
threads_per_rank = 1
timeout_seconds = 60.0
[checkpoint]
every_steps = 5
[resilience]
term_grace_seconds = 4.0
end_margin_seconds = 5.0
[metrics]
log_every = 1
eval_every = 1000
tensorboard = false
"""


@pytest.fixture(scope="session")
def slurm_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps of 4 micro-batches."""
    folder = tmp_path_factory.mktemp("slurm")
    path = folder / "tiny.toml"
    path.write_text(TINY.format(corpus=corpus(folder / "made", length=32)))
    return path


@pytest.fixture(scope="session")
def lab() -> Iterator[SlurmLab]:
    """Four idle virtual nodes; tests share them and name the jobs that they look at."""
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",  # virtual nodes have names that nothing resolves
    }
    with slurm_lab(environ) as found:
        yield found
