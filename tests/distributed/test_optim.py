"""AdamW and LAMB on every engine, and half precision, on real ranks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from electra_dist.checkpoint.layout import list_checkpoints, read_manifest, read_state
from electra_dist.checkpoint.reshard import differences
from electra_dist.runtime.files import read_json_lines
from electra_dist.train.audit import audit
from tests import made_up
from tests.distributed.ranks import ROOT, run_ranks
from tests.distributed.test_resume import metrics_without_timing

pytestmark = pytest.mark.distributed
WORKERS = "tests.distributed.optim_workers"
CONFIGS = ROOT / "deepspeed_configs"
ENGINES: list[dict[str, Any]] = [
    {"kind": "reference"},
    *({"zero_stage": stage} for stage in range(4)),
    {"zero_stage": 3, "deepspeed_config": str(CONFIGS / "zero3_small_shards.json")},
    {"zero_stage": 2, "deepspeed_config": str(CONFIGS / "zero2_offload.json")},
]


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sharded_updates_are_those_of_whole_parameters(world_size: int, tmp_path: Path) -> None:
    """Trust ratios too: 3 steps at every stage, off-loaded, and with parameters cut small."""
    reports = run_ranks(
        f"{WORKERS}:against_whole",
        world_size,
        tmp_path,
        optimizers=["lamb", "adamw"],
        variants=ENGINES,
    )[0]
    for report in reports:
        print(report)
    for report in reports:
        assert report["from_whole"] < 1e-6, report
        assert report["tower_norms"] < 1e-5, report
        assert report["most_over_the_clip"] > 1.0, report
        assert report["divisor"] < 1e-5, report
        # Other engines, other rounding of gradients: it shows where these are next to nothing.
        assert report["from_first"] < 1e-2, report


def test_half_precision_skips_what_overflows_and_trains_on_what_does_not(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {"kind": "reference"},
        *({"kind": "reference", "precision": precision} for precision in ("bf16", "fp16")),
        *({"zero_stage": stage, "precision": "fp16"} for stage in (1, 2, 3)),
        {"zero_stage": 2, "precision": "bf16"},
    ]
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():  # DeepSpeed refuses fp16 then
        variants = [v for v in variants if v.get("precision") != "fp16" or "kind" in v]
    reports = run_ranks(f"{WORKERS}:half_precision", 2, tmp_path, variants=variants)[0]
    exact, *others = reports
    for variant, report in zip(variants, reports, strict=True):
        print(variant, report)
    for variant, report in zip(variants[1:], others, strict=True):
        dtype = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}[variant["precision"]]
        assert report["computes_in"] == [dtype], variant
        assert report["poisoned_norm"] == "nan", variant
        assert report["norms"] == pytest.approx(
            [exact["norms"][0]] * len(report["norms"]), rel=0.05
        )
        assert report["losses"] == pytest.approx(exact["losses"], rel=0.05), variant
        assert report["moved"] == pytest.approx(exact["moved"], rel=0.2), variant
        assert report["untouched"], variant
        assert report["overflow_norm"] == ("nan" if variant["precision"] == "fp16" else None)


def test_an_fp16_run_resumes_with_its_loss_scale_and_counts_skipped_steps(tmp_path: Path) -> None:
    """From far too large a scale down, and up again after 4 good steps, over a stop in between."""
    fp16 = {"precision": "fp16", "initial_loss_scale": 2.0**30, "loss_scale_window": 4}
    engines: list[dict[str, Any]] = [{"kind": "reference", **fp16}, {"zero_stage": 2, **fp16}]
    if not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        engines = engines[:1]
    reasons = run_ranks(
        f"{WORKERS}:fp16_lives",
        2,
        tmp_path / "logs",
        corpus=str(made_up.corpus(tmp_path / "corpus", length=32)),
        folder=str(tmp_path),
        engines=engines,
    )[0]
    assert reasons == [["finished", "stopped", "finished"]] * len(engines)
    for number, engine in enumerate(engines):
        calm, broken = tmp_path / f"calm_{number}", tmp_path / f"broken_{number}"
        last = [list_checkpoints(run)[-1].folder for run in (calm, broken)]
        assert differences(*last) == [], engine
        states = [read_state(folder, read_manifest(folder)) for folder in last]
        assert states[0] == states[1], engine
        lines = [metrics_without_timing(run) for run in (calm, broken)]
        assert lines[0] == lines[1], engine
        overflows = [e for e in read_json_lines(calm / "events.jsonl") if e["event"] == "overflow"]
        scales = [line["loss_scale"] for line in lines[0]]
        # At first every step overflows; later the scale goes up until one does, and down again.
        assert scales[:4] == [2.0**30, 2.0**29, 2.0**28, 2.0**27]
        assert 8 <= len(overflows) < 32
        assert any(later > earlier for earlier, later in pairwise(scales))
        skipped = [line["step"] for line in lines[0] if line["grad_norm"] == "NaN"]
        assert skipped == [event["step"] for event in overflows]
        assert states[0]["num_updates"] == 40 - len(overflows)
        # A skipped update is a step: every position is in the ledger once.
        assert audit(broken, []).problems == [], engine


def test_deepspeed_reads_each_shipped_file_as_it_is_meant(tmp_path: Path) -> None:
    found = run_ranks(f"{WORKERS}:read_by_deepspeed", 1, tmp_path, folder=str(CONFIGS))[0]
    devices = {name: values[1:3] for name, values in found.items() if any(values[1:3])}
    assert devices == {
        "zero2_offload": ["cpu", None],
        "zero3_offload": ["cpu", None],
        "zero3_nvme": ["cpu", "nvme"],
    }
    assert found["zero3_nvme"][3] == 16
    assert {name: values[0] for name, values in found.items()} == {
        path.stem: int(path.stem[4]) for path in CONFIGS.glob("*.json")
    }
