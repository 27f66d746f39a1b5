"""Run an experiment again: python docs/experiments.py classic

Trains every variant with every seed, two runs side by side with one thread each, then draws the
figures. A run that is in docs/results/NAME.csv already is not repeated: stop it and start it again
as you like; --again forgets what is there and measures all of it anew. --adopt RUN takes a run
folder, trained in pieces or stopped early, for the only variant that has its environment. What it
writes:

    docs/results/NAME.csv         a row per run: its score, evaluation, explained variance, speed
    docs/results/NAME-curves.csv  a row per run and part of it: mean return of its episodes
    docs/figures/NAME-*.svg       every seed thin, their mean thick, its 95% bootstrap interval
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import build
import matplotlib
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = ROOT / "docs" / "results", ROOT / "docs" / "figures"
ROW = ["variant", "seed", "score", "spread", "sampled", "greedy"]
LOGGED = {name: f"losses/{name}" for name in ("explained_variance", "value_loss")}
CURVE = ["variant", "seed", "step", "return"]
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]  # Okabe and Ito's, for all eyes


@dataclass
class Experiment:
    variants: dict[str, str]  # name -> command line, without the seed
    seeds: range
    figures: dict[str, list[str]]  # name -> variants in it
    published: dict[str, dict[str, str]]  # variant -> implementation -> score
    edits: dict[str, list[list[str]]] = field(default_factory=dict)  # variant -> [find, replace]s
    logged: dict[str, str] = field(default_factory=lambda: LOGGED)  # column -> tag, its mean
    since: float = 0.9  # over the run from here on
    may_stop: bool = False  # a run that stops by itself is a result, too
    bins: int = 100  # points of a curve

    @property
    def header(self) -> list[str]:
        return [*ROW, *self.logged, *(["stopped"] if self.may_stop else [])]


TAXI = (
    "--total-timesteps 500000 --num-envs 16 --num-steps 128 --num-minibatches 4 --update-epochs 4"
    " --learning-rate 0.001 --ent-coef 0.01"
)
MUJOCO = "HalfCheetah-v4 Walker2d-v4 Hopper-v4 InvertedPendulum-v4 Pusher-v5 Humanoid-v4".split()
LIMITED = "HalfCheetah-v4 Walker2d-v4 Hopper-v4 Pusher-v5".split()  # tried both ways
IDS = list(build.registry())
CORE = [*(name for name in IDS if name.startswith("core")), "extra-01"]
CONTINUOUS = [*(name for name in IDS if name.startswith("continuous")), "extra-01"]


PLAYED = ["core-01"]  # without it long episodes are never whole: games after training are compared


def ablation(cases: dict[str, str], ids: list[str], seeds: range) -> Experiment:
    """Each case as it is, and without each detail, by the edits of docs/details.toml."""
    variants, edits, figures = {}, {}, {}
    for case, command in cases.items():
        games = {name: f"{command} --eval-episodes {20 * (name in PLAYED)}" for name in ids}
        variants[case] = games[next((name for name in ids if name in PLAYED), ids[0])]
        for name in ids:
            variant = f"{case} without {name}"
            variants[variant] = games[name]
            edits[variant] = build.removal(name, command.split()[0])
            figures.setdefault(name, []).extend([case, variant])
    return Experiment(variants, seeds, figures, {}, edits=edits, may_stop=True, bins=25)


BASELINES_V2 = "openai/baselines, on v2"
BREAKS = tomllib.loads((ROOT / "docs" / "symptoms.toml").read_text())["break"]
ACROBOT = "ppo.py --env-id Acrobot-v1 --total-timesteps 150016 --eval-episodes 0"
ACROBOT += " --learning-rate 0.005"
EXPERIMENTS = {
    # Classic control with the defaults, and with time limits treated as deaths.
    "classic": Experiment(
        variants={
            "CartPole-v1": "ppo.py --env-id CartPole-v1",
            "CartPole-v1 no bootstrap": "ppo.py --env-id CartPole-v1 --no-bootstrap-truncation",
            "Acrobot-v1": "ppo.py --env-id Acrobot-v1",
            "Acrobot-v1 no bootstrap": "ppo.py --env-id Acrobot-v1 --no-bootstrap-truncation",
            "MountainCar-v0": "ppo.py --env-id MountainCar-v0",
        },
        seeds=range(1, 11),
        figures={
            "CartPole-v1": ["CartPole-v1", "CartPole-v1 no bootstrap"],
            "Acrobot-v1": ["Acrobot-v1", "Acrobot-v1 no bootstrap"],
            "MountainCar-v0": ["MountainCar-v0"],
        },
        # 500,000 steps, 3 seeds: docs/benchmark/ppo.md and docs/rl-algorithms/ppo.md of CleanRL.
        published={
            "CartPole-v1": {"CleanRL": "490.04 ± 6.12", "openai/baselines": "497.54 ± 4.02"},
            "Acrobot-v1": {"CleanRL": "-86.36 ± 1.32", "openai/baselines": "-81.82 ± 5.58"},
            "MountainCar-v0": {"CleanRL": "-200.00 ± 0.00", "openai/baselines": "-200.00 ± 0.00"},
        },
    ),
    # MuJoCo with the defaults, and with time limits treated as deaths. Pusher-v4 needs mujoco < 3.
    "mujoco": Experiment(
        variants={
            **{env: f"ppo_continuous.py --env-id {env}" for env in MUJOCO},
            **{
                f"{env} no bootstrap": f"ppo_continuous.py --env-id {env} --no-bootstrap-truncation"
                for env in LIMITED
            },
        },
        seeds=range(1, 6),
        figures={env: [env, f"{env} no bootstrap"][: 1 + (env in LIMITED)] for env in MUJOCO},
        # 1,000,000 steps, 3 seeds: docs/benchmark/ppo_continuous_action.md of CleanRL; the blog
        # post's table of the official code, on v2 of the environments.
        published={
            "HalfCheetah-v4": {"CleanRL": "1442.64 ± 46.03", BASELINES_V2: "2148.77 ± 1166.02"},
            "Walker2d-v4": {"CleanRL": "2287.95 ± 571.78", BASELINES_V2: "3142.24 ± 982.25"},
            "Hopper-v4": {"CleanRL": "2382.86 ± 271.74", BASELINES_V2: "2448.73 ± 596.13"},
            "InvertedPendulum-v4": {"CleanRL": "963.09 ± 22.20"},
            "Pusher-v5": {"CleanRL": "-40.38 ± 7.15 (v4)"},
            "Humanoid-v4": {"CleanRL": "716.11 ± 49.08"},
        },
    ),
    # Pendulum with settings made for it, with the defaults, and as if its time limit were a death.
    "pendulum": Experiment(
        variants={
            "Pendulum-v1": "ppo_continuous.py --env-id Pendulum-v1 --total-timesteps 400000"
            " --num-envs 4 --num-steps 512 --gamma 0.95 --learning-rate 0.001 --eval-episodes 100",
            "Pendulum-v1, defaults": "ppo_continuous.py --env-id Pendulum-v1"
            " --total-timesteps 400000 --eval-episodes 100",
            "Pendulum-v1, defaults, no bootstrap": "ppo_continuous.py --env-id Pendulum-v1"
            " --total-timesteps 400000 --eval-episodes 100 --no-bootstrap-truncation",
        },
        seeds=range(1, 4),
        figures={
            "Pendulum-v1": ["Pendulum-v1, defaults", "Pendulum-v1, defaults, no bootstrap"],
        },
        published={},
    ),
    # CartPole without its velocities: what memory is for.
    "memory": Experiment(
        variants={
            "ppo_lstm.py": "ppo_lstm.py --observe 0 2",
            "ppo.py": "ppo.py --observe 0 2 --total-timesteps 1000000",
            "ppo.py, settings of ppo_lstm.py": "ppo.py --observe 0 2 --total-timesteps 1000000"
            " --num-envs 32 --num-steps 64 --learning-rate 0.005 --gamma 0.98 --vf-coef 0.1",
        },
        seeds=range(1, 6),
        figures={"CartPole-v1": ["ppo_lstm.py", "ppo.py", "ppo.py, settings of ppo_lstm.py"]},
        published={},
    ),
    # The same two joints, as two choices of one torque in eleven and as two real numbers.
    "reacher": Experiment(
        variants={
            "11 bins": "ppo_multidiscrete.py --env-id Reacher-v5",
            "Gaussian": "ppo_continuous.py --env-id Reacher-v5",
        },
        seeds=range(1, 4),
        figures={"Reacher-v5": ["11 bins", "Gaussian"]},
        published={},
    ),
    "masks": Experiment(
        variants={
            "masks": "ppo_multidiscrete.py --env-id Taxi-v4 " + TAXI,
            "no masks": "ppo_multidiscrete.py --env-id Taxi-v4 " + TAXI + " --no-masks",
        },
        seeds=range(1, 6),
        figures={"Taxi-v4": ["masks", "no masks"]},
        published={},
    ),
    # The schedule is that of ten million steps. What was adopted may have been stopped before.
    "atari": Experiment(
        variants={"PongNoFrameskip-v4": "ppo_atari.py --env-id PongNoFrameskip-v4 --bf16"},
        seeds=range(1, 2),
        figures={"PongNoFrameskip-v4": ["PongNoFrameskip-v4"]},
        published={},
    ),
    # What each detail buys: docs/ablations.py reads these.
    "ablation-core": ablation(
        {
            "CartPole-v1": "ppo.py --env-id CartPole-v1 --total-timesteps 200000",
            "Acrobot-v1": "ppo.py --env-id Acrobot-v1 --total-timesteps 200000",
        },
        ids=CORE,
        seeds=range(1, 11),
    ),
    "ablation-continuous": ablation(
        {
            "HalfCheetah-v4": "ppo_continuous.py --env-id HalfCheetah-v4 --total-timesteps 300000",
            "Hopper-v4": "ppo_continuous.py --env-id Hopper-v4 --total-timesteps 300000",
        },
        ids=CONTINUOUS,
        seeds=range(1, 6),
    ),
    "ablation-lstm": ablation(
        {"CartPole-v1 without velocities": "ppo_lstm.py --observe 0 2 --total-timesteps 500000"},
        ids=[name for name in IDS if name.startswith("lstm")],
        seeds=range(1, 6),
    ),
    "ablation-multidiscrete": ablation(
        {"Reacher-v5": "ppo_multidiscrete.py --env-id Reacher-v5 --total-timesteps 300000"},
        ids=["multidiscrete-01"],
        seeds=range(1, 6),
    ),
    "ablation-masks": ablation(
        {"Taxi-v4": "ppo_multidiscrete.py --env-id Taxi-v4 " + TAXI},
        ids=["aux-04"],
        seeds=range(1, 6),
    ),
    "ablation-atari": ablation(  # a seed: two hours
        {"BreakoutNoFrameskip-v4": "ppo_atari.py --total-timesteps 500000 --bf16"},
        ids=[name for name in IDS if name.startswith("atari")],
        seeds=range(1, 4),
    ),
    # ppo.py, broken in each of the ways of docs/symptoms.toml.
    "symptoms": Experiment(
        variants={entry["name"]: f"{ACROBOT} {entry.get('flags', '')}" for entry in BREAKS},
        seeds=range(1, 4),
        figures={},
        published={},
        edits={entry["name"]: entry.get("edit", []) for entry in BREAKS},
        logged={
            "KL": "losses/approx_kl",
            "clip fraction": "losses/clipfrac",
            "entropy": "losses/entropy",
            "explained variance": "losses/explained_variance",
            "value loss": "losses/value_loss",
            "gradient norm": "losses/grad_norm",
        },
        since=0.5,
        may_stop=True,
    ),
}


def run(experiment: Experiment, variant: str, seed: int) -> tuple[dict, list[dict]]:
    """Train once, in a folder of its own: a row of results and the rows of its curve."""
    with tempfile.TemporaryDirectory() as folder:
        script, *flags = experiment.variants[variant].split()
        source = (ROOT / script).read_text()
        Path(folder, script).write_text(
            build.edited(source, experiment.edits.get(variant, []), variant)
        )
        done = subprocess.run(
            [sys.executable, script, *flags, "--seed", str(seed)],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        stopped = re.search(r"^error: (.*?); the last good", done.stderr, re.MULTILINE)
        if stopped and experiment.may_stop:
            return {"stopped": stopped[1]}, []
        if done.returncode:
            raise RuntimeError(f"{variant}, seed {seed} failed:\n{done.stderr}")
        path = Path(folder, re.search(r"into (runs/\S+)", done.stdout)[1])
        return collect(experiment, path, done.stdout)


def collect(experiment: Experiment, path: Path, printed: str) -> tuple[dict, list[dict]]:
    """The row and the curve of a run folder; `printed`: what an evaluation of it said."""
    checkpoint = torch.load(path / "checkpoint.pt", weights_only=True)
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    games = {m: float(v) for m, v in re.findall(r"(\w+): return (\S+) \+-", printed)}
    last = {}
    for column, tag in experiment.logged.items():
        numbers = [event.value for event in events.Scalars(tag)]
        last[column] = np.mean(numbers[int(len(numbers) * experiment.since) :])
    returns = checkpoint["returns"] or [np.nan]  # of the last 100 training episodes
    row = {"score": np.mean(returns), "spread": np.std(returns), **games, **last}
    total = events.Scalars("losses/value_loss")[-1].step
    bins = defaultdict(list)
    ended = "charts/episodic_return" in events.Tags()["scalars"]  # an episode, ever
    for event in events.Scalars("charts/episodic_return") if ended else []:
        bins[-(-event.step * experiment.bins // total)].append(event.value)
    ends = {b: b * total // experiment.bins for b in sorted(bins)}
    curve = [{"step": ends[b], "return": np.mean(bins[b])} for b in ends]
    return row, curve


def rows_of(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def append(path: Path, header: list[str], rows: list[dict]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def measure(name: str, jobs: int) -> None:
    """Run what is missing, `jobs` at a time; each result is kept as soon as it is there."""
    table, curves = RESULTS / f"{name}.csv", RESULTS / f"{name}-curves.csv"
    experiment, lock = EXPERIMENTS[name], Lock()
    have = {(row["variant"], int(row["seed"])) for row in rows_of(table)}
    points = rows_of(curves)
    kept = [point for point in points if (point["variant"], int(point["seed"])) in have]
    if len(kept) < len(points):  # a kill between the two tables left a curve: it is measured anew
        whole = curves.with_suffix(".tmp")
        append(whole, CURVE, kept)
        whole.replace(curves)
    todo = [
        (variant, seed)
        for seed in experiment.seeds
        for variant in experiment.variants
        if (variant, seed) not in have
    ]

    def one(job: tuple[str, int]) -> None:
        variant, seed = job
        row, curve = run(experiment, variant, seed)
        with lock:
            key = {"variant": variant, "seed": seed}
            if experiment.figures:
                append(curves, CURVE, [key | point for point in curve])
            append(table, experiment.header, [key | row])
            have.add(job)
            total = len(experiment.variants) * len(experiment.seeds)
            said = row.get("stopped") or f"{row['score']:.2f}"
            print(f"{len(have)} of {total}: {variant}, seed {seed}: {said}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, todo))


def adopt(name: str, path: Path) -> None:
    """Evaluate a run folder and take it into the tables."""
    experiment = EXPERIMENTS[name]
    checkpoint = torch.load(path / "checkpoint.pt", weights_only=True)
    script, settings = checkpoint["script"], checkpoint["args"]
    (variant,) = (v for v in experiment.variants if v == settings["env_id"])
    if any(int(run["seed"]) == settings["seed"] for run in table(name).get(variant, [])):
        sys.exit(f"error: {variant}, seed {settings['seed']} is there already: start with --again")
    command = [sys.executable, ROOT / f"{script}.py", "--evaluate", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row, curve = collect(experiment, path, done.stdout)
    key = {"variant": variant, "seed": settings["seed"]}
    append(RESULTS / f"{name}-curves.csv", CURVE, [key | point for point in curve])
    append(RESULTS / f"{name}.csv", experiment.header, [key | row])


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% bootstrap interval of the mean over the first axis (seeds), 2,000 resamples."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(samples), size=(2000, len(samples)))
    low, high = np.percentile(samples[picks].mean(1), [2.5, 97.5], axis=0)
    return low, high


def table(name: str) -> dict[str, list[dict]]:
    """Per variant the rows of its runs, by seed."""
    runs = defaultdict(list)
    for row in sorted(rows_of(RESULTS / f"{name}.csv"), key=lambda row: int(row["seed"])):
        runs[row["variant"]].append(row)
    return {variant: runs[variant] for variant in EXPERIMENTS[name].variants if variant in runs}


def summary(name: str, *columns: str) -> str:
    """Scores of an experiment as a Markdown table, with the means of more columns."""
    head = ["run", "mean", "std", "95% interval", "every seed", *columns]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for variant, runs in table(name).items():
        scores = np.array([float(run["score"]) for run in runs])
        low, high = interval(scores)
        means = [f"{np.mean([float(run[column]) for run in runs]):.2f}" for column in columns]
        cells = [variant, f"{scores.mean():.2f}", f"{scores.std():.2f}", f"{low:.1f} to {high:.1f}"]
        cells[2:] = cells[2:] if len(runs) > 1 else ["one run", ""]
        cells += [", ".join(f"{score:.1f}" for score in scores), *means]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def symptoms(group: str) -> str:
    """What was broken and what the log showed, means over seeds, as a Markdown table."""
    runs, columns = table("symptoms"), list(EXPERIMENTS["symptoms"].logged)
    lines = []
    for entry in BREAKS:
        if entry["group"] == group:
            rows = runs[entry["name"]]
            if stopped := [row["stopped"] for row in rows if row["stopped"]]:
                cells = {"each seed stopped, seed 1 saying": stopped[0]}
                if len(stopped) < len(rows):
                    raise ValueError(f"{entry['name']}: some seeds stopped, some did not")
            else:
                cells = {"return, each seed": ", ".join(f"{float(r['score']):.0f}" for r in rows)}
                for column in columns:
                    mean = np.mean([float(row[column]) for row in rows])
                    cells[column] = f"{mean:.2g}" if abs(mean) < 100 else f"{mean:,.0f}"
            cells = {"broken": entry["name"], **cells, "look at": entry["look"]}
            if not lines:
                lines = ["| " + " | ".join(cells) + " |", "| --- " * len(cells) + "|"]
            lines.append("| " + " | ".join(cells.values()) + " |")
    return "\n".join(lines)


def milestones(name: str, variant: str, shares: list[int]) -> str:
    """Returns of a variant's episodes on the way, over all seeds, as a Markdown table."""
    steps, curves = lines_of(curves_of(name)[variant])
    columns = [share - 1 for share in shares]
    head = ["steps", *(f"{round(int(steps[column]), -3):,}" for column in columns)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for label, of in (("lowest seed", np.min), ("mean", np.mean), ("highest seed", np.max)):
        cells = [f"{of(curves[:, column]):.0f}" for column in columns]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def scores(name: str) -> str:
    """What was published beside ours, as a Markdown table."""
    published, runs = EXPERIMENTS[name].published, table(name)
    sources = list(next(iter(published.values())))
    head = ["environment", "seeds", "here, mean ± std", "lowest and highest seed"]
    head += ["here, time limits as deaths", *sources]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for variant in published:
        ours, as_deaths = (
            np.array([float(run["score"]) for run in runs.get(which, [])])
            for which in (variant, f"{variant} no bootstrap")
        )
        if len(ours):
            cells = [variant, str(len(ours)), f"{ours.mean():.2f} ± {ours.std():.2f}"]
            cells += [f"{ours.min():.1f} to {ours.max():.1f}", ""]
            if len(as_deaths):
                spread = f"{as_deaths.mean():.2f} ± {as_deaths.std():.2f}"
                cells[-1] = spread + f" ({len(as_deaths)} seeds)" * (len(as_deaths) != len(ours))
            cells += [published[variant].get(source, "") for source in sources]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def style() -> None:
    """Figures that are readable on white and on black, and the same whenever they are drawn."""
    plt.rcParams |= {"svg.hashsalt": "ppo", "font.size": 11, "text.color": "#808080"}
    plt.rcParams |= {key: "#808080" for key in ("axes.labelcolor", "xtick.color", "ytick.color")}


def save(fig: plt.Figure, name: str) -> None:
    for axes in fig.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#808080")
    fig.tight_layout()
    fig.savefig(FIGURES / f"{name}.svg", transparent=True, metadata={"Date": None})
    plt.close(fig)


def curves_of(name: str) -> dict[str, dict[int, dict[int, float]]]:
    """Variant -> seed -> step -> mean return."""
    curves = defaultdict(lambda: defaultdict(dict))
    for row in rows_of(RESULTS / f"{name}-curves.csv"):
        curves[row["variant"]][int(row["seed"])][int(row["step"])] = float(row["return"])
    return curves


def lines_of(runs: dict[int, dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the returns of every seed at all of them (seeds, steps)."""
    steps = np.array(sorted({step for run in runs.values() for step in run}))
    curves = [zip(*sorted(run.items()), strict=True) for run in runs.values()]
    return steps, np.array([np.interp(steps, *curve) for curve in curves])


def draw(name: str) -> None:
    """The figures of an experiment."""
    style()
    curves = curves_of(name)
    for figure, variants in EXPERIMENTS[name].figures.items():
        fig, axes = plt.subplots(figsize=(7, 3.6))
        for variant, color in zip(variants, COLORS, strict=False):
            if variant not in curves:
                continue  # not run so far
            steps, lines = lines_of(curves[variant])
            low, high = interval(lines)
            axes.plot(steps, lines.T, color=color, alpha=0.25, linewidth=0.6)
            axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
            axes.plot(steps, lines.mean(0), color=color, linewidth=2, label=variant)
        for source, score in EXPERIMENTS[name].published.get(variants[0], {}).items():
            dash = "--" if source == "CleanRL" else ":"
            level, label = float(score.split()[0]), f"{source}, published: {score}"
            axes.axhline(level, color="#808080", linestyle=dash, linewidth=1, label=label)
        axes.set(xlabel="environment steps", ylabel="return of an episode")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        axes.legend(frameon=False, labelcolor="#808080")
        save(fig, f"{name}-{figure}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--adopt", type=Path, metavar="RUN", help="take this run folder instead")
    arguments = parser.parse_args()
    if arguments.again:
        for part in ("", "-curves"):
            (RESULTS / f"{arguments.name}{part}.csv").unlink(missing_ok=True)
    if arguments.adopt:
        adopt(arguments.name, arguments.adopt)
    else:
        measure(arguments.name, arguments.jobs)
    if arguments.name.startswith("ablation"):
        import ablations

        ablations.draw(arguments.name)
    else:
        draw(arguments.name)
    if not EXPERIMENTS[arguments.name].may_stop:
        print(summary(arguments.name))
