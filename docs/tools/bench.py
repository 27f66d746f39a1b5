"""How fast a script trains, beside others: python docs/tools/bench.py --script ppo.py

The contestants have equal hyperparameters and one thread. Each round runs all of them, each as a
process of its own, in an order drawn anew, and compares them as ratios: the machine may be slower
this minute than the last. A run's speed is its steps beyond those of a short run, by the time it
takes longer: starting up does not count. Stable-Baselines3 always takes part. --cleanrl adds
CleanRL's script, --variant the script itself with more flags, such as --variant=--bf16.

--envs 1 4 16 says instead how speed grows with the environments of a process, and --processes 1 2
with the processes. --floor says how much of the time no script could save: stepping one environment
after the other, and the network's matrix products, each alone in a loop. --record keeps what was
measured, in docs/results/speed.csv in place of the script's old rows of that kind.
"""

import argparse
import importlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir
from pathlib import Path

import intervals
import numpy as np
import pandas as pd
import tables
import torch
from details import DOCS, ROOT, edited
from experiment_list import GYM_1_4, GYM_1_4_ATARI, GYM_1_4_CLIP
from provenance import provenance
from torch.utils._python_dispatch import TorchDispatchMode

DEFAULT_ENV = {
    "ppo.py": "CartPole-v1",
    "ppo_atari.py": "BreakoutNoFrameskip-v4",
    "ppo_continuous.py": "HalfCheetah-v4",
    "ppo_lstm.py": "CartPole-v1",
    "ppo_multidiscrete.py": "Reacher-v5",
}
CLEANRL = {  # the script with the same defaults, and what Gymnasium 1.4 asks of it
    "ppo.py": ("ppo.py", GYM_1_4),
    "ppo_atari.py": ("ppo_atari.py", GYM_1_4 + GYM_1_4_ATARI),
    "ppo_continuous.py": ("ppo_continuous_action.py", GYM_1_4 + GYM_1_4_CLIP),
}
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node".split()
SHORT = dict.fromkeys(DEFAULT_ENV, 8_192) | {"ppo_atari.py": 2_048}  # steps
Command = list[str | Path]


def seconds(command: Command, steps: int, folder: str) -> float:
    """How long it trains, starting up included. `folder` is its own, with copies of scripts."""
    start = time.perf_counter()
    command = [sys.executable, *command, "--total-timesteps", str(steps)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr}")
    return time.perf_counter() - start


def contestants(
    script: str, flags: list[str], variants: list[str], cleanrl: Path | None, folder: str
) -> dict[str, Command]:
    """Name -> command, the script first."""
    found = {script: [ROOT / script, *flags, "--eval-episodes", "0"]}
    for variant in variants:
        found[f"{script} {variant}"] = [*found[script], *variant.split()]
    found["Stable-Baselines3"] = [DOCS / "tools" / "contestant.py", script, *flags]
    if cleanrl:
        name, edits = CLEANRL[script]
        path = Path(folder) / name
        path.write_text(edited((cleanrl / "cleanrl" / name).read_text(), edits, name))
        found["CleanRL"] = [path, *flags]
    return found


