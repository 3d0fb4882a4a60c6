"""Time limits of the real Slurm: no kill ever hits a save, and less than one step is lost.

The ranks are the real guard with a sleeping step (limit_rank.py). All cases run at the same time,
one CPU each: Slurm's time limits are whole minutes, so a case takes two of them and little CPU.
"""

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from electra_dist.launch.records import read_lines
from tests.cluster.site import ROOT, Site
from tests.cluster.slurm_lab import slurm_lab

MARGIN = 5.0
"""resilience.end_margin_seconds: srun, supervisor and Slurm learn of the end in that time."""


@dataclass(frozen=True)
class Case:
    """Steps and saves of so many seconds, in a job of so many minutes, USR1 so long before."""

    step: float
    save: float
    minutes: int
    lead: int

    @property
    def num_steps(self) -> int:
        """About half as much again as fits into one job."""
        return int(1.5 * 60 * self.minutes / self.step)


def cases(number: int) -> list[Case]:
    """Steps from 0.1 to 12 s, saves from 0.1 to 9 s; USR1 comes early, late or not at all."""
    random_numbers = random.Random(4)
    return [
        Case(
            step=round(10 ** random_numbers.uniform(-1, 1.08), 2),
            save=round(10 ** random_numbers.uniform(-1, 0.95), 2),
            minutes=random_numbers.choice([1, 1, 2]) if number > 6 else 1,
            lead=random_numbers.choice([1, 15, 30, 45]),
        )
        for _ in range(number)
    ]


@dataclass
class LimitJobs:
    """Cases that run in a Slurm of their own."""

    site: Site
    jobs: list[tuple[Case, str, Path]]

    @classmethod
    @contextmanager
    def submitted(cls, folder: Path, number: int) -> Iterator["LimitJobs"]:
        """All of them, at once."""
        place = Path(tempfile.mkdtemp(prefix="lab")) / "s"
        with slurm_lab(place, cpus_per_node=max(4, number // 4)) as lab:
            site = Site(lab, folder / "none.toml", folder)
            jobs = [
                (case, *_submit(site, folder / str(place), case))
                for place, case in enumerate(cases(number))
            ]
            yield cls(site, jobs)

    def check(self) -> None:
        """Wait for the end of each, and look at what it wrote."""
        for case, job, run in self.jobs:
            self.site.end(job, run, "COMPLETED", seconds=900.0)
            _check(case, run)


def _submit(site: Site, folder: Path, case: Case) -> tuple[str, Path]:
    run = folder / "run"
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text(
        f'recipe = "tiny"\n[schedule]\nnum_steps = {case.num_steps}\nwarmup_steps = 1\n'
        f"[checkpoint]\nevery_steps = 1000000\n[resilience]\nend_margin_seconds = {MARGIN}\n"
    )
    flags = ("--nodes=1", f"--time={case.minutes}", f"--signal=B:USR1@{case.lead}")
    job = site.submit(
        run,
        *flags,
        config=config,
        ELECTRA_DIST_RANK_COMMAND=f"{sys.executable} {ROOT}/tests/cluster/limit_rank.py",
        LIMIT_STEP=str(case.step),
        LIMIT_SAVE=str(case.save),
    )
    return job, run


def _check(case: Case, run: Path) -> None:
    """Every attempt left by itself, saved; the next one went on from its very last step."""
    lines = read_lines(run / "saves.jsonl")
    attempts = sorted({line["attempt"] for line in lines})
    assert len(attempts) >= 2, f"{case}: met no limit"
    reached = 0
    for attempt in attempts:
        mine = [line for line in lines if line["attempt"] == attempt]
        assert (mine[0]["event"], mine[0]["step"]) == ("start", reached), f"{case}: lost steps"
        begun, ended = ([x for x in mine if x["event"] == e] for e in ("save begins", "save ends"))
        assert len(begun) == len(ended) >= 1, f"{case}: a save was killed"
        assert ended[-1]["time"] <= ended[-1]["end"], f"{case}: saved after the limit"
        assert mine[-1]["event"].startswith("leaves"), f"{case}: it was killed"
        reached = mine[-1]["step"]
    assert reached == case.num_steps
    actions = [line["action"] for line in read_lines(run / "requeue.jsonl")]
    # A start that is warned before its rank can hear it (40 start at once) makes no attempt.
    assert len(actions) >= len(attempts)
    assert actions == ["requeue"] * (len(actions) - 1) + ["leave"], f"{case}: {actions}"
