"""PPO for Atari games in one file: ppo.py, the nine Atari details, and training in parallel.

    python ppo_atari.py                                       Breakout, ten million steps, hours
    python ppo_atari.py --env-id PongNoFrameskip-v4           any Atari game
    python ppo_atari.py --help                                all settings
    torchrun --nproc-per-node 2 ppo_atari.py --num-envs 4     two processes, one agent

What differs from ppo.py: wrappers that turn the console's pictures into what the network sees, one
convolutional network with two heads, values that come with the actions, and gradients averaged over
processes. For the agent an episode is one life and a reward is only its sign; log and evaluation
show whole games in the game's own points.

THE LESSON is all of PPO, to be read from top to bottom. THE RUN (checks, log, checkpoint,
evaluation, command line) follows it; the lesson can be understood without it.

`# [core-07] Title` marks an implementation detail; it covers the lines below it up to the next
blank line or dedent, or the whole function or class. docs/ppo_atari.md explains the details of this
file, docs/ppo.md all others, and shows what breaks without them. "Source" is a file of
openai/baselines at commit ea25b9e, the official PPO ("ppo2"); DEVIATION says where this file
differs from it.

Shapes: T num_steps, N num_envs, B = T * N rows of a process's batch, M rows of a minibatch; D the
shape (4, 84, 84) of an observation, four frames. Row t of every array of the rollout belongs to
step t.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ale-py==0.12.1",
#     "gymnasium==1.4.0",
#     "moviepy==2.2.1",
#     "numpy==2.4.6",
#     "opencv-python-headless==5.0.0.93",
#     "tensorboard==2.21.0",
#     "torch==2.13.0",
#     "tqdm==4.70.1",
#     "tyro==1.0.17",
# ]
# ///

import json
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGTERM, signal
from warnings import filterwarnings

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import distributed, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = "ppo_atari"  # names run folders and guards checkpoints
ACTION_SPACES = (gym.spaces.Discrete,)  # what the policy below can act in

# [atari-02 1/5] Frame skip with a maximum over two frames
# ALE/*-v5 would skip frames by itself and repeat actions at random: both off, for all ids.
GAME = {"frameskip": 1, "repeat_action_probability": 0.0}
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner at each start
cv2.setNumThreads(1)  # pictures this small gain nothing from a second core

# [aux-02 1/18] Parallel gradient update
# `torchrun --nproc-per-node 2 ppo_atari.py` runs this file twice, and says by these who is who.
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

# =================================== THE LESSON: all of PPO ===================================


@dataclass
class Args:
    """PPO for Atari games. Defaults are the official ones; CleanRL's ppo_atari.py has the same."""

    env_id: str = "BreakoutNoFrameskip-v4"  # GameNoFrameskip-v4 or ALE/Game-v5, which play the same
    seed: int = 1  # same seed, machine and versions on a CPU: bit-identical weights
    total_timesteps: int = 10_000_000  # steps (of 4 frames) of all envs and processes together
    num_envs: int = 8  # N, environments stepped side by side, in each process
    num_steps: int = 128  # T, steps in each environment between two updates
    async_envs: bool = False  # a worker process for each environment: faster with many cores
    cuda: bool = True  # train on a GPU if there is one
    bf16: bool = False  # compute the network in bfloat16: faster where the hardware has it

    learning_rate: float = 2.5e-4  # Adam's step size in the first update
    anneal_lr: bool = True  # lower the learning rate linearly over the run
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # GAE: 0 trusts the value function (bias), 1 the rewards (variance)
    bootstrap_truncation: bool = True  # a state cut off by a time limit keeps its value
    num_minibatches: int = 4  # equal parts of a batch, one gradient step each
    update_epochs: int = 4  # passes over a batch
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.1  # epsilon: how far the ratio may move from 1 before its gradient is 0
    anneal_clip: bool = False  # lower epsilon linearly over the run
    clip_vloss: bool = True  # clip the value loss too, by the same epsilon
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest gradient norm, over all parameters together
    target_kl: float | None = None  # end an update after an epoch that ends above this KL

    eval_episodes: int = 10  # games played after training, sampled and again greedy; 0: none
    capture_video: bool = False  # film 1,000 steps of each evaluation, into the run folder
    checkpoint_every: float = 10.0  # seconds between checkpoints, and between writes of the log
    resume: str | None = None  # run folder to continue, with its settings
    evaluate: str | None = None  # run folder whose agent plays, without training

    # [aux-02 2/18] Parallel gradient update
    # A batch is that of all processes; a gradient step averages over one minibatch of each.
    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps * PROCESSES

    # [aux-02 3/18] Parallel gradient update
    @property
    def minibatch_size(self) -> int:
        return self.num_envs * self.num_steps // self.num_minibatches

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.batch_size


# ---------------------------------------- Environment ----------------------------------------


# [atari-01 1/2] No-op reset
# Every game would start in the same frame: a policy could learn one sequence by heart.
# Source: common/atari_wrappers.py#L12-L39.
class NoopReset(gym.Wrapper):
    """Starts a game with 1 to 30 raw frames in which nothing is pressed."""

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        for _ in range(self.unwrapped.np_random.integers(1, 31)):
            obs, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                obs, info = self.env.reset()
        return obs, info


