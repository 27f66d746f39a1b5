"""Step 1. An agent that acts at random: the loop that all of reinforcement learning shares.

    python docs/course/01_random.py

What is new in it, and why: docs/course.md.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import tyro


@dataclass
class Args:
    env_id: str = "CartPole-v1"  # Gymnasium id
    seed: int = 1  # same seed and machine: same run
    total_timesteps: int = 200_000  # steps in the environment

    gamma: float = 0.99  # discount per step


def make_env(args: Args) -> gym.Env:
    """One environment with observations (D,)."""
    env = gym.make(args.env_id)
    return gym.wrappers.FlattenObservation(env)


def train(args: Args) -> None:
    """Repeat: play an episode, see what each action led to."""
    # --- Setup
    env = make_env(args)
    env.action_space.seed(args.seed)
    env.reset(seed=args.seed)
    last_returns, step = [], 0  # of the last 100 episodes; steps played

    while step < args.total_timesteps:
        # --- Rollout: one episode of T steps
        # Row t: the agent saw obs[t], took actions[t] and got rewards[t].
        obs, actions, rewards, done = [], [], [], False
        current_obs, _ = env.reset()  # (D,)
        while not done:
            obs.append(current_obs)
            actions.append(env.action_space.sample())
            current_obs, reward, terminated, truncated, _ = env.step(actions[-1])
            rewards.append(reward)
            done = terminated or truncated

        # --- Returns, (T,): the rewards from row t on, each step later worth gamma times as much
        returns, later = np.zeros(len(rewards), np.float32), 0.0
        for t in reversed(range(len(rewards))):
            returns[t] = later = rewards[t] + args.gamma * later

        # --- Log
        last_returns = [*last_returns, sum(rewards)][-100:]
        before, step = step, step + len(rewards)
        if step // 10_000 > before // 10_000:
            print(f"step {step}: return {np.mean(last_returns):.1f}", flush=True)


if __name__ == "__main__":
    train(tyro.cli(Args))
