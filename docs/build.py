"""Write the generated parts of README.md and docs/*.md in place: python docs/build.py

A generated part stands between two comments, `<!-- begin KIND ARGUMENT -->` and `<!-- end -->`:

    map                  the README's table of all details
    code SCRIPT ID       the lines of a script that a detail's markers govern
    diff SCRIPT          what a script changes in ppo.py, from its environment on
    removal SCRIPT ID    the edit that takes the detail out, as a diff, the test that notices, and
                         what was measured without it
    source ID            the registry's sources and evidence
    scores NAME          an experiment's scores beside published ones
    results NAME COLUMN  an experiment's scores, every seed, and the means of more columns
    settings SCRIPT      the PPO flags of a script, with their defaults
    milestones NAME ...  an experiment's returns on the way, at some hundredths of a variant's run
    speed, shares        what docs/bench.py --record measured
    ablation NAME        what details were measured to add, as a table
    measured ID          what "without it" means, and what a detail was measured to add
    symptoms GROUP       what the log of ppo.py showed, broken in each way of a group

Sources are docs/details.toml (the registry) and the markers in the scripts. With --check nothing is
written, and the exit code is 1 if a part is not what it should be.
"""

import ast
import difflib
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["ppo.py", "ppo_atari.py", "ppo_continuous.py", "ppo_lstm.py", "ppo_multidiscrete.py"]
MARKER = re.compile(
    r"^(\s*)# \[((?:core|atari|continuous|lstm|multidiscrete|aux|extra)-\d\d)"
    r"(?: (\d+)/(\d+))?\] (.+)$"
)
PART = re.compile(r"(<!-- begin (\w+)(?: ([^>]*?))? -->\n).*?(<!-- end -->)", re.DOTALL)
BASELINES = (
    "https://github.com/openai/baselines/blob/ea25b9e8b234e6ee1bca43083f8f3cf974143998/baselines/"
)


def registry() -> dict[str, dict]:
    """The details by id, in the registry's order."""
    details = tomllib.loads((ROOT / "docs" / "details.toml").read_text())["detail"]
    return {detail["id"]: detail for detail in details}


def scripts() -> list[str]:
    return [name for name in SCRIPTS if (ROOT / name).exists()]


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
    return pairs.get(script.removesuffix(".py")) or pairs["default"]


def edited(source: str, pairs: list[list[str]], name: str) -> str:
    """A script with [find, replace] pairs applied, each of which must fit in one place."""
    for find, replace in pairs:
        if source.count(find) != 1:
            raise ValueError(f"{name}: found {source.count(find)} times: {find!r}")
        source = source.replace(find, replace)
    return source


def link(source: str) -> str:
    """A source of the registry as a Markdown link."""
    if source.startswith("http"):
        return f"[{source.removeprefix('https://')}]({source})"
    return f"[{source}]({BASELINES}{source})"


def lines_link(script: str, site: dict, base: str) -> str:
    span = f"{site['first']}-{site['last']}"
    return f"[{script}:{span}]({base}{script}#L{site['first']}-L{site['last']})"


def test_link(name: str, base: str) -> str:
    tests = ast.parse((ROOT / "tests" / "test_details.py").read_text()).body
    (test,) = (node for node in tests if getattr(node, "name", None) == name)
    return f"[{name}]({base}tests/test_details.py#L{test.lineno}-L{test.end_lineno})"


def page(script: str, name: str) -> str:
    return f"docs/{script.removesuffix('.py')}.md#{name}"


def build_map() -> str:
    """The README's table: every detail, its lines, its section, its test."""
    found = {script: markers((ROOT / script).read_text()) for script in scripts()}
    rows = ["| | detail, with its section | lines | test |", "| --- | --- | --- | --- |"]
    for name, detail in registry().items():
        places = []
        for script in detail["scripts"]:
            first, *others = (lines_link(script, site, "") for site in found[script][name])
            others = [re.sub(r"\[.*:", "[", other) for other in others]  # the script is named once
            places.append(", ".join([first, *others]))
        section = f"[{detail['title']}]({page(detail['scripts'][0], name)})"
        test = test_link(detail["test"], "")
        rows.append(f"| {name} | {section} | {'<br>'.join(places)} | {test} |")
    return "\n".join(rows)


