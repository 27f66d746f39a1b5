"""A child differs from ppo.py only in what it teaches."""

import pytest
from harness import ROOT, build
from siblings import foreign

PARENT = (ROOT / "ppo.py").read_text()
CHILDREN = [script for script in build.scripts() if script != "ppo.py"]


def test_children_differ_only_in_their_own_details():
    for script in CHILDREN:
        own = {n for n, d in build.registry().items() if "ppo.py" not in d["scripts"]}
        assert foreign(PARENT, (ROOT / script).read_text(), own) == [], script


STEP = "                episode_length += 1\n"
MARK = "\n                # [continuous-08 1/1] Reward scaling\n"


@pytest.mark.parametrize(
    ("find", "replace", "fine"),
    [
        (STEP, f"{MARK}                episode_length += 2\n\n", True),
        (STEP, "                episode_length += 2\n", False),
        (STEP, "", False),
        (STEP, f"{MARK}{STEP}\n                rewards[t] /= 2\n", False),
        ('SCRIPT = "ppo"', 'SCRIPT = "ppo_child"', True),
        ("    gamma: float = 0.99", "    gamma: float = 0.999", True),
        ("import numpy as np\n", "import numpy as np\nimport scipy\n", True),
        ("        return self.num_envs * self.num_steps", "        return 7", False),
        ("def fail(", "def fall(", False),
    ],
)
def test_the_rule_itself(find, replace, fine):
    assert PARENT.count(find) == 1
    child = PARENT.replace(find, replace)
    assert (foreign(PARENT, child, {"continuous-08"}) == []) == fine
