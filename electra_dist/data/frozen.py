"""Frozen corruption: held-out rows with recorded masks and noise, so that curves of runs compare.

Recorded once, at packing, for one mask probability, single tokens being masked whatever
`objective.masking` a run trains with: the masked rows, one uniform number a slot (each run samples
its own generator with it) and a replacement drawn from the corpus's unigram distribution (the same
for every run). Shapes: R rows, L positions, N masked slots.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from electra_dist.data.hashing import mix64
from electra_dist.data.masking import MaskRule, mask_rows
from electra_dist.data.order import Order
from electra_dist.data.rows import RowReader
from electra_dist.data.store import Array, Corpus, Packing, write_arrays, write_json
from electra_dist.errors import UserError
from electra_dist.runtime.keys import fold

# Keys that never meet those of a training run, whose seeds are below 2**63.
_SEED = 2**63
_UNIFORMS, _UNIGRAM = range(2)
MAX_ROWS = 4096


def freeze(corpus: Corpus, packing: Packing, mask_prob: float = 0.15) -> Path | None:
    """Record up to 4096 held-out rows in the packing's folder; None where no row is held out.

    Raises:
        UserError: `mask_prob` is no share of a row.
    """
    if not 0 < mask_prob < 1:
        raise UserError(f"--mask-prob {mask_prob:g} must be above 0 and below 1; 0.15 is usual")
    reader = RowReader(corpus, packing, "held_out")
    if reader.num_rows == 0:
        return None
    num_rows = min(MAX_ROWS, reader.num_rows)
    positions = np.arange(num_rows, dtype=np.int64)
    rows = reader.read(Order(seed=_SEED, num_samples=reader.num_rows).sample_ids(positions))
    length, special = rows.input_ids_BL.shape[1], corpus.special_ids
    rule = MaskRule(
        seed=_SEED,
        mask_prob=mask_prob,
        max_masked=max(1, int((mask_prob + 0.005) * length)),
        mask_id=special.mask,
        never=(special.cls, special.sep, special.mask),
    )
    masks = mask_rows(rows.input_ids_BL, rows.num_tokens_B, positions, rule)
    arrays: dict[str, Array] = {
        "input_ids": rows.input_ids_BL.astype(np.uint32),
        "masked_ids": masks.masked_ids_BL.astype(np.uint32),
        "token_type_ids": rows.token_type_ids_BL.astype(np.uint8),
        "num_tokens": rows.num_tokens_B,
        "masked_positions": masks.positions_BN.astype(np.uint16),
        "masked_weights": masks.weights_BN,
        "uniforms": _uniforms(masks.positions_BN.shape, _UNIFORMS).astype(np.float32),
        "unigram_ids": _unigram_sample(corpus, masks.positions_BN.shape).astype(np.uint32),
    }
    if rows.block_ids_BL is not None and rows.position_ids_BL is not None:  # mode `packed`
        arrays |= {"block_ids": rows.block_ids_BL, "position_ids": rows.position_ids_BL}
    path = packing.folder / f"frozen_{mask_prob:g}.safetensors"
    record = {"mask_prob": mask_prob, "rows": num_rows, **asdict(write_arrays(path, arrays))}
    # What is on disk now, not what `packing` was opened with: another probability may have come.
    manifest = json.loads((packing.folder / "manifest.json").read_text(encoding="utf-8"))
    others = [r for r in manifest.get("frozen", []) if r["mask_prob"] != mask_prob]
    frozen = sorted([*others, record], key=lambda r: float(r["mask_prob"]))
    write_json(packing.folder / "manifest.json", {**manifest, "frozen": frozen})
    return path


def read_frozen(packing: Packing, mask_prob: float) -> dict[str, Array] | None:
    """The recorded arrays, memory-mapped; None where the corpus holds out no rows.

    Raises:
        UserError: this packing was not frozen at `mask_prob`.
    """
    if not packing.manifest["held_out_examples"]:
        return None
    path = packing.folder / f"frozen_{mask_prob:g}.safetensors"
    records = [r for r in packing.manifest.get("frozen", []) if r["file"] == path.name]
    if not packing.remote:  # what is on disk now: it may have been recorded since `packing` opened
        records = [{"file": path.name}] if path.is_file() else []
    if not records:
        raise UserError(
            f"{path} does not exist: the held-out rows were not recorded at "
            f"objective.mask_prob = {mask_prob:g}; run `electra-dist corpus pack "
            f"{packing.folder.parent} --length {packing.manifest['length']} "
            f"--mode {packing.manifest['mode']} --mask-prob {mask_prob:g}`"
        )
    return packing.arrays(records[0])


def _uniforms(shape: tuple[int, ...], site: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 24 random bits, which float32 holds exactly."""
    counters = np.arange(np.prod(shape), dtype=np.uint64) ^ np.uint64(fold(_SEED, 2, site))
    return ((mix64(counters) >> np.uint64(40)) / 2.0**24).reshape(shape)


def _unigram_sample(corpus: Corpus, shape: tuple[int, ...]) -> Array:
    """Ids drawn from the train split's token frequencies, special tokens left out."""
    counts = corpus.unigram_counts().astype(np.float64)
    counts[list(asdict(corpus.special_ids).values())] = 0.0
    cumulative = counts.cumsum()
    draws = _uniforms(shape, _UNIGRAM) * cumulative[-1]
    ids: Array = np.searchsorted(cumulative, draws, side="right")
    return ids
