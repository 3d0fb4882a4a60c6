"""For every suite: the environment of a run, and what happens where the machine lacks something."""

import os

import pytest
from hypothesis import settings

from capabilities import CAPABILITIES, required

# Set before any test module imports torch or transformers. One thread a process, because the suites
# start several processes on few cores; no hub, because no test may depend on a network.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
}.items():
    os.environ.setdefault(_name, _value)

# Variables of a launcher around the tests would make every process under test believe it is a rank.
for _name in [
    name
    for name in os.environ
    if name
    in {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    or name.startswith(("SLURM_", "OMPI_COMM_WORLD_", "PMIX_"))
]:
    del os.environ[_name]

# No deadline, which would be an assertion on wall time; the same examples in every run.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_configure() -> None:
    """Refuse a misspelt REQUIRE before anything runs: it would require nothing, in silence."""
    try:
        required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose `needs_<capability>` is missing, or fail it where REQUIRE names that."""
    for capability in CAPABILITIES.values():
        if item.get_closest_marker(f"needs_{capability.name}") is None or capability.is_there():
            continue
        reason = f"{capability.what}; to enable: {capability.remedy}"
        if capability.name in required():
            pytest.fail(f"REQUIRE={capability.name}, but {reason}", pytrace=False)
        pytest.skip(reason)