# [atari-02 2/5] Frame skip with a maximum over two frames
# The console draws some sprites in every other frame only: the maximum of two holds them all.
# Source: common/atari_wrappers.py#L97-L123.
# DEVIATION: the two frames are cleared at a reset, where the official code keeps the last game's.
class MaxAndSkip(gym.Wrapper):
    """Repeats an action for 4 raw frames: rewards summed, pixels the maximum of the last two.

    Where a game ends sooner, frames that were not reached are those of the step before.
    """

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.last_two = [np.zeros_like(obs), np.zeros_like(obs)]
        return obs, info

    def step(self, action):
        total = 0.0
        for i in range(4):
            obs, reward, terminated, truncated, info = self.env.step(action)
            if i >= 2:
                self.last_two[i - 2] = obs
            total += reward
            if terminated or truncated:
                break
        return np.maximum(*self.last_two), total, terminated, truncated, info


# [atari-03 1/4] A lost life ends the episode, not the game
# A death is bad at once, not only when the game ends. The reset after it goes on with the game, so
# that late scenes are seen. Contested: Machado et al. 2018 advise against it.
# Source: common/atari_wrappers.py#L61-L95. DEVIATION: a game that ends in that no-op is reset.
class EpisodicLife(gym.Wrapper):
    """Reports a lost life as the end of an episode; only resets a game that is over."""

    game_over = True

    def reset(self, *, seed=None, options=None):
        if self.game_over or seed is not None:
            obs, info = self.env.reset(seed=seed, options=options)
        else:
            obs, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                obs, info = self.env.reset()
        self.game_over, self.lives = False, info["lives"]
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.game_over = terminated or truncated
        lost = 0 < info["lives"] < self.lives  # at 0 lives some games play on for a few frames
        self.lives = info["lives"]
        return obs, reward, terminated or lost, truncated, info


# [atari-04 1/2] FIRE after a reset
# Some games wait for FIRE to begin and, as Breakout, to go on after each lost life: an agent would
# have to find that out first. Source: common/atari_wrappers.py#L41-L59.
class FireReset(gym.Wrapper):
    """Presses FIRE and then the action after it, 4 frames each, at every reset."""

    def reset(self, **kwargs):
        self.env.reset(**kwargs)
        for action in (1, 2):
            obs, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                obs, info = self.env.reset()
        return obs, info


# [atari-05 1/2] Grey frames of 84 x 84
# A fourteenth of the numbers, with what matters still visible. INTER_AREA averages what it merges,
# so that a ball of two pixels does not vanish. Source: common/atari_wrappers.py#L134-L185.
class WarpFrame(gym.ObservationWrapper):
    """RGB (210, 160, 3) -> grey (84, 84), both uint8."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)

    def observation(self, frame):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA)


# [atari-07 1/2] Frame stack
# One picture shows where the ball is, four show where it goes. What was before the reset is black,
# after a lost life too. Source: common/vec_env/vec_frame_stack.py#L6-L30.
class FrameStack(gym.Wrapper):
    """The last 4 frames (4, 84, 84), oldest first; zeros where there are none yet."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)

    def push(self, frame):
        self.frames = np.concatenate([self.frames[1:], frame[None]])
        return self.frames

    def reset(self, **kwargs):
        frame, info = self.env.reset(**kwargs)
        self.frames = np.zeros((4, 84, 84), np.uint8)
        return self.push(frame), info

    def step(self, action):
        frame, *rest = self.env.step(action)
        return self.push(frame), *rest


def make_env(args: Args, video: Path | None = None) -> gym.Env:
    """One environment: observation (D,), actions as the policy's; `video`: folder for a film."""
    # [atari-02 3/5] Frame skip with a maximum over two frames
    env = gym.make(args.env_id, render_mode="rgb_array" if video else None, **GAME)

    # [atari-01 2/2] No-op reset
    env = NoopReset(env)  # before the skip: no-ops are raw frames

    # [atari-02 4/5] Frame skip with a maximum over two frames
    env = MaxAndSkip(env)  # from here on a step is 4 frames, of which there are 60 a second
    if video:
        film = {"video_length": 1000, "disable_logger": True, "fps": 15}
        env = gym.wrappers.RecordVideo(env, video, lambda game: game == 0, **film)

    # [atari-03 2/4] A lost life ends the episode, not the game
    # Scores are kept before lives and signs come in: of whole games, in the game's own points.
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = EpisodicLife(env)

    # [atari-04 2/2] FIRE after a reset
    if "FIRE" in env.unwrapped.get_action_meanings():  # then it is action 1
        env = FireReset(env)  # outside EpisodicLife: after every lost life, too

    # [atari-05 2/2] Grey frames of 84 x 84
    env = WarpFrame(env)  # after the maximum: that of grey frames would be another

    # [atari-06 1/3] Reward clipping to the sign
    # One learning rate and one value scale for all games; 10 points count as 1. It is the sign of 4
    # frames' sum, so a step can't earn 4. Source: common/atari_wrappers.py#L125-L131.
    env = gym.wrappers.TransformReward(env, np.sign)

    # [atari-07 2/2] Frame stack
    return FrameStack(env)


def make_envs(args: Args, num_envs: int, video: Path | None = None) -> gym.vector.VectorEnv:
    """Envs stepped together: observations (num_envs, D), rewards (num_envs,)."""
    makers = [partial(make_env, args, None if i else video) for i in range(num_envs)]
    # [extra-02 1/2] Explicit reset (no autoreset)
    # Gymnasium's default spends a step on each reset: its action is ignored and its row teaches
    # nothing. Without autoreset, step() always returns the true successor.
    mode = gym.vector.AutoresetMode.DISABLED

    # [extra-06] Environments in worker processes
    # The same episodes, played on all cores. Ctrl-C reaches every process of a terminal: workers
    # ignore it, or the iteration that is to be finished would lose its environments.
    if args.async_envs and num_envs > 1:
        handler = signal(SIGINT, SIG_IGN)  # workers inherit it
        envs = gym.vector.AsyncVectorEnv(makers, copy=False, autoreset_mode=mode)
        signal(SIGINT, handler)
        return envs

    return gym.vector.SyncVectorEnv(makers, copy=False, autoreset_mode=mode)  # rows are the copy


