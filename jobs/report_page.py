"""The parts of a self-contained HTML page: no script, no font, no picture from anywhere else."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence

_SIGNED = re.compile(r"[+-][\d.,]+")

STYLE = """
:root{color-scheme:light dark;--ink:#1b2330;--soft:#5b6679;--line:#dde3ec;--page:#f3f5f9;--card:#fff;--tint:#eef2fa;
--accent:#2f5fd0;--good:#23805a;--bad:#c2382b;--c0:#7a8699;--c1:#2f5fd0;--c2:#d2691e;--c3:#23805a;--c4:#8e44ad;
--c5:#b8860b;--c6:#c2382b;--ground:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf3;--soft:#9ca8bc;--line:#323c4d;--page:#11161f;--card:#1a212d;
--tint:#222c3d;--accent:#86a9ff;--good:#5fc497;--bad:#f0837a;--c0:#8d99ad;--c1:#86a9ff;--c2:#f0a35e;--c3:#5fc497;
--c4:#c79be6;--c5:#e0bf5a;--c6:#f0837a;--ground:#1a212d}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:0 16px 56px}
header{max-width:1080px;margin:0 auto;padding:30px 16px 14px}
header p{margin:2px 0;color:var(--soft);overflow-wrap:anywhere}
h1{font-size:27px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 12px}h3{font-size:14px;margin:20px 0 8px;color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px;margin:0 0 16px}
nav{display:flex;flex-wrap:wrap;gap:6px;margin:12px 0 2px}
nav a{color:var(--accent);text-decoration:none;border:1px solid var(--line);border-radius:99px;padding:2px 11px;
background:var(--card);font-size:13px}
nav a:hover{border-color:var(--accent)}
p{margin:0 0 10px}.note{color:var(--soft);font-size:13.5px}
.badge{display:inline-block;background:var(--accent);color:var(--card);border-radius:6px;padding:1px 9px;font-size:13px;
font-weight:600;vertical-align:middle;margin-right:8px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:10px;margin:0 0 14px}
.tile{background:var(--tint);border-radius:9px;padding:10px 14px}
.tile b{display:block;font-size:22px;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}.tile.lead b{color:var(--accent)}
.steps{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:0;padding:0;list-style:none}
.steps li{background:var(--tint);border-radius:9px;padding:10px 14px;font-size:13.5px}
.steps b{display:block;font-size:15px;margin-bottom:2px}.steps i{font-style:normal;color:var(--accent);margin-right:6px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:13px;padding:0 0 6px}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:middle}
tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-weight:600;font-size:13px}tbody th{font-weight:500}
td.n,th.n{text-align:right;white-space:nowrap}td.n:last-child,th.n:last-child{padding-right:2px}
.scroll{overflow-x:auto}
.bars th,.bars td{border:0;padding:3px 12px 3px 0}.bars th{white-space:nowrap;width:1%}
.bars td.track{min-width:110px}.bars td.n{width:1%}
.stages td.track{min-width:160px;width:34%}
.fill{background:var(--c1);height:11px;border-radius:3px;min-width:1px}
.split{display:flex;height:16px;border-radius:5px;overflow:hidden;background:var(--line);margin:2px 0 6px}
.split i{display:block}
.c0{background:var(--c0)}.c1{background:var(--c1)}.c2{background:var(--c2)}.c3{background:var(--c3)}.c4{background:var(--c4)}
.c5{background:var(--c5)}.c6{background:var(--c6)}.cbad{background:var(--bad)}
figure{margin:0}figcaption{color:var(--soft);font-size:13px;margin:4px 0;overflow-wrap:anywhere}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:16px}
.shots.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr))}
.views{display:flex;gap:5px}.views>div{flex:1 1 0;min-width:0}
.views img{width:100%;display:block;border-radius:5px}.views span{display:block;color:var(--soft);font-size:12px}
.compare{min-width:560px;table-layout:fixed}.compare td,.compare th{padding:3px 8px 3px 0;border:0;vertical-align:top}
.compare img{width:100%;display:block;border-radius:5px}.compare td span{font-size:12px;color:var(--soft)}
img.px{image-rendering:pixelated}
.plots figcaption{font-weight:600}
.plots{margin-top:14px;display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:18px}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
svg .grid{stroke:var(--line)}svg .line{fill:none;stroke-width:2;stroke-linejoin:round}svg .hit{fill:transparent}
svg .s0{stroke:var(--c0)}svg .s1{stroke:var(--c1)}svg .s2{stroke:var(--c2)}svg .s3{stroke:var(--c3)}
svg .s4{stroke:var(--c4)}svg .s5{stroke:var(--c5)}svg .s6{stroke:var(--c6)}
svg .cell{stroke:var(--card)}svg .right{fill:var(--good)}svg .wrong{fill:var(--bad)}svg .share{fill:var(--c1)}
svg .careful{fill:var(--c2)}.plot{max-width:620px;margin-bottom:10px}.plot figcaption{font-weight:600}
svg text.in{font-size:10.5px}
svg text.strong{fill:#fff}
.key{display:flex;flex-wrap:wrap;gap:3px 14px;font-size:13px;color:var(--soft);margin:0 0 10px}
.key i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:5px;vertical-align:-1px;
border:1px solid var(--line)}
pre{overflow-x:auto;font-size:12.5px;line-height:1.45;background:var(--tint);border-radius:8px;
padding:12px;margin:8px 0 0}
summary{cursor:pointer;color:var(--accent)}
.bad{color:var(--bad)}.good{color:var(--good)}
@media(max-width:560px){section{padding:14px}h1{font-size:22px}.shots,.shots.wide{grid-template-columns:1fr}}
@media print{body{background:#fff;font-size:12px}nav{display:none}section,figure,tr{break-inside:avoid}
section{border-color:#ccc}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def escape(text: object) -> str:
    """Text for HTML."""
    return html.escape(str(text))


def number(value: float) -> str:
    """A figure for people: thousands separated, about three digits, a dash where there is none."""
    if isinstance(value, float) and math.isnan(value):
        return "–"
    if float(value).is_integer() and (abs(value) >= 1 or isinstance(value, int)):
        return f"{int(value):,}"
    digits = next((digits for limit, digits in ((1, 3), (10, 2), (1000, 1)) if abs(value) < limit), 0)
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 05 s`, `1 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def page(title: str, *, verb: str, lines: Sequence[str], sections: Sequence[str]) -> str:
    """A whole page: a header with lines of facts, links to the sections, the sections."""
    shown = [section for section in sections if section]
    links = [re.match(r'<section id="([^"]+)"><h2>(.*?)</h2>', section) for section in shown]
    nav = "".join(f'<a href="#{found[1]}">{found[2]}</a>' for found in links if found)
    facts = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f'<header><h1><span class="badge">{escape(verb)}</span>{escape(title)}</h1>{facts}'
        f'<nav aria-label="Sections">{nav}</nav></header>\n<main>\n' + "\n".join(shown) + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A titled card; empty when it would hold nothing."""
    inner = "\n".join(part for part in parts if part)
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{inner}\n</section>' if inner else ""


def heading(title: str, body: str) -> str:
    """A part of a section with a heading of its own; empty when it would hold nothing."""
    return f"<h3>{escape(title)}</h3>\n{body}" if body else ""


def note(text: str) -> str:
    """A sentence of explanation."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def tiles(figures: Mapping[str, object], *, lead: int = 0) -> str:
    """Large figures with a word below each; the first `lead` of them in colour."""
    cells = [
        f'<div class="tile{" lead" if place < lead else ""}">'
        f"<b>{escape(number(value) if isinstance(value, (int, float)) else value)}</b><span>{escape(name)}</span></div>"
        for place, (name, value) in enumerate(figures.items())
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def steps(items: Sequence[tuple[str, str]]) -> str:
    """Numbered cards: what was done, and with what outcome."""
    cards = "".join(
        f"<li><b><i>{place}</i>{escape(title)}</b>{escape(text)}</li>" for place, (title, text) in enumerate(items, 1)
    )
    return f'<ol class="steps">{cards}</ol>' if items else ""


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """A table whose first column names the rows; numbers stand to the right."""
    if not rows:
        return ""
    numeric = [all(is_figure(row[column]) for row in rows) for column in range(len(header))]
    side = [' class="n"' if right else "" for right in numeric]
    head = "".join(f'<th scope="col"{side[i]}>{escape(name)}</th>' for i, name in enumerate(header))
    lines = []
    for row in rows:
        cells = "".join(f"<td{side[i]}>{_cell(value)}</td>" for i, value in enumerate(row) if i)
        lines.append(f'<tr><th scope="row"{side[0]}>{_cell(row[0])}</th>{cells}</tr>')
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table>{title}{body}</table></div>'


def is_figure(value: object) -> bool:
    """Whether a cell holds a number, also one written with its sign, or stands for a missing one."""
    if isinstance(value, str):
        return value in ("", "–") or _SIGNED.fullmatch(value) is not None
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return escape(number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value)


def legend(colors: Mapping[str, tuple[int, int, int]]) -> str:
    """Class names with their colours."""
    items = "".join(
        f'<span><i style="background:rgb({r},{g},{b})"></i>{escape(name)}</span>' for name, (r, g, b) in colors.items()
    )
    return f'<p class="key">{items}</p>' if items else ""


def folded(title: str, text: str) -> str:
    """Text behind a title that opens it."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text else ""
