"""Environments whose right answer is known, and which write down what is done to them.

Made through the registry as `known_envs:Name-v0`, as a user's own environment is. Their actions are
of the kind that the environment variable ACTIONS names, so that every script can play them:
"discrete" (one of 3), "several" (one of 3 and one of 2, of which the first counts) or "box" (2
numbers from -1 to 1, of which the first chooses by its sign).
"atari" makes each a game console: discrete actions, and pictures in which the observation stands.
"""

import os
from functools import cache, partial

import gymnasium as gym
import numpy as np

# In order: ("reset", env, seed), ("step", env, episode, t, action, reward, terminated, truncated).
LOG: list[tuple] = []
COUNT = [0]  # envs made so far


def action_space(n: int, bound: float = 1) -> gym.Space:
    """n choices, the same and two more, or two torques."""
    if os.environ.get("ACTIONS") == "box":
        return gym.spaces.Box(-bound, bound, (2,))
    if os.environ.get("ACTIONS") == "several":
        return gym.spaces.MultiDiscrete([n, 2])
    return gym.spaces.Discrete(n)


def chosen(action) -> int:
    """Which of two choices an action is, or its first component."""
    return int(action[0] > 0) if np.ndim(action) else int(action)


class Ends(gym.Env):
    """Observation (env, episode, t) / 10; episodes end after 5 steps, and after 7 by a time limit.

    Rewards are a fixed function of episode and t. Even episodes terminate, odd ones are truncated.
    Torques have no bounds, unless one is given.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, lengths=(5, 7), bound=np.inf, render_mode=None):
        self.action_space = action_space(3, bound)
        self.lengths, self.number, self.episode = lengths, COUNT[0], -1
        COUNT[0] += 1

    def observe(self):
        return np.array([self.number, self.episode, self.t]) / 10

    def reset(self, seed=None, options=None):
        LOG.append(("reset", self.number, seed))
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        reward = np.sin(3.0 * self.episode + self.t)
        over, odd = self.t + 1 >= self.lengths[self.episode % 2], self.episode % 2 == 1
        row = (np.array(action).tolist(), reward, over and not odd, over and odd)
        LOG.append(("step", self.number, self.episode, self.t, *row))
        self.t += 1
        return self.observe(), *row[1:], {}


class Staggered(Ends):
    """Odd environments end first after 7 steps: no two neighbours end together."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.lengths = self.lengths[:: 1 - 2 * (self.number % 2)]


class Reused(Ends):
    """Ends, but all observations are one array that each step overwrites, as some simulators do."""

    def observe(self):
        if not hasattr(self, "buffer"):
            self.buffer = np.zeros(3)
        self.buffer[:] = super().observe()
        return self.buffer


class Scarce(Ends):
    """Ends, of which four may be open at a time, as if each held a licence."""

    held = 0

    def __init__(self):
        super().__init__()
        Scarce.held += 1
        if Scarce.held > 4:
            raise OSError("no licence left")

    def close(self):
        Scarce.held -= 1


class Flat(Ends):
    """Ends, but all that is seen and earned is 0."""

    def observe(self):
        return np.zeros(3)

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, 0.0, *rest


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
    """A Dict observation with an n-dimensional and a discrete part; actions counted from 5, a
    matrix of choices that each count from somewhere, or a matrix of torques, with a bound for each
    and for one of them none."""

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
        if os.environ.get("ACTIONS") == "several":
            counts, first = [[2, 3], [4, 2]], [[5, 0], [-1, 1]]
            self.action_space = gym.spaces.MultiDiscrete(counts, np.int32, start=first)

    def observe(self):
        return {"grid": np.full((2, 3), 0.5, np.float32), "mode": 2}

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action)


class Tuples(Ends):
    """Actions of a kind that no script plays."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.action_space = gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Box(-1, 1)])


class Unbounded(Ends):
    """Torques without bounds."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (2,))


class Masked(Ends):
    """Ends, whose info says which choices are valid, of one component or (`pair`) of two; nothing
    is valid in the last state of an episode, and every fourth state comes without a mask. `stuck`:
    nothing is valid after the second step; `short`: one flag for all."""

    def __init__(self, kind="one", render_mode=None):
        super().__init__()
        self.kind = kind
        self.action_space = gym.spaces.Discrete(5)
        if kind == "pair":
            self.action_space = gym.spaces.MultiDiscrete([4, 3])

    def info(self, over=False):
        self.mask = valid_choices(self.episode, self.t, self.kind)
        if over or (self.kind == "stuck" and self.t == 2):
            self.mask = [np.zeros_like(part) for part in self.mask]
        if self.t % 4 == 3 and not over:
            self.mask = [np.ones_like(part) for part in self.mask]
            return {} if self.episode % 2 else {"action_mask": None}
        if self.kind == "short":
            return {"action_mask": self.mask[0][:1]}  # NumPy would spread it over all choices
        return {"action_mask": tuple(self.mask) if self.kind == "pair" else self.mask[0]}

    def reset(self, seed=None, options=None):
        return super().reset(seed=seed)[0], self.info()

    def step(self, action):
        for part, choice in zip(self.mask, np.ravel(action), strict=True):
            assert part[choice], "an invalid action was taken"
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, self.info(terminated or truncated)


