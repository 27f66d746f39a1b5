"""What differs between a child script and ppo.py, and whether it may."""

import ast
import difflib
import re

from harness import build

CONSTANTS = ("SCRIPT", "ACTION_SPACES")  # the named constants at the top that a child sets anew


def may_differ(source: str, own: set[str]) -> set[int]:
    """Lines (from 1) that a child may change: those its own details govern, imports, the module
    docstring, the PEP 723 block, Args' fields and docstring, and the named constants."""
    lines, allowed = source.splitlines(), set()
    for name, sites in build.markers(source).items():
        if name in own:
            for site in sites:
                allowed |= set(range(site["first"], site["last"] + 1))
    tree = ast.parse(source)
    nodes = [tree.body[0]]  # the docstring
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            nodes.append(node)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in CONSTANTS:
            nodes.append(node)
        elif isinstance(node, ast.ClassDef) and node.name == "Args":
            nodes += [n for n in node.body if isinstance(n, (ast.AnnAssign, ast.Expr))]
    for node in nodes:
        allowed |= set(range(node.lineno, node.end_lineno + 1))
    block = re.search(r"^# /// script$.*?^# ///$", source, re.MULTILINE | re.DOTALL)
    first = source[: block.start()].count("\n") + 1
    allowed |= set(range(first, first + block[0].count("\n") + 1))
    return allowed | {number for number, line in enumerate(lines, 1) if not line.strip()}


def foreign(parent: str, child: str, own: set[str]) -> list[str]:
    """Lines of the diff from parent to child that belong to nothing the child teaches."""
    here, there = may_differ(child, own), may_differ(parent, set())
    a, b = parent.splitlines(), child.splitlines()
    found = []
    for tag, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        found += [f"+{b[j]}" for j in range(b1, b2) if j + 1 not in here]
        # A line taken away is fine where the child's own block stands in its place or next to it.
        beside = any(
            j + 1 in here and b[j].strip() for j in range(max(b1 - 1, 0), min(b2 + 1, len(b)))
        )
        if not beside:
            found += [f"-{a[i]}" for i in range(a1, a2) if i + 1 not in there]
    return found
