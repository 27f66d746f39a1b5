"""Write the generated parts of README.md and docs/*.md in place: python docs/tools/build.py

A generated part stands between two comments, `<!-- begin KIND ARGUMENT -->` and `<!-- end -->`:

    map GROUP ...        the table of some groups' details, their lines and tests
    lists                the README's short lists of them
    headline             the README's scores
    code SCRIPT ID       the lines of a script that a detail's markers govern
    diff SCRIPT          what a script changes in ppo.py, from its environment on
    removal SCRIPT ID    the edit that takes the detail out, as a diff, the test that notices, and
                         what was measured without it
    source ID            the registry's sources and evidence
    settings SCRIPT      the PPO flags of a script, with their defaults
    scores NAME          an experiment's scores beside published ones
    alike NAME           an experiment's scores and those of CleanRL's script, run here
    results NAME COLUMN  an experiment's scores, every seed, and the means of more columns
    shares NAME COLUMN   every seed of an experiment, its score and a column in percent
    milestones NAME ...  an experiment's returns on the way, at some hundredths of a variant's run
    speed                what docs/tools/bench.py --record measured
    growth SCRIPT KIND   its speed with more environments or processes
    ablation NAME        what details were measured to add, as a table
    stress NAME          what they add at several learning rates, over all tasks together
    measured ID          what "without it" means, and what a detail was measured to add
    course               the ten steps: what they are, what they reach
    step NAME            a step of the course: how to run it, what it changes, how it learns
    log NAME             what the log of a healthy run shows on the way
    beyond KIND          the entries or the recipes of docs/beyond.toml
    exercises ID ...     how to start each, and how long it takes
    symptoms GROUP       what the log of ppo.py showed, broken in each way of a group

Sources are docs/details.toml (the registry), the markers in the scripts and docs/results. With
--check nothing is written, and the exit code is 1 if a part is not what it should be.
"""

import ast
import difflib
import re
import sys
from functools import cache
from pathlib import Path

import apply
import effects
import exercise
import results
import tables
from details import DOCS, ROOT, edited, markers, page, registry, removal, section
from experiment_list import COURSE