# [extra-04] Env seeds that no two runs, ranks or phases share
# With seed, seed + 1, ... runs 1 and 2 share all envs but one: their scores aren't independent.
# Phases: 0 training envs, 1 evaluation envs, 2 torch in training, 3 torch in evaluation.
def spawn_seeds(seed: int, rank: int, iteration: int, phase: int, n: int) -> list[int]:
    """n seeds for process `rank` (0 if there is one) after `iteration` (0, or where it resumed)."""
    sequence = np.random.SeedSequence([seed, rank, iteration, phase])
    return [int(s) for s in sequence.generate_state(n, np.uint64)]


# ------------------------------------------ Network ------------------------------------------


# [core-02] Orthogonal initialization, zero biases
# Gain sqrt(2) in hidden layers; 0.01 for the policy head, so that at first it does about the same
# in every state; 1 for the value head. Source: a2c/utils.py#L20-L35, common/policies.py#L49-L63.
def layer_init(layer: nn.Linear, gain: float = 2**0.5) -> nn.Linear:
    """The same layer, its weight orthogonal times `gain` and its bias 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


# [atari-08 1/6] Shared Nature CNN
# Mnih et al. 2015. Seeing is learned once, for both heads.
# Source: common/models.py#L15-L26, common/policies.py#L156-L157.
class NatureCNN(nn.Module):
    """Three convolutions and a linear layer: frames (M, 4, 84, 84) uint8 -> features (M, 512)."""

    def __init__(self, frames: int):
        super().__init__()
        self.conv1 = layer_init(nn.Conv2d(frames, 32, 8, stride=4))  # 84 -> 20
        self.conv2 = layer_init(nn.Conv2d(32, 64, 4, stride=2))  # 20 -> 9
        self.conv3 = layer_init(nn.Conv2d(64, 64, 3, stride=1))  # 9 -> 7
        self.hidden = layer_init(nn.Linear(64 * 7 * 7, 512))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # [atari-09 1/2] Scaling of images to [0, 1]
        # Here and not in the environment: rows of the rollout stay uint8, a quarter of the memory.
        # channels_last makes convolutions on a CPU 1.5 times as fast. Source: common/models.py#L19.
        x = x.to(memory_format=torch.channels_last).float() / 255

        for layer in (self.conv1, self.conv2, self.conv3):
            x = layer(x).relu()
        return self.hidden(x.flatten(1)).relu()


class Categorical:
    """Distribution over actions from logits (..., actions); all its results are (...).

    As torch.distributions.Categorical, which takes six times as long to act on four rows.
    """

    def __init__(self, logits: torch.Tensor):
        self.logp = logits.log_softmax(-1)

    @property
    def mode(self) -> torch.Tensor:
        return self.logp.argmax(-1)

    def sample(self) -> torch.Tensor:
        # The exponential race: with E_i ~ Exp(1), argmax_i p_i / E_i picks i with probability p_i.
        return (self.logp.exp() / torch.empty_like(self.logp).exponential_()).argmax(-1)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        return self.logp.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        return -(self.logp.exp() * self.logp).sum(-1)


# [atari-08 2/6] Shared Nature CNN
# Both losses train the trunk; vf_coef sets how much the value's has to say in it.
class Agent(nn.Module):
    """One network with two heads: the policy (actor) and the value function (critic)."""

    bf16 = False  # not a parameter: every script makes its agent from the two spaces

    def __init__(self, obs_space: gym.Space, action_space: gym.Space):
        super().__init__()
        self.trunk = NatureCNN(obs_space.shape[0])
        self.actor = layer_init(nn.Linear(512, int(action_space.n)), 0.01)
        self.critic = layer_init(nn.Linear(512, 1), 1.0)

    def forward(self, obs: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """The distribution over actions and the value (M,) of each observation (M, 4, 84, 84)."""
        # [extra-07 1/4] The network in bfloat16
        # Its 8 bits are enough for features; weights, heads, losses and Adam keep float32.
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.trunk(obs)
        features = features.float()

        # Squeezed here, once: (M, 1) - (M,) would broadcast to an (M, M) loss without an error.
        return Categorical(self.actor(features)), self.critic(features).squeeze(-1)

    def policy(self, obs: torch.Tensor) -> Categorical:
        """The distribution over actions alone."""
        return self(obs)[0]

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """Expected discounted returns (M,) alone."""
        return self(obs)[1]


def flatten(agent: nn.Module) -> nn.Parameter:
    """One vector of which all parameters, and one (its grad) of which all gradients become views.

    Clipping and Adam then take one call each, not one for every tensor: the script 10% less time.
    """
    parameters = list(agent.parameters())
    weights = nn.Parameter(nn.utils.parameters_to_vector(parameters).detach())
    nn.utils.vector_to_parameters(weights.data, parameters)
    weights.grad = torch.zeros_like(weights)
    grads = weights.grad.split([parameter.numel() for parameter in parameters])
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.view_as(parameter)
    return weights


# [aux-02 4/18] Parallel gradient update
# As the official code does with MPI. Source: common/mpi_adam_optimizer.py#L11-L51.
def average(x: torch.Tensor) -> torch.Tensor:
    """x, overwritten by its mean over all processes; each of them must call this."""
    if PROCESSES > 1:
        distributed.all_reduce(x)
        x /= PROCESSES
    return x


# ---------------------------------- Advantages and losses ------------------------------------


# [core-05] Generalized Advantage Estimation
# delta looks one step ahead; gae adds the rest of the episode, fading by gamma * lambda a step.
# Source: ppo2/runner.py#L52-L65; Schulman et al. 2016, equation 16.
def compute_gae(rewards, values, next_values, dones, gamma: float, gae_lambda: float) -> np.ndarray:
    """Advantages (T, N) of T steps in N envs, from arrays (T, N).

    `next_values`: V of the states that were reached, 0 after an episode's true end. `dones`: True
    at the last step of an episode, however it ended; what comes after does not count for it.
    """
    deltas = rewards + gamma * next_values - values
    advantages, gae = np.zeros_like(deltas), 0.0
    for t in reversed(range(len(deltas))):  # in NumPy: torch would take four times as long
        advantages[t] = gae = deltas[t] + gamma * gae_lambda * ~dones[t] * gae
    return advantages


# [core-08] Clipped surrogate objective
# A ratio beyond 1 +- epsilon earns nothing more, so its gradient is 0; one that moved the wrong
# way is still pulled back. Source: ppo2/model.py#L77-L86.
def policy_loss(advantages, ratio, clip_coef: float) -> torch.Tensor:
    """Mean over rows (M,) of -min(ratio * advantage, clip(ratio, 1 +- epsilon) * advantage)."""
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return -torch.min(ratio * advantages, clipped * advantages).mean()


# [core-09] Value function loss clipping
# The larger of two errors: the new value's, and that of one kept within epsilon of the old value.
# Contested: two studies saw no gain, and epsilon is in units of return.
# Source: ppo2/model.py#L68-L75.
def value_loss(new_values, old_values, returns, clip_coef: float | None) -> torch.Tensor:
    """Half the mean squared error over rows (M,); `clip_coef` None: no clipping."""
    error = (new_values - returns) ** 2
    if clip_coef is not None:
        clipped = old_values + (new_values - old_values).clamp(-clip_coef, clip_coef)
        error = torch.max(error, (clipped - returns) ** 2)
    return 0.5 * error.mean()


def approx_kl(log_ratio: torch.Tensor) -> list[torch.Tensor]:
    """Estimates k1, k2, k3 of KL(old, new) from log(new / old) of sampled actions (Schulman 2020).

    k1 is unbiased but can be negative; k2 is what the official code logs; k3 is unbiased and >= 0.
    """
    return [-log_ratio.mean(), (log_ratio**2).mean() / 2, (log_ratio.exp() - 1 - log_ratio).mean()]


# ------------------------------------------ Training ------------------------------------------


def train(args: Args, folder: Path, checkpoint: dict | None = None) -> Agent:
    """Train an agent, or continue from a checkpoint; log and save into `folder`."""
    # --- 0. Setup
    # [aux-02 5/18] Parallel gradient update
    # Each process has its own envs and its own chance; on a machine with GPUs, its own GPU.
    device, local_rank = torch.device("cpu"), int(os.environ.get("LOCAL_RANK", 0))
    if args.cuda and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            fail("there are more processes than GPUs: start one for each GPU, or add --no-cuda")
        device = torch.device("cuda", local_rank)
        torch.backends.cudnn.allow_tf32 = False  # 10-bit products: another network than a CPU's
    first = checkpoint["iteration"] if checkpoint else 0
    torch.manual_seed(spawn_seeds(args.seed, rank=RANK, iteration=first, phase=2, n=1)[0])

    envs = make_envs(args, args.num_envs)
    agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)
    weights = flatten(agent)

    # [extra-07 2/4] The network in bfloat16
    agent.bf16 = args.bf16

    # [core-03] Adam's epsilon
    # 1e-5, where torch has 1e-8: tiny gradients take smaller steps. Source: ppo2/model.py#L100.
    # DEVIATION: TensorFlow adds it before bias correction: TensorFlow's early steps are smaller.
    optimizer = torch.optim.Adam([weights], lr=args.learning_rate, eps=1e-5, fused=True)

    # Row t: the agent saw obs[t] and took actions[t], which earned rewards[t] and led to
    # next_obs[t], the true successor even where an episode ended.
    shape, space = (args.num_steps, args.num_envs), envs.single_action_space  # (T, N)
    # [atari-09 2/2] Scaling of images to [0, 1]
    obs = np.zeros(shape + envs.single_observation_space.shape, np.uint8)

    next_obs = np.zeros_like(obs)
    actions = np.zeros(shape + space.shape, space.dtype)
    logprobs, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    terminated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
    # [atari-08 3/6] Shared Nature CNN
    values = np.zeros(shape, np.float32)  # of obs[t]

    # [aux-02 6/18] Parallel gradient update
    # All begin with the weights of rank 0, which alone shows and writes.
    run = (Follower if RANK else Run)(args, folder, agent, optimizer, checkpoint)
    if PROCESSES > 1:  # gradients may be on GPUs; what processes decide by never is
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        distributed.broadcast(weights.data, 0)

    # [core-01] Vectorized architecture
    # All envs are reset here, once. A rollout goes on where the last one stopped, in mid-episode:
    # T can be far shorter than an episode. Source: common/runners.py#L8-L14, ppo2/runner.py#L26.
    # [aux-02 7/18] Parallel gradient update
    env_seeds = spawn_seeds(args.seed, rank=RANK, iteration=first, phase=0, n=args.num_envs)
    current_obs, _ = envs.reset(seed=env_seeds)  # (N, D)

    for iteration in range(first + 1, args.num_iterations + 1):
        # --- 1. Annealing
        # [core-04] Adam learning rate annealing
        # Iterations count from 1: the last uses lr / num_iterations. Source: ppo2/ppo2.py#L133.
        remaining = 1 - (iteration - 1) / args.num_iterations
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = remaining * args.learning_rate

        # [aux-01] Clip range annealing
        # Off by default, as in the official code. Source: ppo2/ppo2.py#L136-L137.
        clip_coef = remaining * args.clip_coef if args.anneal_clip else args.clip_coef

        # --- 2. Rollout: T steps in N envs
        with torch.inference_mode():
            for t in range(args.num_steps):
                obs[t] = current_obs

                # [atari-08 4/6] Shared Nature CNN
                # The value costs nothing beside the policy: it comes with the action.
                dist, value = agent(torch.as_tensor(obs[t], device=device))
                values[t] = value.cpu().numpy()

                action = dist.sample()
                actions[t], logprobs[t] = action.cpu().numpy(), dist.log_prob(action).cpu().numpy()

                # [atari-06 2/3] Reward clipping to the sign
                # The agent learns from signs; the log shows the game's own points, when it is over.
                current_obs, rewards[t], terminated[t], truncated[t], infos = envs.step(actions[t])
                next_obs[t] = current_obs
                if "episode" in infos:
                    game = infos["episode"]
                    run.log_episodes(iteration, t, infos["_episode"], game["r"], game["l"])

                # [atari-03 3/4] A lost life ends the episode, not the game
                # EpisodicLife knows whether to start a new game or to go on with the next life.
                # [extra-02 2/2] Explicit reset (no autoreset)
                # A finished env restarts only here; its last state is kept in next_obs[t].
                done = terminated[t] | truncated[t]  # (N,)
                if done.any():
                    current_obs, _ = envs.reset(options={"reset_mask": done})

        # --- 3. Values and advantages, (T, N)
        # [atari-08 5/6] Shared Nature CNN
        # Row t led to the state of row t + 1, whose value is there; but where a time limit cut the
        # episode off, and in the last row, nobody acted on it. (True ends are set to 0 below.)
        next_values, unknown = np.roll(values, -1, axis=0), truncated.copy()
        unknown[-1] = True
        with torch.inference_mode():
            value = agent.value(torch.as_tensor(next_obs[unknown], device=device))
        next_values[unknown] = value.cpu().numpy()

        dones = terminated | truncated

        # [extra-01] Bootstrap at time limits
        # A time limit is not a failure: the state it cut off keeps its value, or good states near
        # the limit would look bad.
        # DEVIATION: the official code takes 0; --no-bootstrap-truncation does the same.
        next_values[terminated if args.bootstrap_truncation else dones] = 0

        advantages = compute_gae(rewards, values, next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values  # the value function's targets

        # --- 4. Update
        rollout = (obs, actions, logprobs, advantages, returns, values)
        batch = [torch.as_tensor(x, device=device).flatten(0, 1) for x in rollout]  # each (B, ...)
        log_ratios, losses = [], []
        for _ in range(args.update_epochs):
            # [core-06] Mini-batch updates
            # Shuffled anew each epoch, each row in one minibatch. Source: ppo2/ppo2.py#L157-L166.
            order = torch.randperm(len(batch[0]), device=device)
            for minibatch in zip(*(x[order].split(args.minibatch_size) for x in batch)):
                mb_obs, mb_actions, mb_logprobs, mb_advantages, mb_returns, mb_values = minibatch

                # [atari-08 6/6] Shared Nature CNN
                dist, new_values = agent(mb_obs)

                log_ratio = dist.log_prob(mb_actions) - mb_logprobs  # log(new / old), (M,)

                # [core-07] Advantage normalization, per minibatch
                # Frees the policy's steps from the rewards' scale. Source: ppo2/model.py#L136-L139.
                # DEVIATION: torch's std divides by M - 1, not by M (0.8% apart at M = 64).
                if args.norm_adv:
                    mb_advantages = mb_advantages - mb_advantages.mean()
                    mb_advantages = mb_advantages / (mb_advantages.std() + 1e-8)

                pg_loss = policy_loss(mb_advantages, log_ratio.exp(), clip_coef)
                value_clip = clip_coef if args.clip_vloss else None
                v_loss = value_loss(new_values, mb_values, mb_returns, value_clip)
                entropy = dist.entropy().mean()

                # [core-10] Overall loss and entropy bonus
                # One loss for policy and value; the bonus keeps the policy from committing itself
                # before it has tried what else there is. Source: ppo2/model.py#L91.
                loss = pg_loss - args.ent_coef * entropy + args.vf_coef * v_loss

                weights.grad.zero_()  # in place: optimizer.zero_grad() would drop the vector
                loss.backward()

                # [aux-02 8/18] Parallel gradient update
                # Before the clipping, which is then the same everywhere, as is Adam's step.
                average(weights.grad)

                # [core-11] Global gradient clipping
                # One norm over all parameters: only the length is cut, not the direction.
                # Source: ppo2/model.py#L102-L108.
                grad_norm = nn.utils.clip_grad_norm_(weights, args.max_grad_norm)

                optimizer.step()
                log_ratios.append(log_ratio.detach())  # no .item(): it would wait for a GPU
                losses.append(torch.stack([pg_loss, v_loss, entropy, grad_norm]).detach())

            # [aux-03] Early stopping on KL
            # After each epoch, by its last minibatch; off by default. The rule is CleanRL's, the
            # idea Spinning Up's; the official ppo2 has none.
            # [aux-02 9/18] Parallel gradient update
            if args.target_kl is not None:
                if average(approx_kl(log_ratios[-1])[2]) > args.target_kl:  # k3
                    break

        # --- 5. Log, check, save
        # [core-12] Debug variables
        # Means over all minibatches of all epochs: the last one alone is noise. Explained variance:
        # 1 is perfect, 0 no better than a constant. Source: ppo2/ppo2.py#L183-L210.
        pg_loss, v_loss, entropy, grad_norm = torch.stack(losses).mean(0).tolist()
        log_ratios = torch.stack(log_ratios)  # (gradient steps, M)
        kl_k1, kl_k2, kl_k3 = (kl.item() for kl in approx_kl(log_ratios))
        ratio_errors = (log_ratios.exp() - 1).abs()
        metrics = {
            "losses/policy_loss": pg_loss,
            "losses/value_loss": v_loss,
            "losses/entropy": entropy,
            "losses/old_approx_kl": kl_k1,
            "losses/approx_kl_k2": kl_k2,
            "losses/approx_kl": kl_k3,
            "losses/clipfrac": (ratio_errors > clip_coef).float().mean().item(),
            "losses/explained_variance": 1 - (returns - values).var() / max(returns.var(), 1e-8),
            "losses/grad_norm": grad_norm,
            "charts/learning_rate": optimizer.param_groups[0]["lr"],
            "debug/gradient_steps": len(losses),
            "debug/first_ratio_error": ratio_errors[0].max().item(),
        }

        # [aux-02 10/18] Parallel gradient update
        # Means are logged, and judged by: NaN in one process is NaN in all, so all stop or none.
        if PROCESSES > 1:
            mean = average(torch.tensor(list(metrics.values()), dtype=torch.float64))
            metrics = dict(zip(metrics, mean.tolist(), strict=True))
            first_rank = weights.detach().clone()
            distributed.broadcast(first_rank, 0)
            if average((weights.detach() - first_rank).abs().max()) > 0:
                run.abort("the weights of the processes differ: use equal machines and versions")

        # [extra-05] Self-check that the first minibatch's ratio is 1
        # Nothing is learned yet: acting and learning must agree on the probability of each action.
        # [extra-07 3/4] The network in bfloat16
        if (error := metrics["debug/first_ratio_error"]) > (1e-1 if args.bf16 else 1e-3):
            run.abort(f"first ratio off 1 by {error:.1g}: look for altered rows or dropout")

        arrays = {"observations": obs, "next observations": next_obs, "rewards": rewards}
        run.end_iteration(iteration, metrics, arrays)

    envs.close()

    # [aux-02 11/18] Parallel gradient update
    if PROCESSES > 1:
        distributed.destroy_process_group()
    if RANK:
        raise SystemExit  # rank 0 evaluates
    return agent


# =================== THE RUN: checks, log, checkpoint, evaluation, command line ===================

FREE = {"resume", "evaluate", "eval_episodes", "capture_video", "checkpoint_every"}  # on a resume
MAY_BE_0 = "seed gamma gae_lambda ent_coef vf_coef eval_episodes checkpoint_every".split()
HIGHEST = {"seed": 2**32 - 1, "gamma": 1, "gae_lambda": 1, "num_envs": 10**5, "num_steps": 10**6}


def fail(message: str, code: int = 2) -> None:
    """End the program with one sentence: what is wrong, and what to do."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)


