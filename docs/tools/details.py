"""The details: the registry docs/details.toml, the markers in the scripts, the edits that remove
a detail from a script. Tests and all programs here build on this file."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SCRIPTS = ["ppo.py", "ppo_atari.py", "ppo_continuous.py", "ppo_lstm.py", "ppo_multidiscrete.py"]
MARKER = re.compile(
    r"^(\s*)# \[((?:core|atari|continuous|lstm|multidiscrete|aux|extra)-\d\d)"
    r"(?: (\d+)/(\d+))?\] (.+)$"
)


def scripts() -> list[str]:
    return SCRIPTS


@cache
def registry() -> dict[str, dict]:
    """The details by id, in the registry's order."""
    details = tomllib.loads((DOCS / "details.toml").read_text())["detail"]
    return {detail["id"]: detail for detail in details}


@cache
def markers(source: str) -> dict[str, list[dict]]:
    """Per id the sites of its marker in a script, in order.

    `first` and `last` are the lines (from 1) of what a site governs, its comments included: the
    whole definition if it stands above one, else all up to the next blank line or dedent.
    `comments` counts the lines of comment that are its own, up to a marker stacked below it.
    """
    lines, found = source.splitlines(), {}
    definitions = {}  # first line of a definition, decorators included -> its last line
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            definitions[start] = node.end_lineno
    for number, line in enumerate(lines, 1):
        if not (match := MARKER.match(line)):
            continue
        indent, name, site, sites, title = match.groups()
        code = number + 1
        while lines[code - 1].strip().startswith("#"):
            code += 1
        comments = [line.strip() for line in lines[number : code - 1]]
        stacked = [i for i, comment in enumerate(comments) if MARKER.match(comment)]
        last = definitions.get(code)
        if last is None:
            last = code
            while last < len(lines) and lines[last].startswith(indent) and lines[last].strip():
                last += 1
        found.setdefault(name, []).append(
            {"first": number, "last": last, "title": title}
            | {"site": int(site or 1), "sites": int(sites or 1)}
            | {"comments": min([len(comments), *stacked])}
        )
    return found


def removal(name: str, script: str) -> list[list[str]]:
    """The [find, replace] pairs that take a detail out of a script."""
    pairs = registry()[name]["removal"]
    return pairs.get(Path(script).stem) or pairs["default"]


def edited(source: str, pairs: list[list[str]], name: str) -> str:
    """A script with [find, replace] pairs applied, each of which must fit in one place."""
    for find, replace in pairs:
        if source.count(find) != 1:
            raise ValueError(f"{name}: found {source.count(find)} times: {find!r}")
        source = source.replace(find, replace)
    return source


def page(script: str) -> str:
    """The page that explains a script."""
    return f"docs/{Path(script).stem}.md"


def section(name: str) -> str:
    """A detail's section, on the page of the first script that carries it."""
    text = (ROOT / page(registry()[name]["scripts"][0])).read_text()
    return text.split(f'<a id="{name}"></a>\n')[1].split("<a id=")[0]
