"""Fine-tuning: an encoder and labelled files in, scores by seed and the best model out."""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from electra_dist.engine.optim import ElectraAdam
from electra_dist.engine.schedule import learning_rate_factor
from electra_dist.errors import UserError
from electra_dist.finetune.bodies import Classifier, make_body, make_classifier
from electra_dist.finetune.config import FinetuneConfig, default_layer_decay, default_lr
from electra_dist.finetune.dataset import Dataset, Split, read_dataset
from electra_dist.finetune.encoding import TextEncoder
from electra_dist.finetune.folder import (
    HeadConfig,
    load_body,
    read_body_config,
    save_classifier,
)
from electra_dist.finetune.heads import run
from electra_dist.finetune.metrics import constant_baseline, score
from electra_dist.finetune.optim import layer_wise_groups
from electra_dist.finetune.results import FinetuneResult, Scores, SeedResult
from electra_dist.runtime.devices import device_named
from electra_dist.runtime.files import write_json_atomic

_LOG = logging.getLogger(__name__)
MAX_GRAD_NORM = 1.0
RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A config with everything looked up: what each seed shares."""

    config: FinetuneConfig
    data: Dataset
    head: HeadConfig
    encoder: TextEncoder
    device: torch.device
    num_epochs: int
    lr: float
    layer_decay: float


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune once for each seed; keep the model of the best one on dev.

    Writes the model's folder (see `folder`) and results.json into `config.out`. On the CPU the
    same seed, files and number of threads give the same scores bit for bit. The caller's random
    state is left as it was.

    Raises:
        UserError: a mistake in the config, the model's folder or a file; a loss that is not finite.
    """
    with _threads(config.threads):
        prepared = _prepare(config)
        unfinished = {"finished": False, "settings": _settings(prepared)}
        write_json_atomic(config.out / RESULTS_FILE, unfinished)
        results: list[SeedResult] = []
        best: SeedResult | None = None
        main = prepared.head.metrics[0]
        for seed in config.seeds:
            model, result = _run_seed(prepared, seed)
            results.append(result)
            if best is None or result.scores["dev"][main] > best.scores["dev"][main]:
                best = result
                save_classifier(config.out, model, prepared.head, config.model)
        assert best is not None
        outcome = FinetuneResult(
            task=prepared.head.task,
            kind=prepared.head.kind,
            metrics=prepared.head.metrics,
            seeds=tuple(results),
            baseline=_baseline(prepared),
            best_seed=best.seed,
            model_folder=config.out,
            settings=_settings(prepared),
        )
        write_json_atomic(config.out / RESULTS_FILE, outcome.to_json())
    return outcome


def _prepare(config: FinetuneConfig) -> _Run:
    """Find every mistake that can be found before training."""
    body = read_body_config(config.model)
    if config.max_length > body.max_position_embeddings:
        raise UserError(
            f"max_length {config.max_length} is over the {body.max_position_embeddings} positions "
            f"of {config.model}; lower it"
        )
    encoder = TextEncoder(config.model, config.max_length)
    if encoder.vocab_size > body.vocab_size:
        raise UserError(
            f"{config.model}: its tokenizer has {encoder.vocab_size} tokens and its embeddings "
            f"{body.vocab_size}; give the folder the tokenizer that the model was trained with"
        )
    data = read_dataset(config, encoder)
    # ModernBERT has no token types: [SEP] alone parts the texts.
    if data.task.text_b is not None and getattr(body, "type_vocab_size", 2) < 2:
        raise UserError(
            f"{config.model}: it has {body.type_vocab_size} token type where pairs need 2"
        )
    _claim_folder(config)
    assert data.task.kind is not None
    head = HeadConfig(
        head=config.head,
        task=data.task.name,
        kind=data.task.kind,
        labels=data.labels,
        target_range=data.task.target_range,
        metrics=data.task.metrics,
        max_length=config.max_length,
        text=data.task.text,
        text_b=data.task.text_b,
        label=data.task.label,
        columns_without_header=data.task.columns_without_header,
    )
    hidden = body.hidden_size
    return _Run(
        config=config,
        data=data,
        head=head,
        encoder=encoder,
        device=device_named(config.device),
        num_epochs=config.epochs or data.task.num_epochs,
        lr=default_lr(hidden) if config.lr is None else config.lr,
        layer_decay=default_layer_decay(hidden)
        if config.layer_decay is None
        else config.layer_decay,
    )


def _run_seed(prepared: _Run, seed: int) -> tuple[Classifier, SeedResult]:
    started = time.monotonic()
    cuda = [torch.cuda.current_device()] if prepared.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        model = _build(prepared, seed)
        train_loss = _train(prepared, model, seed)
    splits = {name: split for name, split in prepared.data.splits.items() if name != "train"}
    scores = {name: _score(prepared, model, split) for name, split in splits.items()}
    shown = " ".join(f"{name} {value:.4f}" for name, value in scores["dev"].items())
    _LOG.info("seed %d: train loss %.4f, dev %s", seed, train_loss, shown)
    seconds = time.monotonic() - started
    return model, SeedResult(seed=seed, scores=scores, train_loss=train_loss, seconds=seconds)


