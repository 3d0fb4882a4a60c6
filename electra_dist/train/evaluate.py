"""Held-out evaluation: masks and noise are recorded in the corpus.

The generator is asked at the recorded masks; the discriminator twice: on its own generator's
samples (drawn with the recorded uniform numbers) and on the recorded unigram corruption, which is
the same for every run.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from electra_dist.data.store import Array
from electra_dist.model import ops
from electra_dist.model.batch import Batch, Losses
from electra_dist.model.objectives import objective_named
from electra_dist.model.sampling import selected_positions
from electra_dist.runtime.control import Control

if TYPE_CHECKING:
    from electra_dist.train.build import Run

FloatArray = NDArray[np.float64]


class Judged(NamedTuple):
    """The discriminator's answers over the real tokens of some rows."""

    logits: FloatArray
    labels: NDArray[np.bool_]
    """Whether the token was replaced."""
    selected: NDArray[np.bool_]
    """Whether the position was selected for masking."""


def evaluate(run: Run) -> dict[str, float] | None:
    """The panel over held-out rows; None where the corpus holds out none. Collective."""
    if run.frozen is None:
        return None
    frozen, micro = run.frozen, run.config.batch.micro_batch_size
    num_rows = min(run.config.metrics.eval_num_samples, len(frozen["num_tokens"]))
    starts = list(range(0, num_rows, micro))
    world = run.world
    # Every rank makes as many passes (ZeRO-3 gathers weights in each): the last one is repeated and
    # not counted.
    mine = starts[world.rank :: world.world_size]
    num_passes = math.ceil(len(starts) / world.world_size)
    generator_parts: list[Array] = []
    judged_parts: dict[str, list[Judged]] = {"own": [], "unigram": []}
    for number in range(num_passes):
        start = mine[number] if number < len(mine) else starts[-1]
        batch = _batch(frozen, start, min(start + micro, num_rows)).to(run.engine.device)
        batch = batch._replace(step=run.state.step)  # a temperature may be annealed
        own = run.engine.evaluate(batch)
        unigram = run.engine.evaluate(
            batch._replace(sampled_ids_BN=_to_tensor(frozen["unigram_ids"], start, batch))
        )
        if number < len(mine):
            if own.generator_logits_BNV is not None:
                generator_parts.append(_generator_answers(batch, own))
            if own.discriminator_logits_BL is not None:
                judged_parts["own"].append(_judge(batch, own))
                judged_parts["unigram"].append(_judge(batch, unigram))
    answers = np.concatenate(gather(run.control, _joined(generator_parts, (0, 5))))
    panel = {}
    if len(answers):
        has_samples = objective_named(run.config.objective.name).has_discriminator
        panel = generator_metrics(answers, run.unigram_log_probs, has_samples=has_samples)
    for corruption, parts in judged_parts.items():
        flat = gather(run.control, _joined([np.stack(p, axis=1) for p in parts], (0, 3)))
        columns = np.concatenate(flat)
        if len(columns):
            judged = Judged(columns[:, 0], columns[:, 1] > 0, columns[:, 2] > 0)
            panel |= {f"{corruption}_{k}": v for k, v in discriminator_metrics(judged).items()}
    return panel


def generator_metrics(
    answers: FloatArray, unigram_log_probs: FloatArray, *, has_samples: bool
) -> dict[str, float]:
    """Loss and accuracies at the masked slots, beside what a unigram model would get there.

    Args:
        answers: a row a masked slot: loss, argmax right, sample right, original id, sampled id.
        unigram_log_probs: log-probability of every id in the train split.
        has_samples: False for a masked language model, which samples nothing: the columns of
            samples hold the originals there, and no metric of them is given.
    """
    originals = answers[:, 3].astype(np.int64)
    commonest = int(unigram_log_probs.argmax())
    of_samples = {
        "generator_sampled_accuracy": float(answers[:, 2].mean()),
        "replaced_share": float((answers[:, 3] != answers[:, 4]).mean()),
    }
    return {
        "generator_loss": float(answers[:, 0].mean()),
        "generator_accuracy": float(answers[:, 1].mean()),
        **(of_samples if has_samples else {}),
        "baseline_unigram_loss": float(-unigram_log_probs[originals].mean()),
        "baseline_commonest_token_share": float((originals == commonest).mean()),
    }


