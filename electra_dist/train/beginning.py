"""Where a new run takes its first state from, if not from the seed.

    --init-from RUN|CKPT|HF_DIR   weights (with --keep-moments also moments): step 0, position 0
    --resume-from CKPT            everything: the checkpoint's step and position, in another folder

What is taken is saved as the new run's first checkpoint before its first step. From then on the run
is like any other: a resume needs neither these words nor the source, and ignores both.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash

from electra_dist.checkpoint.layout import (
    KINDS,
    CheckpointInfo,
    CorruptCheckpoint,
    list_checkpoints,
    resolve,
    run_folder_of,
)
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.checkpoint.shard import FloatArray
from electra_dist.config import changes, files
from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora
from electra_dist.engine.protocol import Engine
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_shapes
from electra_dist.resilience.resume import check_state
from electra_dist.runtime.control import Control
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.fitting import check_shapes, check_vocabulary, objective_of

EVENTS = {False: "init", True: "fork"}
"""How events.jsonl calls it, by `is_fork`."""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The user's words."""

    source: Path
    is_fork: bool = False
    """--resume-from; else --init-from."""
    keep_moments: bool = False

    @property
    def word(self) -> str:
        """As it was typed."""
        return f"{'--resume-from' if self.is_fork else '--init-from'} {self.source}"


class Reader(Protocol):
    """Elements of a source's tensors, flattened."""

    def read_range(self, parameter: str, kind: str, start: int, stop: int) -> FloatArray:
        """Elements [start, stop)."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened source that fits the run."""

    reader: Reader
    shapes: Mapping[str, tuple[int, ...]]
    """Of what it holds; parameters that it lacks stay as the seed makes them."""
    kinds: tuple[str, ...]
    """What is taken: weights, or moments too."""
    facts: dict[str, Any]
    """For the event."""
    state: dict[str, Any] = field(default_factory=dict)
    """state.json of a fork."""
    run_folder: Path | None = None
    """The run that a fork leaves."""
    num_updates: int = 0
    """Of which the moments are made that are taken."""


class _Tensors:
    """Weights of a Hugging Face folder."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights

    def read_range(self, parameter: str, kind: str, start: int, stop: int) -> FloatArray:
        assert kind == "master", kind
        values: FloatArray = self._weights[parameter].reshape(-1)[start:stop].float().numpy()
        return values

    def close(self) -> None:
        self._weights = {}


def still_wanted(beginning: Beginning | None, run_folder: Path) -> Beginning | None:
    """None where the run has begun: it goes on from its own checkpoints.

    Raises:
        UserError: it began from something else than what the words say.
    """
    if beginning is None or not list_checkpoints(run_folder):
        return beginning
    events = read_json_lines(run_folder / "events.jsonl")
    began = [e.get("source") for e in events if e.get("event") in EVENTS.values()]
    if str(beginning.source.resolve()) not in began:
        from_what = f"began from {began[-1]}" if began else "did not begin from any source"
        raise UserError(
            f"{beginning.word}: {run_folder} holds a run that {from_what}; leave the word out to "
            "resume that run, or give another --out folder"
        )
    return None


def open_source(beginning: Beginning, config: RunConfig, corpora: Corpora) -> Source:
    """Open what the words name and check it against the run. Alone: no rank waits for another.

    Raises:
        UserError: there is no such source, or its model, vocabulary, config or corpus do not fit.
    """
    with torch.device("meta"):
        model = JointElectra(config)
    shapes = stored_shapes(model)
    path = beginning.source
    try:
        if (path / "config.json").is_file() and not (path / "attempts").is_dir():
            return _hugging_face(beginning, shapes, config, corpora)
        info = resolve(path)
        reader = CheckpointReader(info.folder)
        theirs = {name: tuple(shape) for name, shape in reader.manifest.parameters.items()}
        objectives = objective_of(info.folder, reader.state), config.objective.name
        check_shapes(beginning.word, theirs, shapes, objectives, must_be_all=True)
        check_vocabulary(
            beginning.word, reader.state.get("tokenizer_sha256"), info.folder, corpora.first
        )
        if beginning.is_fork:
            return _fork(beginning, info, reader, theirs, config, corpora)
        if beginning.keep_moments and reader.state.get("moments") == "zero":
            raise UserError(
                f"--keep-moments: {info.folder} holds none "
                f"({reader.state['origin']['kind']}); leave --keep-moments out"
            )
        facts = _facts(beginning, info, reader) | {"keep_moments": beginning.keep_moments}
        if not beginning.keep_moments:
            return Source(reader=reader, shapes=theirs, kinds=KINDS[:1], facts=facts)
        num_updates = reader.state.get("num_updates", reader.manifest.step)
        return Source(
            reader=reader, shapes=theirs, kinds=KINDS, facts=facts, num_updates=num_updates
        )
    except CorruptCheckpoint as error:
        raise UserError(f"{beginning.word}: {error}; give a checkpoint that verifies") from None


def fill(engine: Engine, source: Source, control: Control) -> None:
    """Put what this rank holds of the source into the engine. Collective.

    Raises:
        UserError: on every rank, nothing having been changed: some rank could not read its part.
    """
    wanted = [
        fragment
        for fragment in engine.local_fragments()
        if fragment.kind in source.kinds and fragment.parameter in source.shapes
    ]
    values, problem = [], None
    try:  # what the ranks read alone, they compare: a run may have saved in between
        for f in wanted:
            read = source.reader.read_range(f.parameter, f.kind, f.start, f.start + len(f.values))
            values.append(torch.from_numpy(read))
    except (CorruptCheckpoint, OSError) as error:
        problem = str(error)
    finally:
        source.reader.close()
    found = control.all_gather_objects([source.facts, problem], name="reading the source")
    for facts, problem in found:
        if problem is not None:
            raise UserError(f"{problem}; give a source that verifies")
        if facts != found[0][0]:
            raise UserError(
                f"{facts['source']} is not the same on every rank; name one checkpoint of it, on a "
                "disk that all nodes share"
            )
    for fragment, value in zip(wanted, values, strict=True):
        fragment.values.copy_(value)
    engine.state_restored()


def copy_history(source: Source, run_folder: Path) -> None:
    """The ledger and metrics of the run that a fork leaves: its past is the fork's too (rank 0)."""
    assert source.run_folder is not None
    for name in ("ledger.jsonl", "metrics.jsonl"):
        if (source.run_folder / name).is_file():
            shutil.copyfile(source.run_folder / name, run_folder / name)


