"""A run's log as a row of docs/symptoms.md: python docs/tools/symptom.py RUN

Means over the second half of the run, as there; the return is that of the last 100 episodes. With
--every 50000 a row for every 50,000 steps, to compare a run of your own with a healthy one while it
trains; --keep NAME also puts these rows into docs/results/NAME.csv.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import tables
from experiment_list import EXPERIMENTS
from experiments import collect
from provenance import provenance
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LOGGED = EXPERIMENTS["symptoms"].logged


def log_of(run: str) -> EventAccumulator:
    """What a run has logged, an iteration or more."""
    if not list(Path(run).glob("events.*")):
        sys.exit(f"error: {run} has no log: give the folder of a run")
    log = EventAccumulator(run, size_guidance={"scalars": 0}).Reload()
    if "losses/value_loss" not in log.Tags()["scalars"]:
        sys.exit(f"error: {run} stopped before its first iteration was logged: read why it did")
    return log


def main(run: str) -> str:
    log_of(run)
    row, _ = collect(EXPERIMENTS["symptoms"], Path(run), "")
    shown = {"return": f"{row['score']:.0f}"}
    return tables.markdown([shown | {column: f"{row[column]:.2g}" for column in LOGGED}])


def along(run: str, every: int) -> pd.DataFrame:
    """Means of the log over each `every` steps of a run; a part that the run did not finish has no
    row."""
    log = log_of(run)
    columns = {"return": "charts/episodic_return"} | LOGGED
    found = {}
    for column, tag in columns.items():
        points = pd.DataFrame(log.Scalars(tag))
        part = np.ceil(points["step"] / every).astype(int) * every
        found[column] = points["value"].groupby(part).mean()
    last = log.Scalars("losses/value_loss")[-1].step
    return pd.DataFrame(found).rename_axis("step").loc[: last // every * every]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--every", type=int, metavar="STEPS")
    parser.add_argument("--keep", metavar="NAME")
    args = parser.parse_args()
    if args.every is None:
        print(main(args.run))
    else:
        rows = along(args.run, args.every)
        if args.keep:
            settings = json.loads(Path(args.run, "args.json").read_text())
            key = {"variant": settings["env_id"], "seed": settings["seed"]}
            kept = rows.reset_index().to_dict("records")
            tables.append(args.keep, [key | row | provenance(None) for row in kept])
        print(rows.to_string(float_format="{:.3g}".format))
