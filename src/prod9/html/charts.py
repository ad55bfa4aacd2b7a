"""Small charts as SVG for an HTML page; the names in them are escaped."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _STRIP = 360, 200, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 28
_COLOURS = ("#0d7d87", "#d9652b", "#5b4fc4", "#5f6b76", "#b0396e", "#3f8f3a")


def curve_chart(title: str, series: Mapping[str, Points]) -> Markup:
    """Return a figure of named curves over steps; all values are finite."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_of, y_of = _scale(xs, _LEFT, _WIDTH - _RIGHT), _scale(ys, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for tick in _ticks(min(ys), max(ys)):
        y = y_of(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(min(xs), max(xs)):
        parts.append(f'<text x="{x_of(tick):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{tick:g}</text>')
    legend = ""
    for colour, (name, points) in zip(cycle(_COLOURS), series.items(), strict=False):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        x, y = points[-1]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6" fill="{colour}"/>')
        legend += f'<span><i style="background:{colour}"></i>{escape(name)} <b>{y:.4g}</b></span>'
    return _figure(title, "".join(parts), legend, _HEIGHT)


def strip_chart(rows: Mapping[str, Sequence[float]], *, threshold: float, title: str) -> Markup:
    """Return one row of dots per entry on an axis from 0, with the range below ``threshold`` shaded."""
    values = [value for row in rows.values() for value in row]
    top = max([*values, threshold]) * 1.05
    left, height = 96, 46 * len(rows) + 40
    x_of = _scale([0.0, top], left, _STRIP - _RIGHT)
    parts = [
        f'<rect x="{left}" y="6" width="{x_of(threshold) - left:.1f}" height="{height - 34}" class="alarm"/>',
        f'<text x="{left + 6}" y="20" class="alarm-text">suspect below {threshold:.2f}</text>',
    ]
    for k, (name, row) in enumerate(rows.items()):
        y = 36 + 46 * k
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for j, value in enumerate(row):
            # Spread by a fixed pattern, so that equal values don't hide each other.
            offset = ((j * 7) % 13 - 6) * 1.6
            colour = "#b3261e" if value < threshold else _COLOURS[k % len(_COLOURS)]
            parts.append(
                f'<circle cx="{x_of(value):.1f}" cy="{y + offset:.1f}" r="3.2" fill="{colour}" fill-opacity=".6"/>'
            )
    for tick in _ticks(0.0, top):
        parts.append(f'<text x="{x_of(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:g}</text>')
    return _figure(title, "".join(parts), "", height, width=_STRIP)


def interval_bar(
    value: float, low: float | None, high: float | None, lowest: float, highest: float, floor: float | None
) -> Markup:
    """Return a value with its interval as a bar.

    Args:
        value: drawn as a dot.
        low: lower end of the interval, None without one.
        high: upper end of the interval.
        lowest: value at the left end of the axis.
        highest: value at the right end of the axis.
        floor: drawn as a tick, unless it is None.
    """
    x_of = _scale([lowest, highest], 4, 156)
    parts = ['<line x1="4" x2="156" y1="9" y2="9" class="axis"/>']
    if low is not None and high is not None:
        parts.append(
            f'<line x1="{x_of(low):.1f}" x2="{x_of(high):.1f}" y1="9" y2="9" stroke="{_COLOURS[0]}" '
            'stroke-width="5" stroke-opacity=".35"/>'
        )
    if floor is not None:
        x = x_of(floor)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="16" stroke="{_COLOURS[1]}" stroke-width="2"/>'
        )
    parts.append(f'<circle cx="{x_of(value):.1f}" cy="9" r="3.6" fill="{_COLOURS[0]}"/>')
    return Markup(f'<svg viewBox="0 0 160 18" class="bar" role="img">{"".join(parts)}</svg>')


def histogram(shares: Sequence[float]) -> Markup:
    """Return ``shares`` as bars, the tallest of which fills the height."""
    tallest = max(*shares, 1e-9)
    bars = "".join(
        f'<rect x="{4 * k}" y="{40 - 40 * share / tallest:.1f}" width="3.2" height="{40 * share / tallest:.1f}"/>'
        for k, share in enumerate(shares)
    )
    return Markup(f'<svg width="{4 * len(shares)}" height="40" fill="{_COLOURS[0]}">{bars}</svg>')


def _figure(title: str, body: str, legend: str, height: int, *, width: int = _WIDTH) -> Markup:
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Return a linear map of the range of ``values`` to ``start`` and ``end``; a single value is put in the middle."""
    low, high = min(values), max(values)

    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return start + min(1.0, max(0.0, share)) * (end - start)

    return place


def _ticks(low: float, high: float, *, wanted: int = 4) -> list[float]:
    """Return round numbers between ``low`` and ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)] or [low]
