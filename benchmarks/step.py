"""One training step of `small` beside transformers' models, and beside its bare matrix products.

    python benchmarks/step.py [--rounds 7] [--threads 2] [--clock cpu] [--only packing] [--json]

12 x 256, generator 12 x 64, L 128, 16 rows, V 30522, dropout 0.1, tied tables, one optimizer (ours)
for all; the step is the reference engine's, from a micro-batch to new weights. All take turns in
every round, the other way about in every second one: two steps, of which the second counts, as in a
run it follows one of its own. Ratios are the medians of a round's ratios. `--clock cpu` takes CPU
seconds in place of seconds: with one thread other work disturbs them less.

`transformers, all positions` hands the generator its `labels`, so logits and the loss are made at
every position; `gathered` picks the masked hidden vectors first. Both sample at the masked slots,
by the Gumbel trick, in processes of their own with PyTorch's settings; ours and the products keep
freed memory, as a run of ours does.

`ours, compiled` is the same step with `engine.compile`; the start, which compiles, is not timed.

`matrix products` runs every product of the step, forward and backward, alone, with the shapes and
layouts of the step (listed), each as often as the step does and with operands of its own: a step
that did nothing else would take this long. `warm` repeats each product with the same operands
instead, which stay in the caches, as those of 12 layers can't. The step's FLOPs are those of this
list, so FLOP/s over FLOP/s is time over time.
`full` rows have no padding; `real` rows are cut from made-up documents by the rules of
`corpus pack`, and their FLOPs count real tokens and used slots only, with attention in as many rows
as the step computes: short ones share a row.

`packing` takes documents of 30 tokens on average, one a row of 128 and padded, against the same
documents in packed rows; losses of both are compared without dropout on the same masks and noise.
`shared` are the padded rows as a run takes them: short ones share a row as long as the longest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import joint_rows, joint_step, products  # noqa: E402
from benchmarks.peers.turns import (  # noqa: E402
    CLOCKS,
    Step,
    Turn,
    in_process,
    interleave,
    ratio,
    turn,
)
from electra_dist.config.schema import RunConfig  # noqa: E402
from electra_dist.data.stream import MicroBatch  # noqa: E402
from electra_dist.engine.protocol import to_batch  # noqa: E402
from electra_dist.engine.reference import ReferenceEngine  # noqa: E402
from electra_dist.model.electra import JointElectra  # noqa: E402
from electra_dist.runtime.cpu import compute_on_cpu  # noqa: E402
from electra_dist.runtime.world import World  # noqa: E402

NUM_ROWS = 16
CPU = torch.device("cpu")
ENGINES_BYTES = 2**33
"""More than all engines of this process hold."""


def ours(
    config: RunConfig,
    micro_batches: list[MicroBatch],
    *,
    before: MicroBatch | None = None,
    **options: Any,
) -> Step:
    """A step of the reference engine, as `engine.kind = "reference"` runs it.

    One over `before` comes first. Where it has another number of rows the compiler makes code for
    any number of them, which is what most of a run takes.
    """
    engine = ReferenceEngine(
        JointElectra(config), config, World.from_environment({}), CPU, **options
    )
    if before is not None:
        engine.step([before], learning_rate=1e-5)
    return lambda: engine.step(micro_batches, learning_rate=1e-5)


def padding_computed(micro_batch: MicroBatch, seed: int, device: torch.device) -> Any:
    """A batch whose padding the model computes and masks, as most code does."""
    return to_batch(micro_batch, seed, device, keep_padding=True)


def transformers_step(clock: str, *, gathered: bool) -> AbstractContextManager[Turn]:
    """The peer's step in a process of its own, as its users run it."""
    options = ["--clock", clock, "--threads", torch.get_num_threads(), *["--gathered"] * gathered]
    return in_process(joint_step.__file__, *options)


def products_of(config: RunConfig, micro_batch: MicroBatch) -> list[products.Product]:
    """What a step must multiply: real tokens and used slots, attention in the rows they share."""
    return products.of_step(
        config,
        num_tokens=int(micro_batch.num_tokens_B.sum()),
        num_rows=len(to_batch(micro_batch, config.seed, CPU).input_ids_BL),
        num_slots=int(micro_batch.masked_weights_BN.sum()),
    )