def compare(
    commands: dict[str, Command], short: dict[str, int], timed: float, rounds: int, folder: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Steps per second (rows are rounds, columns are names), and over how many steps, which take
    about `timed` seconds. `short`: the steps of the runs that are subtracted."""
    speeds, steps = pd.DataFrame(columns=list(commands), dtype=float), {}
    for name, command in commands.items():
        n = short[name]
        n_per_second = 3 / (seconds(command, 4 * n, folder) - seconds(command, n, folder))
        steps[name] = n * max(1, round(timed * n_per_second))
    for number in range(1, rounds + 1):
        for name in random.Random(number).sample(list(commands), len(commands)):
            n, command = short[name], commands[name]
            longer = seconds(command, n + steps[name], folder) - seconds(command, n, folder)
            speeds.loc[number, name] = steps[name] / longer
            said = f"{name} {steps[name] / longer:,.0f} steps/s ({longer:.0f} s)"
            print(f"round {number}: {said}", flush=True)
    return speeds, steps


def report(speeds: pd.DataFrame) -> str:
    """Geometric means over the rounds, and of the first by the others, with 95% intervals."""
    ratios = intervals.of_geometric_mean(speeds.rdiv(speeds.iloc[:, 0], axis=0).to_numpy())
    found = pd.DataFrame(ratios, ["ratio", "low", "high"], speeds.columns).T
    found.insert(0, "steps/s", np.exp(np.log(speeds).mean()))
    return found.to_string(float_format="{:.2f}".format)


class Products(TorchDispatchMode):
    """Counts the matrix products of what runs under it, and keeps an example of each shape."""

    def __init__(self):
        super().__init__()
        self.counts, self.examples = Counter(), {}

    def __torch_dispatch__(self, function, types, inputs=(), named=None):
        if re.search(r"::(mm|addmm|bmm|convolution|mkldnn_rnn)", function.name()):
            call = function, str([getattr(x, "shape", x) for x in inputs])
            self.counts[call] += 1
            self.examples[call] = inputs, named or {}
        return function(*inputs, **(named or {}))


def floor(script: str, env_id: str) -> dict[str, float]:
    """Microseconds per step of what every implementation has to do, each kind of it alone."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    ppo = importlib.import_module(script.removesuffix(".py"))
    args = ppo.Args(env_id=env_id)
    steps = args.num_envs * args.num_steps
    with tempfile.TemporaryDirectory() as folder, chdir(folder), Products() as products:
        ppo.main(["--env-id", env_id, "--total-timesteps", str(steps), "--eval-episodes", "0"])
    spent = 0.0
    with torch.no_grad():
        for call, (inputs, named) in products.examples.items():
            start, repeats = time.perf_counter(), 0
            while time.perf_counter() - start < 0.2 or repeats < 3:
                call[0](*inputs, **named)
                repeats += 1
            spent += products.counts[call] * (time.perf_counter() - start) / repeats
    env = ppo.make_env(args)
    env.action_space.seed(0)
    env.reset(seed=0)
    played, start = 0, time.perf_counter()
    while time.perf_counter() - start < 3:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
        played += 1
    alone = (time.perf_counter() - start) / played
    return {"environment": alone * 1e6, "matrix products": spent / steps * 1e6}


def record(script: str, env_id: str, kind: str, found: list[dict]) -> None:
    """Put rows in the place of the script's old ones of that kind."""
    key = {"script": script, "environment": env_id, "kind": kind}
    rows = pd.DataFrame([key | row for row in found], dtype=object)
    old = tables.read("speed", dtype=str)
    others = [old[(old["script"] != script) | (old["kind"] != kind)]] if len(old) else []
    every = pd.concat([*others, rows])
    order = [*DEFAULT_ENV, "speed", "envs", "processes", "floor"]
    order = {name: place for place, name in enumerate(order)}
    rank = {"key": lambda column: column.map(order), "kind": "stable"}
    tables.write("speed", every.sort_values(["script", "kind"], **rank))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", choices=DEFAULT_ENV, default="ppo.py")
    parser.add_argument("--env-id", help="the script's default if none is given")
    parser.add_argument("--seconds", type=float, default=30, help="that are timed of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cleanrl", type=Path, metavar="PATH", help="a checkout of CleanRL")
    parser.add_argument("--variant", action="append", default=[], metavar="FLAGS")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--envs", type=int, nargs="+", metavar="N")
    kinds.add_argument("--processes", type=int, nargs="+", metavar="N")
    kinds.add_argument("--floor", action="store_true")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    script, env_id = args.script, args.env_id or DEFAULT_ENV[args.script]
    if args.floor:
        found = [{"name": name, "value": f"{v:.4g}"} for name, v in floor(script, env_id).items()]
        print(*found, sep="\n")
        record(script, env_id, "floor", [row | provenance(None) for row in found])
        sys.exit()
    kind = "envs" if args.envs else "processes" if args.processes else "speed"
    if args.cleanrl:
        os.environ["PYTHONPATH"] = str(args.cleanrl.resolve())  # its wrappers
    commands, short, whose = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.envs or args.processes or [""]:
            flags = ["--env-id", env_id, "--seed", "1"]
            flags += ["--num-envs", f"{size}"] if args.envs else []
            who = contestants(script, flags, args.variant, args.cleanrl, folder)
            if args.processes:
                who = {script: [*TORCHRUN, f"{size}", *who[script]]}
            for name, command in who.items():
                label = f"{name} {size}".strip()
                commands[label], whose[label] = command, {"name": name, "size": size}
                short[label] = max(SHORT[script], 128 * size if args.envs else 0)
        speeds, steps = compare(commands, short, args.seconds, args.rounds, folder)
    print("\ngeometric means; ratio: how many times as fast the first is, with its 95% interval")
    print(report(speeds))
    if args.record:
        rows = [
            whose[label]
            | {"round": number, "value": f"{speed:.4g}"}
            | provenance(round(steps[label] / speed, 1))
            for label, column in speeds.items()
            for number, speed in column.items()
        ]
        record(script, env_id, kind, rows)
