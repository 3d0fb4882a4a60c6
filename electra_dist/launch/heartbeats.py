"""RUN/heartbeat: where each rank of the newest attempt was at its node's last sign of life."""

from dataclasses import dataclass
from pathlib import Path

from electra_dist.launch.records import newest_attempt, number, read_json, section

LONG_SECONDS = 60.0
"""A rank that has been in one phase for so long is named, if others have gone on."""

WAITING = ("reduce", "agree", "commit")
"""Phases of a rank that waits for others; those of runtime.phases, which launch can't import."""


@dataclass(frozen=True, kw_only=True)
class RankBeat:
    """One rank."""

    rank: int
    host: str
    step: int
    """The one that it makes."""
    phase: str
    seconds: float
    """In this phase, when its node wrote last."""
    age_seconds: float
    """Since then."""


def heartbeats(run: Path, now: float) -> list[RankBeat]:
    """Of all ranks of the newest attempt, by rank; what is half-written is left out.

    Args:
        run: its folder.
        now: seconds since 1970.
    """
    attempt = newest_attempt(run)
    beats = []
    for path in run.glob("heartbeat/node_*"):
        node = read_json(path)
        written = number(node.get("time"))
        if node.get("attempt") != attempt or written is None:
            continue
        for rank, beat in section(node, "ranks").items():
            since, step = number(beat.get("since")), number(beat.get("step"))
            if since is not None and step is not None:
                beats.append(
                    RankBeat(
                        rank=int(rank),
                        host=str(node.get("host")),
                        step=int(step),
                        phase=str(beat.get("phase")),
                        seconds=max(0.0, round(written - since, 1)),
                        age_seconds=max(0.0, round(now - written, 1)),
                    )
                )
    return sorted(beats, key=lambda beat: beat.rank)


def in_words(beats: list[RankBeat]) -> str:
    """`8 ranks on 2 nodes, in step 812, 4 s ago`, and the few that seem to keep the others."""
    steps = sorted({beat.step for beat in beats})
    hosts = {beat.host for beat in beats}
    nodes = f" on {len(hosts)} hosts" if len(hosts) > 1 else ""
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    ranks = "1 rank" if len(beats) == 1 else f"{len(beats):,} ranks"
    text = f"{ranks}{nodes} in step {span}, {max(beat.age_seconds for beat in beats):.0f} s ago"
    stuck = [
        beat
        for beat in beats
        if beat.phase not in WAITING and beat.seconds + beat.age_seconds >= LONG_SECONDS
    ]
    for beat in stuck[:3]:
        text += f"; rank {beat.rank} ({beat.host}) in {beat.phase} for {beat.seconds:.0f} s then"
    return text + (f"; and {len(stuck) - 3} more" if len(stuck) > 3 else "")
