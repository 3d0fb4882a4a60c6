"""From a checkpoint to a Hugging Face folder, whatever the run's ranks and stage were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.config import files
from electra_dist.data.corpora import Corpora
from electra_dist.data.store import Corpus
from electra_dist.data.tokenize import tokenizer_sha256
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra
from electra_dist.resilience.resume import check_state


def export_hf(checkpoint: Path, out: Path) -> Path:
    """Write the model of a checkpoint (or of a run's newest one) to `out` in Hugging Face format.

    Raises:
        UserError: no such checkpoint, it does not verify, or the run's corpus is not there any
            more, or has been replaced by another.
    """
    info = resolve(checkpoint)
    config = files.read_json(info.folder.resolve().parents[1] / "config.json")
    corpora = Corpora.open(config.data)
    _check_tokenizer(corpora.first)
    model = JointElectra(replace(config, seed=0))
    try:
        with CheckpointReader(info.folder) as reader, torch.no_grad():
            check_state(reader.state, files.fingerprint(config), corpora.fingerprint)
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(reader.read_whole(name)))
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; export an older checkpoint of the run") from None
    hub.export(model, corpora.first.tokenizer_path, out)
    return out


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
    return out if (out / "config.json").is_file() else export_hf(info.folder, out)
