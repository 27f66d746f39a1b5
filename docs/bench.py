"""How fast a script trains, beside others: python docs/bench.py [--script NAME] [--against PATH]

Runs the contestants in turn (A B A B ...), each with equal hyperparameters and as a process of its
own, and compares them as ratios: the machine may be slower this minute than the last. A run's speed
is its steps beyond those of a short run, by the time it takes longer: starting up does not count.
Stable-Baselines3 always takes part. --against adds any script that understands --env-id,
--total-timesteps and --seed, such as CleanRL's. --variant adds the script itself with more flags,
such as --variant=--bf16. --profile says instead where the time goes.
"""

import argparse
import importlib
import os
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


def profile(script: str, env_id: str, steps: int) -> None:
    """Time inside the calls that make up an iteration, of a script in this process."""
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
    for part, time_spent in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{part}: {time_spent / whole:.0%}")


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
    parser.add_argument("--stable-baselines3", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--total-timesteps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    env_id = args.env_id or DEFAULT_ENV[args.script]
    if args.stable_baselines3:
        stable_baselines3(args.script, env_id, args.total_timesteps, args.seed)
    elif args.profile:
        profile(args.script, env_id, args.steps)
    else:
        compare(args.script, env_id, args.steps, args.rounds, args.against, args.variant)
