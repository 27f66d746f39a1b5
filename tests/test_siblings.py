"""A child differs from ppo.py only in what it teaches."""

import ast
import difflib

import pytest
from harness import ROOT, details

PARENT = (ROOT / "ppo.py").read_text()
OWN = {name for name, d in details.registry().items() if "ppo.py" not in d["scripts"]}


def may_differ(source: str, own: set[str]) -> set[int]:
    """Lines (from 1) that a child may change: all down to Args' last field (docstring, PEP 723
    block, imports, named constants, settings), those that its own details govern, and none."""
    (args,) = (node for node in ast.parse(source).body if getattr(node, "name", None) == "Args")
    last = max(node.end_lineno for node in args.body if isinstance(node, ast.AnnAssign))
    allowed = set(range(1, last + 1))
    for name in own:
        for site in details.markers(source).get(name, []):
            allowed |= set(range(site["first"], site["last"] + 1))
    return allowed | {n for n, line in enumerate(source.splitlines(), 1) if not line.strip()}


def named(function: str) -> ast.FunctionDef:
    return next(node for node in ast.parse(PARENT).body if getattr(node, "name", "") == function)


def foreign(child: str, own: set[str]) -> list[str]:
    """Lines of the diff from ppo.py to a child that belong to nothing the child teaches."""
    here, there = may_differ(child, own), may_differ(PARENT, set())
    for node in ast.parse(PARENT).body:  # a definition may be left out that nothing in it uses
        if isinstance(node, ast.FunctionDef) and node.name not in child:
            there |= set(range(node.lineno, node.end_lineno + 1))
    if "ACTIONS" not in child:  # then make_env judges the environment, and check() ends earlier
        ends = {type(node): node.end_lineno for node in named("check").body}
        there |= set(range(ends[ast.Try] + 1, ends[ast.If] + 1))
    a, b, found = PARENT.splitlines(), child.splitlines(), []
    for tag, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        found += [f"+{b[j]}" for j in range(b1, b2) if j + 1 not in here]
        # A line taken away is fine where the child's own block stands in its place or next to it.
        near = range(max(b1 - 1, 0), min(b2 + 1, len(b)))
        if not any(j + 1 in here and b[j].strip() for j in near):
            found += [f"-{a[i]}" for i in range(a1, a2) if i + 1 not in there]
    return found


@pytest.mark.parametrize("child", [s for s in details.scripts() if s != "ppo.py"])
def test_children_differ_only_in_their_own_details(child):
    assert foreign((ROOT / child).read_text(), OWN) == []


STEP = "                episode_length += 1\n"
MARK = "\n                # [continuous-08] Reward scaling\n"


@pytest.mark.parametrize(
    ("find", "replace", "fine"),
    [
        (STEP, f"{MARK}                episode_length += 2\n\n", True),
        (STEP, "                episode_length += 2\n", False),
        (STEP, "", False),
        (STEP, f"{MARK}{STEP}\n                rewards[t] /= 2\n", False),
        ("Path(__file__).stem, gym", '"ppo_child", gym', True),
        ("    gamma: float = 0.99", "    gamma: float = 0.999", True),
        ("import numpy as np\n", "import numpy as np\nimport scipy\n", True),
        ("        return self.num_envs * self.num_steps", "        return 7", False),
        ("def spawn_seeds(", "def spawn(", False),
    ],
)
def test_the_rule_itself(find, replace, fine):
    assert PARENT.count(find) == 1
    assert (foreign(PARENT.replace(find, replace), {"continuous-08"}) == []) == fine
