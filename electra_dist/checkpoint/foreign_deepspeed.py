"""DeepSpeed's own checkpoints, read without running what stands in them.

    PATH/latest                              names the folder of the newest step
    PATH/global_stepN/mp_rank_00_model_states.pt                  shapes, step (ZeRO 1 and 2)
                      zero_pp_rank_R_mp_rank_00_model_states.pt   the same (ZeRO 3)
                      [bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt   flat fp32 state of rank R
    PATH/global_stepN_universal/zero/<parameter>/{fp32,exp_avg,exp_avg_sq}.pt    universal

These files are pickles. They are opened by torch's restricted reader (`weights_only=True`); the few
classes of DeepSpeed's that it meets become `Inert`, and any other one is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from electra_dist.checkpoint.layout import KINDS
from electra_dist.checkpoint.shard import Piece
from electra_dist.errors import UserError

ALLOWED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""All that DeepSpeed 0.19.8 pickles beside tensors, numbers, strings and containers."""

_RANK_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_FILE_OF = {"master": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


class Inert:
    """Stands in for a class of DeepSpeed's: keeps what was pickled and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@dataclass(frozen=True, kw_only=True)
class ForeignState:
    """What such a folder holds."""

    folder: Path
    step: int
    zero_stage: int | None
    """None of a universal folder."""
    num_ranks: int | None
    shapes: dict[str, tuple[int, ...]]
    fragments: Callable[[str, str], list[Tensor]]
    """(parameter, kind) -> its flat fp32 pieces, in order; read as they are asked for."""

    def pieces(self) -> Iterator[Piece]:
        """Every parameter and kind, whole, one in memory at a time.

        Raises:
            UserError: the folder holds another number of elements than its shapes say.
        """
        for name, shape in self.shapes.items():
            for kind in KINDS:
                values = torch.cat(
                    [t.detach().reshape(-1).float() for t in self.fragments(name, kind)]
                )
                if len(values) != math.prod(shape):
                    raise UserError(
                        f"{self.folder}: {name} has {len(values)} of {math.prod(shape)} elements "
                        f"of its {kind}; copy the folder again, with the files of all ranks"
                    )
                yield Piece(f"{name}/{kind}", 0, values.numpy())


def read_deepspeed(path: Path) -> ForeignState:
    """Look into a folder that DeepSpeed's `save_checkpoint` or its converter has written.

    Args:
        path: the folder given to `save_checkpoint`, or one step's folder in it.

    Raises:
        UserError: there is none, a file is missing or damaged or holds what is not allowed, or it
            is of a kind that is not read (pipeline, tensor or expert parallel, ZeRO 0).
    """
    folder = _step_folder(path)
    try:
        if (folder / "zero").is_dir():
            return _universal(folder)
        ranks = _rank_files(folder)
        states = [load_safely(file)["optimizer_state_dict"] for file in ranks]
        if "fp32_flat_groups" in states[0]:
            return _stage_3(folder, states)
        return _stage_1_or_2(folder, states)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is not laid out as DeepSpeed 0.19 does it ({type(error).__name__}: {error});"
            " convert it with deepspeed.checkpoint.ds_to_universal and import that"
        ) from None


def load_safely(path: Path) -> Any:
    """The content of a .pt file: nothing in it is called, tensors stay on disk until they are read.

    Raises:
        UserError: it holds a class or function that is not allowed, or is damaged.
    """
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        strange = sorted(set(found) - set(ALLOWED))
        if not strange:
            with torch.serialization.safe_globals([(Inert, name) for name in ALLOWED]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged or forged pickle makes of the reader
        words = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as a file of torch.save ({words}); copy it again"
        ) from None
    raise UserError(
        f"{path} holds {strange[0]}, which no checkpoint of DeepSpeed needs and which may run code "
        "when it is unpickled: it was not opened; take a folder that you trust and that DeepSpeed "
        "has written"
    )


def _step_folder(path: Path) -> Path:
    for name in ("latest", "latest_universal"):
        if (path / name).is_file():
            folder = path / (path / name).read_text(encoding="utf-8").strip()
            if not folder.is_dir() or folder.resolve().parent != path.resolve():
                raise UserError(
                    f"{path / name} names {folder.name}, which is no folder in {path}; give the "
                    "folder of the step itself"
                )
            return folder
    if (path / "zero").is_dir() or list(path.glob("*_states.pt")):
        return path
    raise UserError(
        f"{path} is no checkpoint of DeepSpeed: there is no file latest and no *_states.pt in it; "
        "give the folder that save_checkpoint got, or one global_stepN in it"
    )


def _rank_files(folder: Path) -> list[Path]:
    """The optimizer files by rank.

    Raises:
        UserError: there are none, or the run was cut in other ways than over data.
    """
    found = {}
    for path in folder.iterdir():
        match = _RANK_FILE.fullmatch(path.name)
        if match and int(match.group(2)) > 0:
            raise UserError(f"{path} is of a tensor-parallel run; only ZeRO over data is read")
        if match:
            found[int(match.group(1))] = path
    if not found:
        raise UserError(
            f"{folder} holds no zero_pp_rank_*_optim_states.pt; ZeRO 1, 2 and 3 and universal "
            "folders are read"
        )
    if sorted(found) != list(range(len(found))):
        missing = next(rank for rank in range(len(found) + 1) if rank not in found)
        raise UserError(f"{folder} lacks the optim_states.pt of rank {missing}; copy it again")
    return [found[rank] for rank in sorted(found)]


def _model_states(folder: Path) -> dict[str, Any]:
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        if (folder / name).is_file():
            states: dict[str, Any] = load_safely(folder / name)
            if states.get("frozen_param_shapes"):
                raise UserError(f"{folder} holds frozen parameters, which no run of ours has")
            return states
    raise UserError(f"{folder} holds no mp_rank_00_model_states.pt; copy it again")


def _check_num_ranks(folder: Path, expected: int, found: int) -> None:
    if expected != found:
        raise UserError(
            f"{folder} was written by {expected} ranks and holds the files of {found}; copy it "
            "again, with the files of all ranks"
        )


def _stage_1_or_2(folder: Path, states: list[dict[str, Any]]) -> ForeignState:
    """Parameters run on from rank to rank; where each begins in the flat groups is written down."""
    for state in states:
        if isinstance(state["base_optimizer_state"], list):
            raise UserError(f"{folder} is an elastic checkpoint, which DeepSpeed has given up")
    _check_num_ranks(folder, states[0]["partition_count"][0], len(states))
    model = _model_states(folder)
    shapes = {name: tuple(size) for group in model["param_shapes"] for name, size in group.items()}

    def fragments(name: str, kind: str) -> list[Tensor]:
        found = []
        for state in states:
            for group, places in enumerate(state["param_slice_mappings"]):
                if name in places:
                    flat = (
                        state["single_partition_of_fp32_groups"][group]
                        if kind == "master"
                        else state["base_optimizer_state"]["state"][group][kind]
                    )
                    found.append(flat.narrow(0, places[name].start, places[name].numel))
        return found

    return ForeignState(
        folder=folder,
        step=model["global_steps"],
        zero_stage=states[0]["zero_stage"].args[0],
        num_ranks=len(states),
        shapes=shapes,
        fragments=fragments,
    )


def _stage_3(folder: Path, states: list[dict[str, Any]]) -> ForeignState:
    """Every parameter is cut into ceil(n / W) elements a rank, the last piece padded."""
    world_size = len(states)
    _check_num_ranks(folder, states[0]["partition_count"], world_size)
    model = _model_states(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, tuple[int, int]] = {}
    for group, sizes in enumerate(model["param_shapes"]):
        start = 0
        for name, size in sizes.items():
            shapes[name], places[name] = tuple(size), (group, start)
            start += -(-math.prod(size) // world_size)

    def fragments(name: str, kind: str) -> list[Tensor]:
        group, start = places[name]
        size = math.prod(shapes[name])
        piece = -(-size // world_size)
        found = []
        for rank, state in enumerate(states):
            flat = (
                state["fp32_flat_groups"][group]
                if kind == "master"
                else state["optimizer_state_dict"]["state"][group][kind]
            )
            found.append(flat.narrow(0, start, max(0, min(piece, size - rank * piece))))
        return found

    return ForeignState(
        folder=folder,
        step=model["global_steps"],
        zero_stage=3,
        num_ranks=world_size,
        shapes=shapes,
        fragments=fragments,
    )


def _universal(folder: Path) -> ForeignState:
    model = _model_states(folder)
    shapes = {name: tuple(size) for group in model["param_shapes"] for name, size in group.items()}

    def fragments(name: str, kind: str) -> list[Tensor]:
        path = folder / "zero" / name / f"{_FILE_OF[kind]}.pt"
        if not path.is_file():
            raise UserError(f"{path} does not exist; convert the folder again")
        value = load_safely(path)
        return [value["param"] if isinstance(value, dict) else value]

    return ForeignState(
        folder=folder,
        step=model["global_steps"],
        zero_stage=None,
        num_ranks=None,
        shapes=shapes,
        fragments=fragments,
    )
