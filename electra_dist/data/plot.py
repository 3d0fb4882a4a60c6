"""A corpus as one figure: document lengths, row fill, token frequencies, what was left out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from electra_dist.data.info import NUM_FILL_BINS, RARE
from electra_dist.errors import UserError
from electra_dist.runtime.files import write_bytes_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2f6db3", "#d9822b", "#3f8f5b", "#b5403a", "#8a8a8a"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _RED, "#7b5ea7", "#4fa3b5")
_STYLE: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "axes.edgecolor": "#666666",
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "legend.frameon": False,
}


def check_plot(path: Path) -> None:
    """Raises UserError unless a figure can be made and `path` names a PNG."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--plot {path} must end in .png: choose another name")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: there is no folder {path.parent}, make it first")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib: run `pip install 'electra_dist[plot]'`") from None


def plot_corpus(info: dict[str, Any], path: Path) -> None:
    """Draws what `corpus_info` found and writes it as a PNG (over an older one)."""
    import matplotlib
    from matplotlib.figure import Figure

    padding = {f"figure.constrained_layout.{side}_pad": 0.1 for side in "wh"}
    with matplotlib.rc_context(_STYLE | padding):
        figure = Figure(figsize=(11, 7.8), layout="constrained", facecolor="white")
        # Rows of their own, so that long names in one leave no gap in the other.
        rows: Any = figure.subfigures(2, 1)
        above, below = (row.subplots(1, 2) for row in rows)
        _document_lengths(above[0], info)
        _row_fill(above[1], info)
        _frequencies(below[0], info)
        _records(below[1], info)
        train = info["splits"]["train"]
        # Names of folders may hold what the font lacks, and "$", which would start a formula.
        name = Path(info["folder"]).name.encode("ascii", "replace").decode()
        title = f"{name}: {train['documents']:,} documents, {train['tokens']:,} tokens to train on"
        figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
    write_bytes_atomic(path, image.getvalue())


def _document_lengths(axes: Axes, info: dict[str, Any]) -> None:
    train = info["splits"]["train"]
    bins = train["document_lengths"]
    lows = [one["min_tokens"] for one in bins]
    widths = [one["min_tokens"] * 0.94 for one in bins]
    axes.bar(lows, [one["documents"] for one in bins], widths, align="edge", color=_BLUE)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_binary)
    _thousands(axes.yaxis)
    axes.axvline(train["median_document_tokens"] or 1, color=_ORANGE, linewidth=1.5)
    axes.text(
        0.98,
        0.95,
        f"median {train['median_document_tokens']:,.0f}\nmean {train['mean_document_tokens']:,.0f}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        color=_ORANGE,
    )
    axes.grid(visible=False, axis="x")
    axes.set(
        title="Document length (train)",
        xlabel="length (tokens, by powers of two)",
        ylabel="documents",
    )


def _row_fill(axes: Axes, info: dict[str, Any]) -> None:
    axes.set(
        title="Row fill",
        xlabel="positions filled, [CLS] and [SEP] included (% of a row)",
        ylabel="rows (%, log scale)",
    )
    packings = info["packings"]
    if not packings:
        axes.text(0.5, 0.5, "not packed yet", transform=axes.transAxes, ha="center", color=_GREY)
        return
    edges = [100 * i / NUM_FILL_BINS for i in range(NUM_FILL_BINS + 1)]
    least = 100.0
    for number, pack in enumerate(packings):
        rows = max(sum(pack["rows_by_fill"]), 1)
        shares = [100 * count / rows for count in pack["rows_by_fill"]]
        least = min([least, *(share for share in shares if share > 0)])
        name = f"{pack['length']} {pack['mode']}: {100 * pack['fill_share']:.1f} % filled"
        colour = _COLOURS[number % len(_COLOURS)]
        axes.stairs(shares, edges, color=colour, linewidth=1.8, label=name)
    axes.set_yscale("log")
    axes.set_ylim(min(least / 2, 1.0), 150)
    axes.set_xlim(0, 100)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper left")


def _frequencies(axes: Axes, info: dict[str, Any]) -> None:
    use = info["vocabulary"]
    ranks = [rank for rank, _ in use["count_by_rank"]]
    counts = [count for _, count in use["count_by_rank"]]
    axes.loglog(ranks, counts, color=_BLUE, linewidth=2)
    axes.axhline(RARE, color=_ORANGE, linewidth=1, linestyle="--")
    axes.text(1, RARE * 1.15, f"{RARE} times", color=_ORANGE, va="bottom")
    text = (
        f"{info['vocab_size']:,} ids\n{use['never_seen']:,} never seen\n"
        f"{use['seen_rarely']:,} less than {RARE} times\n"
        f"unknown: {100 * info['unknown_token_share']:.3f} % of the tokens"
    )
    axes.text(0.03, 0.05, text, transform=axes.transAxes, va="bottom")
    axes.xaxis.set_major_formatter(_short)
    axes.yaxis.set_major_formatter(_short)
    axes.set_ylim(bottom=0.8)
    axes.set(
        title="Token frequency (train)",
        xlabel="rank of the token (log scale)",
        ylabel="occurrences (log scale)",
    )


def _records(axes: Axes, info: dict[str, Any]) -> None:
    """What became of the documents and records, most of the colours for what was left out."""
    rows = [
        ("to train on", info["splits"]["train"]["documents"], _BLUE),
        ("held out", info["splits"]["held_out"]["documents"], _GREEN),
        ("exact duplicates", info["duplicates"]["exact"], _ORANGE),
        ("near duplicates", info["duplicates"]["near"], _ORANGE),
        ("left out by weight", info["left_out_by_weight"], _GREY),
        ("empty", info["empty_documents"], _GREY),
    ]
    reasons = sorted(info["quarantine"]["by_reason"].items(), key=lambda item: -item[1])
    rows += [(f"bad: {_cut(reason)}", number, _RED) for reason, number in reasons[:6]]
    if not reasons:
        rows.append(("bad records", 0, _RED))
    if others := sum(number for _, number in reasons[6:]):
        rows.append((f"bad: {len(reasons) - 6} other reasons", others, _RED))
    known = [(name, number, colour) for name, number, colour in rows if number is not None]
    names, numbers, colours = (list(column) for column in zip(*known, strict=True))
    axes.barh(names, numbers, color=colours, height=0.7)
    for place, number in enumerate(numbers):
        axes.annotate(
            f"{number:,}", (number, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, max(numbers) * 6 + 1)
    axes.xaxis.set_major_formatter(_short)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(
        title="Documents and bad records",
        xlabel="documents, or records (log scale from 1 on)",
    )


def _cut(reason: str, longest: int = 34) -> str:
    return reason if len(reason) <= longest else f"{reason[: longest - 3]}..."


def _short(value: float, _: float) -> str:
    """1000 as 1k, 2500000 as 2.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _binary(value: float, _: float) -> str:
    """1024 as 1 Ki, 4194304 as 4 Mi."""
    for size, letter in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _thousands(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.get_major_locator().set_params(integer=True)
