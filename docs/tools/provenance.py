"""Where a number comes from: what every row of docs/results says of its run."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from details import ROOT


def commit() -> str:
    """The commit's short hash, with -dirty if a program or a setting has changed since; "" if
    this is no checkout."""
    git = ["git", "-C", ROOT]
    done = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "diff", "--quiet", "HEAD", "--", "*.py", "*.toml"], capture_output=True
    )
    return done.stdout.strip() + "-dirty" * (changed.returncode == 1)


def processor() -> str:
    """Its name as Linux tells it, elsewhere as Python does."""
    told = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", told.read_text()) if told.exists() else None
    return name[1] if name else platform.processor()


def provenance(seconds: float | None) -> dict:
    """The columns of a row; `seconds`: how long it took, if timed."""
    versions = " ".join(f"{name}=={version(name)}" for name in ("torch", "gymnasium", "numpy"))
    return {
        "seconds": seconds,
        "commit": commit(),
        "versions": versions,
        "processor": processor(),
    }
