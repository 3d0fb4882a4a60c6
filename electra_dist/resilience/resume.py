"""May this config continue that run? Decided on plain values, before any process group exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from electra_dist.checkpoint.layout import (
    CorruptCheckpoint,
    list_checkpoints,
    read_manifest,
    read_state,
)
from electra_dist.config import changes, files
from electra_dist.config.schema import RunConfig
from electra_dist.errors import UserError


def resumed_config(config: RunConfig, run_folder: Path) -> RunConfig:
    """The config to run with in `run_folder`: what the run has settled stays settled.

    Raises:
        UserError: the folder holds a run whose config differs in a field that decides its numbers.
    """
    path = run_folder / "config.json"
    if not path.exists():
        return config
    old = files.read_json(path)
    threads = config.engine.threads_per_rank or old.engine.threads_per_rank
    config = replace(config, engine=replace(config.engine, threads_per_rank=threads))
    if config.model.vocab_size is None:  # that of the corpus, which a login node need not open
        config = replace(config, model=replace(config.model, vocab_size=old.model.vocab_size))
    forbidden = changes.forbidden_differences(old, config)
    if forbidden:
        raise UserError(
            f"{run_folder} holds a run with another config ({'; '.join(forbidden)}); "
            "give the same values to resume it, or another --out folder to start a new run"
        )
    return config


def check_newest_state(config: RunConfig, run_folder: Path, corpus_fingerprint: str) -> None:
    """Refuse, before an attempt is claimed, to go on with a run on another corpus than its own.

    A claim ends a job that is at work there, and a refusal after it counts as the run's failure.

    Args:
        config: the resolved one.
        run_folder: RUN; one without a readable checkpoint passes, as restoring deals with those.
        corpus_fingerprint: of what the config names.

    Raises:
        UserError: a fingerprint differs, or a newer version of electra_dist wrote the checkpoint.
    """
    for info in reversed(list_checkpoints(run_folder)):
        try:
            state = read_state(info.folder, read_manifest(info.folder))
        except CorruptCheckpoint:
            continue
        check_state(state, changes.fingerprint(config), corpus_fingerprint)
        return


def check_state(state: dict[str, Any], config_fingerprint: str, corpus_fingerprint: str) -> None:
    """Refuse a checkpoint of another config or of another corpus.

    Raises:
        UserError: a fingerprint differs.
    """
    if state["config_fingerprint"] != config_fingerprint:
        raise UserError(
            "the checkpoint was made with another config (fingerprint "
            f"{state['config_fingerprint']}, now {config_fingerprint}); "
            "resume with the run's own config.json"
        )
    if state["corpus_fingerprint"] != corpus_fingerprint:
        raise UserError(
            "the checkpoint was trained on another corpus, packing or blend (fingerprint "
            f"{state['corpus_fingerprint']}, now {corpus_fingerprint}); "
            "point data.corpus (or data.blend, with its weights) at the same"
        )
