"""Tables: the CSV files of docs/results, and Markdown."""

from collections.abc import Iterable

import pandas as pd
from details import DOCS

RESULTS = DOCS / "results"


def read(name: str, **options) -> pd.DataFrame:
    """docs/results/NAME.csv. A cell that a row lacks is NaN: older rows have fewer columns."""
    path, empty = RESULTS / f"{name}.csv", pd.DataFrame(columns=["variant", "seed"])
    return pd.read_csv(path, **options) if path.exists() else empty


def write(name: str, frame: pd.DataFrame) -> None:
    """Replace docs/results/NAME.csv at once: a kill leaves the old file or the new one."""
    part = RESULTS / f"{name}.tmp"
    frame.to_csv(part, index=False, lineterminator="\n")
    part.replace(RESULTS / f"{name}.csv")


def append(name: str, rows: list[dict]) -> None:
    """Add rows to docs/results/NAME.csv, their fractions with five digits, None as empty."""

    def text(cell) -> str:
        return f"{cell:.5g}" if isinstance(cell, float) else "" if cell is None else str(cell)

    new = pd.DataFrame(rows, dtype=object).map(text)
    write(name, pd.concat([read(name, dtype=str), new]))


def markdown(rows: Iterable[dict]) -> str:
    """Rows (column -> cell) as a Markdown table; a cell that a row lacks is empty. Numbers with
    their spread don't break over lines."""
    frame = pd.DataFrame(rows, dtype=str).fillna("")
    frame = frame.replace(r"(?<=[\d%]) (±|to) (?=[-+]?\d)", "\u00a0\\1\u00a0", regex=True)
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(scores: pd.Series) -> str:
    """Mean and standard deviation of some runs; thousands without decimals."""
    digits = 0 if scores.abs().mean() >= 1000 else 2
    return f"{scores.mean():.{digits}f} ± {scores.std(ddof=0):.{digits}f}"
