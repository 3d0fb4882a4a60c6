"""From a checkpoint to a Hugging Face folder, whatever the run's ranks and stage were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve, run_folder_of
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.config import changes, files
from electra_dist.config.schema import RunConfig
from electra_dist.data.corpora import Corpora
from electra_dist.data.store import Corpus
from electra_dist.data.tokenize import tokenizer_sha256
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra
from electra_dist.model.padding import stored_parameters
from electra_dist.resilience.resume import check_state


def export_hf(checkpoint: Path, out: Path) -> Path:
    """Write the model of a checkpoint (or of a run's newest one) to `out` in Hugging Face format.

    Raises:
        UserError: no such checkpoint, it does not verify, or its corpus, where it holds no
            tokenizer of its own, is not there any more or has been replaced by another.
    """
    info = resolve(checkpoint)
    try:
        with CheckpointReader(info.folder) as reader, torch.no_grad():
            config = _config(info.folder, reader.state)
            tokenizer = _tokenizer(info.folder, reader.state, config)
            model = JointElectra(replace(config, seed=0))
            for name, parameter in stored_parameters(model).items():
                parameter.copy_(torch.from_numpy(reader.read_whole(name)))
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; export a checkpoint that verifies") from None
    hub.export(model, tokenizer, out)
    return out


def _config(folder: Path, state: dict[str, Any]) -> RunConfig:
    """What the model is: from its run, or, for an average or an import, from its state.json."""
    if state.get("config") is not None:
        return files.from_dict(state["config"], str(folder / "state.json"))
    run = run_folder_of(folder)
    if run is not None:
        return files.read_json(run / "config.json")
    raise UserError(
        f"{folder} does not say what its model is; import it again with --config, or export it "
        "where it lies in its run"
    )


def _tokenizer(folder: Path, state: dict[str, Any], config: RunConfig) -> Path:
    """The checkpoint's own tokenizer.json, or the corpus's."""
    own = folder / "tokenizer.json"
    if own.is_file():
        if tokenizer_sha256(own) != state["tokenizer_sha256"]:
            raise UserError(f"{own} is not the one that was imported; import it again")
        return own
    if state["corpus_fingerprint"] is None:
        raise UserError(
            f"{folder} was imported without a tokenizer; put tokenizer.json into the folder that "
            "it came from, or name its corpus (--data.corpus), and import it again"
        )
    corpora = Corpora.open(config.data)
    _check_tokenizer(corpora.first)
    check_state(state, changes.fingerprint(config), corpora.fingerprint)
    return corpora.first.tokenizer_path


def _check_tokenizer(corpus: Corpus) -> None:
    path, recorded = corpus.tokenizer_path, corpus.manifest["tokenizer"]["sha256"]
    if not path.is_file() or tokenizer_sha256(path) != recorded:
        raise UserError(
            f"{path} is not the tokenizer that the corpus was built with; copy the corpus again"
        )


def model_folder(path: Path) -> Path:
    """A Hugging Face folder: `path` itself, or the export of a run's newest checkpoint, made once.

    Raises:
        UserError: `path` is neither.
    """
    if not (path / "checkpoints").is_dir():
        return path
    info = resolve(path)
    out = path / "export" / info.folder.name
    if (out / "config.json").is_file():
        return out
    out.parent.mkdir(exist_ok=True)
    # Made elsewhere and renamed: the tasks of a Slurm array all begin here at once.
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = export_hf(info.folder, Path(folder) / "model")
        try:
            made.rename(out)
        except OSError as error:
            if not (out / "config.json").is_file():  # no other task's
                raise UserError(f"{out} can't be written ({error.strerror}); remove it") from None
    return out