PART = re.compile(r"(<!-- begin (\w+)(?: ([^>]*?))? -->\n).*?(<!-- end -->)", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BASELINES = (
    "https://github.com/openai/baselines/blob/ea25b9e8b234e6ee1bca43083f8f3cf974143998/baselines/"
)


def source_link(source: str) -> str:
    """A source of the registry as a Markdown link."""
    if source.startswith("http"):
        return f"[{source.removeprefix('https://')}]({source})"
    return f"[{source}]({BASELINES}{source})"


def lines_link(script: str, site: dict, base: str) -> str:
    first, last = site["first"], site["last"]
    return f"[{script}:{first}-{last}]({base}{script}#L{first}-L{last})"


@cache
def tests() -> dict[str, str]:
    """Where each test stands, by its name."""
    found = {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = f"tests/{path.name}#L{node.lineno}-L{node.end_lineno}"
    return found


def test_link(detail: str, base: str) -> str:
    name = registry()[detail]["test"]
    return f"[{name}]({base}{tests()[name]})"


def build_map(*groups: str) -> str:
    """Every detail of some groups, its lines, its section, its test."""
    rows = []
    for name, detail in registry().items():
        if name.split("-")[0] not in groups:
            continue
        places = []
        for script in detail["scripts"]:
            sites = markers((ROOT / script).read_text())[name]
            first, *others = (lines_link(script, site, "../") for site in sites)
            others = [other.replace(f"[{script}:", "[") for other in others]  # named once
            places.append(", ".join([first, *others]))
        row = {"": name}
        home = Path(detail["scripts"][0]).stem
        row["detail, with its section"] = f"[{detail['title']}]({home}.md#{name})"
        row["lines"] = "; ".join(places)
        rows.append(row | {"test": test_link(name, "../")})
    return tables.markdown(rows)


def build_lists() -> str:
    """The titles of all details, by group, each with its section and its first line."""
    groups = {"core": "Core", "atari": "Atari", "continuous": "Continuous actions"}
    groups |= {"lstm multidiscrete": "LSTM and MultiDiscrete", "aux extra": "Auxiliary and ours"}
    lines = []
    for group, title in groups.items():
        said = []
        for name, detail in registry().items():
            if name.split("-")[0] in group.split():
                script = detail["scripts"][0]
                site = markers((ROOT / script).read_text())[name][0]
                number = name if len(group.split()) > 1 else name.split("-")[1]
                line = f"[{number}]({script}#L{site['first']}-L{site['last']})"
                said.append(f"{line} [{detail['title']}]({page(script)}#{name})")
        lines.append(f"- **{title}**: {'; '.join(said)}.")
    return "\n".join(lines)


def build_code(script: str, name: str) -> str:
    """What the detail's markers govern; lines that an earlier section shows are linked only."""
    source, parts = (ROOT / script).read_text(), []
    found = markers(source)
    ids = [n for n in registry() if n in found and registry()[n]["scripts"][0] == script]
    earlier = ids[: ids.index(name)] if name in ids else []
    for site in found[name]:
        link = lines_link(script, site, "../")
        shown = [n for n in earlier if any(s["last"] == site["last"] for s in found[n])]
        if shown:
            parts.append(f"{link}: the lines shown under [{shown[0]}](#{shown[0]}).")
            continue
        lines = source.splitlines()[site["first"] - 1 : site["last"]]
        margin = len(lines[0]) - len(lines[0].lstrip())
        block = "\n".join(line[margin:] for line in lines)
        parts.append(f"{link}\n\n```python\n{block}\n```")
    return "\n\n".join(parts)


def build_removal(script: str, name: str) -> str:
    source = (ROOT / script).read_text()
    without = edited(source, removal(name, script), name)
    diff = difflib.unified_diff(source.splitlines(), without.splitlines(), n=1, lineterm="")
    body = "\n".join(line for line in list(diff)[2:] if not line.startswith("@@"))
    removed = f"```diff\n{body}\n```\n\nNoticed by {test_link(name, '../')}."
    if measured := effects.section(name):
        beside = f"[how, and what to make of it](ablations.md#{name})"
        removed += f"\n\n**Measured** ({beside}):\n\n{measured}"
    return removed


def build_diff(script: str) -> str:
    start = "# ---------------------------------------- Environment"
    parent, child = ((ROOT / name).read_text().split(start)[1] for name in ("ppo.py", script))
    diff = difflib.unified_diff(parent.splitlines(), child.splitlines(), n=1, lineterm="")
    body = "\n".join("" if line.startswith("@@") else line for line in list(diff)[2:])
    return f"```diff{body}\n```"


def build_source(name: str) -> str:
    detail = registry()[name]
    return f"{', '.join(map(source_link, detail['source']))}. {detail['evidence']}"


def build_settings(script: str) -> str:
    """Fields of Args from num_envs up to those of evaluation, as flags."""
    fields = re.search(
        r"^    num_envs: .*?(?=^    eval_ep)", (ROOT / script).read_text(), re.M | re.S
    )
    found = re.findall(r"^ *(\w+): .*? = (\S+)  # (.+)$", fields[0], re.MULTILINE)
    return tables.markdown(
        {"flag": f"`--{name.replace('_', '-')}`", "default": default.replace("_", ","), "": said}
        for name, default, said in found
    )


def build_measured(name: str) -> str:
    without = re.search(r"\*\*Remove it\.\*\* (.+?)\n\n", section(name), re.DOTALL)[1]
    return f"**Without it.** {without}\n\n{effects.section(name)}"


def build_course() -> str:
    """A row for each step, its title from the file."""
    rows = []
    for path in COURSE:
        text = path.read_text()
        row = {"step": f"[{path.name}](course/{path.name})"}
        row["what is new"] = re.match(r'"""Step \d+\. (.*)', text)[1]
        rows.append(row | {"lines": str(text.count("\n"))} | results.step(path.stem))
    return tables.markdown(rows)


def build_step(name: str) -> str:
    paths = [path for path in COURSE if path.stem <= name][-2:]
    command = f"```\npython docs/course/{name}.py\n```"
    if len(paths) == 1:
        return f"{command}\n\n```python\n{paths[0].read_text()}```"
    old, new = (path.read_text().split("\n\n", 2)[2].splitlines() for path in paths)
    bare = [[line.strip() for line in lines] for lines in (old, new)]
    match, parts = difflib.SequenceMatcher(None, *bare, autojunk=False), []
    for group in match.get_grouped_opcodes(2):
        for tag, a, b, c, d in group:  # what is only indented anew counts as equal
            parts += [f"-{line}" for line in old[a:b] if tag != "equal"]
            parts += [f"{' ' if tag == 'equal' else '+'}{line}" for line in new[c:d]]
        parts.append("...")
    body = "\n".join(parts[:-1])
    figure = f"![{name}, ten seeds, and the step before](figures/course-{name}.svg)"
    return f"{command}\n\n```diff\n{body}\n```\n\n{figure}"


def build_beyond(kind: str) -> str:
    """The entries or the recipes of docs/beyond.toml, a section for each."""
    parts = []
    for name, entry in apply.entries().items():
        if not name.startswith(kind):
            continue
        script = entry["scripts"][0 if kind == "recipe" else -1]
        how = f"`python {script} {entry.get('flags')}`"
        if "edit" in entry:
            old, new = (ROOT / script).read_text(), apply.apply(script, name)
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=1, lineterm="")
            body = "\n".join("" if line.startswith("@@") else line for line in list(lines)[2:])
            file = entry.get("file", "mine.py")
            how = f"`python docs/tools/apply.py {script} {name} > {file}`\n\n```diff{body}\n```"
        said = (
            f'<a id="{name}"></a>\n### {name} {entry["title"]}\n\n{entry["idea"].strip()}\n\n{how}'
        )
        test = entry.get("test") or next(t for t in tests() if name.replace("-", "_") in t)
        said += f"\n\nTested by [{test}](../{tests()[test]})."
        if kind == "beyond":
            links = ", ".join(map(source_link, entry["source"]))
            said += f"\n\n**Elsewhere.** {entry['claim'].strip()} ({links})"
            said += f"\n\n**It costs.** {entry['cost'].strip()}"
            said += f"\n\n**Measured.**\n\n{effects.section(name) or 'Not measured here so far.'}"
            if "when" in entry:
                said += f"\n\n**Use it?** {entry['when'].strip()}"
        parts.append(said)
    return "\n\n".join(parts)


def build_exercises(*names: str) -> str:
    """A row for each, in the order given."""
    rows = []
    for name in names:
        script, (_, gone) = exercise.path_of(name).name, exercise.task(name)
        row = {"": f"`python docs/tools/exercise.py {name}`"}
        row["what to write"] = (
            f"[{registry()[name]['title']}]({script.replace('.py', '.md')}#{name})"
        )
        rows.append(row | {"lines": str(gone), "minutes": str(exercise.minutes(gone))})
    return tables.markdown(rows)


BUILDERS = {
    "lists": build_lists,
    "headline": results.headline,
    "exercises": build_exercises,
    "course": build_course,
    "step": build_step,
    "beyond": build_beyond,
    "log": results.log,
    "map": build_map,
    "code": build_code,
    "diff": build_diff,
    "removal": build_removal,
    "source": build_source,
    "settings": build_settings,
    "scores": results.scores,
    "alike": results.alike,
    "results": results.summary,
    "shares": results.shares,
    "milestones": results.milestones,
    "speed": results.speed,
    "growth": results.growth,
    "ablation": effects.table,
    "stress": effects.stress,
    "measured": build_measured,
    "symptoms": results.symptoms,
}


def rebuilt(text: str) -> str:
    """A page with all of its generated parts as they should be."""

    def part(match: re.Match) -> str:
        begin, kind, arguments, end = match.groups()
        return f"{begin}{BUILDERS[kind](*(arguments or '').split())}\n{end}"

    return PART.sub(part, text)


def main(check: bool) -> int:
    stale = []
    for path in PAGES:
        text = path.read_text()
        if (new := rebuilt(text)) != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new)
    for path in stale:
        print(f"{path}: {'stale, run python docs/tools/build.py' if check else 'rebuilt'}")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