def build_code(script: str, name: str) -> str:
    """What the detail's markers govern; lines that an earlier section shows are linked only."""
    source, parts = (ROOT / script).read_text(), []
    found = markers(source)
    ids = [n for n in registry() if n in found and registry()[n]["scripts"][0] == script]
    earlier = ids[: ids.index(name)] if name in ids else []
    for site in found[name]:
        shown = [n for n in earlier if any(s["last"] == site["last"] for s in found[n])]
        if shown:
            link = lines_link(script, site, "../")
            parts.append(f"{link}: the lines shown under [{shown[0]}](#{shown[0]}).")
            continue
        lines = source.splitlines()[site["first"] - 1 : site["last"]]
        margin = len(lines[0]) - len(lines[0].lstrip())
        block = "\n".join(line[margin:] for line in lines)
        parts.append(f"{lines_link(script, site, '../')}\n\n```python\n{block}\n```")
    return "\n\n".join(parts)


def build_removal(script: str, name: str) -> str:
    import ablations

    source = (ROOT / script).read_text()
    without = edited(source, removal(name, script), name)
    diff = difflib.unified_diff(source.splitlines(), without.splitlines(), n=1, lineterm="")
    body = "\n".join(line for line in list(diff)[2:] if not line.startswith("@@"))
    test = test_link(registry()[name]["test"], "../")
    removed = f"```diff\n{body}\n```\n\nNoticed by {test}."
    if measured := ablations.section(name):
        beside = f"[how, and what to make of it](ablations.md#{name})"
        removed += f"\n\n**Measured** ({beside}):\n\n{measured}"
    return removed


def build_diff(script: str) -> str:
    start = "# ---------------------------------------- Environment"
    parent, child = ((ROOT / name).read_text().partition(start)[2] for name in ("ppo.py", script))
    diff = difflib.unified_diff(parent.splitlines(), child.splitlines(), n=1, lineterm="")
    body = "\n".join("" if line.startswith("@@") else line for line in list(diff)[2:])
    return f"```diff{body}\n```"


def build_source(name: str) -> str:
    detail = registry()[name]
    return f"{', '.join(map(link, detail['source']))}. {detail['evidence']}"


def build_scores(name: str) -> str:
    import experiments  # here, so that the rest works without what draws figures

    return experiments.scores(name)


def build_results(name: str, *columns: str) -> str:
    import experiments

    return experiments.summary(name, *columns)


def build_speed() -> str:
    import bench

    return bench.speed_table()


def build_shares() -> str:
    import bench

    return bench.share_table()


def build_settings(script: str) -> str:
    lines = ["| flag | default | |", "| --- | --- | --- |"]
    fields = (ROOT / script).read_text().partition("    num_envs: ")[2].partition("    eval_ep")[0]
    for name, default, said in re.findall(
        r"^ *(\w+): .*? = (\S+)  # (.+)$", "num_envs: " + fields, re.MULTILINE
    ):
        flag = "--" + name.replace("_", "-")
        lines.append(f"| `{flag}` | {default.replace('_', ',')} | {said} |")
    return "\n".join(lines)


def build_milestones(name: str, variant: str, *shares: str) -> str:
    import experiments

    return experiments.milestones(name, variant, [int(share) for share in shares])


def build_ablation(name: str) -> str:
    import ablations

    return ablations.table(f"ablation-{name}")


def build_measured(name: str) -> str:
    import ablations

    section = (ROOT / page(registry()[name]["scripts"][0], name).partition("#")[0]).read_text()
    section = section.partition(f'<a id="{name}"></a>')[2]
    without = re.search(r"\*\*Remove it\.\*\* (.+?)\n\n", section, re.DOTALL)[1]
    return f"**Without it.** {without}\n\n{ablations.section(name)}"


def build_symptoms(group: str) -> str:
    import experiments

    return experiments.symptoms(group)


BUILDERS = {
    "map": build_map,
    "code": build_code,
    "diff": build_diff,
    "removal": build_removal,
    "source": build_source,
    "scores": build_scores,
    "results": build_results,
    "speed": build_speed,
    "shares": build_shares,
    "settings": build_settings,
    "milestones": build_milestones,
    "ablation": build_ablation,
    "measured": build_measured,
    "symptoms": build_symptoms,
}


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rebuilt(text: str) -> str:
    """A page with all of its generated parts as they should be."""

    def part(match: re.Match) -> str:
        begin, kind, arguments, end = match.groups()
        return f"{begin}{BUILDERS[kind](*(arguments or '').split())}\n{end}"

    return PART.sub(part, text)


def main() -> int:
    stale = []
    for path in pages():
        text = path.read_text()
        if (new := rebuilt(text)) != text:
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(new)
    for path in stale:
        print(
            f"{path}: {'stale, run python docs/build.py' if '--check' in sys.argv else 'rebuilt'}"
        )
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
