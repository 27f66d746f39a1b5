"""Write the book as a static site: python docs/tools/book.py

Makes site/html/index.html and all that it links to, from README.md, docs/*.md and the scripts. It
needs no server and no network: open it from disk. Formulas become MathML, which browsers draw by
themselves; a link to a script leads to its annotated source, a link to another file to a copy.
"""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import annotate
from details import DOCS, ROOT

SITE = ROOT / "site"
LINK = re.compile(r"(?<=\]\()(?!http|#)([^)\s#]+)(?:#([\w-]+))?(?=\))")
# The link above an excerpt says with which line it begins.
EXCERPT = re.compile(r"(\[\w+\.py:(\d+)-\d+\]\([^)]*\)\n\n```python)")
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
    return LINK.sub(retarget, text), files


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
            (stage / "source" / f"{target.stem}.html").write_text(annotate.page(str(target)))
        else:
            (stage / "files" / target).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / target).is_dir():
                shutil.copytree(ROOT / target, stage / "files" / target, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / target, stage / "files" / target)
    for name in ("zensical.toml", "book.css", "play.js", "iframe-worker.js"):
        shutil.copy(DOCS / "site" / name, site if name.endswith("toml") else stage)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "zensical.toml"]
    subprocess.run(command, cwd=site, check=True)
    for path in (site / "html").glob("*.html"):
        path.write_text(MATH.sub(formula, path.read_text()))


if __name__ == "__main__":
    main()
