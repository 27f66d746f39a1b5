"""A script as a page with its explanations beside it; book.py writes them into the site.

The whole script stands with line numbers on one side and, beside each marker, what the detail is
and why, from its section in docs/*.md, with a link to it. On a narrow screen an explanation stands
above its lines.
"""

import html
import re
from itertools import pairwise
from pathlib import Path

import latex2mathml.converter
import markdown
from build import PART
from details import ROOT, SCRIPTS, markers, registry, section
from details import page as page_of
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --faint: #6b6b6b; --line: #ddd;
  --note: #f3f6fa; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e6e6e6; --faint: #9a9a9a;
  --line: #333; --note: #1f242c; --link: #7db7f5; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
header, nav { padding: .6rem 1rem; } h1 { margin: 0; font-size: 1.3rem; } a { color: var(--link); }
.row { display: grid; grid-template-columns: minmax(0, 58rem) minmax(18rem, 1fr); gap: 0 1rem; }
.code { overflow-x: auto; } pre { margin: 0; font: 13px/1.5 ui-monospace, monospace; }
.line { display: block; white-space: pre; } .line:target { background: #ffe08a55; }
.line > a { display: inline-block; width: 3.2rem; padding-right: .8rem; text-align: right;
  color: var(--faint); text-decoration: none; user-select: none; }
.note { background: var(--note); border-left: 3px solid var(--link); padding: .3rem .8rem;
  margin: .2rem .5rem .6rem 0; font-size: .9rem; overflow-x: auto; }
.note h2 { margin: 0; font-size: .95rem; } .note p { margin: .4rem 0; }
@media (max-width: 70rem) { .row { display: flex; flex-direction: column-reverse; }
  .note { margin: .4rem .5rem; } }
"""


def mathml(latex: str, block: bool) -> str:
    """A formula as MathML, which browsers draw by themselves."""
    return latex2mathml.converter.convert(latex.strip(), display="block" if block else "inline")


def formulas(text: str) -> str:
    """Markdown with its $...$ and $$...$$ as MathML."""
    return MATH.sub(lambda match: mathml(match[1] or match[2], block=bool(match[1])), text)


def summary(name: str) -> str:
    """What and Why of a detail's section, as HTML."""
    text = PART.sub("", section(name))
    until = r"(?=\n\*\*(?:Source|Mistakes|Remove))"
    said = re.search(rf"\*\*What\.\*\*.*?{until}", text, re.DOTALL).group()
    said = re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", said)  # links inside the book
    return markdown.markdown(formulas(said), extensions=["tables", "fenced_code"])


def note(name: str, site: dict) -> str:
    home = Path(page_of(registry()[name]["scripts"][0])).stem
    title = f"{name} {html.escape(site['title'])}"
    count = f" ({site['site']} of {site['sites']})" if site["sites"] > 1 else ""
    link = f'<a href="../{home}.html#{name}">{title}</a>{count}'
    body = summary(name) if site["site"] == 1 else ""  # said once; other sites point to it
    return f'<div class="note" data-detail="{name}"><h2>{link}</h2>{body}</div>'


def lines(source: str) -> list[str]:
    """Each line of a script as HTML, with a number that links to itself."""
    formatter = HtmlFormatter(nowrap=True)
    colored = (
        highlight(source, PythonLexer(stripnl=False, ensurenl=False), formatter)
        .rstrip("\n")
        .split("\n")
    )
    return [
        f'<span class="line" id="L{n}"><a href="#L{n}">{n}</a>{line or " "}</span>'
        for n, line in enumerate(colored, 1)
    ]


def page(script: str) -> str:
    source = (ROOT / script).read_text().rstrip("\n")
    sites = [(n, s) for n, found in markers(source).items() for s in found]
    starts = {1} | {s["first"] for _, s in sites} | {s["last"] + 1 for _, s in sites}
    numbered = lines(source)
    edges = sorted(edge for edge in starts if edge <= len(numbered)) + [len(numbered) + 1]
    rows = []
    for first, after in pairwise(edges):
        code = "".join(numbered[first - 1 : after - 1])
        notes = "".join(note(name, site) for name, site in sites if site["first"] == first)
        rows.append(
            f'<div class="row"><div class="code"><pre>{code}</pre></div><div>{notes}</div></div>'
        )
    light, dark = (HtmlFormatter(style=s).get_style_defs("pre") for s in ("xcode", "github-dark"))
    style = f"{STYLE}{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"
    others = [f'<a href="{Path(other).stem}.html">{other}</a>' for other in SCRIPTS]
    ways = " · ".join(['<a href="../index.html">The book</a>', *others])
    title = f"{script}, annotated" if sites else script
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style>'
        f"<header><h1>{title}</h1></header><nav>{ways}</nav>{''.join(rows)}</html>\n"
    )
