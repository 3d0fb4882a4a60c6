"""From a checkpoint to a Hugging Face folder: the weights of any run, whatever its ranks and stage were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from electra_dist.checkpoint.layout import CorruptCheckpoint, resolve
from electra_dist.checkpoint.reshard import CheckpointReader
from electra_dist.config import files
from electra_dist.data.store import Corpus
from electra_dist.errors import UserError
from electra_dist.model import hub
from electra_dist.model.electra import JointElectra


def export_hf(checkpoint: Path, out: Path) -> Path:
    """Write the model of a checkpoint (or of a run's newest one) to `out` in Hugging Face format.

    Raises:
        UserError: no such checkpoint, it does not verify, or the corpus of the run is not there.
    """
    info = resolve(checkpoint)
    config = files.read_json(info.folder.parents[1] / "config.json")
    assert config.data.corpus is not None  # a run cannot start without one
    tokenizer = Corpus.open(config.data.corpus).tokenizer_path
    model = JointElectra(replace(config, seed=0))
    try:
        with CheckpointReader(info.folder) as reader, torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(reader.read_whole(name)))
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; export an older checkpoint of the run") from None
    hub.export(model, tokenizer, out)
    return out


def model_folder(path: Path) -> Path:
    """A Hugging Face folder for `path`: itself, or the export of a run's newest checkpoint, made once.

    Raises:
        UserError: `path` is neither.
    """
    if not (path / "checkpoints").is_dir():
        return path
    info = resolve(path)
    out = path / "export" / info.folder.name
    return out if (out / "config.json").is_file() else export_hf(info.folder, out)