def valid_choices(episode: int, t: int, kind: str) -> list[np.ndarray]:
    """For each component a flag for each choice; the last choice is never valid, one always is."""
    masks = []
    for n in (4, 3) if kind == "pair" else (5,):
        mask = (np.arange(n) + episode + t) % 2
        mask[[t % (n - 1), n - 1]] = 1, 0
        masks.append(mask.astype(np.int8))
    return masks


class Infos(Ends):
    """Infos as users write them: other keys, types and shapes at every step."""

    def step(self, action):
        *outcome, _ = super().step(action)
        odd = [{}, {"x": 1}, {"x": np.zeros(self.t)}, {"x": "text", "y": None}, {"x": {"z": [1]}}]
        return *outcome, odd[self.t % 5]


class Bare(Ends):
    """An environment that can't be drawn, and takes no render_mode."""

    def __init__(self):
        super().__init__()


class Lookup(Ends):
    """Its actions are the keys of a dict."""

    def step(self, action):
        return super().step({0: 0, 1: 1, 2: 2}[action])


class Old(Ends):
    """The step of an old Gym: four results."""

    def step(self, action):
        return super().step(action)[:4]


class Moving(Ends):
    """Changes the working directory, for files of its own."""

    def reset(self, seed=None, options=None):
        if os.path.basename(os.getcwd()) != "elsewhere":
            os.makedirs("elsewhere", exist_ok=True)
            home, _ = os.getcwd(), os.chdir("elsewhere")
            os.environ["HOME_OF_MOVING"] = home
        return super().reset(seed, options)


class Recall(gym.Env):
    """The first of three observations says which action earns 1 in the last; the others are 0."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.action_space = action_space(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.sign = 0, self.np_random.choice([-1.0, 1.0])
        return np.array([self.sign], np.float32), {}

    def step(self, action):
        self.t += 1
        reward = float(self.t == 3 and chosen(action) == int(self.sign > 0))
        return np.zeros(1, np.float32), reward, self.t == 3, False, {}


class Sized(Ends):
    """Observations of changing size."""

    console = False
    observation_space = gym.spaces.Sequence(gym.spaces.Discrete(2))


class Picture(Ends):
    console = False
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def observe(self):
        return np.zeros((8, 8, 3), np.uint8)


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


class Lives(Ends):
    """A console without much of a picture: frame t of a game is lit at pixel t alone. After frame t
    there are lives[t] lives left; a game ends with the frame after the last of them, or is cut off
    there by a time limit. Every frame earns `pay`."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    console = False
    observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)

    def __init__(self, lives, meanings="NOOP FIRE RIGHT", pay=3.0, cut=False, render_mode=None):
        super().__init__()
        self.lives, self.meanings = lives, meanings.split()
        self.pay, self.cut = pay, cut

    def get_action_meanings(self):
        return self.meanings

    def observe(self):
        frame = np.zeros((210 * 160, 3), np.uint8)
        frame[self.t] = 255
        return frame.reshape(210, 160, 3)

    def reset(self, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        obs, _ = super().reset(seed)
        return obs, {"lives": self.lives[0]}

    def step(self, action):
        LOG.append(("step", self.number, self.episode, self.t, int(action)))
        self.t += 1
        over = self.t == len(self.lives)
        lives = 0 if over else self.lives[self.t]
        return self.observe(), self.pay, over and not self.cut, over and self.cut, {"lives": lives}


class Console(gym.Env):
    """Another environment as a console: its observation stands in the first pixels."""

    observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)

    def __init__(self, env):
        self.env, self.action_space = env, env.action_space

    def get_action_meanings(self):
        return ["NOOP", "RIGHT", "LEFT"]

    def picture(self, obs):
        frame = np.zeros(self.observation_space.shape, np.uint8)
        frame[0, : len(obs)] = np.rint(obs * 10).astype(int)[:, None] % 256
        return frame

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.picture(self.env.reset(seed=seed)[0]), {"lives": 0}

    def step(self, action):
        obs, *rest, info = self.env.step(action)
        return self.picture(obs), *rest, info | {"lives": 0}


