"""Every detail is needed for its test: without it the test fails, and the script still trains."""

import importlib
import re

import pytest
from harness import ROOT, SCRIPTS, details, load

REGISTRY = details.registry()
CASES = [
    (script, name) for name, d in REGISTRY.items() for script in d["scripts"] if script in SCRIPTS
]


def find(test: str):
    """A test by name, in whatever file it stands."""
    files = (ROOT / "tests").glob("test_*.py")
    (home,) = (file for file in files if f"def {test}(" in file.read_text())
    return getattr(importlib.import_module(home.stem), test)


@pytest.mark.parametrize(("script", "name"), CASES, indirect=["script"])
def test_removal(script, name):
    test = find(REGISTRY[name]["test"])
    with pytest.raises(AssertionError):
        test(load(script, name))
    adapter, steps = SCRIPTS[script], str(2 * 64)
    flags = ["--env-id", "known_envs:Ends-v0", *adapter.sizes.split(), "--total-timesteps", steps]
    load(script, name).main([*flags, "--eval-episodes", "0"])


def test_every_detail_is_registered_marked_and_tested():
    for script in SCRIPTS:
        found = details.markers((ROOT / script).read_text())
        assert set(found) == {name for name, d in REGISTRY.items() if script in d["scripts"]}
        for name, sites in found.items():
            assert {site["title"] for site in sites} == {REGISTRY[name]["title"]}, name
            assert [site["site"] for site in sites] == list(range(1, len(sites) + 1)), name
            assert {site["sites"] for site in sites} == {len(sites)}, name
            assert all(site["comments"] <= 3 for site in sites), f"{name}: long comment"
    for name, detail in REGISTRY.items():
        title = re.sub(r"\W+", "_", detail["title"].lower().replace("'", ""))
        named = f"{name.replace('-', '_')}_{title}"
        assert named.startswith(detail["test"].removeprefix("test_")), name
        assert callable(find(detail["test"]))
        assert set(detail) == {"id", "title", "scripts", "source", "evidence", "test", "removal"}
