"""What a fine-tuning run has found: scores by seed, mean and deviation, the constant answer's."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

Scores = dict[str, float]
"""Metric name to value."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One seed's run."""

    seed: int
    scores: dict[str, Scores]
    """For dev, and for test where there is one."""

    train_loss: float
    """Mean loss of the last epoch."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """All seeds of a run. `to_json` is what results.json holds."""

    task: str
    kind: str
    metrics: tuple[str, ...]
    """The main one first."""

    seeds: tuple[SeedResult, ...]
    baseline: dict[str, Scores]
    """The best constant answer (the commonest label, the mean) on dev and test."""

    best_seed: int
    """The seed with the highest main metric on dev (the first of equals); its model is kept."""

    model_folder: Path
    settings: dict[str, object]
    """What the run was: files, sizes, rates, threads, device."""

    def mean(self, split: str) -> Scores:
        """Mean over the seeds of each metric on "dev" or "test"."""
        return {name: statistics.fmean(values) for name, values in self._by_metric(split).items()}

    def standard_deviation(self, split: str) -> Scores:
        """Sample standard deviation over the seeds; 0 for a single seed."""
        return {
            name: statistics.stdev(values) if len(values) > 1 else 0.0
            for name, values in self._by_metric(split).items()
        }

    def best(self, split: str) -> Scores:
        """Scores of the kept model."""
        return next(result for result in self.seeds if result.seed == self.best_seed).scores[split]

    def to_json(self) -> dict[str, object]:
        """Plain values; all that depends on the clock stands under `timing`."""
        splits = list(self.baseline)
        return {
            "finished": True,
            "task": self.task,
            "kind": self.kind,
            "metric": self.metrics[0],
            "best_seed": self.best_seed,
            "best": {split: self.best(split) for split in splits},
            "mean": {split: self.mean(split) for split in splits},
            "standard_deviation": {split: self.standard_deviation(split) for split in splits},
            "constant_baseline": self.baseline,
            "seeds": [
                {"seed": result.seed, "train_loss": result.train_loss, **result.scores}
                for result in self.seeds
            ],
            "settings": self.settings,
            "timing": {"seconds": [round(result.seconds, 3) for result in self.seeds]},
        }

    def _by_metric(self, split: str) -> dict[str, list[float]]:
        return {
            name: [result.scores[split][name] for result in self.seeds] for name in self.metrics
        }


def print_result(result: FinetuneResult, console: Console | None = None) -> None:
    """Show the scores as a table: a line for each file and metric."""
    constant = "mean answer" if result.kind == "regression" else "commonest label"
    untrained = ", untrained encoder" if result.settings.get("reinitialize") else ""
    table = Table(title=f"{result.task} ({result.kind}{untrained}), {len(result.seeds)} seed(s)")
    for heading in (
        "file",
        "metric",
        "mean",
        "deviation",
        f"best (seed {result.best_seed})",
        constant,
    ):
        table.add_column(heading, justify="left" if heading in ("file", "metric") else "right")
    for split, baseline in result.baseline.items():
        mean, deviation, best = (
            result.mean(split),
            result.standard_deviation(split),
            result.best(split),
        )
        for name in result.metrics:
            values = (mean[name], deviation[name], best[name], baseline[name])
            cells = [f"{value:.4f}" for value in values]
            cells[1] = cells[1] if len(result.seeds) > 1 else "-"  # one seed says nothing of it
            table.add_row(split, name, *cells)
    out = console or Console()
    out.print(table)
    out.print(f"model and results.json: {result.model_folder}", soft_wrap=True)
