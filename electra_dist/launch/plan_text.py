"""A plan as tables for people."""

from __future__ import annotations

from typing import Any

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def render(plan: dict[str, Any]) -> str:
    """All of it but the list of files; bytes in powers of 1000."""
    lines = [*_head(plan), "", *_memory(plan), "", *_traffic(plan), "", *_times(plan)]
    return "\n".join(lines)


def _head(plan: dict[str, Any]) -> list[str]:
    assumed = " (assumed: the config leaves it to the corpus)"
    world_size = plan["nodes"] * plan["gpus_per_node"]
    files = plan["checkpoint_files"]
    shards = [size for name, size in files.items() if name.startswith("shard_")]
    return [
        (
            f"{plan['recipe']} in {plan['precision']} on {plan['nodes']} node(s) x "
            f"{plan['gpus_per_node']} = {world_size} rank(s), {plan['device']}"
        ),
        f"vocabulary    {plan['vocab_size']:,}{assumed if plan['vocab_size_is_assumed'] else ''}",
        (
            f"parameters    {plan['parameters']['joint']:,} joint, "
            f"{plan['parameters']['discriminator']:,} in the discriminator"
        ),
        (
            f"FLOPs         {plan['flops']['usual']:.4e} usual (backward = 2 forward, products "
            f"only), {plan['flops']['google']:.4e} as google counts"
        ),
        (
            f"checkpoint    {size_words(plan['checkpoint_bytes'])}: {len(shards)} shard(s) of at "
            f"most {size_words(max(shards))}"
        ),
    ]


def _memory(plan: dict[str, Any]) -> list[str]:
    kinds = [
        "weights", "gradients", "optimizer", "activations", "buckets", "checkpoint_buffers",
    ]  # fmt: skip
    rows = [
        [name, *(size_words(values[kind]) for kind in kinds), size_words(total)]
        for (name, values), total in zip(
            plan["memory_by_kind"].items(), plan["memory_per_gpu"].values(), strict=True
        )
    ]
    on_gpu = plan["device"] == "cuda"
    notes = [
        "checkpoint buffers lie in host memory and are not in the total; the CUDA context, NCCL "
        "and what the allocator loses come on top"
        if on_gpu
        else "the interpreter and its libraries come on top, and what the C library keeps of "
        "freed memory"
    ]
    heads = [kind.split("_")[0] for kind in kinds]
    return [
        "memory of a rank at the fullest moment of a step",
        *_table(["", *heads, "total"], rows),
        *notes,
    ]


def _traffic(plan: dict[str, Any]) -> list[str]:
    rows = [
        [name, size_words(one["gradients"]), size_words(one["weights"]), size_words(total)]
        for (name, one), total in zip(
            plan["traffic_by_kind"].items(), plan["traffic_per_step"].values(), strict=True
        )
    ]
    return [
        "sent by a rank in a step",
        *_table(["", "gradients", "weights", "total"], rows),
    ]


def _times(plan: dict[str, Any]) -> list[str]:
    assumed, time, save = plan["assumed"], plan["time"], plan["checkpoint_interval"]
    days = time["total_seconds"] / 86400
    return [
        (
            f"assumed: {assumed['tflops']:g} TFLOP/s a device x MFU {assumed['mfu']:g}, "
            f"a failure of a node every {assumed['mtbf_hours']:g} h,"
        ),
        (
            f"         {assumed['write_gb_per_s']:g} GB/s to disk and "
            f"{assumed['copy_gb_per_s']:g} GB/s to host buffers a rank, "
            f"{assumed['restart_minutes']:g} min to restart"
        ),
        (
            f"time          {time['step_seconds']:.3g} s a step, {days:.3g} days in all, "
            f"{time['tokens_per_s']:,.0f} tokens/s"
        ),
        (
            f"save          every {save['every_steps']:,} steps ({save['seconds'] / 60:.3g} min; "
            f"Young/Daly), blocks {save['blocked_seconds']:.3g} s of {save['save_seconds']:.3g} s"
        ),
        (
            f"goodput       {plan['goodput']['recommended']:.2%} so, "
            f"{plan['goodput']['configured']:.2%} with the config's checkpoint.every_steps"
        ),
    ]


def size_words(num_bytes: float) -> str:
    """`1.43 GB`."""
    power = 0
    while num_bytes >= 999.5 and power < len(_UNITS) - 1:  # 999.5 and more would be 1e+03
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {_UNITS[power]}"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [heads, *rows]
    ]
