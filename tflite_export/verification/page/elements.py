"""Pieces of an HTML page: style, tables with bars, figures at the top, parts that fold."""

from collections.abc import Sequence
import html

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d5d9de; --soft: #f4f6f8;
  --good: #116329; --bad: #a40e26; --bar: #2a6fbb; --even: #e6f4ea; --grey: #57606a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14171a; --line: #3a4048;
  --soft: #1f2429; --good: #56d364; --bad: #ff7b72; --bar: #58a6ff; --even: #12301c;
  --grey: #9aa4af; } svg { filter: invert(1) hue-rotate(180deg); } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1100px; margin: 1.5em auto; padding: 0 1em; overflow-wrap: anywhere; }
h1 { font-size: 1.5em; margin: 0; } h2 { font-size: 1.2em; margin: 1.6em 0 0.4em; }
.banner { border-left: 6px solid; padding: 0.6em 1em; background: var(--soft); margin: 1em 0; }
.banner ul { color: var(--ink); margin: 0.4em 0 0; padding-left: 1.2em; }
.banner strong { font-size: 1.15em; } .passed { color: var(--good); } .failed { color: var(--bad); }
.figures { display: grid; gap: 0.7em; grid-template-columns: repeat(auto-fit, minmax(9.5em, 1fr)); }
.figures div { background: var(--soft); border-radius: 6px; padding: 0.6em 0.8em; }
.figures b { display: block; font-size: 1.45em; font-variant-numeric: tabular-nums; }
.figures small, .grey { color: var(--grey); }
table { border-collapse: collapse; margin: 0.5em 0; }
th, td { padding: 0.2em 0.8em 0.2em 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
th { text-align: left; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { min-width: 7em; } td.bar i { display: block; height: 0.8em; margin-top: 0.35em;
  background: var(--bar); border-radius: 2px; }
.equal { background: var(--even); } svg { max-width: 100%; height: auto; }
details { border: 1px solid var(--line); border-radius: 6px; padding: 0.4em 0.8em;
  margin: 0.6em 0; }
summary { cursor: pointer; font-weight: 600; } code { font-size: 0.95em; }
@media (max-width: 600px) { th, td { font-size: 0.85em; padding-right: 0.6em; }
  td { overflow-wrap: anywhere; min-width: 4em; } td.number { white-space: nowrap; min-width: 0; }
  td.bar { min-width: 2em; } }
.scroll { overflow-x: auto; } .side { display: flex; flex-wrap: wrap; gap: 1em; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page that loads nothing from elsewhere."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it; nothing if all parts are empty."""
    found = [part for part in parts if part]
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *found]) if found else ""


def folded(summary: str, *parts: str) -> str:
    """A part that is closed until a reader opens it; nothing if all parts are empty."""
    found = "\n".join(part for part in parts if part)
    heading = f"<summary>{html.escape(summary)}</summary>"
    return f"<details>{heading}\n{found}\n</details>" if found else ""


def sentence(text: str, kind: str = "") -> str:
    """A paragraph of plain text; nothing if it is empty."""
    return f"<p{f' class={kind}' if kind else ''}>{html.escape(text)}</p>" if text else ""


def bullets(items: Sequence[str]) -> str:
    """A list of plain texts; nothing if there is none."""
    lines = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if items else ""


def banner(verdict: str, words: str, reasons: Sequence[str]) -> str:
    """The verdict, "passed" or "failed", and why."""
    strong = f"<strong><span class={verdict}>{verdict}</span>: {html.escape(words)}</strong>"
    return f'<div class="banner {verdict}">{strong}{bullets(reasons)}</div>'


def figures(found: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers side by side: `(label, number, remark)` each."""
    boxes = [
        f"<div><small>{html.escape(label)}</small><b>{html.escape(number)}</b>"
        f"<small>{html.escape(remark)}</small></div>"
        for label, number, remark in found
    ]
    return f"<div class=figures>{''.join(boxes)}</div>" if boxes else ""


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    marked: Sequence[bool] | None = None,
    bars: Sequence[float] | None = None,
) -> str:
    """A table that scrolls by itself on a narrow screen.

    Args:
      header: Column names.
      rows: Plain texts.
      marked: Which rows are green.
      bars: A last column of bars, from 0 to 1.
    """
    if not rows:
        return ""
    names = [*header, *([""] if bars else [])]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in names)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td{_cell_class(cell)}>{html.escape(cell)}</td>" for cell in row)
        if bars:
            width = 100 * max(0.0, min(1.0, bars[index]))
            cells += f'<td class=bar><i style="width:{width:.1f}%"></i></td>'
        lines.append(f"<tr{' class=equal' if marked and marked[index] else ''}>{cells}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class=scroll><table>{body}</table></div>"


def _cell_class(cell: str) -> str:
    return " class=number" if cell in ("exact", "-") or cell.lstrip("<>-+")[:1].isdigit() else ""
