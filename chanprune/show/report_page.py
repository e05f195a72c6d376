"""A report as one HTML page, which opens from disk: a table to sort and filter, and figures."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from chanprune.show.drawing import render

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 14rem; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
label { margin-right: 1rem; white-space: nowrap; }
figure { margin: 1.5rem 0; background: white; border-radius: .5rem; padding: .5rem; }
figure { max-width: 45rem; }
@media (max-width: 40rem) {
  th:first-child, td:first-child { min-width: 10rem; overflow-wrap: anywhere; }
  th, td { padding: .3rem .4rem; }
}
figure svg { width: 100%; height: auto; }
figcaption { color: #333; padding: 0 .5rem .3rem; }
"""
SCRIPT = """
const body = document.querySelector("tbody");
const number = text => parseFloat(text.replace(/,/g, ""));
document.querySelectorAll("th button").forEach((button, column) => {
  button.onclick = () => {
    const head = button.parentElement;
    const up = head.getAttribute("aria-sort") !== "ascending";
    document.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map(row => [row.cells[column].textContent, row]);
    rows.sort(([a], [b]) => {
      const x = number(a), y = number(b);
      const order = isNaN(x) || isNaN(y) ? (isNaN(x) - isNaN(y)) || a.localeCompare(b) : x - y;
      return up ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
  };
});
document.querySelectorAll("input[type=checkbox]").forEach(box => {
  box.onchange = () => body.querySelectorAll("tr").forEach(row => {
    if (row.dataset.method === box.value) row.hidden = !box.checked;
  });
});
"""


def page(
    lines: Sequence[Mapping[str, str]],
    methods: Sequence[str],
    heading: str,
    figures: Iterable[tuple[Figure, str]],
    notes: Sequence[str],
) -> str:
    """Return the page.

    Args:
        lines: Rows of the table: column -> text.
        methods: The method of each row.
        heading: What is in it, in a few words.
        figures: Figures and their captions; they are closed.
        notes: Paragraphs under the table.
    """
    heads = "".join(
        f'<th scope="col"><button type="button">{html.escape(head)}</button></th>'
        for head in lines[0]
    )
    rows = "".join(
        f'<tr data-method="{html.escape(method)}">'
        + "".join(f"<td>{html.escape(text)}</td>" for text in line.values())
        + "</tr>\n"
        for method, line in zip(methods, lines, strict=True)
    )
    boxes = "".join(
        f'<label><input type="checkbox" value="{html.escape(name)}" checked> '
        f"{html.escape(name)}</label>"
        for name in dict.fromkeys(methods)
    )
    drawn = "".join(
        f"<figure>{_as_svg(figure)}\n<figcaption>{html.escape(caption)}</figcaption></figure>\n"
        for figure, caption in figures
    )
    told = "".join(f"<p>{html.escape(note)}</p>\n" for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>chanprune: {html.escape(heading)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(heading)}</h1>
<p>Show: {boxes}</p>
<div class="wide"><table>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
{told}{drawn}<script>{SCRIPT}</script>
</body>
</html>"""


def _as_svg(figure: Figure) -> str:
    text = io.StringIO()
    render(figure, text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
