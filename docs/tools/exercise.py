"""A script with one detail left to write: python docs/tools/exercise.py core-05

Writes exercises/core-05/ppo.py, in which the lines of that detail are blank, and says what to do.
Explanations, signatures, and what each blank is given and must produce stay. Then:

    python docs/tools/exercise.py core-05 --check    runs the detail's own test on your file, and
                                                     says what the mistake is if it knows it
    python docs/tools/exercise.py core-05 --hint     more about it
    python docs/tools/exercise.py core-05 --again    start anew: what you wrote is lost

bug-1, bug-2, ... write a ppo.py that is whole but for one bug: run it, find it, mend it. "all"
leaves the heart of PPO blank, eight details at once.
"""

import argparse
import ast
import builtins
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

from details import DOCS, ROOT, edited, markers, registry, section

FOLDER = ROOT / "exercises"
BREAKS = tomllib.loads((DOCS / "symptoms.toml").read_text())["break"]
BUGS = {f"bug-{i}": b for i, b in enumerate((b for b in BREAKS if "edit" in b), 1)}
DRILL = ["core-05", "core-06", "core-07", "core-08", "core-09", "core-10", "core-11", "extra-01"]
RUN = "--env-id Acrobot-v1 --total-timesteps 150016 --learning-rate 0.005"  # as in symptoms.md


def names_in(block: list[ast.stmt], hidden: set[str]) -> tuple[list[str], list[str]]:
    """What statements read that they have not written, and what they write, in order. Names of
    loops inside expressions, and those in `hidden`, are nobody's business."""
    given, produced, hidden = [], [], hidden | set(dir(builtins)) | {"_"}
    for node in (node for statement in block for node in ast.walk(statement)):
        if isinstance(node, ast.comprehension):
            hidden |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.arg | ast.ExceptHandler):
            hidden.add(getattr(node, "arg", None) or node.name)

    def visit(node: ast.AST) -> None:
        base = node
        while isinstance(base, ast.Attribute | ast.Subscript):
            base = base.value
        if not isinstance(base, ast.Name):  # values before targets
            late = [x for x in ast.iter_child_nodes(node) if x in getattr(node, "targets", [])]
            for child in [x for x in ast.iter_child_nodes(node) if x not in late] + late:
                visit(child)
            return
        for inner in ast.walk(node):
            if isinstance(inner, ast.Subscript):
                visit(inner.slice)
        if base.id in hidden:
            return
        whole = ast.unparse(node).replace("'", '"')
        if isinstance(node.ctx, ast.Store):
            index = getattr(node, "slice", None)  # one that says how is part of the answer
            plain = isinstance(index, ast.Name | ast.Constant | None)
            produced.append(whole if plain else ast.unparse(node.value))
            if not plain and base.id not in [*given, *produced[:-1]]:
                given.append(base.id)
        else:
            name = whole if base.id in ("args", "self") else base.id
            if not {name, base.id} & {*given, *produced}:
                given.append(name)

    for statement in block:
        visit(statement)
    return given, list(dict.fromkeys(produced))


def blank_body(function: ast.FunctionDef, lines: list[str], name: str) -> None:
    """Leave of a function its signature and docstring."""
    first = function.body[0]
    kept = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = first.end_lineno if kept else first.lineno - 1
    while not kept and lines[start - 1].strip().startswith("#"):
        start -= 1
    blank = " " * first.col_offset + f'raise NotImplementedError("{name}")'
    lines[start : function.end_lineno] = [blank]


