import pytest
from harness import build, load


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder: what a script writes goes there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=build.scripts())
def script(request):
    return request.param


@pytest.fixture
def ppo(script):
    return load(script)
