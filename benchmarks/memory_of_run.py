"""A process of benchmarks/plan.py: `python memory_of_run.py '{"recipe": ...}'`, a JSON line out.

A model of two narrow layers goes through the same engine first, so that what libraries load and
keep is there before the first look at the resident size.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from electra_dist.checkpoint.store import CheckpointStore  # noqa: E402
from electra_dist.config import files  # noqa: E402
from electra_dist.config.schema import ModelConfig, RunConfig  # noqa: E402
from electra_dist.data.masking import MaskRule, mask_rows  # noqa: E402
from electra_dist.data.stream import MicroBatch  # noqa: E402
from electra_dist.engine.protocol import Engine  # noqa: E402
from electra_dist.runtime.attempt import Attempt  # noqa: E402
from electra_dist.runtime.collectives import ProcessGroups, start_process_group  # noqa: E402
from electra_dist.runtime.world import World  # noqa: E402
from electra_dist.train.build import make_engine  # noqa: E402

CPU = torch.device("cpu")
NUM_STEPS = 2
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def micro_batches(config: RunConfig, step: int) -> list[MicroBatch]:
    """Random rows without padding, with real masks."""
    size, length = config.batch.micro_batch_size, config.data.sequence_length
    rule = MaskRule(
        seed=0,
        mask_prob=config.objective.mask_prob,
        max_masked=config.max_masked,
        mask_id=SPECIAL_IDS["mask"],
        never=tuple(SPECIAL_IDS[role] for role in ("cls", "sep", "mask")),
    )
    made = []
    for index in range(config.batch.num_micro_batches):
        rng = np.random.default_rng([step, index])
        ids_BL = rng.integers(5, config.model.vocab_size or 100, (size, length))
        masks = mask_rows(ids_BL, np.full(size, length), np.arange(size) + index * size, rule)
        made.append(
            MicroBatch(
                step=step,
                index=index,
                is_real=True,
                input_ids_BL=ids_BL,
                masked_ids_BL=masks.masked_ids_BL,
                token_type_ids_BL=np.zeros_like(ids_BL),
                num_tokens_B=np.full(size, length),
                masked_positions_BN=masks.positions_BN,
                masked_weights_BN=masks.weights_BN,
            )
        )
    return made


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS now, VmHWM the most since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def settle() -> None:
    """Give back what is freed, and start a new high-water mark."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def train(config: RunConfig, groups: ProcessGroups) -> tuple[Engine, list[list[MicroBatch]]]:
    """An engine, and the micro-batches of its steps, made before anything is measured."""
    batches = [micro_batches(config, step) for step in range(NUM_STEPS)]
    return make_engine(config, groups.world, CPU, special_ids=SPECIAL_IDS), batches


def measure(config: RunConfig, groups: ProcessGroups, folder: Path) -> dict[str, Any]:
    """Resident bytes that the run adds, and the bytes of its checkpoint's files."""
    narrow = ModelConfig(
        num_layers=2,
        hidden_size=64,
        embedding_size=32,
        generator_num_layers=1,
        generator_hidden_size=64,
        vocab_size=100,
    )
    engine, batches = train(replace(config, model=narrow), groups)
    for batch in batches:
        engine.step(batch, 1e-3)
    engine.close()
    del engine, batches
    batches = [micro_batches(config, step) for step in range(NUM_STEPS)]
    settle()
    before = status("VmRSS")
    engine = make_engine(config, groups.world, CPU, special_ids=SPECIAL_IDS)
    store = CheckpointStore(
        Attempt.claim(folder), groups.control, keep_last=1, commit_timeout_seconds=600
    )
    if config.checkpoint.asynchronous:
        store.prepare(engine)
    for batch in batches:
        engine.step(batch, 1e-3)
    resident = status("VmHWM") - before
    store.save(engine, NUM_STEPS, {"step": NUM_STEPS})
    assert store.wait()
    files = (path for path in (folder / "checkpoints").rglob("*") if path.is_file())
    saved = sum(path.stat().st_size for path in files)
    store.close()
    engine.close()
    return {
        "memory": resident,
        "checkpoint_bytes": saved,
    }


def main() -> None:
    """Measure what the argument says."""
    words = json.loads(sys.argv[1])
    config = files.load(None, words["overrides"], recipe=words["recipe"])
    world = World.from_environment(os.environ)
    groups = start_process_group(world, timeout_seconds=300.0, always=True)
    with tempfile.TemporaryDirectory(dir=words.get("folder")) as folder:
        print(json.dumps(measure(config, groups, Path(folder) / "run")))
    groups.shutdown(graceful=True)


if __name__ == "__main__":
    main()