def blanked(source: str, name: str) -> tuple[str, int]:
    """A script without the lines of a detail, and how many they are."""
    lines, gone = source.splitlines(), 0
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {(name.asname or name.name).split(".")[0] for node in imports for name in node.names}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    definitions = {
        node.lineno: node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    for site in reversed(markers(source)[name]):  # from the end, so that numbers stay right
        start = site["first"]
        while lines[start].strip().startswith("#"):
            start += 1
        before = len(lines)
        if definition := definitions.get(start + 1):
            methods = [definition] if isinstance(definition, ast.FunctionDef) else definition.body
            methods = [method for method in methods if isinstance(method, ast.FunctionDef)]
            for method in reversed(methods):
                blank_body(method, lines, name)
            gone += before - len(lines) + len(methods)
            continue
        block = lines[start : site["last"]]
        margin = len(block[0]) - len(block[0].lstrip())
        after = next((line for line in lines[site["last"] :] if line.strip()), "")
        code, header, over = textwrap.dedent("\n".join(block)), [], []
        if len(after) - len(after.lstrip()) > margin:  # a loop of it goes on: its head must stay
            *_, loop = ast.parse(code).body
            head = start + loop.lineno - 1
            header = [f"{' ' * margin}for {ast.unparse(loop.target)} in []:  # over what?"]
            header += lines[head + 1 : site["last"]]
            over = [ast.Expr(loop.iter)]
            block, code = lines[start : head + 1], textwrap.dedent("\n".join(lines[start:head]))
        given, produced = names_in([*ast.parse(code).body, *over], modules)
        ends = [f.end_lineno for f in functions if f.lineno <= site["last"] <= f.end_lineno]
        rest = "\n".join(source.splitlines()[site["last"] : max(ends, default=None)])
        read = [x for x in produced if not x.isidentifier() or re.search(rf"\b{x}\b", rest)]
        produced = read or ([] if "return " in code else produced)  # for a loop's next turn
        said = [f"# Given: {', '.join(given)}."] if given else []
        said += [f"# To produce: {', '.join(produced)}." if produced else "# To do: see above."]
        said = [line for text in said for line in textwrap.wrap(text, 98 - margin)]
        said = [line if line.startswith("#") else f"#   {line}" for line in said]
        said.append(f'raise NotImplementedError("{name}")')
        lines[start : site["last"]] = [" " * margin + line for line in said] + header
        gone += len(block)
    return "\n".join(lines) + "\n", gone


def path_of(name: str) -> Path:
    return FOLDER / name / (registry()[name]["scripts"][0] if name in registry() else "ppo.py")


def parts(name: str) -> list[str]:
    """The details that an exercise leaves blank."""
    return DRILL if name == "all" else [name]


def task(name: str) -> tuple[str, int]:
    """The script to complete, and how many lines are gone."""
    text, gone = (ROOT / path_of(name).name).read_text(), 0
    for part in parts(name):
        text, lines = blanked(text, part)
        gone += lines
    return text, gone


def minutes(gone: int) -> int:
    return 5 * (1 + gone // 4)


def write(name: str, again: bool) -> None:
    """Make the exercise, and say what to do."""
    path = path_of(name)
    shown = os.path.relpath(path)
    if path.exists() and not again:
        sys.exit(f"error: {shown} is there; --check grades it, --again throws it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    if name in BUGS:
        path.write_text(edited((ROOT / "ppo.py").read_text(), BUGS[name]["edit"], name))
        print(f"{shown} has one bug. Run it: python {shown} {RUN}")
        print("Its log as a row of docs/symptoms.md: python docs/tools/symptom.py RUN")
    else:
        text, gone = task(name)
        path.write_text(text)
        to_write = ("raise NotImpl", "in []:  # over what?")
        lines = enumerate(text.splitlines(), 1)
        blanks = [i for i, line in lines if any(mark in line for mark in to_write)]
        titles = [f"{part} {registry()[part]['title']}" for part in parts(name)]
        print("\n".join(titles))
        where = f"write line{'s' * (len(blanks) > 1)} {', '.join(map(str, blanks))}"
        print(f"{shown}: {where} ({gone} in the original).")
        print(f"About {minutes(gone)} minutes. Comments and docstrings say what is wanted.")
    print(f"To grade it: python docs/tools/exercise.py {name} --check")
    print("A hint: --hint." + f" The answer: docs/{path.stem}.md#{name}" * (name in registry()))


def hint(name: str) -> None:
    """What the page says the detail is, without its code; of a bug, where to look."""
    if name in BUGS:
        print(re.sub(r"\[(.*?)\]\(.*?\)", r"\1", BUGS[name]["look"]))
        return
    for part in parts(name):
        print(f"{part} {registry()[part]['title']}")
        what = re.search(r"\*\*What\.\*\* (.+?)\n\n\*\*", section(part), re.DOTALL)[1]
        print(re.sub(r"\[(.*?)\]\(.*?\)", r"\1", what))
        print(f"Set as formulas: docs/{path_of(part).stem}.md#{part}\n" if "$" in what else "")


def check(name: str) -> int:
    """Grade the reader's file. Exit code: 0 if it is right."""
    path = path_of(name)
    if not path.exists():
        sys.exit(f"error: {os.path.relpath(path)} is not there: --check has nothing to grade")
    if name in BUGS:
        files = (ROOT / "ppo.py", path)
        right = len({ast.dump(ast.parse(file.read_text())) for file in files}) == 1
        other = f"not yet, or mended in another way: git diff --no-index ppo.py {path}"
        print(f"{name}: {BUGS[name]['name']}. Repaired." if right else other)
        return int(not right)
    if name != "all":
        return grade(name, path)
    whole, failed = path.read_text(), 0
    for part in DRILL:  # each in the original, so that one mistake is told once
        alone = path.with_name("alone") / path.name
        alone.parent.mkdir(exist_ok=True)
        alone.write_text(transplanted(part, whole, (ROOT / path.name).read_text()))
        failed |= grade(part, alone, numbered=False)  # the lines are those of another file
    return failed


def transplanted(name: str, theirs: str, source: str) -> str:
    """The original with what the reader wrote of one detail: from its marker to the line that
    follows its block in the original."""
    lines, written = source.splitlines(), theirs.splitlines()
    for site in reversed(markers(source)[name]):
        following = next(line for line in lines[site["last"] :] if line.strip())
        marker = lines[site["first"] - 1]
        if marker not in written or following not in written[written.index(marker) :]:
            sys.exit(f"error: leave these lines as they are:\n{marker}\n{following}")
        start = written.index(marker)
        end = written.index(following, start)
        lines[site["first"] - 1 : site["last"]] = [*written[start:end], ""]
    return "\n".join(lines) + "\n"


def tests_of(name: str, script: str) -> list[str]:
    """The detail's test, and those of the details whose lines are blank with it."""
    sites = markers((ROOT / script).read_text())
    lasts = {site["last"] for site in sites[name]}
    others = [x for x in sites if x != name and lasts & {site["last"] for site in sites[x]}]
    found = []
    for test in (registry()[x]["test"] for x in [name, *others]):
        homes = (ROOT / "tests").glob("test_*.py")
        found += [f"{p}::{test}[{script}]" for p in homes if f"def {test}(" in p.read_text()]
    return found


def grade(name: str, path: Path, numbered: bool = True) -> int:
    """Run the detail's test on a file."""
    try:
        ast.parse(path.read_text())
    except SyntaxError as error:
        where = f", line {error.lineno} of your file" if numbered else ""
        print(f"{name}, not yet{where}: {error.msg}")
        return 1
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "--no-header", "--tb=short"]
    done = subprocess.run(
        [*command, *tests_of(name, path.name)],
        env=os.environ | {"GRADED": str(path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        print(f"{name} is right: its test passes.")
        return 0
    said = re.findall(r"^E +([\w.]+(?:Error|Exit|Exception)\b.*)", done.stdout, re.MULTILINE)
    said = said or re.findall(r"^E +(assert .*)", done.stdout, re.MULTILINE)  # without its error
    if done.returncode != 1 or not said:
        sys.exit(f"error: the test could not be run:\n{done.stdout}{done.stderr}")
    lines = re.findall(rf"^{path.name}:(\d+):", done.stdout, re.MULTILINE)
    judged = re.sub(r"^AssertionError: *", "", said[-1])
    where = f", line {lines[-1]} of your file" if lines and numbered and judged == said[-1] else ""
    if not judged:  # NumPy's, with more lines below: its hint, or else the numbers
        more = done.stdout[done.stdout.rindex(said[-1]) :]
        below = [x for x in re.findall(r"^E +(\S.*)", more, re.MULTILINE) if "Not equal" not in x]
        judged = below[0] if below else "the numbers are not those expected"
    if judged.startswith("assert "):  # says little without what the test holds
        (file, test), *_ = re.findall(r"^FAILED (\S+)::(\w+)", done.stdout, re.MULTILINE)
        functions = {getattr(x, "name", ""): x for x in ast.parse((ROOT / file).read_text()).body}
        judged = f'"{" ".join(ast.get_docstring(functions[test]).split())}" But: {judged}'
    print(f"{name}, not yet{where}: {judged}")
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["all", *registry(), *BUGS]
    parser.add_argument("detail", choices=names, metavar="ID", help="core-05, bug-3, all, ...")
    for flag, said in (("check", "grade your file"), ("hint", "more"), ("again", "start anew")):
        parser.add_argument(f"--{flag}", action="store_true", help=said)
    args = parser.parse_args()
    if args.check:
        sys.exit(check(args.detail))
    hint(args.detail) if args.hint else write(args.detail, args.again)
