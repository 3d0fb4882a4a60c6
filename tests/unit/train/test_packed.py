"""Training on rows of several documents, with every way of masking, on the reference engine."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch

from electra_dist.config.recipes import RECIPES
from electra_dist.config.schema import BatchConfig, DataConfig, RunConfig
from electra_dist.data.frozen import freeze, read_frozen
from electra_dist.data.packing import pack
from electra_dist.data.store import Corpus, Packing
from electra_dist.data.stream import CorpusStream
from electra_dist.engine.protocol import to_batch
from electra_dist.engine.reference import ReferenceEngine
from electra_dist.model.electra import JointElectra
from electra_dist.runtime.control import Control
from electra_dist.runtime.world import World
from electra_dist.train.build import Run
from electra_dist.train.evaluate import evaluate, unigram_log_probs
from electra_dist.train.state import RunState
from tests import made_up

WORLD, CPU = World.from_environment({}), torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Made-up documents of 15 to 200 tokens, rows of 64."""
    folder = made_up.corpus(tmp_path_factory.mktemp("packed"), length=32, num_documents=150)
    opened = Corpus.open(folder)
    pack(folder, 64, "packed")
    freeze(opened, Packing.open(opened, 64, "packed"))
    return opened


def config(masking: Literal["token", "whole_word", "span"]) -> RunConfig:
    run = RECIPES["tiny"]()
    return replace(
        run,
        model=replace(
            run.model,
            num_layers=1,
            hidden_size=64,
            generator_num_layers=1,
            vocab_size=300,
            max_position_embeddings=64,
        ),
        objective=replace(run.objective, masking=masking),
        data=DataConfig(sequence_length=64, packing="packed", prefetch_steps=1),
        batch=BatchConfig(global_batch_size=4, micro_batch_size=2),
    )


def engine_of(run: RunConfig) -> ReferenceEngine:
    return ReferenceEngine(JointElectra(run), run, WORLD, CPU)


def trained(
    run: RunConfig, corpus: Corpus, engine: ReferenceEngine, first: int, last: int
) -> list[float]:
    """Losses of the steps [first, last), from a stream of their own."""
    stream = CorpusStream(run, corpus)
    losses = []
    for step in range(first, last):
        micro_batches = stream.micro_batches(step, step * 4)
        assert all(batch.block_ids_BL is not None for batch in micro_batches)
        losses.append(engine.step(micro_batches, 1e-3).sums["loss"] / len(micro_batches))
    stream.close()
    return losses


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_a_run_on_packed_rows_trains_and_resumes_with_the_same_bits(
    corpus: Corpus, masking: Literal["token", "whole_word", "span"]
) -> None:
    run = config(masking)
    calm, broken, resumed = (engine_of(run) for _ in range(3))
    losses = trained(run, corpus, calm, 0, 4)
    assert all(map(math.isfinite, losses))
    before = trained(run, corpus, broken, 0, 2)
    for mine, other in zip(resumed.local_fragments(), broken.local_fragments(), strict=True):
        mine.values.copy_(other.values)
    assert before + trained(run, corpus, resumed, 2, 4) == losses
    for mine, other in zip(resumed.local_fragments(), calm.local_fragments(), strict=True):
        assert torch.equal(mine.values, other.values), mine.parameter


def test_a_batch_has_the_blocks_of_its_micro_batch(corpus: Corpus) -> None:
    stream = CorpusStream(config("token"), corpus)
    micro_batch = stream.micro_batch(0, 0, 0)
    stream.close()
    batch = to_batch(micro_batch, 0, CPU)
    for name in ("block_ids_BL", "position_ids_BL"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(micro_batch, name))
    assert micro_batch.block_ids_BL is not None
    assert micro_batch.block_ids_BL.max() > 1


def test_held_out_packed_rows_are_evaluated_as_documents_of_their_own(corpus: Corpus) -> None:
    run = config("token")
    frozen = read_frozen(Packing.open(corpus, 64, "packed"), 0.15)
    assert frozen is not None

    def panel(arrays: dict[str, Any]) -> dict[str, float]:
        parts = SimpleNamespace(
            config=run,
            frozen=arrays,
            world=WORLD,
            engine=engine_of(run),
            control=Control(group=None, store=None, world=WORLD, timeout_seconds=10.0),
            unigram_log_probs=unigram_log_probs(corpus.unigram_counts()),
            state=RunState(),
        )
        found = evaluate(cast(Run, parts))
        assert found is not None
        return found

    whole = panel(frozen)
    assert all(map(math.isfinite, whole.values()))
    assert whole["generator_loss"] == pytest.approx(math.log(300), abs=0.2)
    # The recorded blocks are what the model is given: without them it computes something else.
    blocks = ("block_ids", "position_ids")
    assert panel({n: a for n, a in frozen.items() if n not in blocks}) != whole
