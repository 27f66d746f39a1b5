"""CartPole without its velocities, for scripts that can't hide entries of an observation:
PYTHONPATH=docs/tools python ppo.py --env-id hidden:CartPoleHidden-v1"""

import gymnasium as gym
import numpy as np


def make(**kwargs) -> gym.Env:
    """CartPole-v1 whose observation is the cart's position and the pole's angle."""
    env = gym.make("CartPole-v1", **kwargs)
    space, seen = env.observation_space, [0, 2]
    space = gym.spaces.Box(space.low[seen], space.high[seen], dtype=np.float32)
    return gym.wrappers.TransformObservation(env, lambda obs: obs[seen], space)


gym.register("CartPoleHidden-v1", entry_point=make)
