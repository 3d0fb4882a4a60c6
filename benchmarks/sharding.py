"""Which bytes of a corpus each node reads in an epoch, with `data.num_lanes` = nodes and without.

    python benchmarks/sharding.py [--corpus CORPUS] [--json]

Every rank's stream is asked which rows it reads in each step of an epoch (2 ranks a node); the
pages of the token files that these rows touch are counted once a node, as its cache would hold
them. A share of 1.0 is corpus / nodes. Then the hash of the global sequence of row ids, for every
world size from 1 to 16 on each number of nodes that divides it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from electra_dist.config.recipes import RECIPES  # noqa: E402 (the tests' corpus maker is beside us)
from electra_dist.config.schema import BatchConfig, DataConfig, RunConfig  # noqa: E402
from electra_dist.data.corpora import Corpora  # noqa: E402
from electra_dist.data.store import Corpus, Packing  # noqa: E402
from electra_dist.data.stream import CorpusStream  # noqa: E402
from tests import made_up  # noqa: E402

LENGTH, RANKS_PER_NODE = 128, 2
NODES = (2, 4, 8)
PAGES = {"4 KiB": 4096, "64 KiB": 65536}


class Rows:
    """The place of every training row in the token files, as if these followed each other."""

    def __init__(self, corpus: Corpus, packing: Packing) -> None:
        starts, ends, shift = [], [], 0
        for tokens, rows in zip(
            corpus.token_shards("train"), packing.examples("train"), strict=True
        ):
            size = tokens.dtype.itemsize
            lengths = rows.length_a.astype(np.int64) + rows.length_b
            starts.append(shift + rows.start * size)
            ends.append(shift + (rows.start + lengths) * size)
            shift += tokens.nbytes
        self.start, self.end, self.num_bytes = np.concatenate(starts), np.concatenate(ends), shift

    def touched(self, ids: NDArray[np.int64], page: int) -> int:
        """Bytes of the pages that these rows lie in."""
        pages = np.zeros(-(-self.num_bytes // page) + 1, np.int64)
        np.add.at(pages, self.start[ids] // page, 1)
        np.add.at(pages, (self.end[ids] - 1) // page + 1, -1)
        return int((np.cumsum(pages) > 0).sum()) * page


def config(num_lanes: int) -> RunConfig:
    """Steps of 512 in micro-batches of 32: 16 of them."""
    return replace(
        RECIPES["small"](),
        data=DataConfig(sequence_length=LENGTH, num_lanes=num_lanes),
        batch=BatchConfig(global_batch_size=512, micro_batch_size=32),
    )


def read_by_rank(
    run: RunConfig, corpora: Corpora, world_size: int, num_nodes: int, num_steps: int
) -> list[dict[tuple[int, int], NDArray[np.int64]]]:
    """For each rank, the row ids of its (step, micro-batch)s."""
    local_ranks = [rank % (world_size // num_nodes) for rank in range(world_size)]
    found = []
    for rank in range(world_size):
        with closing(CorpusStream(run, corpora, rank, world_size, local_ranks)) as stream:
            ids = {}
            for step in range(num_steps):
                position = step * run.batch.global_batch_size
                for one in stream.passes(position):
                    if one.is_real:
                        positions = stream.positions(one.micro_batch, position)
                        ids[step, one.micro_batch] = stream.sample_ids(positions)
            found.append(ids)
    return found


def shares(corpus: Corpus, num_nodes: int, num_lanes: int) -> dict[str, Any]:
    """Bytes of the busiest node in an epoch, over corpus / nodes."""
    run = config(num_lanes)
    corpora = Corpora.of(run.data, [corpus])
    packing = corpora.packings[0]
    rows = Rows(corpus, packing)
    num_steps = packing.num_examples // run.batch.global_batch_size
    world_size = RANKS_PER_NODE * num_nodes
    by_rank = read_by_rank(run, corpora, world_size, num_nodes, num_steps)
    result: dict[str, Any] = {"nodes": num_nodes, "lanes": num_lanes}
    for name, page in PAGES.items():
        most = 0
        for node in range(num_nodes):
            ranks = by_rank[node * RANKS_PER_NODE : (node + 1) * RANKS_PER_NODE]
            ids = np.concatenate([some for rank in ranks for some in rank.values()])
            most = max(most, rows.touched(ids, page))
        result[name] = most * num_nodes / rows.num_bytes
    return result


def sequences(corpus: Corpus, num_lanes: int, num_steps: int = 8) -> dict[str, Any]:
    """How many different global sequences all worlds read: one."""
    run = config(num_lanes)
    corpora = Corpora.of(run.data, [corpus])
    hashes, worlds = set(), 0
    for world_size in range(1, 17):
        for num_nodes in (n for n in range(1, world_size + 1) if world_size % n == 0):
            by_rank = read_by_rank(run, corpora, world_size, num_nodes, num_steps)
            merged = {key: ids for rank in by_rank for key, ids in rank.items()}
            assert len(merged) == sum(map(len, by_rank)), "a micro-batch was read twice"
            whole = np.concatenate([merged[key] for key in sorted(merged)])
            hashes.add(xxhash.xxh3_64_hexdigest(whole))
            worlds += 1
    return {"lanes": num_lanes, "worlds": worlds, "hashes": sorted(hashes)}


def main() -> None:
    """Print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="packed at 128; default: made-up text")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.corpus or made_up.corpus(Path(folder), length=LENGTH, num_documents=20_000)
        corpus = Corpus.open(path)
        bytes_read = [shares(corpus, nodes, lanes) for nodes in NODES for lanes in (nodes, 1)]
        same = [sequences(corpus, lanes) for lanes in (1, *NODES)]
    if args.json:
        print(json.dumps({"bytes": bytes_read, "sequences": same}, indent=2))
        return
    print("bytes of the busiest node in an epoch, over corpus / nodes")
    print(f"{'nodes':>6}{'lanes':>6}" + "".join(f"{f'pages of {name}':>18}" for name in PAGES))
    for row in bytes_read:
        print(f"{row['nodes']:>6}{row['lanes']:>6}" + "".join(f"{row[n]:>18.3f}" for n in PAGES))
    print("\nglobal sequences of row ids over all worlds of 1 to 16 ranks on any nodes")
    for row in same:
        found = f"{len(row['hashes'])} sequence(s): {', '.join(row['hashes'])}"
        print(f"{row['lanes']:>6} lanes {row['worlds']:>6} worlds   {found}")


if __name__ == "__main__":
    main()
