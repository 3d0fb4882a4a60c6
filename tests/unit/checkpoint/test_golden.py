"""Checkpoints that earlier versions wrote, kept as files: this version reads them."""

import shutil
from pathlib import Path

import pytest

from electra_dist.checkpoint.layout import FORMAT_VERSION, CorruptCheckpoint
from electra_dist.checkpoint.reshard import CheckpointReader, differences
from electra_dist.runtime.attempt import Attempt
from tests.unit.checkpoint.fake_engine import DictEngine, a_store, damage, names, restored

GOLDEN = Path(__file__).parent / "golden"
STATE = {"step": 40, "position": 1280, "loss_scale": None}


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_a_checkpoint_of_each_format_version_is_read(version: int, run: Path) -> None:
    """Two ranks wrote `DictEngine(7)`; the file is never made anew."""
    folder = run / "checkpoints/step_00000040"
    shutil.copytree(GOLDEN / f"version_{version}/step_00000040", folder)
    with CheckpointReader(folder) as reader:
        assert reader.manifest.format_version == version
        assert len(reader.manifest.shards) == 2
        reader.verify()
    engine, state = restored(a_store(Attempt.claim(run)))
    assert state == STATE
    assert engine.equals(7)
    assert differences(GOLDEN / "version_1/step_00000040", folder) == []
    damage(run, 40)
    with pytest.raises(CorruptCheckpoint), CheckpointReader(folder) as reader:
        reader.verify()


def test_this_version_writes_the_golden_files(run: Path) -> None:
    attempt = Attempt.claim(run)
    for rank in (1, 0):
        store = a_store(attempt, rank=rank, ranks=2)
        store.save(DictEngine(7, rank=rank, ranks=2), 40, STATE)
        assert store.wait()
        store.close()
    assert names(run) == ["step_00000040"]
    golden = GOLDEN / f"version_{FORMAT_VERSION}/step_00000040"
    written = {p.name: p.read_bytes() for p in (run / "checkpoints/step_00000040").iterdir()}
    assert written == {p.name: p.read_bytes() for p in golden.iterdir()}
