"""Real games: the preprocessing against the official description, libraries beside it, processes,
devices."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from harness import QUICK, ROOT, load
from test_details import torchrun
from test_run import checkpoint, scalars, start, wait_for_plan

ALL_FRAMES = {"frameskip": 1, "repeat_action_probability": 0.0}


class Official:
    """What openai/baselines (ea25b9e) makes of a console, in one piece and frame by frame; as in
    the script, the two frames are cleared at a reset and a game that ends in a reset is reset."""

    def __init__(self, env_id: str):
        self.console = gym.make(env_id, **ALL_FRAMES)
        self.fire = "FIRE" in self.console.unwrapped.get_action_meanings()
        self.over = True

    def press(self, action: int) -> tuple[np.ndarray, float, bool]:
        """Four frames: the picture of the last two, the points, whether life or game ended."""
        points = 0.0
        for number in range(1, 5):
            frame, reward, terminated, truncated, _ = self.console.step(action)
            points += reward
            if number == 3:
                self.third = frame
            if number == 4:
                self.fourth = frame
            if terminated or truncated:
                break
        self.score, self.over = self.score + points, terminated or truncated
        now = self.console.unwrapped.ale.lives()
        lost, self.lives = 0 < now < self.lives, now
        return np.where(self.third > self.fourth, self.third, self.fourth), points, lost

    def new_game(self, seed: int | None) -> np.ndarray:
        frame, _ = self.console.reset(seed=seed)
        for _ in range(self.console.unwrapped.np_random.integers(1, 31)):
            frame, _, terminated, truncated, _ = self.console.step(0)
            if terminated or truncated:
                frame, _ = self.console.reset()
        self.third = self.fourth = np.zeros_like(frame)
        self.score, self.over = 0.0, False
        self.lives = self.console.unwrapped.ale.lives()
        return frame

    def next_life(self, seed: int | None = None) -> np.ndarray:
        if self.over:
            return self.new_game(seed)
        picture, _, _ = self.press(0)
        return self.new_game(None) if self.over else picture

    def reset(self, seed: int | None = None) -> np.ndarray:
        picture = self.next_life(seed)
        for action in (1, 2) if self.fire else ():
            picture, _, lost = self.press(action)
            if lost or self.over:
                picture = self.next_life()
        self.seen = [np.zeros((84, 84), np.uint8)] * 3 + [self.shrink(picture)]
        return np.array(self.seen)

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        picture, points, lost = self.press(action)
        self.seen = [*self.seen[1:], self.shrink(picture)]
        return np.array(self.seen), float(np.sign(points)), lost or self.over

    def shrink(self, picture: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("game", "env_id"),
    [
        ("Breakout", "BreakoutNoFrameskip-v4"),
        ("Breakout", "ALE/Breakout-v5"),
        ("Pong", "PongNoFrameskip-v4"),
        ("BeamRider", "BeamRiderNoFrameskip-v4"),
    ],
)
def test_every_frame_is_what_the_official_code_makes_of_it(game, env_id):
    ppo = load("ppo_atari.py")
    env = ppo.make_env(ppo.Args(env_id=env_id))
    official, rng = Official(f"{game}NoFrameskip-v4"), np.random.default_rng(0)
    np.testing.assert_array_equal(env.reset(seed=5)[0], official.reset(seed=5))
    ends, games, points = 0, 0, 0
    while games < 1 or points == 0:  # whole games of random actions
        action = int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, info = env.step(action)
        expected, sign, over = official.step(action)
        np.testing.assert_array_equal(obs, expected)
        assert (reward, terminated or truncated) == (sign, over)
        assert ("episode" in info) == official.over
        points += reward
        if over:
            ends += 1
            if official.over:
                games += 1
                assert info["episode"]["r"] == official.score
            np.testing.assert_array_equal(env.reset()[0], official.reset())
    assert (ends > games) == (game != "Pong")  # which has no lives


def test_what_libraries_do_today():
    """The differences that docs/ppo_atari.md tells of, in the installed versions."""
    blue = np.zeros((210, 160, 3), np.uint8)
    blue[..., 2] = 255

    class Still(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)
        action_space = gym.spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            return blue, {}

    assert gym.wrappers.GrayscaleObservation(Still()).reset()[0].max() == 18  # OpenCV: 29
    stack = gym.wrappers.FrameStackObservation(Still(), 4).reset()[0]
    assert (stack == blue).all()  # the first frame four times, not zeros

    env = gym.make("BreakoutNoFrameskip-v4")
    env = gym.wrappers.AtariPreprocessing(env, terminal_on_life_loss=True)
    env.reset(seed=1)
    for step in range(1000):
        _, _, terminated, _, info = env.step(step % 20 == 0)
        if terminated:
            break
    assert terminated and info["lives"] == 4
    assert env.reset()[1]["lives"] == 5  # a new game, where the official code plays on

    envs = AtariVectorEnv("breakout", num_envs=1, episodic_life=True)
    envs.reset(seed=1)
    for step in range(1000):
        *_, info = previous = envs.step(np.array([int(step % 20 == 0)]))
        if previous[2][0]:
            break
    assert info["lives"][0] == 4
    assert envs.step(np.array([0]))[-1]["lives"][0] == 5

    console, differ = gym.make("PongNoFrameskip-v4"), 0
    console.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(120):
        action = int(rng.integers(6))
        third, fourth = [console.step(action)[0] for _ in range(4)][2:]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (third, fourth)]
        both = cv2.cvtColor(np.maximum(third, fourth), cv2.COLOR_RGB2GRAY)
        differ += (both != np.maximum(*grey)).any()
    assert differ > 60  # the maximum of greys is not the grey of the maximum

    assert gym.spec("ALE/Pong-v5").kwargs["frameskip"] == 4
    assert gym.spec("ALE/Pong-v5").kwargs["repeat_action_probability"] == 0.25


TWO = [*QUICK["ppo_atari.py"], "--eval-episodes", "0"]


def ranks_of(process) -> dict[int, int]:
    """Process ids of the ranks that a torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for pid in children:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if match := re.fullmatch(rb"RANK=(\d+)", variable):
                found[int(match[1])] = int(pid)
    return found


