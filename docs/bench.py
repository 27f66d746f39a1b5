"""How fast a script trains, beside others: python docs/bench.py [--script NAME] [--against PATH]

Runs the contestants in turn (A B A B ...), each with equal hyperparameters and as a process of its
own, and compares them as ratios: the machine may be slower this minute than the last. A run's speed
is its steps beyond those of a short run, by the time it takes longer: starting up does not count.
Stable-Baselines3 always takes part. --against adds any script that understands --env-id,
--total-timesteps and --seed, such as CleanRL's. --variant adds the script itself with more flags,
such as --variant=--bf16. --profile says instead where the time goes, --floor how much of it no
script could save: stepping one environment after the other, and the network's matrix products, each
alone in a loop. --record does all three and keeps them in docs/results/speed.csv.
"""

import argparse
import csv
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_ENV = {
    "ppo.py": "CartPole-v1",
    "ppo_atari.py": "BreakoutNoFrameskip-v4",
    "ppo_continuous.py": "HalfCheetah-v4",
    "ppo_lstm.py": "CartPole-v1",
    "ppo_multidiscrete.py": "Reacher-v5",
}
RESULTS = ROOT / "docs" / "results" / "speed.csv"
HEADER = ["script", "environment", "kind", "name", "round", "value"]
SHORT = dict.fromkeys(DEFAULT_ENV, 8_192) | {"ppo_atari.py": 2_048}  # steps


def stable_baselines3(script: str, env_id: str, steps: int, seed: int) -> None:
    """A script's defaults in Stable-Baselines3, which clips values a little differently; with an
    LSTM, in its sb3-contrib."""
    import torch
    from gymnasium.wrappers import DiscretizeAction
    from sb3_contrib import RecurrentPPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

    sys.path.insert(0, str(ROOT))
    args = importlib.import_module(script.removesuffix(".py")).Args()
    if script == "ppo_atari.py":
        envs = VecFrameStack(make_atari_env(env_id, n_envs=args.num_envs, seed=seed), 4)
    else:
        torch.set_num_threads(1)  # its better setting here, as it is ours
        bins = {"bins": args.bins, "multidiscrete": True} if hasattr(args, "bins") else None
        wrapper = {"wrapper_class": DiscretizeAction, "wrapper_kwargs": bins} if bins else {}
        envs = make_vec_env(env_id, n_envs=args.num_envs, seed=seed, **wrapper)
    if script == "ppo_continuous.py":
        envs = VecNormalize(envs, gamma=args.gamma)
    algorithm, policy, network = PPO, "MlpPolicy", {}
    if script == "ppo_atari.py":
        policy = "CnnPolicy"
    if script == "ppo_lstm.py":
        algorithm, policy = RecurrentPPO, "MlpLstmPolicy"
        network = {"lstm_hidden_size": 128, "net_arch": []}
        network |= {"enable_critic_lstm": False, "shared_lstm": True}
    algorithm(
        policy,
        envs,
        policy_kwargs=network,
        gamma=args.gamma,
        vf_coef=args.vf_coef,
        learning_rate=lambda left: args.learning_rate * left,
        n_steps=args.num_steps,
        batch_size=args.minibatch_size,
        n_epochs=args.update_epochs,
        clip_range=args.clip_coef,
        clip_range_vf=args.clip_coef,
        ent_coef=args.ent_coef,
        device="cpu",
        seed=seed,
    ).learn(steps)


