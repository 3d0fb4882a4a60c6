"""RUN/report.html: one file that says what a run did, from its folder alone; no torch, no network.

Curves of all that metrics.jsonl holds, where the time went, the attempts, the events.
"""

import html
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from electra_dist.launch.goodput import WORDS
from electra_dist.launch.records import attempt_folder, number, read_json, read_lines, section
from electra_dist.launch.run_folder import RunStatus, render, run_status, span
from electra_dist.launch.svg import bar, chart

NUM_EVENTS = 300
"""The newest ones that are listed; all are counted."""

COLOURS = {
    "step": "#2a7f4f",
    "data_wait": "#d8a03a",
    "save": "#6d8fc9",
    "evaluation": "#4fa3a5",
    "start_up": "#9a86c6",
    "redone": "#c8553d",
    "hang": "#7a1f1f",
    "stopped": "#b9b9b9",
    "other": "#e3dccb",
}

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1320px;margin:2rem auto;padding:0 1rem;
color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
pre{background:#f6f5f1;padding:.8rem;overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}td,th{text-align:left;padding:.2rem .8rem .2rem 0;
border-bottom:1px solid #e5e5e5;vertical-align:top}td.n,th.n{text-align:right}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(380px,1fr));gap:1rem}
figure{margin:0}figcaption{font-size:.85rem}svg{width:100%;height:auto}
text{font-size:10px;fill:#777}.axis{fill:none;stroke:#bbb}.curve{fill:none;stroke:#2a5d9f;
stroke-width:1.4}.dot{fill:#2a5d9f}.bar{height:1.6rem}.chip{display:inline-block;width:.8em;
height:.8em;margin-right:.5em}
"""


def write_report(run: Path) -> Path:
    """Write RUN/report.html anew; returns its path.

    Raises:
        UserError: the folder is no run's.
        OSError: it can't be written there.
    """
    path = run / "report.html"
    text = report(run)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return path


def report(run: Path) -> str:
    """The report as HTML.

    Raises:
        UserError: the folder is no run's.
    """
    status = run_status(run)
    events = read_lines(run / "events.jsonl")
    name = html.escape(status.name)
    made = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
        f"<style>{STYLE}</style></head><body><h1>{name}</h1>",
        f"<p>{html.escape(status.state)}; made {made}</p>",
        f"<pre>{html.escape(_summary(status))}</pre>",
        _time(status),
        _charts(read_lines(run / "metrics.jsonl")),
        _attempts(run, status),
        _events(events),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _summary(status: RunStatus) -> str:
    """What `status` prints, without what has tables of its own."""
    shown = render(status).splitlines()
    return "\n".join(row for row in shown if not row.startswith(("attempt ", "event ", "time ")))


def _time(status: RunStatus) -> str:
    if status.goodput is None:
        return ""
    whole = status.goodput["wall_seconds"] or 1.0
    seconds = status.goodput["seconds"]
    order = [part for part in COLOURS if part in seconds]
    drawn = bar([(WORDS[part], seconds[part] / whole, COLOURS[part]) for part in order])
    rows = [
        [
            f'<span class="chip" style="background:{COLOURS[part]}"></span>{WORDS[part]}',
            span(max(0.0, seconds[part])),
            f"{seconds[part]:,.1f} s",
            f"{100 * seconds[part] / whole:.2f} %",
        ]
        for part in order
    ]
    rows.append(["<b>all of it</b>", span(whole), f"{whole:,.1f} s", "100 %"])
    return f"<h2>Where the time went</h2>{drawn}{_table(['', '', 'seconds', 'share'], rows)}"


def _charts(lines: Sequence[dict[str, Any]]) -> str:
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        step = number(line.get("step"))
        if step is None:
            continue
        named = {k: v for k, v in line.items() if k not in ("step", "eval", "timing")}
        groups = (("", named), ("held out: ", section(line, "eval")), ("", section(line, "timing")))
        for prefix, values in groups:
            for name, value in values.items():
                found = number(value)
                if found is not None:
                    curves.setdefault(prefix + name, []).append((step, found))
    drawn = "\n".join(chart(name, points) for name, points in curves.items())
    return f'<h2>Curves</h2><div class="charts">{drawn}</div>' if drawn else ""


def _attempts(run: Path, status: RunStatus) -> str:
    why = {record.get("attempt"): record for record in read_lines(run / "supervisor.jsonl")}
    rows = []
    for attempt in status.attempts:
        start = read_json(attempt_folder(run, attempt.number) / "start.json")
        launched = number(start.get("launched"))
        reason = attempt.reason
        if reason is None:
            is_last = attempt is status.attempts[-1]
            reason = "running" if is_last and status.is_running else "crashed, or was killed"
        supervisor = why.get(attempt.number, {})
        rows.append(
            [
                str(attempt.number),
                _clock(launched) if launched is not None else "",
                html.escape(f"{start.get('host', '')}"),
                html.escape(f"{start.get('world_size', '')}"),
                html.escape(reason),
                "" if attempt.step is None else f"{attempt.step:,}",
                "" if attempt.exit_code is None else str(attempt.exit_code),
                html.escape(f"{supervisor.get('action', '')}"),
                html.escape(f"{supervisor.get('why', '')}"),
            ]
        )
    head = ["", "launched", "host", "ranks", "ended", "at step", "exit code", "supervisor", "why"]
    return f"<h2>Attempts</h2>{_table(head, rows)}"


def _events(events: Sequence[dict[str, Any]]) -> str:
    if not events:
        return ""
    counts: dict[str, int] = {}
    for event in events:
        name = str(event.get("event"))
        counts[name] = counts.get(name, 0) + 1
    said = html.escape(", ".join(f"{number} {name}" for name, number in sorted(counts.items())))
    hidden = ("time", "event", "attempt", "rank")
    rows = [
        [
            *(html.escape(str(event.get(name, ""))) for name in ("time", "attempt", "event")),
            html.escape("  ".join(f"{k}={v}" for k, v in event.items() if k not in hidden)),
        ]
        for event in events[-NUM_EVENTS:]
    ]
    left = f"; the newest {NUM_EVENTS}" if len(events) > NUM_EVENTS else ""
    return f"<h2>Events</h2><p>{said}{left}</p>{_table(['time', 'attempt', 'event', ''], rows)}"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; numbers stand on the right."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td{_side(cell)}>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _side(cell: str) -> str:
    return ' class="n"' if re.fullmatch(r"[\d,.]+( s| %)?", cell) else ""


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")
