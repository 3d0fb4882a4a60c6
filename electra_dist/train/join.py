"""Before anything heavy is built: check what a rank can check alone, and meet the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from electra_dist.config import variables
from electra_dist.config.memory import memory_of_rank
from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora, open_corpora
from electra_dist.data.passes import passes
from electra_dist.engine.ds_config import check_deepspeed_config
from electra_dist.errors import UserError
from electra_dist.model.objectives import objective_named
from electra_dist.resilience.faults import Fault, parse_faults
from electra_dist.resilience.preempt import StopSignals
from electra_dist.resilience.resume import check_newest_state, resumed_config
from electra_dist.runtime.attempt import Attempt
from electra_dist.runtime.collectives import ProcessGroups, start_process_group
from electra_dist.runtime.control import Control
from electra_dist.runtime.cpu import compute_on_cpu, fair_share_of_cpus
from electra_dist.runtime.job_end import job_end
from electra_dist.runtime.logs import setup_logging
from electra_dist.runtime.times import launched_at
from electra_dist.runtime.world import World
from electra_dist.train.beginning import Beginning, Source, open_source, still_wanted


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A rank that has met the others and shares an attempt with them."""

    config: RunConfig
    corpora: Corpora
    groups: ProcessGroups
    attempt: Attempt
    stop_signals: StopSignals
    launched: float
    """When this process was started, in seconds since 1970."""
    end: float | None
    """When the job ends, in seconds since 1970, as rank 0 knows it; None: nobody says so."""
    source: Source | None = None
    """Where a new run takes its first state from; None: from the seed, or it is a resume."""
    faults: tuple[Fault, ...] = ()
    """Declared on purpose, for all ranks."""


def join(
    config: RunConfig,
    run_folder: Path,
    environ: Mapping[str, str],
    beginning: Beginning | None = None,
) -> Joined:
    """Check what a rank can check alone, meet the others, claim an attempt. Collective.

    Raises:
        UserError: config, corpus or run folder do not fit.
        CollectiveError: a rank did not come.
    """
    faults = parse_faults(environ.get(variables.FAULTS, ""))
    stop_signals = StopSignals(config.resilience.term_grace_seconds)
    stop_signals.install()
    world = World.from_environment(environ)
    resolved, mistake = _resolve(config, run_folder, world, beginning)
    groups = start_process_group(
        world, config.engine.timeout_seconds, always=config.engine.kind == "deepspeed"
    )
    _raise_the_first(groups.control, mistake)
    assert resolved is not None
    config, corpora, source = resolved
    num_threads = config.engine.threads_per_rank or 1
    if torch.cuda.is_available():
        torch.set_num_threads(num_threads)
    else:
        memory = memory_of_rank(config, world_size=world.world_size, device="cpu")
        compute_on_cpu(num_threads, memory.total)
    if config.engine.deterministic:
        # Not "warn only", by which attention's fused gradients stay as they are.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Else whatever `empty` gives is filled, by a kernel each.
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  (mypy)
    attempt = _claim(run_folder, groups.control)
    setup_logging(world, attempt.folder)
    launched = launched_at(environ)
    if world.is_leader:
        attempt.write_start(launched, environ.get(variables.LAUNCH), world.world_size)
    return Joined(
        config=config,
        corpora=corpora,
        groups=groups,
        attempt=attempt,
        stop_signals=stop_signals,
        launched=launched,
        end=job_end(environ) if world.is_leader else None,
        source=source,
        faults=faults,
    )


def _resolve(
    config: RunConfig, run_folder: Path, world: World, beginning: Beginning | None
) -> tuple[tuple[RunConfig, Corpora, Source | None] | None, str | None]:
    """`resolve_config`, or in words what this rank found: all ranks then end on one sentence.

    A single rank raises at once. Of several, one alone may find a mistake (its node does not mount
    the corpus): the others must not wait for it until their deadline.
    """
    try:
        config, corpora = resolve_config(config, run_folder, world)
        beginning = still_wanted(beginning, run_folder)
        source = open_source(beginning, config, corpora) if beginning else None
        return (config, corpora, source), None
    except UserError as error:
        if world.world_size == 1:
            raise
        return None, str(error)


def _raise_the_first(control: Control, mistake: str | None) -> None:
    """Raise the mistake of the lowest rank that found one, on every rank. Collective."""
    mistakes = control.all_gather_objects(mistake, name="mistakes found before the start")
    for rank, found in enumerate(mistakes):
        if found is not None:
            raise UserError(found if rank == 0 else f"rank {rank}: {found}")


def resolve_config(config: RunConfig, run_folder: Path, world: World) -> tuple[RunConfig, Corpora]:
    """What can be checked before ranks meet and a folder is made: config, corpus, packing, run.

    Raises:
        UserError: any of these does not fit.
    """
    if (run_folder / "manifest.json").is_file():
        raise UserError(
            f"--out {run_folder} is a corpus or a checkpoint (it holds a manifest.json); "
            "give the run a folder of its own"
        )
    objective_named(config.objective.name)
    passes(world.rank, world.world_size, config.batch.num_micro_batches)
    check_deepspeed_config(config)
    opened = open_corpora(config.data)
    corpus = opened[0]
    if config.model.vocab_size not in (None, corpus.vocab_size):
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}, but the corpus {corpus.folder} has "
            f"{corpus.vocab_size} tokens; leave model.vocab_size out, "
            "or build the corpus with the other tokenizer"
        )
    config = replace(config, model=replace(config.model, vocab_size=corpus.vocab_size))
    config = resumed_config(config, run_folder)
    corpora = Corpora.of(config.data, opened)
    corpora.frozen(config.objective.mask_prob, num_rows=0)
    if world.is_leader:  # one look at what all ranks share; they end on what it finds
        check_newest_state(config, run_folder, corpora.fingerprint)
    threads = config.engine.threads_per_rank or fair_share_of_cpus(world)
    return replace(config, engine=replace(config.engine, threads_per_rank=threads)), corpora


def _claim(run_folder: Path, control: Control) -> Attempt:
    """Rank 0 claims the next attempt and removes an old STOP file; all ranks learn the number."""
    number, problem = 0, None
    if control.rank == 0:
        try:
            number = Attempt.claim(run_folder).number
            (run_folder / "STOP").unlink(missing_ok=True)
        except UserError as error:
            problem = str(error)
    number, problem = control.broadcast_json([number, problem], name="claim of the attempt")
    if problem:
        raise UserError(problem)
    return Attempt.join(run_folder, number)