def check(args: Args) -> None:
    """Refuse settings that can't work, before a file is written."""
    for name, value in vars(args).items():
        low, high = 1 if type(value) is int else 1e-12, HIGHEST.get(name, 1e12)
        low, flag = 0 if name in MAY_BE_0 else low, name.replace("_", "-")
        if type(value) in (int, float) and not low <= value <= high:  # NaN fails too
            fail(f"--{flag} {value} is out of range: give a number from {low} to {high}")
    rows = args.num_envs * args.num_steps
    if rows % args.num_minibatches or args.minibatch_size < 2:
        fail(f"--num-minibatches must cut {rows} rows (envs x steps) into parts of 2+")
    if args.num_iterations < 1:
        fail(f"--total-timesteps must be at least one rollout (envs x steps): {args.batch_size}")
    try:
        env = gym.make(args.env_id, render_mode="rgb_array" if args.capture_video else None)
        flat = gym.wrappers.FlattenObservation(env).observation_space
        if args.capture_video:  # it may be asked for on a machine that can't draw
            env.reset()
            env.render()
    except Exception as error:  # an environment may raise any
        fix = "leave out --capture-video" if args.capture_video else "check its name"
        fail(f"--env-id {args.env_id} can't be made, {fix} or install what it needs: {error!r}")
    if not isinstance(env.action_space, ACTION_SPACES):
        fits = "ppo.py Discrete, ppo_continuous.py Box, ppo_multidiscrete.py MultiDiscrete/Binary"
        fail(f"{SCRIPT}.py can't act in {env.action_space}: use the script that fits ({fits})")

    # [atari-02 5/5] Frame skip with a maximum over two frames
    game = hasattr(env.unwrapped, "get_action_meanings") and flat.dtype == np.uint8
    if not game or len(env.observation_space.shape) != 3:
        fail(f"{args.env_id} shows no Atari pictures: use the script that fits, such as ppo.py")
    own = {name: env.spec.kwargs.get(name, value) for name, value in GAME.items()}
    if own != GAME:
        print(f"{args.env_id} is made with {GAME}, not {own}: this script skips frames by itself")

    env.close()


