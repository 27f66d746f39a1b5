"""Write a script with an edit of docs/beyond.toml in it:

    python docs/tools/apply.py ppo_continuous.py beyond-01 > mine.py

Several ids are applied one after the other. An entry that is no edit but flags says so.
"""

import argparse
import sys
import tomllib
from functools import cache

from details import DOCS, ROOT, SCRIPTS, edited


@cache
def entries() -> dict[str, dict]:
    """The entries by id, in the registry's order, and then the recipes."""
    found = tomllib.loads((DOCS / "beyond.toml").read_text())
    return {entry["id"]: entry for entry in found["entry"] + found["recipe"]}


def apply(script: str, *names: str) -> str:
    """The script's source with the edits of some entries."""
    source = (ROOT / script).read_text()
    for name in names:
        entry = entries()[name]
        if script not in entry["scripts"]:
            raise ValueError(f"{name} is for {' and '.join(entry['scripts'])}")
        if "flags" in entry:
            raise ValueError(f"{name} is no edit: run {script} {entry['flags']}")
        source = edited(source, entry["edit"], name)
    return source


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("ids", nargs="+", choices=entries(), metavar="ID")
    args = parser.parse_args()
    try:
        sys.stdout.write(apply(args.script, *args.ids))
    except ValueError as error:
        sys.exit(f"error: {error}")