def seconds(command: list[str], steps: int, folder: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, *command, "--total-timesteps", str(steps)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def compare(script, env_id, steps: int, rounds: int, against: list[str], variants: list[str]):
    """Steps per second of each contestant, by round."""
    flags, short = ["--env-id", env_id, "--seed", "1"], SHORT[script]
    contestants = {script: [str(ROOT / script), *flags, "--eval-episodes", "0"]}
    for variant in variants:
        contestants[f"{script} {variant}"] = [*contestants[script], *variant.split()]
    own = [__file__, "--stable-baselines3", "--script", script]
    contestants["Stable-Baselines3"] = [*own, *flags]
    contestants |= {path: [str(Path(path).resolve()), *flags] for path in against}
    speeds = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, command in contestants.items():
                longer = seconds(command, short + steps, folder) - seconds(command, short, folder)
                speeds[name].append(steps / longer)
                print(f"round {number + 1}: {name} {speeds[name][-1]:,.0f} steps/s", flush=True)
    print(
        f"\n{env_id}, {steps:,} steps, {rounds} rounds, medians of steps per second and of ratios"
    )
    for name, values in speeds.items():
        ratios = [ours / other for ours, other in zip(speeds[script], values, strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"{name}: {median(values):,.0f};"
            f" {script} is {median(ratios):.2f} times as fast {spread}"
        )
    return speeds


def floor(script: str, env_id: str) -> dict[str, float]:
    """Microseconds per step of what every implementation has to do, each kind of it alone."""
    sys.path.insert(0, str(ROOT))
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    ppo = importlib.import_module(script.removesuffix(".py"))
    args, counts, examples = ppo.Args(env_id=env_id), defaultdict(int), {}
    steps = args.num_envs * args.num_steps

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, inputs=(), named=None):
            if re.search(r"::(mm|addmm|bmm|convolution|mkldnn_rnn)", function.name()):
                shapes = [tuple(x.shape) if hasattr(x, "shape") else str(x) for x in inputs]
                counts[function, str(shapes)] += 1
                examples[function, str(shapes)] = inputs, named or {}
            return function(*inputs, **(named or {}))

    with tempfile.TemporaryDirectory() as folder, Products():
        os.chdir(folder)
        ppo.main(["--env-id", env_id, "--total-timesteps", str(steps), "--eval-episodes", "0"])
    products = 0.0
    with torch.no_grad():
        for call, (inputs, named) in examples.items():
            function, start, repeats = call[0], time.perf_counter(), 0
            while time.perf_counter() - start < 0.2 or repeats < 3:
                function(*inputs, **named)
                repeats += 1
            products += counts[call] * (time.perf_counter() - start) / repeats
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
    return {"environment": alone * 1e6, "matrix products": products / steps * 1e6}


def record(script: str, env_id: str, rows: list[tuple]) -> None:
    """Put rows (kind, name, round, value) of a script in the place of its old ones."""
    kept = []
    if RESULTS.exists():
        with RESULTS.open() as file:
            kept = [row for row in list(csv.reader(file))[1:] if row[0] != script]
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        new = [(script, env_id, *row[:-1], f"{row[-1]:.4g}") for row in rows]
        writer.writerows(sorted(kept + new, key=lambda row: list(DEFAULT_ENV).index(row[0])))


def recorded(kind: str) -> dict[str, dict[str, list[float]]]:
    """Script -> name -> values of one kind of row in docs/results/speed.csv."""
    found = defaultdict(lambda: defaultdict(list))
    with RESULTS.open() as file:
        for row in csv.DictReader(file):
            if row["kind"] == kind:
                found[row["script"]][row["name"]].append(float(row["value"]))
    return found


def recorded_env(script: str) -> str:
    with RESULTS.open() as file:
        return next(row["environment"] for row in csv.DictReader(file) if row["script"] == script)


def ratios(script: str, name: str) -> list[float]:
    """How many times as fast as Stable-Baselines3 a contestant is, by round."""
    speeds = recorded("speed")[script]
    return [a / b for a, b in zip(speeds[name], speeds["Stable-Baselines3"], strict=True)]


def speed_table() -> str:
    head = ["script", "environment", "steps per second", "Stable-Baselines3", "times as fast"]
    head += ["alone: environment", "alone: matrix products", "share of the time"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for script, speeds in recorded("speed").items():
        theirs = median(speeds["Stable-Baselines3"])
        alone = [micros for (micros,) in recorded("floor")[script].values()]
        for name in (name for name in speeds if name.startswith(script)):
            ours, times = median(speeds[name]), ratios(script, name)
            cells = [name, recorded_env(script), f"{ours:,.0f}", f"{theirs:,.0f}"]
            cells.append(f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})")
            if name == script:  # the floor of a variant was not measured
                cells += [*(f"{t:,.0f} µs" for t in alone), f"{sum(alone) * ours / 1e6:.0%}"]
            else:
                cells += ["", "", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def share_table() -> str:
    shares = recorded("share")
    parts = sorted({part for found in shares.values() for part in found})
    parts.sort(key=lambda part: -max(found.get(part, [0])[0] for found in shares.values()))
    lines = ["| | " + " | ".join(shares) + " |", "| --- " * (len(shares) + 1) + "|"]
    for part in parts:
        cells = [f"{found[part][0]:.0%}" if part in found else "" for found in shares.values()]
        lines.append("| " + " | ".join([part, *cells]) + " |")
    return "\n".join(lines)


def draw() -> None:
    """A bar for each script, how many times as fast as Stable-Baselines3; a dot for each round."""
    import experiments  # which sets what all figures look like
    from experiments import plt

    experiments.style()
    found = recorded("speed")
    bars = [(s, name) for s, speeds in found.items() for name in speeds if name.startswith(s)]
    fig, axes = plt.subplots(figsize=(7, 3))
    for script, name in bars[::-1]:
        times = ratios(script, name)
        axes.barh(name, median(times), color="#0072b2", height=0.6)
        axes.plot(times, [name] * len(times), ".", color="#e69f00")
    axes.axvline(1, color="#808080", linestyle="--", linewidth=1)
    axes.set(xlabel="times as fast as Stable-Baselines3 (dots: rounds)")
    experiments.save(fig, "speed")


def profile(script: str, env_id: str, steps: int) -> dict[str, float]:
    """Shares of the time inside the calls that make up an iteration, of a script run here."""
    sys.path.insert(0, str(ROOT))
    import torch

    ppo = importlib.import_module(script.removesuffix(".py"))
    kinds = ("Gaussian", "MultiCategorical", "Categorical")
    distribution = next(getattr(ppo, kind) for kind in kinds if hasattr(ppo, kind))
    spent = defaultdict(float)
    stack = []

    def timed(function, part):
        def wrapper(*args, **kwargs):
            start = time.perf_counter()
            stack.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                acting = part == "network" and not torch.is_grad_enabled()
                spent["network, acting and scoring" if acting else part] += whole - stack.pop()
                if stack:
                    stack[-1] += whole

        return wrapper

    parts = [
        (ppo.gym.vector.SyncVectorEnv, "step", "environment"),
        (ppo.gym.vector.SyncVectorEnv, "reset", "environment"),
        (ppo.Agent, "forward" if "forward" in vars(ppo.Agent) else "policy", "network"),
        (ppo.Agent, "value", "network"),
        (distribution, "sample", "network"),
        (distribution, "log_prob", "network"),
        (distribution, "entropy", "network"),
        (ppo, "policy_loss", "network"),
        (ppo, "value_loss", "network"),
        (torch.Tensor, "backward", "update, backward pass"),
        (torch.nn.utils, "clip_grad_norm_", "update, gradient clipping"),
        (torch.optim.Adam, "step", "update, Adam"),
        (ppo.Run, "end_iteration", "logging"),
        (ppo.Run, "log_episodes", "logging"),
    ]
    if hasattr(ppo, "LSTM"):
        parts.append((ppo.LSTM, "forward", "network"))
    if hasattr(ppo, "RunningMeanStd"):
        parts += [
            (ppo.RunningMeanStd, "update", "running statistics"),
            (ppo.Agent, "normalize", "running statistics"),
        ]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for owner, name, part in parts:
            patch.object(owner, name, timed(getattr(owner, name), part)).start()
        init = ppo.Run.__init__

        def begin(*args):  # the clock starts when the set-up is over
            init(*args)
            spent.clear()
            spent["start"] = time.perf_counter()

        patch.object(ppo.Run, "__init__", begin).start()
        ppo.main(["--env-id", env_id, "--total-timesteps", str(steps), "--eval-episodes", "0"])
    whole = time.perf_counter() - spent.pop("start")
    spent["update, forward pass and losses"] = spent.pop("network")
    spent["all else"] = whole - sum(spent.values())
    shares = sorted(((part, t / whole) for part, t in spent.items()), key=lambda item: -item[1])
    for part, share in shares:
        print(f"{part}: {share:.0%}")
    return dict(shares)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", choices=DEFAULT_ENV, default="ppo.py")
    parser.add_argument("--env-id", help="the script's default if none is given")
    parser.add_argument(
        "--steps", type=int, default=81_920, help="environment steps that are timed"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", action="append", default=[], metavar="PATH")
    parser.add_argument("--variant", action="append", default=[], metavar="FLAGS")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--stable-baselines3", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--total-timesteps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    env_id = args.env_id or DEFAULT_ENV[args.script]
    if args.stable_baselines3:
        stable_baselines3(args.script, env_id, args.total_timesteps, args.seed)
    elif args.profile:
        profile(args.script, env_id, args.steps)
    elif args.floor:
        print(floor(args.script, env_id))
    else:
        speeds = compare(args.script, env_id, args.steps, args.rounds, args.against, args.variant)
        if args.record:
            alone = floor(args.script, env_id)  # first: profile puts clocks everywhere
            shares = profile(args.script, env_id, args.steps)
            rows = [("speed", n, i, v) for n, vs in speeds.items() for i, v in enumerate(vs, 1)]
            rows += [("floor", part, "", micros) for part, micros in alone.items()]
            rows += [("share", part, "", share) for part, share in shares.items()]
            record(args.script, env_id, rows)
            draw()
