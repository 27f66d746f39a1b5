"""Write the book as a static site: python docs/tools/book.py

Makes site/html/index.html and all that it links to, from README.md, docs/*.md and the scripts. It
needs no server and no network: open it from disk. Formulas become MathML, which browsers draw by
themselves; their font is STIX Two Math, cut down to the characters of formulas. A link to a script
leads to its annotated source, a link to another file to a copy.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import annotate
from details import DOCS, ROOT, SCRIPTS

SITE = ROOT / "site"
LINK = re.compile(r"(?<=\]\()(?!http|#)([^)\s#]+)(?:#([\w-]+))?(?=\))")
# The link above an excerpt says with which line it begins.
EXCERPT = re.compile(r"(\[\w+\.py:(\d+)-\d+\]\([^)]*\)\n\n```python)")
ANCHORED = re.compile(r'^<a id="([\w-]+)"></a>\n(#+ .+)$', re.MULTILINE)
SOURCE = re.compile(r'<div data-source="(.+?)"></div>')
TABLE = "| script | for | adds |\n| --- | --- | --- |\n"  # the README's, of the five scripts
ROW = re.compile(r"^\| \[(\w+\.py)\]\(source/(\w+)\.html\) \| (.+) \| (.+) \|$", re.MULTILINE)
ASSETS = ("book.css", "book.js", "play.js", "iframe-worker.js", "math.woff2")
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def staged(path: Path, text: str) -> tuple[str, set[Path]]:
    """A page's text as the site needs it, and the files of the project that it links to."""
    files = set()

    def retarget(match: re.Match) -> str:
        name, anchor = match.groups()
        target = (path.parent / name).resolve().relative_to(ROOT)
        hash_ = f"#{anchor.split('-L')[0]}" if anchor else ""  # a span of lines: its first
        if target.suffix == ".md":
            return name_of(target) + f".md{hash_}"
        if target.suffix == ".py":
            files.add(target)
            return f"source/{target.stem}.html{hash_}"
        files.add(target)
        return f"files/{target}"

    text = EXCERPT.sub(r'\1 linenums="\2"', text)
    text = ANCHORED.sub(r"\2 { #\1 }", text)  # the contents list follows ids of headings
    text = LINK.sub(retarget, text)
    if f"{path.stem}.py" in SCRIPTS:
        switch = f"*page* | [annotated source](source/{path.stem}.html)"
        text = text.replace("\n", f"\n\n{switch}\n{{ .switch }}\n", 1)  # after the title
    if path == ROOT / "README.md":
        text = ROW.sub(card, text).replace(TABLE, "")
    return text, files


def card(match: re.Match) -> str:
    """A row of the README's table of scripts, as a card."""
    name, stem, what, adds = match.groups()
    ways = f"[page]({stem}.md) | [annotated source](source/{stem}.html)"
    return f'<div class="card" markdown="1">\n**{name}**\n\n{what}\n\n{adds}\n\n{ways}\n</div>\n'


def source_page(script: Path) -> str:
    """The page of an annotated source, without the source: it is put in when all else is built."""
    page = " | *annotated source*\n{ .switch }\n" if f"{script}" in SCRIPTS else ""
    switch = f"\n[page](../{script.stem}.html){page}" if page else ""
    head = f"---\ntitle: {script.name}, {'annotated' if page else 'source'}\nhide: [toc]\n"
    head += "search:\n  exclude: true\n---\n"
    return f'{head}\n# {script.name}\n{switch}\n<div data-source="{script}"></div>\n'


def name_of(path: Path) -> str:
    """A page's name on the site: the README is its home, docs/README.md the first page."""
    if path.stem != "README":
        return path.stem
    return "index" if path.parent in (Path(), ROOT) else "start"


def pages() -> dict[str, tuple[Path, str]]:
    """Name on the site -> the file that it is made from, and its text."""
    found = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    return {name_of(path): (path, path.read_text()) for path in found}


def formula(match: re.Match) -> str:
    """What Zensical leaves of a formula, as MathML."""
    return annotate.mathml(html.unescape(match[2]), block=match[1] == "div")


def plain(entry: dict) -> dict:
    """An entry of the search, its formulas as plain text."""

    def text(match: re.Match) -> str:
        latex = html.unescape(html.unescape(match[1] or match[2]))  # it is escaped twice
        math = ElementTree.fromstring(annotate.mathml(latex, block=False))
        return html.escape("".join(spelled(math)))

    return entry | {
        "text": re.sub(r"\\\((.+?)\\\)|\\\[(.+?)\\\]", text, entry["text"], flags=re.DOTALL)
    }


def spelled(element: ElementTree.Element) -> Iterator[str]:
    """The characters of a formula, with _ and ^ where it has indices."""
    marks = {"msub": "_", "msup": "^", "msubsup": "_^", "mfrac": "/"}
    mark = marks.get(element.tag.split("}")[-1], "")
    yield element.text or ""
    for place, child in enumerate(element):
        yield mark[place - 1] if 0 < place <= len(mark) else ""
        yield from spelled(child)


def main(site: Path = SITE) -> None:
    shutil.rmtree(site, ignore_errors=True)
    stage, linked = site / "pages", set()
    (stage / "source").mkdir(parents=True)
    for name, (path, text) in pages().items():
        text, files = staged(path, text)
        (stage / f"{name}.md").write_text(text)
        linked |= files
    for target in linked:
        if target.suffix == ".py":
            (stage / "source" / f"{target.stem}.md").write_text(source_page(target))
        else:
            (stage / "files" / target).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / target).is_dir():
                shutil.copytree(ROOT / target, stage / "files" / target, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / target, stage / "files" / target)
    shutil.copy(DOCS / "site" / "zensical.toml", site)
    for name in ASSETS:
        shutil.copy(DOCS / "site" / name, stage)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "zensical.toml"]
    subprocess.run(command, cwd=site, check=True)
    for path in (site / "html").rglob("*.html"):
        text = SOURCE.sub(lambda match: annotate.page(match[1]), path.read_text())
        path.write_text(MATH.sub(formula, text))
    index = json.loads((site / "html" / "search.json").read_text())
    index["items"] = [plain(entry) for entry in index["items"]]
    for name, start in (("search.json", ""), ("search.js", "var __index = ")):
        (site / "html" / name).write_text(start + json.dumps(index))


if __name__ == "__main__":
    main()
