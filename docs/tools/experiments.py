"""Run an experiment of experiment_list.py again: python docs/tools/experiments.py classic

Trains every variant with every seed, two runs side by side with one thread each, then draws the
figures. Stop it and start it again as you like: a run that is in docs/results/NAME.csv already is
not repeated, one that was under way goes on from its last checkpoint (in runs/, in a folder of its
own until it is done). --again forgets what is there and measures all of it anew. --so-far also
writes the rows of unfinished runs, which are replaced when those end. What it writes:

    docs/results/NAME.csv         a row per run: its scores (the mean return of the last 100
                                  training episodes, and `window`, of those that ended in the last
                                  tenth of the steps), evaluation, log, where the numbers come from
    docs/results/NAME-curves.csv  a row per run and part of it: mean return of its episodes
    docs/figures/NAME-*.svg       every seed thin, their mean thick, its 95% interval
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import figures
import numpy as np
import pandas as pd
import results
import tables
from details import DOCS, ROOT, edited
from experiment_list import EXPERIMENTS, Experiment
from provenance import provenance
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COLUMNS = ["score", "spread", "steps", "window", "first", "sampled", "greedy"]
UNDERWAY = ROOT / "runs" / "experiments"


def launch(torchrun: list[str], script: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run a script in its own folder, with one thread; or with torchrun, its options being given,
    in processes of one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(DOCS / "tools")}
    module = ["-m", "torch.distributed.run", *torchrun[1:]] if torchrun else []
    command = [sys.executable, *module, script, *flags]
    return subprocess.run(command, cwd=script.parent, env=env, capture_output=True, text=True)


def folder_of(name: str, variant: str, seed: int) -> Path:
    return UNDERWAY / re.sub(r"[^\w.-]+", "-", f"{name} {variant} {seed}")


def sittings(folder: Path) -> list[float]:
    """Seconds that a run folder was trained in, per sitting: each writes a file of events."""
    logs = sorted(folder.glob("runs/*/events.out.tfevents.*"))
    return [log.stat().st_mtime - int(log.name.split(".")[3]) for log in logs]


def run(name: str, variant: str, seed: int, checkout: Path | None) -> tuple[dict, list[dict]]:
    """Train once, or go on with it: a row of results and the rows of its curve."""
    experiment, folder = EXPERIMENTS[name], folder_of(name, variant, seed)
    command = experiment.variants[variant].split()
    at = next(i for i, word in enumerate(command) if word.endswith(".py"))
    torchrun, script, flags = command[:at], command[at], command[at + 1 :]
    path = ROOT / script
    if script.startswith("cleanrl/"):
        if checkout is None:
            sys.exit(f"error: {variant} needs a checkout of CleanRL: give --cleanrl PATH")
        path = checkout / script
    begun = list(folder.glob("runs/*/checkpoint.pt"))
    if not begun:  # nothing that could go on
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    copy.write_text(edited(path.read_text(), experiment.edits.get(variant, []), variant))
    before, start = sittings(folder), time.perf_counter()
    if begun:
        done = launch(torchrun, copy, "--resume", str(begun[0].parent))
        if "is trained to its end" in done.stderr:  # stopped while it was evaluated
            done = launch([], copy, "--evaluate", str(begun[0].parent))
    else:
        done = launch(torchrun, copy, *flags, "--seed", str(seed))
    origin = provenance(sum(before) + time.perf_counter() - start)
    origin |= {"sittings": len(before) + 1}
    said = re.findall(r"^error: (.+)", done.stderr, re.MULTILINE)
    if experiment.may_stop and done.returncode == 1 and said:  # stopped by itself
        row, curve = {"stopped": said[-1]}, []
    elif done.returncode:
        raise RuntimeError(f"{variant}, seed {seed} failed:\n{done.stderr}")
    elif "course/" in script:
        row, curve = printed(done.stdout)
    else:
        row, curve = collect(experiment, next(folder.glob("runs/*/")), done.stdout)
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
    log = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    tag, total = "charts/episodic_return", log.Scalars("losses/value_loss")[-1].step
    points = pd.DataFrame(log.Scalars(tag) if tag in log.Tags()["scalars"] else [])
    if points.empty:  # no episode was whole
        points = pd.DataFrame({"step": [total], "value": [np.nan]})
    last = points["value"].iloc[-100:]
    row = {"score": last.mean(), "spread": last.std(ddof=0), "steps": total}
    row["window"] = points["value"][points["step"] > 0.9 * total].mean()
    row["first"] = points["value"][points["step"] <= 0.04 * total].mean()
    row |= {m: float(v) for m, v in re.findall(r"(\w+): return (\S+) \+-", printed)}
    for column, tag in experiment.logged.items():
        numbers = [event.value for event in log.Scalars(tag)]
        row[column] = np.mean(numbers[int(len(numbers) * experiment.since) :])
    if not experiment.bins:
        return row, []

    def parts(points: pd.DataFrame) -> pd.Series:
        part = np.ceil(points["step"] * experiment.bins / total).astype(int)
        return points["value"].groupby(part * total // experiment.bins).mean()

    traced = {
        column: parts(pd.DataFrame(log.Scalars(t))) for column, t in experiment.traced.items()
    }
    curve = pd.DataFrame({"return": parts(points)} | traced).dropna(subset=["return"])
    return row, curve.rename_axis("step").reset_index().to_dict("records")


def keep(name: str, key: dict, row: dict, curve: list[dict]) -> None:
    """Put a run into the tables, in place of an unfinished row of its own. The row is written
    last: what is in the table is whole."""
    for part, rows in ((f"{name}-curves", [key | point for point in curve]), (name, [key | row])):
        old = tables.read(part, dtype=str)
        same = (old["variant"] == key["variant"]) & (old["seed"] == str(key["seed"]))
        if same.any():
            tables.write(part, old[~same])
        if rows:
            tables.append(part, rows)


def measure(name: str, jobs: int, checkout: Path | None = None, only: str = "") -> None:
    """Run what is missing of the variants whose names match `only`, `jobs` at a time; each result
    is kept as soon as it is there."""
    experiment, lock = EXPERIMENTS[name], Lock()
    runs = results.whole(tables.read(name))
    have = set(zip(runs["variant"], runs["seed"]))
    variants = [variant for variant in experiment.variants if re.search(only, variant)]
    every = [(variant, seed) for seed in experiment.seeds for variant in variants]

    def one(job: tuple[str, int]) -> None:
        variant, seed = job
        row, curve = run(name, variant, seed, checkout)
        with lock:
            columns = [*COLUMNS, *experiment.logged, "stopped"]
            keep(name, {"variant": variant, "seed": seed}, dict.fromkeys(columns) | row, curve)
            have.add(job)
            said = row.get("stopped") or f"{row['score']:.2f}"
            print(f"{len(have)} of {len(every)}: {variant}, seed {seed}: {said}", flush=True)
        shutil.rmtree(folder_of(name, variant, seed))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [job for job in every if job not in have]))


def so_far(name: str) -> None:
    """Take what unfinished runs have logged into the tables."""
    experiment = EXPERIMENTS[name]
    for variant in experiment.variants:
        for seed in experiment.seeds:
            spent = sittings(folder := folder_of(name, variant, seed))
            if list(folder.glob("runs/*/checkpoint.pt")):  # an iteration, at least
                row, curve = collect(experiment, next(folder.glob("runs/*/")), "")
                row |= provenance(sum(spent)) | {"sittings": len(spent), "unfinished": "yes"}
                keep(name, {"variant": variant, "seed": seed}, row, curve)
                print(f"{variant}, seed {seed}: {row['steps']:,} steps, {row['score']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--only", default="", metavar="PATTERN", help="variants to run")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--so-far", action="store_true", help="take what unfinished runs have")
    parser.add_argument("--cleanrl", type=Path, metavar="PATH", help="a checkout of CleanRL")
    args = parser.parse_args()
    if args.again:
        for part in ("", "-curves"):
            (tables.RESULTS / f"{args.name}{part}.csv").unlink(missing_ok=True)
    if args.so_far:
        so_far(args.name)
    else:
        measure(args.name, args.jobs, args.cleanrl, args.only)
    figures.draw(args.name)
    if not EXPERIMENTS[args.name].may_stop:
        print(results.summary(args.name))