@cache
def noise(*numbers: int) -> np.ndarray:
    """A picture like no other, of which these numbers are the first pixels of the newest frame."""
    frames = np.random.default_rng(numbers).integers(0, 256, (4, 84, 84), np.uint8)
    frames[3, 0, :3] = numbers
    return frames


def pictures(obs: np.ndarray) -> np.ndarray:
    """Of observations (..., 3) of Ends: stacks of frames (..., 4, 84, 84)."""
    rows = np.rint(obs * 10).astype(int).reshape(-1, 3)
    return np.array([noise(*row) for row in rows.tolist()]).reshape(*obs.shape[:-1], 4, 84, 84)


def numbers(pictures: np.ndarray) -> np.ndarray:
    """The other way round."""
    return pictures[..., 3, 0, :3].astype(np.float32) / 10


class Seen(gym.Wrapper):
    """A console without preprocessing: what stands in its pictures, as the network wants it."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)

    def __init__(self, env):
        super().__init__(gym.wrappers.RecordEpisodeStatistics(env))

    def look(self, frame):
        return noise(*frame[0, :3, 0].tolist())

    def reset(self, seed=None, options=None):
        frame, info = self.env.reset(seed=seed)
        self.game_over = False
        return self.look(frame), info

    def step(self, action):
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.game_over = terminated or truncated
        return self.look(frame), reward, terminated, truncated, info


class Glimpse(Seen):
    """What stands in its pictures, and no more: (3, 1, 1)."""

    observation_space = gym.spaces.Box(0, 255, (3, 1, 1), np.uint8)

    def look(self, frame):
        return frame[0, :3, :1, None].copy()


def make(cls, frameskip=None, repeat_action_probability=None, **kwargs):
    env = cls(**kwargs)
    consoles = os.environ.get("ACTIONS") == "atari" and getattr(cls, "console", True)
    return Console(env) if consoles else env


def register(name, cls, **options):
    gym.register(name, partial(make, cls), **options)


# Lives by frame: two lost, one won and lost again, and frames that are played at 0 lives.
LIVES = [3] * 6 + [2] * 17 + [3] * 8 + [2] * 21 + [1] * 20 + [0] * 9
ENDLESS = [0] * 30_000
NO_FIRE = "NOOP RIGHT LEFT"
register("Lives-v0", Lives, kwargs={"lives": LIVES, "meanings": NO_FIRE})
register("Fire-v0", Lives, kwargs={"lives": [3] * 20 + LIVES[6:]})
register("Fatal-v0", Lives, kwargs={"lives": [3] * 3 + [2] * 60})  # the first FIRE costs a life
register("Quiet-v0", Lives, kwargs={"lives": ENDLESS, "meanings": NO_FIRE})
register("Short-v0", Lives, kwargs={"lives": [0] * 10, "meanings": NO_FIRE})
register("Loss-v0", Lives, kwargs={"lives": ENDLESS, "meanings": NO_FIRE, "pay": -0.1})
register("Limited-v0", Lives, kwargs={"lives": [0] * 30, "meanings": NO_FIRE, "cut": True})
register("Ends-v0", Ends)
register("Long-v0", Ends, kwargs={"lengths": (1000, 1000)})
register("Both-v0", Ends, kwargs={"lengths": (3, 3)}, max_episode_steps=3)
register("Torque-v0", Ends, kwargs={"bound": 1})
register("Reused-v0", Reused)
register("Staggered-v0", Staggered)
register("Shapes-v0", Shapes)
register("Sized-v0", Sized)
register("Tuples-v0", Tuples)
register("Recall-v0", Recall)
register("Unbounded-v0", Unbounded)
for kind in ("one", "pair", "stuck", "short"):
    register(f"Masked-{kind}-v0", Masked, kwargs={"kind": kind})
register("Picture-v0", Picture)
register("Limit-v0", Limit)
register("Bound-v0", Bound)
for kind in ("constant", "delayed", "action", "observed", "endless"):
    register(f"Probe-{kind}-v0", Probe, kwargs={"kind": kind})
for kind in ("reward", "obs"):
    register(f"Broken-{kind}-v0", Broken, kwargs={"kind": kind})
for cls in (Infos, Bare, Lookup, Old, Moving, Scarce):
    register(f"{cls.__name__}-v0", cls)
register("Forever-v0", Ends, kwargs={"lengths": (10**9, 10**9)})
register("Flat-v0", Flat)