def _build(prepared: _Run, seed: int) -> Classifier:
    torch.manual_seed(seed)
    if prepared.config.reinitialize:
        body = make_body(read_body_config(prepared.config.model))
    else:
        body = load_body(prepared.config.model)
    # `load_body` draws as many numbers, so the head starts equal on either encoder.
    model = make_classifier(body, prepared.head.head, prepared.head.num_outputs)
    return model.to(prepared.device)


def _train(prepared: _Run, model: Classifier, seed: int) -> float:
    """Train in place; the mean loss of the last epoch."""
    config, split = prepared.config, prepared.data.splits["train"]
    targets = _targets(prepared.head, split)
    optimizer = ElectraAdam(
        layer_wise_groups(
            model, prepared.lr, prepared.layer_decay, config.layer_decay_rule, config.weight_decay
        ),
        lr=prepared.lr,
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    order = torch.Generator().manual_seed(seed)
    num_steps = prepared.num_epochs * math.ceil(len(split.rows) / config.batch_size)
    warmup_steps = (
        max(1, round(config.warmup_fraction * num_steps)) if config.warmup_fraction else 0
    )
    model.train()
    step, epoch_loss = 0, 0.0
    for epoch in range(prepared.num_epochs):
        total = torch.zeros((), device=prepared.device)
        for indices in torch.randperm(len(split.rows), generator=order).split(config.batch_size):
            factor = learning_rate_factor(step, num_steps, warmup_steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            batch = prepared.encoder.collate([split.rows[index] for index in indices.tolist()])
            outputs = model(batch.to(prepared.device))
            loss = _loss(prepared.head, outputs, targets[indices].to(prepared.device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach() * len(indices)
            step += 1
        epoch_loss = total.item() / len(split.rows)
        if not math.isfinite(epoch_loss):
            raise UserError(
                f"the loss became {epoch_loss} in epoch {epoch + 1} at lr {prepared.lr:g}; lower "
                "--lr"
            )
        _LOG.info(
            "seed %d epoch %d/%d: loss %.4f", seed, epoch + 1, prepared.num_epochs, epoch_loss
        )
    return epoch_loss


def _targets(head: HeadConfig, split: Split) -> Tensor:
    """Class indices (int64), or values scaled so that the target range is 0 to 1 (float32)."""
    if head.target_range is None:
        return torch.from_numpy(split.truth).long()
    low, high = head.target_range
    return ((torch.from_numpy(split.truth) - low) / (high - low)).float()


def _loss(head: HeadConfig, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch: cross entropy, or squared error of the scaled values."""
    if head.kind == "regression":
        return nn.functional.mse_loss(outputs[:, 0], targets)
    return nn.functional.cross_entropy(outputs, targets)


def _score(prepared: _Run, model: Classifier, split: Split) -> Scores:
    outputs = run(model, prepared.encoder, split.rows, prepared.config.batch_size)
    return score(prepared.head.metrics, prepared.head.answers(outputs), split.truth)


def _baseline(prepared: _Run) -> dict[str, Scores]:
    splits, head = prepared.data.splits, prepared.head
    return {
        name: constant_baseline(
            head.metrics, head.kind == "regression", splits["train"].truth, split.truth
        )
        for name, split in splits.items()
        if name != "train"
    }


def _settings(prepared: _Run) -> dict[str, object]:
    config = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(prepared.config).items()
    }
    sizes = {f"num_{name}": len(split.rows) for name, split in prepared.data.splits.items()}
    return config | {
        "epochs": prepared.num_epochs,
        "lr": prepared.lr,
        "layer_decay": prepared.layer_decay,
        "threads": torch.get_num_threads(),
        "device": prepared.device.type,
        **sizes,
    }


def _claim_folder(config: FinetuneConfig) -> None:
    """Make the folder; an earlier run of this command may lie there only if it did not finish."""
    out = config.out
    if out.resolve() == config.model.resolve():
        raise UserError(f"out {out} is the pretrained model's own folder; name another one")
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_empty = not any(out.iterdir())
        results = (out / RESULTS_FILE).read_bytes() if (out / RESULTS_FILE).is_file() else b""
    except OSError as error:
        raise UserError(
            f"out {out} cannot be made ({error.strerror}); name another folder"
        ) from error
    if is_empty:
        return
    try:
        is_finished = json.loads(results)["finished"]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"out {out} holds files of something else; name an empty or new folder"
        ) from None
    if is_finished:
        raise UserError(
            f"out {out} holds a finished model already; remove it or give another --out folder"
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
