"""The parts of a self-contained HTML page: no script, no font, no picture from anywhere else."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Series = Mapping[str, Sequence[tuple[float, float]]]

LINE_COLORS = ("#3366cc", "#d9622b", "#2e8b57", "#8e44ad", "#b8860b", "#c0392b")

STYLE = """
:root{--ink:#1d2430;--soft:#5d6778;--line:#d9dee7;--page:#f5f7fa;--card:#fff;--accent:#3366cc}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf1;--soft:#9aa5b8;--line:#333c4b;--page:#141922;--card:#1d2430;
--accent:#7aa2f7}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:0 0 12px}
h3{font-size:15px;margin:18px 0 6px;color:var(--soft)}
.sub{color:var(--soft);margin:0 0 22px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:0 0 18px}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:0 0 4px}
.tile{border:1px solid var(--line);border-radius:8px;padding:10px 14px;min-width:120px}
.tile b{display:block;font-size:21px;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:13px}td.n,th.n{text-align:right}
.scroll{overflow-x:auto}
.bar{background:var(--accent);height:10px;border-radius:3px;min-width:1px}
.bars td{border:0;padding:3px 10px 3px 0}.bars td:nth-child(2){width:60%}
figure{margin:0 0 14px}figcaption{color:var(--soft);font-size:13px;margin-top:4px}
.row{display:flex;flex-wrap:wrap;gap:10px}.row figure{flex:1 1 150px;max-width:260px;margin:0 0 8px}
.row img{width:100%;border-radius:6px;border:1px solid var(--line);image-rendering:auto;display:block}
.small img{image-rendering:pixelated}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.key i{display:inline-block;width:11px;height:11px;border-radius:3px;margin:0 5px 0 12px;border:1px solid var(--line)}
.key{font-size:13px;color:var(--soft);margin:0 0 10px -12px}
pre{overflow-x:auto;font-size:12.5px;background:var(--page);border:1px solid var(--line);border-radius:8px;padding:10px}
summary{cursor:pointer;color:var(--soft)}
@media print{body{background:#fff}section{break-inside:avoid}}
"""


def escape(text: object) -> str:
    """Text for HTML."""
    return html.escape(str(text))


def number(value: float, digits: int = 3) -> str:
    """A figure for people: thousands separated, few digits, a dash where there is none."""
    if isinstance(value, float) and math.isnan(value):
        return "–"
    if float(value).is_integer() and abs(value) >= 1:
        return f"{int(value):,}"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole page."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>\n{body}\n</main></body></html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A titled card; empty when it would hold nothing."""
    inner = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def tiles(figures: Mapping[str, object]) -> str:
    """Large figures with a word below each."""
    cells = "".join(
        f'<div class="tile"><b>{escape(number(value) if isinstance(value, (int, float)) else value)}</b>'
        f"<span>{escape(name)}</span></div>"
        for name, value in figures.items()
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """A table; numbers stand to the right."""
    if not rows:
        return ""
    numeric = [all(isinstance(row[column], (int, float)) for row in rows) for column in range(len(header))]
    side = [' class="n"' if right else "" for right in numeric]
    head = "".join(f'<th scope="col"{side[i]}>{escape(name)}</th>' for i, name in enumerate(header))
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{side[i]}>{escape(number(cell) if isinstance(cell, (int, float)) else cell)}</td>"
            for i, cell in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def bars(values: Mapping[str, float], *, limit: float | None = None, suffix: str = "") -> str:
    """Horizontal bars with their values; `limit` is the length of a full bar."""
    known = [value for value in values.values() if not math.isnan(value)]
    if not known:
        return ""
    full = limit or max(known) or 1.0
    lines = []
    for name, value in values.items():
        share = 0.0 if math.isnan(value) else max(0.0, min(1.0, value / full))
        lines.append(
            f'<tr><td>{escape(name)}</td><td><div class="bar" style="width:{share:.1%}"></div></td>'
            f'<td class="n">{escape(number(value))}{suffix}</td></tr>'
        )
    return f'<div class="scroll"><table class="bars"><tbody>{"".join(lines)}</tbody></table></div>'


def curves(series: Series, *, title: str, x_label: str = "step") -> str:
    """Lines over steps as SVG, with axes and a legend; empty where there are fewer than two points."""
    drawn = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if len(points) > 1}
    if not drawn:
        return ""
    frame = _Frame.around([point for points in drawn.values() for point in points])
    lines = [frame.axes(x_label)]
    keys = []
    for index, (name, points) in enumerate(drawn.items()):
        color = LINE_COLORS[index % len(LINE_COLORS)]
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in _thin(points))
        lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        keys.append(f'<i style="background:{color}"></i>{escape(name)}')
    legend = f'<p class="key">{"".join(keys)}</p>' if len(drawn) > 1 else ""
    opening = f'<svg viewBox="0 0 {frame.WIDTH} {frame.HEIGHT}" role="img" aria-label="{escape(title)}">'
    return f"<figure>{legend}{opening}{''.join(lines)}</svg><figcaption>{escape(title)}</figcaption></figure>"


def _thin(points: Sequence[tuple[float, float]], *, most: int = 400) -> Sequence[tuple[float, float]]:
    stride = max(1, len(points) // most)
    return [*points[::stride], points[-1]]


@dataclass(frozen=True)
class _Frame:
    """Maps values to the coordinates of a chart."""

    left: float
    right: float
    low: float
    high: float

    WIDTH = 640
    HEIGHT = 230
    MARGIN = 52

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]]) -> _Frame:
        """The frame that holds all points."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        return cls(min(xs), max(xs), low - pad, high + pad)

    def x(self, value: float) -> float:
        """Horizontal place."""
        share = (value - self.left) / ((self.right - self.left) or 1.0)
        return self.MARGIN + share * (self.WIDTH - self.MARGIN - 12)

    def y(self, value: float) -> float:
        """Vertical place."""
        return self.HEIGHT - 34 - (value - self.low) / (self.high - self.low) * (self.HEIGHT - 46)

    def axes(self, x_label: str) -> str:
        """Grid lines with their values."""
        parts = []
        for part in range(5):
            value = self.low + (self.high - self.low) * part / 4
            y = self.y(value)
            parts.append(
                f'<line x1="{self.MARGIN}" x2="{self.WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8883"/>'
                f'<text x="{self.MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
            )
            step = self.left + (self.right - self.left) * part / 4
            parts.append(f'<text x="{self.x(step):.1f}" y="{self.HEIGHT - 14}" text-anchor="middle">{step:,.0f}</text>')
        middle = (self.MARGIN + self.WIDTH) / 2
        parts.append(f'<text x="{middle}" y="{self.HEIGHT - 1}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix as a heat map: rows are the truth, each row sums to one; counts on hovering."""
    size, left, top = 26, 120, 110
    count = len(names)
    cells = []
    for row in range(count):
        total = sum(matrix[row]) or 1
        for column in range(count):
            share = matrix[row][column] / total
            color = "46,139,87" if row == column else "192,57,43"
            tip = f"{names[row]} seen as {names[column]}: {share:.1%} ({matrix[row][column]:,} pixels)"
            cells.append(
                f'<rect x="{left + column * size}" y="{top + row * size}" width="{size - 1}" height="{size - 1}" '
                f'fill="rgba({color},{max(share, 0.02):.3f})"><title>{escape(tip)}</title></rect>'
            )
    for index, name in enumerate(names):
        x, y = left + index * size + size / 2, top + index * size + size * 0.65
        cells.append(f'<text x="{left - 6}" y="{y:.0f}" text-anchor="end">{escape(name[:16])}</text>')
        cells.append(f'<text transform="translate({x + 4:.0f},{top - 6}) rotate(-60)">{escape(name[:16])}</text>')
    width, height = left + count * size + 60, top + count * size + 8
    return (
        f'<div class="scroll"><svg width="{width}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="confusion matrix">{"".join(cells)}</svg></div>'
    )


def picture(data: bytes, caption: str, *, kind: str = "png") -> str:
    """An embedded picture with a caption."""
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/{kind};base64,{encoded}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def row(pictures: Sequence[str], *, small: bool = False) -> str:
    """Pictures side by side."""
    return f'<div class="row{" small" if small else ""}">{"".join(pictures)}</div>' if pictures else ""


def legend(colors: Mapping[str, tuple[int, int, int]]) -> str:
    """Class names with their colours."""
    items = "".join(f'<i style="background:rgb({r},{g},{b})"></i>{escape(name)}' for name, (r, g, b) in colors.items())
    return f'<p class="key">{items}</p>' if items else ""


def folded(title: str, text: str) -> str:
    """Text behind a title that opens it."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
