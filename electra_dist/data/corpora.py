"""The corpora that a run reads: one, or several blended by weight.

Row ids run through the corpora in the config's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from electra_dist.config.schema import DataConfig, RunConfig
from electra_dist.data.blend import make_blend
from electra_dist.data.frozen import read_frozen
from electra_dist.data.order import Order
from electra_dist.data.remote import Cache
from electra_dist.data.rows import RowReader, Rows
from electra_dist.data.store import Array, Corpus, Packing, fingerprint_of
from electra_dist.errors import UserError


def open_corpora(data: DataConfig) -> list[Corpus]:
    """Open what `data.corpus` or `data.blend` names.

    Raises:
        UserError: neither is set, or a folder is no whole corpus.
    """
    if not data.folders:
        raise UserError(
            "data.corpus is not set; give --data.corpus CORPUS, "
            "a folder made by `electra-dist corpus build`"
        )
    cache = Cache.at(data.cache_dir, data.cache_bytes)
    return [Corpus.open(folder, cache) for folder in data.folders]


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """Opened corpora and their packings at one length, in the order of the config."""

    corpora: tuple[Corpus, ...]
    packings: tuple[Packing, ...]
    weights: tuple[int, ...]

    @classmethod
    def open(cls, data: DataConfig) -> Corpora:
        """Open what `data` names, and the packings it asks for.

        Raises:
            UserError: as `open_corpora` and `of`.
        """
        return cls.of(data, open_corpora(data))

    @classmethod
    def of(cls, data: DataConfig, corpora: Sequence[Corpus]) -> Corpora:
        """Opened corpora with the packings that `data` asks for.

        Raises:
            UserError: a corpus is not packed so, holds fewer rows than there are lanes, or those of
                a blend have different tokenizers.
        """
        first = corpora[0]
        for corpus in corpora[1:]:
            if corpus.manifest["tokenizer"]["sha256"] != first.manifest["tokenizer"]["sha256"]:
                raise UserError(
                    f"data.blend: {corpus.folder} has another tokenizer than {first.folder}; build "
                    f"it again with `--tokenizer {first.tokenizer_path}`"
                )
        packings = [Packing.open(one, data.sequence_length, data.packing) for one in corpora]
        for packing in packings:
            if packing.num_examples == 0:
                raise UserError(
                    f"{packing.folder} holds no examples; build the corpus from more text"
                )
            if packing.num_examples < data.num_lanes:
                raise UserError(
                    f"data.num_lanes = {data.num_lanes} is more than the {packing.num_examples} "
                    f"rows of {packing.folder}; use as many lanes as nodes, or 1"
                )
        return cls(
            corpora=tuple(corpora),
            packings=tuple(packings),
            weights=tuple(data.blend.values()) or (1,),
        )

    @property
    def first(self) -> Corpus:
        """For what all of them share: vocabulary, special ids, tokenizer."""
        return self.corpora[0]

    @property
    def fingerprint(self) -> str:
        """Names what is read and in which proportions; of one corpus, its packing's."""
        if len(self.packings) == 1:
            return self.packings[0].fingerprint
        pairs = zip(self.packings, self.weights, strict=True)
        return fingerprint_of(f"{packing.fingerprint} {weight}" for packing, weight in pairs)

    def order(self, config: RunConfig) -> Order:
        """The sequence of row ids of a run with this config."""
        data = config.data
        return Order(
            seed=config.seed,
            num_samples=tuple(packing.num_examples for packing in self.packings),
            block_size=data.shuffle_block_size,
            window_blocks=data.shuffle_window_blocks,
            weights=self.weights,
            num_lanes=data.num_lanes,
            lane_run=config.batch.micro_batch_size if data.num_lanes > 1 else 1,
        )

    def reader(self, *, word_starts: bool = False) -> RowReader | BlendReader:
        """Reads training rows by id, with the starts of their words where those are asked for."""
        readers = [
            RowReader(corpus, packing, "train", word_starts=word_starts)
            for corpus, packing in zip(self.corpora, self.packings, strict=True)
        ]
        return readers[0] if len(readers) == 1 else BlendReader(readers)

    def unigram_counts(self) -> Array:
        """How often each id [vocab_size] is read: counts, those of a blend as its weights say."""
        counts = [corpus.unigram_counts() for corpus in self.corpora]
        if len(counts) == 1:
            return counts[0]
        blended = np.zeros(len(counts[0]))
        for one, weight in zip(counts, self.weights, strict=True):
            blended += one * (weight / sum(self.weights) / one.sum())
        total: int = sum(one.sum() for one in counts)
        return blended * total

    def frozen(self, mask_prob: float, num_rows: int) -> Mapping[str, Array] | None:
        """Held-out rows with their recorded corruption; None where no corpus holds out any.

        Those of a blend come in its proportions for as long as each corpus has some: `num_rows`
        of them, or all.

        Raises:
            UserError: a packing was not frozen at `mask_prob`.
        """
        found = [read_frozen(packing, mask_prob) for packing in self.packings]
        parts = [(part, w) for part, w in zip(found, self.weights, strict=True) if part is not None]
        if len(parts) < 2:
            return parts[0][0] if parts else None
        blend = make_blend(tuple(weight for _, weight in parts))
        places = []
        for corpus, (part, _) in enumerate(parts):
            rows = np.arange(len(part["num_tokens"]))
            slots = np.flatnonzero(blend.corpus_S == corpus)
            periods, ranks = np.divmod(rows, len(slots))
            places.append(periods * len(blend.corpus_S) + slots[ranks])
        chosen = np.argsort(np.concatenate(places), kind="stable")[:num_rows]
        return {
            name: np.concatenate([part[name] for part, _ in parts])[chosen] for name in parts[0][0]
        }


class BlendReader:
    """Reads rows of several corpora by ids that run through them."""

    def __init__(self, readers: Sequence[RowReader]) -> None:
        self._readers = readers
        self._ends = np.cumsum([reader.num_rows for reader in readers], dtype=np.int64)

    def read(self, sample_ids: NDArray[np.int64]) -> Rows:
        """The rows of `sample_ids`, in that order."""
        corpora = np.searchsorted(self._ends, sample_ids, side="right")
        touched = [int(corpus) for corpus in np.unique(corpora)]
        parts = []
        for corpus in touched:
            reader = self._readers[corpus]
            first_id = int(self._ends[corpus]) - reader.num_rows
            parts.append(reader.read(sample_ids[corpora == corpus] - first_id))
        if len(parts) == 1:
            return parts[0]
        # Rows stand by corpus now; this puts each where its id stood.
        places = np.argsort(np.argsort(corpora, kind="stable"), kind="stable")
        return Rows(*(_joined(columns, places) for columns in zip(*parts, strict=True)))


def _joined(columns: Sequence[Array | None], places: NDArray[np.int64]) -> Any:
    """One field of several batches of rows, in a new order; None where the packing has none."""
    present = [column for column in columns if column is not None]
    return np.concatenate(present)[places] if present else None