def measure_step(rounds: int, clock: str) -> dict[str, Any]:
    """Ours, transformers and the bare products; full rows and real ones."""
    config = joint_rows.small()
    full = joint_rows.full_rows(config)
    real = joint_rows.real_rows(config)
    bare = {"full": products_of(config, full), "real": products_of(config, real)}
    compiled = replace(config, engine=replace(config.engine, compile=True))
    others = joint_rows.real_rows(config, seed=2)
    steps: dict[str, Turn] = {}
    for name, rows, before in (("full", full, None), ("real", real, others)):
        steps |= {
            f"ours, {name} rows": turn(ours(config, [rows], before=before), clock),
            f"ours, compiled, {name} rows": turn(ours(compiled, [rows], before=before), clock),
            f"matrix products, {name} rows": turn(products.runner(bare[name]), clock),
            f"warm products, {name} rows": turn(products.runner(bare[name], warm=True), clock),
        }
    with (
        transformers_step(clock, gathered=True) as gathered,
        transformers_step(clock, gathered=False) as everywhere,
    ):
        steps |= {
            "transformers, gathered": gathered,
            "transformers, all positions": everywhere,
        }
        seconds = interleave(steps, rounds)
    return {
        "seconds": seconds,
        "gflop": {name: products.flops(shapes) / 1e9 for name, shapes in bare.items()},
        "shapes": [f"{rows}: {shape}" for rows, shapes in bare.items() for shape in shapes],
        "tokens": {"full": int(full.num_tokens_B.sum()), "real": int(real.num_tokens_B.sum())},
        "ratios": ratios_of_step(seconds),
    }


def ratios_of_step(seconds: dict[str, list[float]]) -> dict[str, float]:
    """What the claims are about, for the step as it is and compiled."""
    found = {}
    for mine in ("ours", "ours, compiled"):
        for peer in ("all positions", "gathered"):
            name = f"transformers, {peer}"
            found[f"{name} / {mine}"] = ratio(seconds[name], seconds[f"{mine}, full rows"])
        for rows in ("full", "real"):
            for bare in ("matrix products", "warm products"):
                found[f"FLOP/s of {mine} / of {bare}, {rows}"] = ratio(
                    seconds[f"{bare}, {rows} rows"], seconds[f"{mine}, {rows} rows"]
                )
    return found


def measure_packing(rounds: int, clock: str) -> dict[str, Any]:
    """Tokens a second of short documents: padded, sharing rows, packed; and the losses."""
    config = joint_rows.small()
    packed, alone = joint_rows.short_documents(config)
    tokens = {"packed": int(packed.num_tokens_B.sum()), "padded": int(alone[0].num_tokens_B.sum())}
    steps = {
        "packed rows": ours(config, [packed]),
        "a document a row, padded": ours(config, alone[:1], make_batch=padding_computed),
        "a document a row, shared": ours(config, alone[:1]),
    }
    seconds = interleave({name: turn(step, clock) for name, step in steps.items()}, rounds)
    per_token = {
        name: [
            second / tokens["packed" if name == "packed rows" else "padded"] for second in values
        ]
        for name, values in seconds.items()
    }
    padded = per_token["a document a row, padded"]
    return {
        "seconds": seconds,
        "tokens": tokens,
        "mean_document": float(alone[0].num_tokens_B.mean()),
        "losses": joint_rows.compare_losses(
            joint_rows.small(dropout=0.0), packed, padding_computed
        ),
        "ratios": {
            "packed / padded, tokens/s": ratio(padded, per_token["packed rows"]),
            "shared / padded, tokens/s": ratio(padded, per_token["a document a row, shared"]),
        },
    }


PARTS = {"step": measure_step, "packing": measure_packing}
TARGETS = {
    "transformers, all positions": 4.0,
    "transformers, gathered": 1.9,
    "FLOP/s": 0.75,
    "packed / padded": 2.5,
}
"""By the beginning of what is claimed."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    compute_on_cpu(args.threads, ENGINES_BYTES)  # as a run does
    found = {name: PARTS[name](args.rounds, args.clock) for name in args.only}
    if args.json:
        print(json.dumps({"threads": args.threads, "clock": args.clock, **found}))
        return
    for name, part in found.items():
        print(f"\n{name}: seconds, median (min to max) of {args.rounds} rounds")
        for who, values in part["seconds"].items():
            middle = statistics.median(values)
            print(f"  {who:32}{middle:8.3f} ({min(values):.3f} to {max(values):.3f})")
        for what in ("tokens", "gflop", "mean_document", "losses"):
            if what in part:
                print(f"  {what}: {part[what]}")
        for what, value in part["ratios"].items():
            wanted = [least for claim, least in TARGETS.items() if what.startswith(claim)]
            target = f"   (target: at least {wanted[0]})" if wanted else ""
            print(f"  {what:56}{value:6.2f}{target}")
        for shape in part.get("shapes", ()):
            print(f"    {shape}")


if __name__ == "__main__":
    main()
