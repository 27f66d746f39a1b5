import os

import pytest
import torch
from harness import SCRIPTS, details, load

torch.set_num_threads(1)  # tests run side by side, one on each core
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_generate_tests(metafunc):
    """Tests run on every script; a detail's test, on those that carry the detail."""
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "script" in metafunc.fixturenames and not any("script" in names for names in named):
        carriers = {detail["test"]: detail["scripts"] for detail in details.registry().values()}
        scripts = carriers.get(metafunc.function.__name__, details.scripts())
        scripts = [script for script in scripts if script in SCRIPTS]
        metafunc.parametrize("script", scripts, indirect=True)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder: what a script writes goes there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def script(request, monkeypatch):
    monkeypatch.setenv("ACTIONS", SCRIPTS[request.param].actions)
    return request.param


@pytest.fixture
def ppo(script):
    return load(script)