def discriminator_metrics(judged: Judged) -> dict[str, float]:
    """Loss, accuracy, precision, recall, AUC and AP over real tokens, and over selected ones only.

    All that is replaced was selected, so the recall is the same over both; precision over selected
    tokens forgives every false alarm elsewhere.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # 1 s, not at every start

    metrics = {}
    for name, mask in (("", np.ones_like(judged.labels)), ("_selected", judged.selected)):
        logits, labels = judged.logits[mask], judged.labels[mask]
        if not len(labels):
            continue
        called = logits > 0
        hits = float((called & labels).sum())
        # softplus of the logit with the label's sign: the binary cross-entropy, without overflow.
        losses = np.logaddexp(0.0, np.where(labels, -logits, logits))
        metrics[f"disc_loss{name}"] = float(losses.mean())
        metrics[f"disc_accuracy{name}"] = float((called == labels).mean())
        metrics[f"disc_precision{name}"] = hits / max(1.0, float(called.sum()))
        metrics[f"disc_recall{name}"] = hits / max(1.0, float(labels.sum()))
        if 0 < labels.sum() < len(labels):
            metrics[f"disc_auc{name}"] = float(roc_auc_score(labels, logits))
            metrics[f"disc_ap{name}"] = float(average_precision_score(labels, logits))
    return metrics


def unigram_log_probs(counts: Array) -> FloatArray:
    """Add-one smoothed log-probabilities of a unigram model."""
    smoothed = counts.astype(np.float64) + 1.0
    log_probs: FloatArray = np.log(smoothed / smoothed.sum())
    return log_probs


def gather(control: Control, rows: FloatArray) -> list[FloatArray]:
    """Every rank's float64 rows, by rank, on every rank."""
    packed = [base64.b64encode(rows.tobytes()).decode(), list(rows.shape)]
    return [
        np.frombuffer(base64.b64decode(data), dtype=np.float64).reshape(shape)
        for data, shape in control.all_gather_objects(packed, name="evaluation")
    ]


def _batch(frozen: Mapping[str, Array], start: int, stop: int) -> Batch:
    def tensor(name: str, dtype: type) -> torch.Tensor:
        return torch.from_numpy(frozen[name][start:stop].astype(dtype))

    num_tokens_B = tensor("num_tokens", np.int64)
    input_ids_BL = tensor("input_ids", np.int64)
    length = input_ids_BL.shape[1]
    real_BL = torch.arange(length) < num_tokens_B[:, None]
    return Batch(
        input_ids_BL=input_ids_BL,
        masked_ids_BL=tensor("masked_ids", np.int64),
        token_type_ids_BL=tensor("token_type_ids", np.int64),
        attention_mask_BL=None if bool(real_BL.all()) else real_BL,
        masked_positions_BN=tensor("masked_positions", np.int64),
        masked_weights_BN=tensor("masked_weights", np.float32),
        uniforms_BN=tensor("uniforms", np.float32),
        block_ids_BL=tensor("block_ids", np.int16) if "block_ids" in frozen else None,
        position_ids_BL=tensor("position_ids", np.int32) if "position_ids" in frozen else None,
    )


def _to_tensor(ids: Array, start: int, batch: Batch) -> torch.Tensor:
    rows = ids[start : start + len(batch.input_ids_BL)].astype(np.int64)
    return torch.from_numpy(rows).to(batch.input_ids_BL.device)


def _generator_answers(batch: Batch, losses: Losses) -> Array:
    """A row a used masked slot: loss, argmax right, sample right, original id, sampled id."""
    originals_BN = batch.input_ids_BL.gather(1, batch.masked_positions_BN)
    logits_BNV = losses.generator_logits_BNV
    assert logits_BNV is not None
    loss_BN, _, _ = ops.cross_entropy(logits_BNV, originals_BN)
    columns = (
        loss_BN,
        logits_BNV.argmax(-1) == originals_BN,
        losses.sampled_ids_BN == originals_BN,
        originals_BN,
        losses.sampled_ids_BN,
    )
    used_BN = batch.masked_weights_BN > 0
    stacked = torch.stack([column[used_BN].double() for column in columns], dim=1)
    return stacked.cpu().numpy()


def _judge(batch: Batch, losses: Losses) -> Judged:
    assert losses.discriminator_logits_BL is not None
    assert losses.labels_BL is not None
    real_BL = (
        torch.ones_like(losses.labels_BL)
        if batch.attention_mask_BL is None
        else batch.attention_mask_BL
    )
    columns = (losses.discriminator_logits_BL, losses.labels_BL, selected_positions(batch))
    return Judged(*(column[real_BL].double().cpu().numpy() for column in columns))


def _joined(parts: list[Array], empty_shape: tuple[int, int]) -> FloatArray:
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(empty_shape)
