"""Stable-Baselines3 with a script's settings, for bench.py: python contestant.py SCRIPT --env-id ID

It clips values a little differently than the scripts do. With an LSTM it is that of sb3-contrib.
"""

import argparse
import importlib
import sys

from details import ROOT, SCRIPTS
from gymnasium.wrappers import DiscretizeAction
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize


def learn(script: str, env_id: str, steps: int, seed: int, num_envs: int | None) -> None:
    sys.path.insert(0, str(ROOT))
    args = importlib.import_module(script.removesuffix(".py")).Args()
    args.num_envs = num_envs or args.num_envs
    algorithm, policy, network, wrapper = PPO, "MlpPolicy", {}, {}
    if script == "ppo_lstm.py":
        algorithm, policy = RecurrentPPO, "MlpLstmPolicy"
        network = {"lstm_hidden_size": 128, "net_arch": []}
        network |= {"enable_critic_lstm": False, "shared_lstm": True}
    if script == "ppo_multidiscrete.py":
        bins = {"bins": args.bins, "multidiscrete": True}
        wrapper = {"wrapper_class": DiscretizeAction, "wrapper_kwargs": bins}
    if script == "ppo_atari.py":
        policy = "CnnPolicy"
        envs = VecFrameStack(make_atari_env(env_id, n_envs=args.num_envs, seed=seed), 4)
    else:
        envs = make_vec_env(env_id, n_envs=args.num_envs, seed=seed, **wrapper)
    if script == "ppo_continuous.py":
        envs = VecNormalize(envs, gamma=args.gamma)
    algorithm(
        policy,
        envs,
        policy_kwargs=network,
        gamma=args.gamma,
        vf_coef=args.vf_coef,
        learning_rate=lambda left: args.learning_rate * left,
        n_steps=args.num_steps,
        batch_size=args.num_envs * args.num_steps // args.num_minibatches,
        n_epochs=args.update_epochs,
        clip_range=args.clip_coef,
        clip_range_vf=args.clip_coef,
        ent_coef=args.ent_coef,
        device="cpu",
        seed=seed,
    ).learn(steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--env-id", required=True)
    parser.add_argument("--total-timesteps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--num-envs", type=int, help="the script's default if none is given")
    args = parser.parse_args()
    learn(args.script, args.env_id, args.total_timesteps, args.seed, args.num_envs)
