"""Writing a folder that DeepSpeed loads as a universal checkpoint, at any world size and ZeRO 1-3.

    OUT/latest_universal                             global_stepN_universal
    OUT/global_stepN_universal/zero/<parameter>/{fp32,exp_avg,exp_avg_sq,step}.pt
                               zero/optimizer_state.pt
                               mp_rank_00_model_states.pt                    what ZeRO 1, 2 look for
                               zero_pp_rank_0_mp_rank_00_model_states.pt     the same for ZeRO 3

Rates, betas and weight decay are left out: the engine that loads keeps those of its own config.
(Of what stands there, DeepSpeed's ZeRO-3 would give the first group's to all groups, and so weight
decay to LayerNorm and biases.)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from electra_dist.checkpoint.layout import CorruptCheckpoint
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.errors import UserError
from electra_dist.runtime.files import fsync_folder, write_bytes_atomic

DEEPSPEED_VERSION = "0.19.8"
"""Whose format this is; DeepSpeed refuses files that name no version."""
_FILE_OF = {"master": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


def export_universal(checkpoint: Path, out: Path) -> Path:
    """Write weights and moments of a checkpoint to `out` as DeepSpeed's universal format.

    One tensor is in memory at a time. The folder appears whole or not at all.

    Raises:
        UserError: `out` holds something of that name, or the checkpoint does not verify.
        OSError: the disk did not take it.
    """
    try:
        with CheckpointReader(checkpoint) as reader:
            folder = out / f"global_step{reader.manifest.step}_universal"
            if folder.exists():
                raise UserError(f"{folder} exists already; remove it or give another --out folder")
            temporary = out / f".{folder.name}.tmp-{os.getpid()}"
            try:
                _write(reader, temporary)
                os.rename(temporary, folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; export a checkpoint that verifies") from None
    fsync_folder(out)
    write_bytes_atomic(out / "latest_universal", folder.name.encode())
    return folder


def _write(reader: CheckpointReader, folder: Path) -> None:
    shapes = reader.manifest.parameters
    step = torch.tensor(float(reader.manifest.step))
    for name in shapes:
        place = folder / "zero" / name
        place.mkdir(parents=True)
        for kind, file in _FILE_OF.items():
            value = torch.from_numpy(reader.read_whole(name, kind))
            _save({"param": value}, place / f"{file}.pt")
        _save(step, place / "step.pt")
    # DeepSpeed restores no more groups than it finds here: one a parameter is enough for any
    # grouping.
    groups: list[dict[str, Any]] = [{} for _ in shapes]
    optimizer = {
        "ds_version": DEEPSPEED_VERSION,
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": groups},
    }
    _save(optimizer, folder / "zero" / "optimizer_state.pt")
    model: dict[str, Any] = {
        "module": None,
        "optimizer": None,
        "lr_scheduler": None,
        "buffer_names": [],
        "param_shapes": [{name: torch.Size(shape) for name, shape in shapes.items()}],
        "global_steps": reader.manifest.step,
        "global_samples": reader.state.get("position") or 0,
        "skipped_steps": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {},
        "ds_version": DEEPSPEED_VERSION,
    }
    for file in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        _save(model, folder / file)


def _save(value: Any, path: Path) -> None:
    """torch.save, and on the disk when it returns."""
    with path.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
