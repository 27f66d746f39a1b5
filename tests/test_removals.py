"""Every detail is needed for its test: without it the test fails, and the script still trains.

That each test passes on the script as it is, is what test_details.py shows.
"""

import pytest
import test_details
from harness import build, load, small

CASES = [(script, name) for name, d in build.registry().items() for script in d["scripts"]]


@pytest.mark.parametrize(("script", "name"), CASES, indirect=["script"])
def test_removal(script, name):
    test = getattr(test_details, build.registry()[name]["test"])
    with pytest.raises(AssertionError):
        test(load(script, name))
    load(script, name).main([*small(), "--eval-episodes", "0"])


def test_every_detail_is_registered_marked_and_tested():
    registry = build.registry()
    for script in build.scripts():
        found = build.markers((build.ROOT / script).read_text())
        assert set(found) == {name for name, d in registry.items() if script in d["scripts"]}
        for name, sites in found.items():
            assert {site["title"] for site in sites} == {registry[name]["title"]}
            assert [site["site"] for site in sites] == list(range(1, len(sites) + 1))
            assert {site["sites"] for site in sites} == {len(sites)}
            assert all(site["comments"] <= 3 for site in sites), f"{name}: long comment"
    for name, detail in registry.items():
        assert detail["test"] == f"test_{name.replace('-', '_')}"
        assert callable(getattr(test_details, detail["test"]))
        assert set(detail) == {"id", "title", "scripts", "source", "evidence", "test", "removal"}