def load(folder: Path) -> tuple[Args, dict]:
    """Settings and checkpoint of a run; the file holds tensors and plain types only."""
    path = folder / "checkpoint.pt"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["script"] != SCRIPT:
            fail(f"{path} is from {checkpoint['script']}.py: use that script")
        return Args(**checkpoint["args"]), checkpoint
    except Exception as error:  # a damaged file makes torch raise any of a dozen kinds
        fail(f"{path} is missing or damaged, give the folder of a run in runs/: {error!r:.200}")


class Run:
    """What a run shows and leaves behind: progress, log, checkpoint."""

    def __init__(self, args: Args, folder: Path, agent, optimizer, checkpoint: dict | None):
        self.args, self.folder, self.agent, self.optimizer = args, folder, agent, optimizer
        settings = vars(args) | {"resume": None, "evaluate": None}

        # [aux-02 12/18] Parallel gradient update
        new = {"script": SCRIPT, "iteration": 0, "returns": [], "processes": PROCESSES}

        self.state = (checkpoint or new) | {"args": settings}
        if checkpoint:
            agent.load_state_dict(checkpoint["agent"])
            optimizer.load_state_dict(checkpoint["optimizer"])
        self.first_step = self.state["iteration"] * args.batch_size
        self.started, self.stopping = time.time(), False
        self.log = []  # written together with the checkpoint, so that a resume repeats no step
        self.open(resumed=checkpoint is not None)
        signal(SIGINT, self.on_signal)
        signal(SIGTERM, self.on_signal)

    def open(self, resumed: bool) -> None:
        """Make the folder, the log and the first checkpoint; say what is going to happen."""
        args, folder = self.args, self.folder
        folder.mkdir(parents=True, exist_ok=resumed)
        (folder / "args.json").write_text(json.dumps(self.state["args"], indent=2))
        self.writer = SummaryWriter(folder, purge_step=self.first_step + 1)
        self.save()
        n, epochs, size = args.num_minibatches, args.update_epochs, args.batch_size

        # [aux-02 13/18] Parallel gradient update
        if PROCESSES > 1:
            print(f"{PROCESSES} processes", end=" x ")

        print(f"{args.num_envs} envs x {args.num_steps} steps = {size} rows", end=", ")
        print(f"{n} minibatches x {epochs} epochs = {n * epochs} gradient steps an iteration")
        parameters = list(self.agent.parameters())
        size, device = sum(p.numel() for p in parameters), parameters[0].device
        print(f"{args.num_iterations} iterations; {size:,} parameters on {device}; into {folder}")
        if resumed:
            print(f"on from step {self.first_step:,}; episodes that were in flight are lost")
        sys.stdout.flush()
        plain = "{n_fmt} of {total_fmt} steps, {elapsed}, {rate_fmt}{postfix}\n"  # no bar in a file
        style = {} if sys.stderr.isatty() else {"bar_format": plain, "mininterval": 5}
        total = args.num_iterations * args.batch_size
        self.bar = tqdm(total=total, initial=self.first_step, unit=" steps", **style)

    def on_signal(self, number, frame) -> None:
        """Let the iteration finish; the second time, end at once."""
        if self.stopping:
            raise SystemExit(130)
        self.stopping = True

    def log_episodes(self, iteration: int, t: int, done, returns, lengths) -> None:
        rows = self.args.batch_size // self.args.num_steps  # of one step in all environments
        step = ((iteration - 1) * self.args.num_steps + t) * rows + 1
        for i in np.flatnonzero(done):  # at steps of their own: TensorBoard shows one number a step
            self.log.append(("charts/episodic_return", returns[i], step + i))
            self.log.append(("charts/episodic_length", lengths[i], step + i))
            self.state["returns"] = [*self.state["returns"], float(returns[i])][-100:]

    def end_iteration(self, iteration: int, metrics: dict, arrays: dict) -> None:
        """Stop at NaN; log and show; save when it is time; end the program if a signal came."""
        # [aux-02 14/18] Parallel gradient update
        # A signal to one process stops all, after the same iteration.
        stop = average(torch.tensor(float(self.stopping))) > 0
        last = iteration == self.args.num_iterations

        for name, value in (arrays | metrics).items():
            if not np.isfinite(value).all():
                fix = "mend the environment" if name in arrays else "try a lower --learning-rate"
                self.abort(f"{name} not finite in iteration {iteration}: {fix}")
        self.state["iteration"], step = iteration, iteration * self.args.batch_size
        metrics["charts/SPS"] = (step - self.first_step) / (time.time() - self.started)
        self.log += [(tag, value, step) for tag, value in metrics.items()]
        score = np.mean(self.state["returns"] or np.nan)
        self.bar.set_postfix_str(f"return {score:.1f}, KL {metrics['losses/approx_kl']:.1e}", False)
        self.bar.update(self.args.batch_size)
        if last or stop or time.time() - self.saved > self.args.checkpoint_every:
            self.save()
        if last or stop:
            self.close()

        # [aux-02 15/18] Parallel gradient update
        average(torch.zeros(1))  # rank 0 has saved: now whoever ends first does no harm

        if stop:
            flag = "--evaluate" if last else "--resume"
            print(f"stopped; go on with: python {SCRIPT}.py {flag} {self.folder}")
            raise SystemExit(130)
        self.stopping |= last  # a signal during the evaluation ends the program at once

    def write_log(self) -> None:
        for tag, value, step in self.log:
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()
        self.log.clear()

    def save(self) -> None:
        """Write another file, then rename it: a kill leaves the old checkpoint or the new one."""
        self.write_log()
        weights = {"agent": self.agent.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(self.state | weights, self.folder / "checkpoint.tmp")
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        self.saved = time.time()

    def abort(self, message: str) -> None:
        self.close()
        fail(f"{message}; the last good checkpoint is {self.folder}/checkpoint.pt", code=1)

    def close(self) -> None:
        self.bar.close()
        self.write_log()
        self.writer.close()


# [aux-02 16/18] Parallel gradient update
# Ranks above 0 take the same decisions, show nothing and leave nothing.
class Follower(Run):
    """The Run of a process that is not the first."""

    def open(self, resumed: bool) -> None:
        self.bar, self.saved = tqdm(disable=True), time.time()

    def write_log(self) -> None:
        self.log.clear()

    def save(self) -> None:
        self.saved = time.time()

    def close(self) -> None:
        pass


def evaluate(args: Args, agent: Agent, folder: Path, mode: str) -> list[float]:
    """Returns of full games, played one after the other with "sampled" or "greedy" actions."""
    envs = make_envs(args, 1, folder / "videos" / mode if args.capture_video else None)
    torch.manual_seed(spawn_seeds(args.seed, rank=0, iteration=0, phase=3, n=1)[0])
    device, returns, cut = next(agent.parameters()).device, [], 0

    # [extra-07 4/4] The network in bfloat16
    agent.bf16 = args.bf16

    for seed in spawn_seeds(args.seed, rank=0, iteration=0, phase=1, n=args.eval_episodes):
        obs, _ = envs.reset(seed=[seed])
        steps, total, over = 0, 0.0, False
        while not over and steps < 27_000:  # Atari's own limit, in steps of 4 frames
            with torch.inference_mode():
                dist = agent.policy(torch.as_tensor(obs, dtype=torch.float32, device=device))
                action = dist.mode if mode == "greedy" else dist.sample()

            # [atari-03 4/4] A lost life ends the episode, not the game
            # [atari-06 3/3] Reward clipping to the sign
            # Whole games in their own points, each life begun as in training.
            games = envs.get_attr("episode_count")[0]
            obs, _, terminated, truncated, _ = envs.step(action.cpu().numpy())
            total = envs.get_attr("episode_returns")[0]
            if terminated[0] or truncated[0]:
                obs, _ = envs.reset()  # in which a game may end, too
            steps = 27_000 if truncated[0] else steps + 1  # 108,000 frames
            over = envs.get_attr("episode_count")[0] > games and not truncated[0]

        returns.append(float(total))
        cut += not over
    envs.close()
    note = f", {cut} of them cut at 27,000 steps" if cut else ""
    mean, std = np.mean(returns), np.std(returns)
    print(f"{mode}: return {mean:.1f} +- {std:.1f} in {len(returns)} games{note}")
    return returns


def main(argv: list[str] | None = None) -> dict:
    """Train, resume or evaluate as the command line says; the run's folder and its scores."""
    args, checkpoint = tyro.cli(Args, args=argv), None

    # [aux-02 17/18] Parallel gradient update
    if RANK:  # rank 0 speaks, and plays, for all
        sys.stdout = open(os.devnull, "w")
        if args.evaluate is not None:
            raise SystemExit

    sys.path.append(os.getcwd())  # where module:Name-v0 may find your module
    quiet = {"PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    if args.capture_video and sys.platform == "linux" and "DISPLAY" not in os.environ:
        quiet |= {"MUJOCO_GL": "egl", "SDL_VIDEODRIVER": "dummy"}  # draw without a screen
    os.environ |= quiet | os.environ
    filterwarnings("ignore", category=DeprecationWarning)  # such as "v4 is out of date"
    with suppress(Exception):  # MuJoCo, where it is installed, writes a MUJOCO_LOG.TXT otherwise
        import mujoco

        warn = partial(tqdm.write, file=sys.stderr)
        mujoco.set_mju_user_warning(lambda text: "deprecated" in text or warn(text))
    name = f"{args.env_id}__{SCRIPT}__{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
    folder = Path("runs", re.sub(r"[^\w.-]", "-", name))
    if args.resume is not None and args.evaluate is not None:
        fail("--resume trains on and --evaluate only plays: give one of the two")
    given = args.evaluate if args.resume is None else args.resume
    if given is not None:
        folder = Path(given)
        saved, checkpoint = load(folder)
        args = tyro.cli(Args, args=argv, default=saved)
        for name in vars(saved).keys() - FREE:
            if getattr(args, name) != getattr(saved, name):
                fail(f"--{name.replace('_', '-')} can't change in a run that exists: leave it out")
        if args.resume is not None and checkpoint["iteration"] >= args.num_iterations:
            fail(f"{folder} is trained to its end: use --evaluate, or train a new run")

        # [aux-02 18/18] Parallel gradient update
        if args.resume is not None and (n := checkpoint["processes"]) != PROCESSES:
            fail(f"{folder} was trained by {n} processes: use torchrun --nproc-per-node {n}")

    check(args)
    if checkpoint:
        env = make_env(args)
        agent = Agent(env.observation_space, env.action_space)
        try:
            agent.load_state_dict(checkpoint["agent"])
        except RuntimeError:
            fail(f"{folder} doesn't fit {args.env_id}, whose spaces have changed: train a new run")
    if args.evaluate is None:
        agent = train(args, folder, checkpoint)
    modes = ["sampled", "greedy"] if args.eval_episodes else []
    scores = {mode: evaluate(args, agent, folder, mode) for mode in modes}
    print(f"watch it: python {SCRIPT}.py --evaluate {folder} --capture-video")
    return {"folder": str(folder), **scores}


if __name__ == "__main__":
    main()
