"""Run an experiment of experiment_list.py again: python docs/tools/experiments.py classic

Trains every variant with every seed, two runs side by side with one thread each, then draws the
figures. A run that is in docs/results/NAME.csv already is not repeated: stop it and start it again
as you like; --again forgets what is there and measures all of it anew. --adopt RUN takes a run
folder, trained in pieces or stopped early, for the only variant that has its environment. What it
writes:

    docs/results/NAME.csv         a row per run: its score (mean return of the last 100 training
                                  episodes), evaluation, log, and where the numbers come from
    docs/results/NAME-curves.csv  a row per run and part of it: mean return of its episodes
    docs/figures/NAME-*.svg       every seed thin, their mean thick, its 95% bootstrap interval
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import figures
import numpy as np
import pandas as pd
import results
import tables
import torch
from details import DOCS, ROOT, edited
from experiment_list import EXPERIMENTS, Experiment
from provenance import provenance
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def run(experiment: Experiment, variant: str, seed: int) -> tuple[dict, list[dict]]:
    """Train once, in a folder of its own: a row of results and the rows of its curve."""
    script, *flags = experiment.variants[variant].split()
    source = edited((ROOT / script).read_text(), experiment.edits.get(variant, []), variant)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(script).name)
        path.write_text(source)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, path, *flags, "--seed", str(seed)],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(DOCS / "tools")},
            capture_output=True,
            text=True,
        )
        origin = provenance(time.perf_counter() - start)
        said = re.findall(r"^error: (.+)", done.stderr, re.MULTILINE)
        if experiment.may_stop and done.returncode == 1 and said:  # stopped by itself
            return {"stopped": said[-1], **origin}, []
        if done.returncode:
            raise RuntimeError(f"{variant}, seed {seed} failed:\n{done.stderr}")
        if "course/" in script:
            row, curve = printed(done.stdout)
            return row | origin, curve
        path = Path(folder, re.search(r"into (runs/\S+)", done.stdout)[1])
        row, curve = collect(experiment, path, done.stdout)
        return row | origin, curve


def printed(said: str) -> tuple[dict, list[dict]]:
    """The row and the curve of a step of the course, which prints them every 10,000 steps."""
    found = [
        (int(a), float(b)) for a, b in re.findall(r"^step (\d+): return ([\d.-]+)", said, re.M)
    ]
    curve = [{"step": round(step, -3), "return": mean} for step, mean in found]
    return {"score": found[-1][1]}, curve


def collect(experiment: Experiment, path: Path, printed: str) -> tuple[dict, list[dict]]:
    """The row and the curve of a run folder; `printed`: what an evaluation of it said."""
    checkpoint = torch.load(path / "checkpoint.pt", weights_only=True)
    log = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    returns = checkpoint["returns"] or [np.nan]  # of the last 100 training episodes
    row = {"score": np.mean(returns), "spread": np.std(returns)}
    row |= {m: float(v) for m, v in re.findall(r"(\w+): return (\S+) \+-", printed)}
    for column, tag in experiment.logged.items():
        numbers = [event.value for event in log.Scalars(tag)]
        row[column] = np.mean(numbers[int(len(numbers) * experiment.since) :])
    tag, total = "charts/episodic_return", log.Scalars("losses/value_loss")[-1].step
    episodes = log.Scalars(tag) if tag in log.Tags()["scalars"] else []
    if not (episodes and experiment.bins):
        return row, []
    points = pd.DataFrame(episodes)
    part = np.ceil(points["step"] * experiment.bins / total).astype(int)
    curve = points["value"].groupby(part * total // experiment.bins).mean()
    return row, [{"step": step, "return": value} for step, value in curve.items()]


def keep(name: str, key: dict, row: dict, curve: list[dict]) -> None:
    """The row last: what is in the table is whole."""
    if curve:
        tables.append(f"{name}-curves", [key | point for point in curve])
    columns = ["score", "spread", "sampled", "greedy", *EXPERIMENTS[name].logged, "stopped"]
    tables.append(name, [key | dict.fromkeys(columns) | row])


def measure(name: str, jobs: int) -> None:
    """Run what is missing, `jobs` at a time; each result is kept as soon as it is there."""
    experiment, lock = EXPERIMENTS[name], Lock()
    runs, points = tables.read(name), tables.read(f"{name}-curves", dtype={"return": str})
    have = set(zip(runs["variant"], runs["seed"]))
    whole = [key in have for key in zip(points["variant"], points["seed"])]
    if not all(whole):  # a kill between the two tables left a curve: it is measured anew
        tables.write(f"{name}-curves", points[whole])
    every = [(variant, seed) for seed in experiment.seeds for variant in experiment.variants]

    def one(job: tuple[str, int]) -> None:
        variant, seed = job
        row, curve = run(experiment, variant, seed)
        with lock:
            keep(name, {"variant": variant, "seed": seed}, row, curve)
            have.add(job)
            said = row.get("stopped") or f"{row['score']:.2f}"
            print(f"{len(have)} of {len(every)}: {variant}, seed {seed}: {said}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [job for job in every if job not in have]))


def adopt(name: str, path: Path) -> None:
    """Evaluate a run folder and take it into the tables."""
    checkpoint = torch.load(path / "checkpoint.pt", weights_only=True)
    script, settings = checkpoint["script"], checkpoint["args"]
    (variant,) = (v for v in EXPERIMENTS[name].variants if v == settings["env_id"])
    key = {"variant": variant, "seed": settings["seed"]}
    runs = tables.read(name)
    if ((runs["variant"] == variant) & (runs["seed"] == settings["seed"])).any():
        sys.exit(f"error: {variant}, seed {settings['seed']} is there already: start with --again")
    command = [sys.executable, ROOT / f"{script}.py", "--evaluate", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row, curve = collect(EXPERIMENTS[name], path, done.stdout)
    keep(name, key, row | provenance(None), curve)  # nobody timed it


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--adopt", type=Path, metavar="RUN", help="take this run folder instead")
    args = parser.parse_args()
    if args.again:
        for part in ("", "-curves"):
            (tables.RESULTS / f"{args.name}{part}.csv").unlink(missing_ok=True)
    if args.adopt:
        adopt(args.name, args.adopt)
    else:
        measure(args.name, args.jobs)
    figures.draw(args.name)
    if not EXPERIMENTS[args.name].may_stop:
        print(results.summary(args.name))
