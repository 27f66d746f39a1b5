"""A run's log as a row of docs/symptoms.md: python docs/tools/symptom.py RUN

Means over the second half of the run, as there; the return is that of the last 100 episodes.
"""

import sys
from pathlib import Path

import tables
from experiment_list import EXPERIMENTS
from experiments import collect


def main(run: str) -> str:
    row, _ = collect(EXPERIMENTS["symptoms"], Path(run), "")
    shown = {"return": f"{row['score']:.0f}"}
    return tables.markdown(
        [shown | {column: f"{row[column]:.2g}" for column in EXPERIMENTS["symptoms"].logged}]
    )


if __name__ == "__main__":
    print(main(sys.argv[1]))
