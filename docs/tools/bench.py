"""How fast a script trains, beside others: python docs/tools/bench.py --script ppo.py

Runs the contestants in turn (A B A B ...), each with equal hyperparameters, as a process of its own
and with one thread, and compares them as ratios: the machine may be slower this minute than the
last. A run's speed is its steps beyond those of a short run, by the time it takes longer: starting
up does not count. Stable-Baselines3 always takes part. --against adds any script that understands
--env-id, --total-timesteps and --seed, such as CleanRL's. --variant adds the script itself with
more flags, such as --variant=--bf16. --floor says instead how much of the time no script could
save: stepping one environment after the other, and the network's matrix products, each alone in a
loop. --record does both and keeps them in docs/results/speed.csv.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir
from pathlib import Path

import figures
import pandas as pd
import tables
import torch
from details import DOCS, ROOT
from provenance import provenance
from torch.utils._python_dispatch import TorchDispatchMode

DEFAULT_ENV = {
    "ppo.py": "CartPole-v1",
    "ppo_atari.py": "BreakoutNoFrameskip-v4",
    "ppo_continuous.py": "HalfCheetah-v4",
    "ppo_lstm.py": "CartPole-v1",
    "ppo_multidiscrete.py": "Reacher-v5",
}
SHORT = dict.fromkeys(DEFAULT_ENV, 8_192) | {"ppo_atari.py": 2_048}  # steps


def seconds(command: list[str], steps: int, folder: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, *command, "--total-timesteps", str(steps)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr}")
    return time.perf_counter() - start


def compare(script, env_id, steps: int, rounds: int, against: list[str], variants: list[str]):
    """Steps per second: rows are rounds, columns are contestants, the script first."""
    flags, short = ["--env-id", env_id, "--seed", "1"], SHORT[script]
    contestants = {script: [ROOT / script, *flags, "--eval-episodes", "0"]}
    for variant in variants:
        contestants[f"{script} {variant}"] = [*contestants[script], *variant.split()]
    contestants["Stable-Baselines3"] = [DOCS / "tools" / "contestant.py", script, *flags]
    contestants |= {path: [Path(path).resolve(), *flags] for path in against}
    speeds = pd.DataFrame(columns=list(contestants), dtype=float)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, rounds + 1):
            for name, command in contestants.items():
                longer = seconds(command, short + steps, folder) - seconds(command, short, folder)
                speeds.loc[number, name] = steps / longer
                print(f"round {number}: {name} {steps / longer:,.0f} steps/s", flush=True)
    return speeds


def report(speeds: pd.DataFrame) -> str:
    """Medians over the rounds; ratio: how many times as fast the first contestant is."""
    ratios = speeds.rdiv(speeds.iloc[:, 0], axis=0)
    found = {"steps/s": speeds.median(), "ratio": ratios.median()}
    found |= {"lowest": ratios.min(), "highest": ratios.max()}
    return pd.DataFrame(found).to_string(float_format="{:.2f}".format)


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


def record(script: str, env_id: str, steps: int, speeds: pd.DataFrame, least: dict) -> None:
    """Put a script's rows in the place of its old ones: steps per second, microseconds a step."""
    key, rows = {"script": script, "environment": env_id}, []
    for (number, name), speed in speeds.stack().items():
        row = {"kind": "speed", "name": name, "round": number, "value": f"{speed:.4g}"}
        rows.append(key | row | provenance(round(steps / speed, 2)))
    for kind, micros in least.items():
        row = {"kind": "floor", "name": kind, "value": f"{micros:.4g}"}
        rows.append(key | row | provenance(None))
    old = tables.read("speed", dtype=str)
    every = pd.concat([old[old["script"] != script], pd.DataFrame(rows, dtype=object)])
    order = list(DEFAULT_ENV).index
    tables.write("speed", every.sort_values("script", key=lambda s: s.map(order), kind="stable"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", choices=DEFAULT_ENV, default="ppo.py")
    parser.add_argument("--env-id", help="the script's default if none is given")
    parser.add_argument("--steps", type=int, default=81_920, help="steps that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", action="append", default=[], metavar="PATH")
    parser.add_argument("--variant", action="append", default=[], metavar="FLAGS")
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    env_id = args.env_id or DEFAULT_ENV[args.script]
    if args.floor:
        print(floor(args.script, env_id))
    else:
        speeds = compare(args.script, env_id, args.steps, args.rounds, args.against, args.variant)
        print(f"\nmedians; {args.script} is ratio times as fast\n{report(speeds)}")
        if args.record:
            record(args.script, env_id, args.steps, speeds, floor(args.script, env_id))
            figures.speed()
