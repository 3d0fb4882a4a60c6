"""One rank's part of a restore: its ranges are checked before the engine is touched, then copied.

Nothing is staged between the two: the checkpoint is read again, from the page cache as a rule, so
that a restore needs a few MiB of memory whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from electra_dist.checkpoint.reshard import CheckpointReader, Wanted
from electra_dist.engine.protocol import Fragment
from electra_dist.errors import UserError

STAGING_ELEMENTS = 16 << 20
"""64 MiB of host memory, through which state on a device is filled."""


def require_same_model(reader: CheckpointReader, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError if the checkpoint is of other parameters than these."""
    saved = {name: tuple(shape) for name, shape in reader.manifest.parameters.items()}
    if saved != shapes:
        name = min(n for n in {*saved, *shapes} if saved.get(n) != shapes.get(n))
        raise UserError(
            f"{reader.folder} holds another model: {name} has shape {saved.get(name)} there and "
            f"{shapes.get(name)} here"
        )


def check(reader: CheckpointReader, fragments: Iterable[Fragment]) -> None:
    """Check every block that holds a part of the fragments; the engine is not touched.

    Raises:
        CorruptCheckpoint: one is damaged or missing.
    """
    reader.check(
        Wanted(f"{f.parameter}/{f.kind}", f.start, f.start + len(f.values)) for f in fragments
    )


def fill(reader: CheckpointReader, fragments: Iterable[Fragment]) -> None:
    """Write the checkpoint's values into the engine's fragments.

    Raises:
        CorruptCheckpoint: a block has been damaged since `check`; some fragments are filled.
    """
    everything = list(fragments)
    on_host = [f for f in everything if f.values.device.type == "cpu"]
    reader.fill(_into(f, f.values.numpy()) for f in on_host)
    fill_through_host(reader, [f for f in everything if f.values.device.type != "cpu"])


def fill_through_host(reader: CheckpointReader, fragments: Sequence[Fragment]) -> None:
    """`fill` for state that only torch can write to: in batches, through one buffer."""
    num_elements = sum(len(f.values) for f in fragments)
    buffer = np.empty(min(num_elements, STAGING_ELEMENTS), dtype="<f4")
    for batch in _batches(fragments, STAGING_ELEMENTS):
        ends = np.cumsum([len(f.values) for f in batch])[:-1]
        parts = np.split(buffer[: sum(len(f.values) for f in batch)], ends)
        reader.fill(_into(f, part) for f, part in zip(batch, parts, strict=True))
        for fragment, part in zip(batch, parts, strict=True):
            fragment.values.copy_(torch.from_numpy(part))


def _into(fragment: Fragment, target: np.ndarray) -> Wanted:
    name, stop = f"{fragment.parameter}/{fragment.kind}", fragment.start + len(fragment.values)
    return Wanted(name, fragment.start, stop, target)


def _batches(fragments: Iterable[Fragment], num_elements: int) -> Iterator[list[Fragment]]:
    """The fragments, cut where a batch of so many elements is full."""
    batch, room = [], num_elements
    for whole in fragments:
        rest = whole
        while len(rest.values):
            part = rest._replace(values=rest.values[:room])
            taken = len(part.values)
            batch.append(part)
            rest = rest._replace(start=rest.start + taken, values=rest.values[taken:])
            room -= taken
            if room == 0:
                yield batch
                batch, room = [], num_elements
    if batch:
        yield batch
