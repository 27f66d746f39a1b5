"""A script with its explanations beside it; book.py puts it into a page of the site.

The whole script stands on one side, with line numbers. Beside each marker stands what the detail is
and why, from its section in docs/*.md: one sentence, and the rest to unfold. docs/site/blocks.toml
explains the blocks without a marker. docs/site/book.js places the notes, so that the code has no
gaps; on a narrow screen, and without JavaScript, a note stands above its lines.
"""

import html
import re
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import latex2mathml.converter
import markdown
from build import PART
from details import DOCS, ROOT, markers, registry, section
from details import page as page_of
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
PLACE = re.compile(r"^# -+ (.+?) -+$|^ +# --- (\d\. \w+)", re.MULTILINE)
RUNNING = "Running it"  # where the lesson ends


def mathml(latex: str, block: bool) -> str:
    """A formula as MathML, which browsers draw by themselves."""
    latex = latex.strip().replace("{aligned}", "{align*}")  # the name that the converter knows
    return latex2mathml.converter.convert(latex, display="block" if block else "inline")


def rendered(text: str) -> str:
    """Markdown, with its $...$ and $$...$$, as HTML."""
    text = MATH.sub(lambda match: mathml(match[1] or match[2], block=bool(match[1])), text)
    return markdown.markdown(text, extensions=["tables", "fenced_code"])


def summary(name: str) -> tuple[str, str]:
    """What and Why of a detail's section, as HTML: the first sentence, and the rest."""
    text = PART.sub("", section(name))
    said = re.search(r"\*\*What\.\*\* (.*?)(?=\n<details|\n\*\*[SMR])", text, re.DOTALL)[1]
    said = re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", said)  # links inside the book
    first, rest = re.match(r"(.+?\.)(?=\s)(.*)", said, re.DOTALL).groups()
    return rendered(first), rendered(rest.strip())


@cache
def blocks() -> list[dict]:
    return tomllib.loads((DOCS / "site" / "blocks.toml").read_text())["block"]


def explained(source: str) -> dict[int, str]:
    """First lines (from 1) of blocks without a marker, and what is said of them."""
    lines, found = source.split("\n"), {}
    for number, line in enumerate(lines, 1):
        if number > 1 and lines[number - 2].strip() and not lines[number - 2].startswith("#"):
            continue  # not the first of a block
        for block in blocks():
            if line.strip().startswith(block["starts"]) and block["says"] not in found.values():
                found[number] = block["says"]
    return found


def note(name: str, site: dict) -> str:
    home = Path(page_of(registry()[name]["scripts"][0])).stem
    title = f"<b>{name}</b> {html.escape(site['title'])}"
    count = f" ({site['site']} of {site['sites']})" if site["sites"] > 1 else ""
    body = f'<p><a href="../{home}.html#{name}">{title}</a>{count}</p>'
    if site["site"] == 1:  # said once; other sites point to it
        first, rest = summary(name)
        body += f"{first}<details><summary>more</summary>{rest}</details>"
    return f'<div class="note" data-detail="{name}">{body}</div>'


def lines(source: str) -> list[str]:
    """Each line of a script as HTML, with a number that links to itself."""
    formatter = HtmlFormatter(nowrap=True)
    lexer = PythonLexer(stripnl=False, ensurenl=False)
    colored = highlight(source, lexer, formatter).rstrip("\n").split("\n")
    return [
        f'<span class="line" id="L{n}"><a href="#L{n}">{n}</a>{line or " "}</span>'
        for n, line in enumerate(colored, 1)
    ]


def places(source: str) -> list[tuple[int, str]]:
    """Where the parts of a script begin: line, name."""
    found = [(source[: m.start()].count("\n") + 1, m[1] or m[2]) for m in PLACE.finditer(source)]
    return [(1, "Settings"), *((line, name.split(":")[0]) for line, name in found)]


def page(script: str) -> str:
    """The script and its notes, as HTML for inside a page."""
    source = (ROOT / script).read_text().rstrip("\n")
    sites = [(name, site) for name, found in markers(source).items() for site in found]
    said = explained(source) if sites else {}
    numbered = lines(source)
    starts = {1} | {site["first"] for _, site in sites} | set(said)
    rows = []
    for first, after in pairwise([*sorted(starts), len(numbered) + 1]):
        notes = "".join(note(name, site) for name, site in sites if site["first"] == first)
        if not notes and first in said:
            notes = f'<div class="note">{rendered(said[first])}</div>'
        code = "".join(numbered[first - 1 : after - 1])
        rows.append(f'<div class="row"><div class="notes">{notes}</div><pre>{code}</pre></div>')
    ways = ""
    if sites:
        links = "".join(f'<a href="#L{line}">{name}</a>' for line, name in places(source))
        ways = f'<nav class="where" aria-label="Where in the script">{links}</nav>'
    return f'<div class="annotated highlight">{ways}{"".join(rows)}</div>'
