"""Charts as inline HTML and SVG, coloured by the page's style sheet; figures appear on hovering, without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.report_page import escape, number

Points = Sequence[tuple[float, float]]

NUM_COLORS = 6  # s1 … s6 and c1 … c6 of the style sheet; 0 is grey
MAX_CELLS_WITH_TEXT = 14  # classes up to which a confusion matrix shows its shares


def bars(values: Mapping[str, float], *, limit: float | None = None, suffix: str = "", colored: bool = False) -> str:
    """Horizontal bars with their values.

    Args:
        limit: value of a full bar; default the largest.
        suffix: unit behind each value.
        colored: a colour for each bar instead of one for all.
    """
    known = [value for value in values.values() if not math.isnan(value)]
    if not known:
        return ""
    full = limit or max(known) or 1.0
    lines = []
    for place, (name, value) in enumerate(values.items()):
        share = 0.0 if math.isnan(value) else max(0.0, min(1.0, value / full))
        color = f" c{color_of(place)}" if colored else ""
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="track"><div class="fill{color}" '
            f'style="width:{share:.1%}"></div></td><td class="n">{escape(number(value))}{suffix}</td></tr>'
        )
    return f'<div class="scroll"><table class="bars"><tbody>{"".join(lines)}</tbody></table></div>'


def gains(values: Mapping[str, float]) -> str:
    """Bars of differences in points around a common zero: gains to the right, losses to the left."""
    if not values:
        return ""
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    width = (high - low) or 1.0
    lines = []
    for name, value in values.items():
        start, share = (min(value, 0.0) - low) / width, abs(value) / width
        color = "c3" if value >= 0 else "cbad"
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="track"><div class="fill {color}" '
            f'style="margin-left:{start:.1%};width:{share:.1%}"></div></td><td class="n">{value:+.2f}</td></tr>'
        )
    return f'<div class="scroll"><table class="bars"><tbody>{"".join(lines)}</tbody></table></div>'


def color_of(place: int) -> int:
    """Number of the colour of the series at a place; they repeat."""
    return place % NUM_COLORS + 1


def parts(values: Mapping[str, float], *, colors: Sequence[str], unit: str = "") -> str:
    """One bar cut into shares, with a key below; nothing where all are zero.

    Args:
        colors: style classes, one a part, such as `c3` or `cbad`.
    """
    total = sum(values.values())
    if total <= 0:
        return ""
    pieces, keys = [], []
    for (name, value), color in zip(values.items(), colors, strict=True):
        text = f"{name}: {number(value)}{unit} ({value / total:.1%})"
        if value:
            pieces.append(f'<i class="{color}" style="width:{value / total:.3%}" title="{escape(text)}"></i>')
        keys.append(f'<span><i class="{color}"></i>{escape(text)}</span>')
    return f'<div class="split">{"".join(pieces)}</div><p class="key">{"".join(keys)}</p>'


def curves(series: Mapping[str, Points], *, title: str, x_label: str = "step", first_color: int = 1) -> str:
    """Lines over steps with axes and a key; empty where no line has two points."""
    drawn = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if len(points) > 1}
    if not drawn:
        return ""
    frame = _Frame.around([point for points in drawn.values() for point in points])
    colors = {name: color_of(place + first_color - 1) for place, name in enumerate(drawn)}
    lines = [_line(frame, name, points, colors[name], x_label=x_label) for name, points in drawn.items()]
    keys = "".join(f'<span><i class="c{colors[name]}"></i>{escape(name)}</span>' for name in drawn)
    picture = (
        f'<svg viewBox="0 0 {frame.WIDTH} {frame.HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{frame.axes(x_label)}{''.join(lines)}</svg>"
    )
    legend = f'<p class="key">{keys}</p>' if len(drawn) > 1 else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{picture}</figure>"


def _line(frame: _Frame, name: str, points: Points, color: int, *, x_label: str) -> str:
    thin = _thin(points, most=240)
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in thin)
    hits = "".join(
        f'<circle class="hit" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="6">'
        f"<title>{escape(name)}, {escape(x_label)} {number(x)}: {y:.4g}</title></circle>"
        for x, y in _thin(points, most=60)
    )
    return f'<polyline class="line s{color}" points="{path}"/>{hits}'


def _thin(points: Points, *, most: int) -> Points:
    stride = -(-len(points) // most)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


@dataclass(frozen=True)
class _Frame:
    """Maps values to the coordinates of a chart whose axes end at round numbers."""

    left: float
    right: float
    low: float
    high: float
    step: float

    WIDTH = 560
    HEIGHT = 240
    MARGIN = 50

    @classmethod
    def around(cls, points: Points) -> _Frame:
        """The frame that holds all points."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        step = round_step((high - low) or abs(high) or 1.0, parts=4)
        return cls(min(xs), max(xs), math.floor(low / step) * step, math.ceil(high / step) * step, step)

    def x(self, value: float) -> float:
        """Horizontal place."""
        share = (value - self.left) / ((self.right - self.left) or 1.0)
        return self.MARGIN + share * (self.WIDTH - self.MARGIN - 14)

    def y(self, value: float) -> float:
        """Vertical place."""
        return self.HEIGHT - 36 - (value - self.low) / ((self.high - self.low) or 1.0) * (self.HEIGHT - 50)

    def axes(self, x_label: str) -> str:
        """Grid lines with their values."""
        lines = []
        for place in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + place * self.step
            y = self.y(value)
            lines.append(
                f'<line class="grid" x1="{self.MARGIN}" x2="{self.WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{self.MARGIN - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
            )
        step = round_step((self.right - self.left) or 1.0, parts=5)
        tick = math.ceil(self.left / step) * step
        while tick <= self.right + 1e-9 * step:
            lines.append(
                f'<text x="{self.x(tick):.1f}" y="{self.HEIGHT - 18}" text-anchor="middle">{number(tick)}</text>'
            )
            tick += step
        middle = (self.MARGIN + self.WIDTH) / 2
        lines.append(f'<text x="{middle:.0f}" y="{self.HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(lines)


def round_step(span: float, *, parts: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts a span into about that many parts."""
    rough = span / parts
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999) * power)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix as a heat map: rows are the truth, each row sums to one; counts on hovering."""
    count = len(names)
    size = 34 if count <= MAX_CELLS_WITH_TEXT else 18
    left, top = 122, 96
    shapes = []
    for row in range(count):
        total = sum(matrix[row])
        for column in range(count):
            share = matrix[row][column] / total if total else 0.0
            x, y = left + column * size, top + row * size
            kind = "right" if row == column else "wrong"
            tip = f"{names[row]} seen as {names[column]}: {share:.1%} ({matrix[row][column]:,} pixels)"
            shapes.append(
                f'<rect class="cell {kind}" x="{x}" y="{y}" width="{size}" height="{size}" '
                f'fill-opacity="{max(share**0.7, 0.03):.3f}"><title>{escape(tip)}</title></rect>'
            )
            if share >= 0.01 and count <= MAX_CELLS_WITH_TEXT:
                strong = " strong" if share > 0.45 else ""
                shapes.append(
                    f'<text class="in{strong}" x="{x + size / 2:.0f}" y="{y + size / 2 + 4:.0f}" text-anchor="middle" '
                    f'pointer-events="none">{share * 100:.0f}</text>'
                )
    shapes += _names(names, size=size, left=left, top=top)
    width, height = left + count * size + 70, top + count * size + 6
    return (
        f'<div class="scroll"><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="confusion matrix, truth in rows, prediction in columns">{"".join(shapes)}</svg></div>'
    )


def _names(names: Sequence[str], *, size: int, left: int, top: int) -> list[str]:
    """Class names beside the rows and above the columns of a matrix."""
    texts = []
    for index, name in enumerate(names):
        x, y = left + (index + 0.5) * size, top + (index + 0.5) * size + 4
        shown = escape(name if len(name) <= 16 else f"{name[:15]}…")
        texts.append(f'<text x="{left - 7}" y="{y:.0f}" text-anchor="end">{shown}</text>')
        texts.append(f'<text transform="translate({x + 3:.0f},{top - 7}) rotate(-50)">{shown}</text>')
    return texts
