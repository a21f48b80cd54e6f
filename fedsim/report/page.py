"""HTML building blocks and the look of a report page. Everything that comes in is escaped here.

`Html` marks text that is HTML already; all else is text from files and gets escaped. The page loads
nothing: no script, no font, no address, and its own policy forbids a browser to fetch any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


_STYLE = """
:root { --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --tint: #f6f8fa; --blue: #0072b2;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
  sans-serif; --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
* { box-sizing: border-box; }
html { color-scheme: light; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1112px; background: #fff;
  color: var(--ink); font: 16px/1.55 var(--sans); overflow-wrap: break-word; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 3rem 0 0.9rem; padding-bottom: 0.3rem; border-bottom: 1px solid var(--line);
  font-size: 1.3rem; line-height: 1.3; }
h3 { margin: 1.5rem 0 0.5rem; font-size: 1rem; }
p { margin: 0.6rem 0; max-width: 46rem; }
.over { margin: 0 0 0.3rem; color: var(--soft); font-size: 0.85rem; letter-spacing: 0.04em; }
.title { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 0.9rem; }
.title h1 { min-width: 0; }
.state { padding: 0.1rem 0.7rem; border: 1.5px solid; border-radius: 1rem; font-size: 0.85rem;
  font-weight: 600; white-space: nowrap; }
.good { color: #00684c; } .wait { color: #57606a; } .warn { color: #a34700; }
.ran { color: var(--soft); max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.9rem;
  margin: 1.5rem 0 0; padding: 0; }
.tiles div { padding: 0.8rem 1rem; border: 1px solid var(--line); border-radius: 8px; }
.tiles dt { color: var(--soft); font-size: 0.85rem; }
.tiles dd { margin: 0.1rem 0 0; font-size: 1.6rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles dd.note { color: var(--soft); font-size: 0.85rem; font-weight: 400; }
.box { margin: 1rem 0; padding: 0.8rem 1.1rem; border: 1px solid var(--line);
  border-left: 5px solid var(--blue); border-radius: 6px; background: var(--tint); }
.box p { margin: 0.2rem 0; max-width: none; }
.box.warn { border-left-color: #d55e00; background: #fff8f3; color: var(--ink); }
.box ul { margin: 0.3rem 0; padding-left: 1.2rem; }
.statement { white-space: pre-wrap; font-size: 1.05rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 1.5rem; align-items: start; }
figure { margin: 1rem 0 0; min-width: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: var(--sans) !important; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: 0.5rem; color: var(--soft); font-size: 0.875rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.9rem 0.35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
table.named th:first-child, table.named td:first-child { text-align: left; }
table.wide { width: 100%; }
table.facts th, table.facts td { text-align: left; }
table.facts th { color: var(--soft); font-weight: 500; white-space: nowrap; }
table.facts td { overflow-wrap: anywhere; }
details { margin: 0.8rem 0; border: 1px solid var(--line); border-radius: 6px; }
summary { padding: 0.55rem 1rem; cursor: pointer; font-weight: 600; }
details > :not(summary) { margin: 0 1rem 1rem; }
pre { margin: 0.6rem 0; padding: 0.8rem 1rem; border-radius: 6px; background: var(--tint);
  font: 0.85rem/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: var(--mono); font-size: 0.9em; }
footer { margin-top: 3rem; padding-top: 0.8rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: 0.85rem; }
@page { margin: 16mm 14mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2 { margin-top: 1.6rem; break-after: avoid; }
  h3 { break-after: avoid; }
  .tiles { grid-template-columns: repeat(4, 1fr); gap: 0.5rem; }
  .tiles dd { font-size: 1.25rem; }
  .pair { grid-template-columns: 1fr 1fr; gap: 1rem; }
  .pair, .tiles, .box, .facts, tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def text(content: str) -> Html:
    """Return text as HTML: escaped, unless it is HTML already."""
    return content if isinstance(content, Html) else Html(escape(content))


def join(parts: Iterable[str]) -> Html:
    """Put parts after each other."""
    return Html("\n".join(text(part) for part in parts if part))


def element(tag: str, *content: str, css: str = "") -> Html:
    """Return an element; `css` names its class, `tag` and `css` are ours, never from a file."""
    attribute = f' class="{css}"' if css else ""
    return Html(f"<{tag}{attribute}>{''.join(text(part) for part in content)}</{tag}>")


def section(title: str, *content: str) -> Html:
    """Return a section of the page with its heading."""
    return element("section", element("h2", title), "\n", join(content))


def figure(picture: str, caption: str, description: str) -> Html:
    """Return a picture (inline SVG or an image element, ours) with what it shows in words.

    Args:
        picture: HTML.
        caption: Under the picture.
        description: One line for those who cannot see it.
    """
    drawn = Html(picture)
    frame = Html(f'<div role="img" aria-label="{escape(description)}">{drawn}</div>')
    return element("figure", frame, element("figcaption", caption) if caption else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, named: bool = False) -> Html:
    """Return a table of figures; `named` where the first column holds words, not figures."""
    cells = element("tr", *(Html(f'<th scope="col">{text(name)}</th>') for name in head))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    inner = join([element("thead", cells), element("tbody", *body)])
    css = "wide named" if named else "wide"
    return Html(f'<div class="scroll"><table class="{css}">{inner}</table></div>')


def facts(pairs: Mapping[str, str]) -> Html:
    """Return a table of names and what they are."""
    rows = [
        element("tr", Html(f'<th scope="row">{text(name)}</th>'), element("td", value))
        for name, value in pairs.items()
    ]
    return element("table", element("tbody", *rows), css="facts")


def tiles(items: Iterable[tuple[str, str, str]]) -> Html:
    """Return the large figures on top: (name, value, note) each."""
    boxes = [
        element("div", element("dt", name), element("dd", value), element("dd", note, css="note"))
        for name, value, note in items
    ]
    return element("dl", *boxes, css="tiles")


def items(lines: Iterable[str]) -> Html:
    """Return a bulleted list."""
    return element("ul", *(element("li", line) for line in lines))


def details(title: str, content: str) -> Html:
    """Return a part that is folded up until it is wanted."""
    return element("details", element("summary", title), text(content))


def document(title: str, *content: str) -> str:
    """Return a whole page."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{join(content)}\n</body>\n</html>\n"
    )
