"""Is the plan true? Memory and checkpoint bytes, predicted before anything is allocated.

    python benchmarks/plan.py [--case NAME ...] [--heap] [--folder DIR] [--json]

For each case `electra-dist plan --json` runs first, in a process in which torch cannot be imported.
Then a child process builds that run on one rank of this CPU, makes two steps (memory_of_run.py) and
saves. Memory is the difference of resident sizes: the high-water mark of building, stepping and the
save's buffers, over a process that has made two steps of a narrow model through the same engine.

The C library gives freed memory back at once here (MALLOC_MMAP_THRESHOLD_), so that resident is
what is held. A run on a CPU keeps what it has freed, for speed (runtime/memory.py); with --heap a
second child measures that too: holes between tensors come on top, no plan knows them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

CASES: dict[str, tuple[str, str, list[str]]] = {
    "tiny": ("tiny", "reference", []),
    "tiny, one pass": ("tiny", "reference", ["--batch.global_batch_size", "8"]),
    "small": ("small", "reference", ["--batch.global_batch_size", "16"]),
    "small, recomputed": (
        "small",
        "reference",
        ["--batch.global_batch_size", "16", "--engine.activation_checkpointing"],
    ),
    "small, modern": (
        "small",
        "reference",
        ["--batch.global_batch_size", "16", "--model.backbone", "modern"],
    ),
    "small, electric": (
        "small",
        "reference",
        ["--batch.global_batch_size", "8", "--objective.name", "electric"],
    ),
    "small, disentangled": (
        "small",
        "reference",
        ["--batch.global_batch_size", "8", "--model.embedding_sharing", "gradient_disentangled"],
    ),
    "small, one tower": (
        "small",
        "reference",
        [
            *("--batch.global_batch_size", "8", "--model.no_untied_generator"),
            *("--objective.no_sampling_dropout", "--objective.disallow_correct"),
        ],
    ),
    "small, ZeRO 0": ("small", "zero0", ["--batch.global_batch_size", "8"]),
    "small, ZeRO 1": ("small", "zero1", ["--batch.global_batch_size", "8"]),
    "small, ZeRO 2": ("small", "zero2", ["--batch.global_batch_size", "8"]),
    "small, ZeRO 3": ("small", "zero3", ["--batch.global_batch_size", "8"]),
    "base": ("base", "reference", ["--batch.global_batch_size", "2"]),
}
"""Recipe, engine as the plan's keys call it, and what is changed for a run of this machine."""

MICRO_BATCH = {"tiny": 8, "small": 8, "base": 1}
VOCABULARY = {"tiny": 8192, "small": 30522, "base": 30522}
WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "deepspeed", "transformers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
from electra_dist.cli.main import main
sys.exit(main(["plan", "--json", *sys.argv[1:]]))
"""
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def words_of(case: str) -> tuple[str, str, list[str]]:
    """Recipe, key in the plan, overrides."""
    recipe, key, overrides = CASES[case]
    size = MICRO_BATCH[recipe]
    if "ZeRO" in case:
        size //= 2
    kind = ["reference"] if key == "reference" else ["deepspeed", "--engine.zero_stage", key[-1]]
    return (
        recipe,
        key,
        [
            *("--batch.micro_batch_size", str(size)),
            *("--model.vocab_size", str(VOCABULARY[recipe])),
            *("--engine.kind", *kind),
            *overrides,
        ],
    )


def predicted(case: str) -> dict[str, int]:
    """What the plan says, torch blocked."""
    recipe, key, overrides = words_of(case)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "--recipe", recipe, *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout)
    return {
        "memory": document["memory_per_gpu"][key],
        "checkpoint_bytes": document["checkpoint_bytes"],
    }


def measured(case: str, malloc: dict[str, str], folder: str) -> dict[str, int]:
    """What a process of its own comes to."""
    recipe, _, overrides = words_of(case)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "memory_of_run.py"),
            json.dumps({"recipe": recipe, "overrides": overrides, "folder": folder}),
        ],
        env={
            **os.environ,
            **malloc,
            **rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Predict, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--heap", action="store_true", help="also as a run keeps its memory")
    parser.add_argument("--folder", help="where checkpoints are written (default: TMPDIR)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    if not args.json:
        print(f"{'MB':20}{'memory':>10}{'measured':>10}{'':>8}{'saved':>12}{'measured':>12}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for case in args.case:
            plan, found = predicted(case), measured(case, GIVE_BACK, folder)
            rows[case] = {"predicted": plan, "measured": found}
            if args.heap:
                rows[case]["kept on the heap"] = measured(case, KEEP, folder)["memory"]
            if not args.json:
                print(line(case, rows[case]), flush=True)
    if args.json:
        print(json.dumps(rows))


def line(case: str, row: dict[str, Any]) -> str:
    """One row of the table; errors are of the prediction, in per cent of what was measured."""
    cells = [f"{case:20}"]
    for name, places in (("memory", 1), ("checkpoint_bytes", 3)):
        plan, found = row["predicted"][name], row["measured"][name]
        width = 10 if places == 1 else 12
        cells.append(f"{plan / 1e6:{width}.{places}f}{found / 1e6:{width}.{places}f}")
        cells.append(f" {plan / found - 1:+7.2%}")
    if "kept on the heap" in row:
        kept = row["kept on the heap"]
        cells.append(f"   kept on the heap {kept / 1e6:.1f}")
    return "".join(cells)


if __name__ == "__main__":
    main()
