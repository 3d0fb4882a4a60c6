"""Curves as inline SVG: no script, no style sheet of others, readable as they are."""

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 420, 180
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 8, 22
NUM_POINTS = 600
"""More are thinned out: of each run of neighbours the lowest and the highest stay."""


def chart(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A figure with one curve.

    Args:
        title: above it.
        points: (x, y) in the order of x; those that are not finite are left out.
    """
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    low, high = min(ys), max(ys)
    y_span, x_span = high - low, (max(xs) - min(xs)) or 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + (x - min(xs)) / x_span * (WIDTH - LEFT - RIGHT)
        above = (y - low) / y_span if y_span else 0.5
        return f"{across:.1f},{TOP + (1 - above) * (HEIGHT - TOP - BOTTOM):.1f}"

    shown = thinned(finite, NUM_POINTS)
    curve = " ".join(place(x, y) for x, y in shown)
    mark = (
        f'<circle cx="{place(*shown[0]).split(",")[0]}" cy="{place(*shown[0]).split(",")[1]}" '
        'r="2.5" class="dot"/>'
        if len(shown) == 1
        else f'<polyline points="{curve}" class="curve"/>'
    )
    base = HEIGHT - BOTTOM
    lines = [
        f"<figure><figcaption>{html.escape(title)} <b>{ys[-1]:.5g}</b></figcaption>",
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<path d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}" class="axis"/>',
        _label(LEFT - 4, TOP + 8, "end", f"{high:.4g}"),
        _label(LEFT - 4, base, "end", f"{low:.4g}"),
        _label(LEFT, HEIGHT - 6, "start", f"{min(xs):,.0f}"),
        _label(WIDTH - RIGHT, HEIGHT - 6, "end", f"{max(xs):,.0f}"),
        mark,
        "</svg></figure>",
    ]
    return "\n".join(lines)


def bar(parts: Sequence[tuple[str, float, str]]) -> str:
    """One bar that is cut into parts.

    Args:
        parts: (name, share of the whole, colour) each.
    """
    pieces, x = [], 0.0
    for name, share, colour in parts:
        width = 100 * max(0.0, share)
        pieces.append(
            f'<rect x="{x:.3f}" y="0" width="{width:.3f}" height="6" fill="{html.escape(colour)}">'
            f"<title>{html.escape(name)} {100 * share:.1f} %</title></rect>"
        )
        x += width
    inside = "".join(pieces)
    return f'<svg viewBox="0 0 100 6" preserveAspectRatio="none" class="bar">{inside}</svg>'


def thinned(points: Sequence[tuple[float, float]], at_most: int) -> list[tuple[float, float]]:
    """At most so many of the points, with all peaks: the extremes of each run of neighbours."""
    if len(points) <= at_most:
        return list(points)
    size = math.ceil(len(points) / (at_most // 2))
    kept = []
    for start in range(0, len(points), size):
        run = points[start : start + size]
        kept += sorted({min(run, key=lambda p: p[1]), max(run, key=lambda p: p[1])})
    return kept


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'
