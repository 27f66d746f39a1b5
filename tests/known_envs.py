"""Environments whose right answer is known, and which write down what is done to them.

Made through the registry as `known_envs:Name-v0`, as a user's own environment is. Their actions are
of the kind that the environment variable ACTIONS names, so that every script can play them:
"discrete" (one of 3) or "box" (2 numbers from -1 to 1, of which the first chooses by its sign).
"""

import os

import gymnasium as gym
import numpy as np

LOG: list[tuple] = []  # ("reset", env, seed) and ("step", env, episode, t, action), in order
COUNT = [0]  # envs made so far


def action_space(n: int) -> gym.Space:
    """n choices, or two torques."""
    if os.environ.get("ACTIONS") == "box":
        return gym.spaces.Box(-1, 1, (2,))
    return gym.spaces.Discrete(n)


def chosen(action) -> int:
    """Which of two choices an action is."""
    return int(action[0] > 0) if np.ndim(action) else int(action)


class Ends(gym.Env):
    """Observation (env, episode, t) / 10; episodes end after 5 steps, and after 7 by a time limit.

    Rewards are a fixed function of episode and t. Even episodes terminate, odd ones are truncated.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, lengths=(5, 7), render_mode=None):
        self.action_space = action_space(3)
        self.lengths, self.number, self.episode = lengths, COUNT[0], -1
        COUNT[0] += 1

    def observe(self):
        return np.array([self.number, self.episode, self.t]) / 10

    def reset(self, seed=None, options=None):
        LOG.append(("reset", self.number, seed))
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        LOG.append(("step", self.number, self.episode, self.t, np.array(action).tolist()))
        reward = np.sin(3.0 * self.episode + self.t)
        self.t += 1
        over = self.t >= self.lengths[self.episode % 2]
        return (
            self.observe(),
            reward,
            over and self.episode % 2 == 0,
            over and self.episode % 2 == 1,
            {},
        )


class Reused(Ends):
    """Ends, but all observations are one array that each step overwrites, as some simulators do."""

    def observe(self):
        if not hasattr(self, "buffer"):
            self.buffer = np.zeros(3)
        self.buffer[:] = super().observe()
        return self.buffer


class Probe(gym.Env):
    """One thing to learn. What earns 1: nothing to do (`constant`), the second of two steps
    (`delayed`), action 1 (`action`), the action that the observation names (`observed`).
    `endless` pays 1 for each of 10 steps, then a time limit cuts it off."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, kind, render_mode=None):
        self.kind, self.action_space = kind, action_space(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.obs = self.np_random.choice([-1.0, 1.0]) if self.kind == "observed" else 0.0
        return np.array([self.obs], np.float32), {}

    def step(self, action):
        self.t += 1
        action = chosen(action)
        right = {"action": 1, "observed": int(self.obs > 0)}.get(self.kind, action)
        length = {"delayed": 2, "endless": 10}.get(self.kind, 1)
        over = self.t == length
        reward = float(over and action == right) if self.kind != "endless" else 1.0
        obs = np.array([1.0 if self.kind == "delayed" else self.obs], np.float32)
        return obs, reward, over and self.kind != "endless", over and self.kind == "endless", {}


class Broken(Ends):
    """Ends with one thing wrong: "reward" or "obs" turns NaN after 20 steps."""

    def __init__(self, kind, render_mode=None):
        super().__init__()
        self.kind, self.steps = kind, 0

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.steps += 1
        if self.steps > 20:
            obs, reward = (obs, np.nan) if self.kind == "reward" else (obs * np.nan, reward)
        return obs, reward, *rest


class Shapes(Ends):
    """A Dict observation with an n-dimensional and a discrete part; actions counted from 5, or a
    matrix of torques, with a bound for each and for one of them none."""

    observation_space = gym.spaces.Dict(
        {"grid": gym.spaces.Box(-1, 1, (2, 3)), "mode": gym.spaces.Discrete(4)}
    )

    def __init__(self, render_mode=None):
        super().__init__()
        self.action_space = gym.spaces.Discrete(2, start=5)
        if os.environ.get("ACTIONS") == "box":
            low = np.array([[-0.1, -0.2], [0.3, -np.inf]], np.float32)
            high = np.array([[0.1, 0.4], [0.5, np.inf]], np.float32)
            self.action_space = gym.spaces.Box(low, high)

    def observe(self):
        return {"grid": np.full((2, 3), 0.5, np.float32), "mode": 2}

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action)


class Sized(Ends):
    """Observations of changing size."""

    observation_space = gym.spaces.Sequence(gym.spaces.Discrete(2))


class Picture(Ends):
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Limit(Ends):
    """Pays 1 a step; a time limit ends each episode after three."""

    def __init__(self, render_mode=None):
        super().__init__(lengths=(10**9, 10**9))

    def step(self, action):
        obs, _, _, _, info = super().step(action)
        return obs, 1.0, False, self.t == 3, info


class Bound(gym.Env):
    """Pays the torque that was applied: the best is its bound."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-0.5, 0.5, (1,))

    def __init__(self, render_mode=None):
        pass

    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action[0]), True, False, {}


gym.register("Ends-v0", Ends)
gym.register("Long-v0", Ends, kwargs={"lengths": (1000, 1000)})
gym.register("Cut-v0", Ends, kwargs={"lengths": (4, 4)}, max_episode_steps=3)
gym.register("Reused-v0", Reused)
gym.register("Shapes-v0", Shapes)
gym.register("Sized-v0", Sized)
gym.register("Picture-v0", Picture)
gym.register("Limit-v0", Limit)
gym.register("Bound-v0", Bound)
for kind in ("constant", "delayed", "action", "observed", "endless"):
    gym.register(f"Probe-{kind}-v0", Probe, kwargs={"kind": kind})
for kind in ("reward", "obs"):
    gym.register(f"Broken-{kind}-v0", Broken, kwargs={"kind": kind})
gym.register("Forever-v0", Ends, kwargs={"lengths": (10**9, 10**9)})