def start_two(steps: int):
    process = start(*torchrun(ROOT / "ppo_atari.py", *TWO, "--total-timesteps", steps)[1:])
    return process, wait_for_plan(process)


def test_a_signal_to_one_rank_stops_both_and_the_run_resumes():
    process, folder = start_two(64 * 1000)
    ranks = ranks_of(process)
    time.sleep(2)
    os.kill(ranks[1], signal.SIGTERM)
    process.communicate(timeout=60)
    stopped = checkpoint(folder)["iteration"]
    assert 0 < stopped < 1000
    one = [sys.executable, ROOT / "ppo_atari.py", "--resume", folder]
    done = subprocess.run(one, capture_output=True, text=True)
    assert done.returncode == 2
    assert "was trained by 2 processes: use torchrun --nproc-per-node 2" in done.stderr
    saved = checkpoint(folder)
    saved["args"]["total_timesteps"] = 64 * (stopped + 2)
    torch.save(saved, folder / "checkpoint.pt")
    two = torchrun(ROOT / "ppo_atari.py", "--resume", folder, "--eval-episodes", "0")
    subprocess.run(two, check=True, capture_output=True)
    assert checkpoint(folder)["iteration"] == stopped + 2
    steps = [step for step, _ in scalars(folder)["losses/value_loss"]]
    assert steps == [64 * (i + 1) for i in range(stopped + 2)]


def test_a_dead_rank_ends_the_job():
    process, folder = start_two(64 * 1000)
    ranks = ranks_of(process)
    assert set(ranks) == {0, 1}
    time.sleep(1)
    os.kill(ranks[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not Path(f"/proc/{ranks[0]}").exists()
    assert checkpoint(folder)["iteration"] < 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_computes_what_the_cpu_does():
    ppo = load("ppo_atari.py")
    folder = ppo.main([*TWO, "--total-timesteps", "64"])["folder"]
    agent = ppo.Agent(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(4))
    agent.load_state_dict(checkpoint(folder)["agent"])
    obs = torch.randint(0, 256, (64, 4, 84, 84), dtype=torch.uint8)
    here = [agent.policy(obs).logp, agent.value(obs)]
    there = agent.cuda().policy(obs.cuda()).logp, agent.value(obs.cuda())
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a.detach(), b.detach().cpu(), atol=1e-4)
    errors = [value for _, value in scalars(folder)["debug/first_ratio_error"]]
    assert max(errors) < 1e-3


def test_ale_is_the_version_that_was_read():
    assert ale_py.__version__.startswith("0.12.1")