def _fork(
    beginning: Beginning,
    info: CheckpointInfo,
    reader: CheckpointReader,
    shapes: Mapping[str, tuple[int, ...]],
    config: RunConfig,
    corpora: Corpora,
) -> Source:
    run = run_folder_of(info.folder)
    if run is None or "origin" in reader.state:
        what = "was averaged or imported" if "origin" in reader.state else "lies alone"
        raise UserError(
            f"{beginning.word}: this checkpoint {what}, so its run's config and ledger are not "
            "there to go on with; give RUN/checkpoints/step_N, or begin anew with --init-from"
        )
    theirs = files.read_json(run / "config.json")
    check_state(reader.state, changes.fingerprint(theirs), corpora.fingerprint)
    forbidden = changes.unforkable_differences(theirs, config)
    if forbidden:
        raise UserError(
            f"{beginning.word}: a fork may not change {'; '.join(forbidden)}, on which the "
            "checkpoint's position counts; keep it, or begin anew with --init-from"
        )
    return Source(
        reader=reader,
        shapes=shapes,
        kinds=KINDS,
        facts={**_facts(beginning, info, reader), "changed": changes.differences(theirs, config)},
        state=reader.state,
        run_folder=run,
    )


def _hugging_face(
    beginning: Beginning,
    shapes: Mapping[str, tuple[int, ...]],
    config: RunConfig,
    corpora: Corpora,
) -> Source:
    if beginning.is_fork or beginning.keep_moments:
        word = "--keep-moments" if beginning.keep_moments else "--resume-from"
        raise UserError(
            f"{word}: {beginning.source} is a Hugging Face folder, which holds weights only; "
            "give --init-from alone"
        )
    imported = hub.read(beginning.source)
    theirs = {name: tuple(value.shape) for name, value in imported.weights.items()}
    objectives = imported.config.objective.name, config.objective.name
    check_shapes(beginning.word, theirs, shapes, objectives, must_be_all=False)
    if imported.tokenizer is not None:
        check_vocabulary(beginning.word, None, imported.tokenizer.parent, corpora.first)
    data = (beginning.source / "model.safetensors").read_bytes()
    return Source(
        reader=_Tensors(imported.weights),
        shapes=theirs,
        kinds=KINDS[:1],
        facts={
            "source": str(beginning.source.resolve()),
            "model_xxh3_128": xxhash.xxh3_128_hexdigest(data),
            "keep_moments": False,
            "fresh": sorted({".".join(n.split(".")[:2]) for n in shapes if n not in theirs}),
        },
    )


def _facts(beginning: Beginning, info: CheckpointInfo, reader: CheckpointReader) -> dict[str, Any]:
    return {
        "source": str(beginning.source.resolve()),
        "checkpoint": str(info.folder.resolve()),
        "source_step": reader.manifest.step,
        "state_xxh3_128": reader.manifest.state_xxh3_128,
    }
