"""PPO for continuous actions in one file: ppo.py, and the nine details of continuous control.

    python ppo_continuous.py                      HalfCheetah-v5, a million steps, seven minutes
    python ppo_continuous.py --env-id Hopper-v5   any Gymnasium environment that fits
    python ppo_continuous.py --help               all settings
    tensorboard --logdir runs                     the curves, live

What differs from ppo.py: a Gaussian policy, actions clipped on their way to the environment, and
observations and rewards scaled by running statistics, which are saved with the agent. The rollout
holds scaled observations and rewards; the log and the evaluation show returns as they are.

THE LESSON is all of PPO, to be read from top to bottom. THE RUN (checks, log, checkpoint,
evaluation, command line) follows it; the lesson can be understood without it.

`# [core-07] Title` marks an implementation detail; it covers the lines below it up to the next
blank line or dedent, or the whole function or class. docs/ppo_continuous.md explains each
continuous detail, docs/ppo.md all others, and shows what breaks without it. "Source" is a file of
openai/baselines at commit ea25b9e, the official PPO ("ppo2"); DEVIATION says where this file
differs from it.

Shapes: T num_steps, N num_envs, B = T * N rows of a batch, M rows of a minibatch, D numbers in an
observation, A in an action. Row t of every array of the rollout belongs to step t.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "gymnasium[box2d,classic-control]==1.4.0",
#     "moviepy==2.2.1",
#     "mujoco==4.0.0",
#     "numpy==2.4.6",
#     "tensorboard==2.21.0",
#     "torch==2.13.0",
#     "tqdm==4.70.1",
#     "tyro==1.0.17",
# ]
# ///

import json
import math
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM, signal
from warnings import filterwarnings

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.nn.functional import linear
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = "ppo_continuous"  # names run folders and guards checkpoints
ACTION_SPACES = (gym.spaces.Box,)  # what the policy below can act in

# =================================== THE LESSON: all of PPO ===================================


@dataclass
class Args:
    """PPO for continuous actions. Defaults are those of CleanRL's ppo_continuous_action.py."""

    env_id: str = "HalfCheetah-v5"  # Gymnasium id; module:Name-v0 imports your module first
    seed: int = 1  # same seed, machine and versions on a CPU: bit-identical weights
    total_timesteps: int = 1_000_000  # steps of all envs together, rounded down to whole rollouts
    num_envs: int = 1  # N, environments stepped side by side
    num_steps: int = 2048  # T, steps in each environment between two updates
    observe: tuple[int, ...] = ()  # the entries of the flat observation to keep; none: all
    cuda: bool = False  # use a GPU if there is one; networks this small are faster on a CPU

    learning_rate: float = 3e-4  # Adam's step size in the first update
    anneal_lr: bool = True  # lower the learning rate linearly over the run
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # GAE: 0 trusts the value function (bias), 1 the rewards (variance)
    bootstrap_truncation: bool = True  # a state cut off by a time limit keeps its value
    num_minibatches: int = 32  # equal parts of a batch, one gradient step each
    update_epochs: int = 10  # passes over a batch
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.2  # epsilon: how far the ratio may move from 1 before its gradient is 0
    anneal_clip: bool = False  # lower epsilon linearly over the run
    clip_vloss: bool = True  # clip the value loss too, by the same epsilon
    ent_coef: float = 0.0  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest gradient norm, over all parameters together
    target_kl: float | None = None  # end an update after an epoch that ends above this KL

    eval_episodes: int = 10  # games played after training, sampled and again greedy; 0: none
    capture_video: bool = False  # film 1,000 steps of each evaluation, into the run folder
    checkpoint_every: float = 10.0  # seconds between checkpoints, and between writes of the log
    resume: str | None = None  # run folder to continue, with its settings
    evaluate: str | None = None  # run folder whose agent plays, without training

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        return self.batch_size // self.num_minibatches

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.batch_size


# ---------------------------------------- Environment ----------------------------------------


# [continuous-05 1/3] Clipped for the environment, stored unclipped
# What is stored and scored is the sample: an agent scored on clipped actions would learn about
# others than it chose. Source: common/wrappers.py#L21-L29, ppo2/runner.py#L29-L38.
def valid_action(action: np.ndarray, box: gym.spaces.Box) -> np.ndarray:
    """A sample (A,) in the environment's shape, bounds and type, NaN as 0."""
    action = np.where(np.isnan(action), 0, action).reshape(box.shape)
    return action.clip(box.low, box.high).astype(box.dtype)


def make_env(args: Args, video: Path | None = None) -> gym.Env:
    """One environment: observation (D,), actions as the policy's; `video`: folder for a film."""
    env = gym.make(args.env_id, render_mode="rgb_array" if video else None)
    if video:
        film = {"video_length": 1000, "disable_logger": True}  # frames are kept in memory till then
        env = gym.wrappers.RecordVideo(env, video, lambda game: game == 0, **film)
    env = gym.wrappers.FlattenObservation(env)  # Dict and n-d Box to (D,), Discrete to one-hot
    if args.observe:
        keep, full = list(args.observe), env.observation_space
        part = gym.spaces.Box(full.low[keep], full.high[keep], dtype=full.dtype)
        env = gym.wrappers.TransformObservation(env, lambda obs: obs[keep], part)

    # [continuous-05 2/3] Clipped for the environment, stored unclipped
    box = env.action_space  # of any shape; flat for the policy, (A,)
    low, high = (bound.ravel().astype(np.float32) for bound in (box.low, box.high))
    flat = gym.spaces.Box(low, high)
    return gym.wrappers.TransformAction(env, partial(valid_action, box=box), flat)


def make_envs(args: Args, num_envs: int, video: Path | None = None) -> gym.vector.VectorEnv:
    """Envs stepped together: observations (num_envs, D), rewards (num_envs,)."""
    makers = [partial(make_env, args, None if i else video) for i in range(num_envs)]
    # [extra-02 1/2] Explicit reset (no autoreset)
    # Gymnasium's default spends a step on each reset: its action is ignored and its row teaches
    # nothing. Without autoreset, step() always returns the true successor.
    mode = gym.vector.AutoresetMode.DISABLED
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


class MLP(nn.Module):
    """Two hidden layers of 64 tanh units and a linear head: (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, gain: float):
        super().__init__()
        self.hidden1 = layer_init(nn.Linear(inputs, 64))
        self.hidden2 = layer_init(nn.Linear(64, 64))
        self.head = layer_init(nn.Linear(64, outputs), gain)
        self.tensors = tuple(self.parameters())  # looking them up takes as long as using them

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # As functions: through nn.Sequential the whole script takes 7% longer.
        weight1, bias1, weight2, bias2, weight3, bias3 = self.tensors
        x = linear(x, weight1, bias1).tanh()
        x = linear(x, weight2, bias2).tanh()
        return linear(x, weight3, bias3)


# [continuous-06 1/5] Observation normalization
# [continuous-08 1/4] Reward scaling
# Welford's update for a batch, stable where sums of squares would cancel. It starts as the
# official code does: mean 0 and variance 1 (m2 / count) with the weight of 1e-4 observations.
# Source: common/running_mean_std.py#L12-L33.
class RunningMeanStd(nn.Module):
    """Mean and variance, over the first axis, of all batches (n, *shape) that were counted."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        # [extra-03 1/3] Statistics saved with the agent, frozen in evaluation
        # Buffers are part of its state_dict. On numbers scaled in another way than those it was
        # trained on, a policy is worth nothing.
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("m2", torch.full(shape, 1e-4, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))

    # [extra-03 2/3] Statistics saved with the agent, frozen in evaluation
    # agent.to(), half() and the like come here: NumPy needs float64 on the CPU, so nothing moves.
    def _apply(self, *args, **kwargs) -> nn.Module:
        return self

    def update(self, x: np.ndarray) -> None:
        """Count the n rows of x (n, *shape)."""
        mean, m2, count = self.mean.numpy(), self.m2.numpy(), self.count.numpy()  # no copies
        delta = x - mean
        count += len(x)
        mean += delta.sum(0) / count
        m2 += (delta * (x - mean)).sum(0)  # sum of squared deviations: variance * count

    def std(self) -> np.ndarray:
        """Standard deviation (*shape) of all rows; never 0."""
        return np.sqrt(self.m2.numpy() / self.count.numpy() + 1e-8)


# [continuous-03] Independent action components
# One number per action: log-probabilities and entropies are summed over its components, or each
# would have a ratio, and a clip, of its own. Source: common/distributions.py#L238-L248.
class Gaussian:
    """Distribution over actions (..., A) with mean (..., A) and log standard deviation (A,)."""

    def __init__(self, mean: torch.Tensor, log_std: torch.Tensor):
        self.mean, self.log_std, self.std = mean, log_std, log_std.exp()

    @property
    def mode(self) -> torch.Tensor:
        return self.mean

    def sample(self) -> torch.Tensor:
        return self.mean + self.std * torch.randn_like(self.mean)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        z = (actions - self.mean) / self.std
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> torch.Tensor:
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return entropy.expand(self.mean.shape[:-1])


class Agent(nn.Module):
    """The policy (actor) and the value function (critic)."""

    def __init__(self, obs_space: gym.Space, action_space: gym.Space):
        super().__init__()
        # [continuous-01 1/2] Continuous actions via normal distributions
        # The network gives the mean, near 0 at first (gain 0.01) whatever the bounds are.
        # Source: common/distributions.py#L96-L106.
        self.actor = MLP(obs_space.shape[0], action_space.shape[0], gain=0.01)

        # [continuous-02 1/2] State-independent log standard deviation
        # One learned number per component; std 1 at first. The log of it, as std must stay above 0.
        # Source: common/distributions.py#L104.
        self.log_std = nn.Parameter(torch.zeros(action_space.shape))

        # [continuous-06 2/5] Observation normalization
        self.obs_stats = RunningMeanStd(obs_space.shape)  # one for all envs, a feature at a time

        # [continuous-08 2/4] Reward scaling
        self.return_stats = RunningMeanStd(())  # one number for all envs

        # [core-13] Separate networks for policy and value function
        # In a shared trunk both losses pull at the same weights; a second network is cheap.
        # Source: common/policies.py#L154-L166 (value_network="copy").
        # DEVIATION: by default the official code shares the trunk in classic control.
        # [continuous-04] Separate MLP networks for policy and value function
        # No deviation here: for MuJoCo the official code asks for it. Source: ppo2/defaults.py#L12.
        self.critic = MLP(obs_space.shape[0], 1, gain=1.0)

    # [continuous-06 3/5] Observation normalization
    # Features in one unit: without it some saturate the tanh units and others are not seen.
    # Source: common/vec_env/vec_normalize.py#L36-L42.
    def normalize(self, obs: np.ndarray) -> np.ndarray:
        """Raw observations (..., D) as the networks want them, in float32."""
        obs = (obs - self.obs_stats.mean.numpy()) / self.obs_stats.std()

        # [continuous-07] Observation clipping
        # A feature that suddenly moves after a long standstill would be thousands of standard
        # deviations away. Source: common/vec_env/vec_normalize.py#L39.
        return obs.clip(-10, 10).astype(np.float32)

    # [continuous-01 2/2] Continuous actions via normal distributions
    # The sample is not squashed into the bounds: continuous-05 clips it.
    def policy(self, obs: torch.Tensor) -> Gaussian:
        """The distribution over actions in each normalized observation (..., D)."""
        return Gaussian(self.actor(obs), self.log_std)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """Expected discounted returns (...) from observations (..., D)."""
        # Squeezed here, once: (M, 1) - (M,) would broadcast to an (M, M) loss without an error.
        return self.critic(obs).squeeze(-1)


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
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # networks this small gain nothing from a second core
    first = checkpoint["iteration"] if checkpoint else 0
    torch.manual_seed(spawn_seeds(args.seed, rank=0, iteration=first, phase=2, n=1)[0])
    envs = make_envs(args, args.num_envs)
    agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)
    weights = flatten(agent)

    # [core-03] Adam's epsilon
    # 1e-5, where torch has 1e-8: tiny gradients take smaller steps. Source: ppo2/model.py#L100.
    # DEVIATION: TensorFlow adds it before bias correction: TensorFlow's early steps are smaller.
    optimizer = torch.optim.Adam([weights], lr=args.learning_rate, eps=1e-5, fused=True)

    # Row t: the agent saw obs[t] and took actions[t], which earned rewards[t] and led to
    # next_obs[t], the true successor even where an episode ended.
    shape, space = (args.num_steps, args.num_envs), envs.single_action_space  # (T, N)
    obs = np.zeros(shape + envs.single_observation_space.shape, np.float32)
    next_obs = np.zeros_like(obs)
    actions = np.zeros(shape + space.shape, space.dtype)
    logprobs, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    terminated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
    episode_return, episode_length = np.zeros(args.num_envs), np.zeros(args.num_envs, int)

    run = Run(args, folder, agent, optimizer, checkpoint)  # loads the checkpoint, if there is one

    # [core-01] Vectorized architecture
    # All envs are reset here, once. A rollout goes on where the last one stopped, in mid-episode:
    # T can be far shorter than an episode. Source: common/runners.py#L8-L14, ppo2/runner.py#L26.
    env_seeds = spawn_seeds(args.seed, rank=0, iteration=first, phase=0, n=args.num_envs)
    current_obs, _ = envs.reset(seed=env_seeds)  # (N, D)

    # [continuous-06 4/5] Observation normalization
    # First counted, then normalized: at the top of each step current_obs is what networks see.
    agent.obs_stats.update(current_obs)
    current_obs = agent.normalize(current_obs)

    # [continuous-08 3/4] Reward scaling
    discounted_return = np.zeros(args.num_envs)  # of the rewards so far in each env's episode

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
                dist = agent.policy(torch.as_tensor(obs[t], device=device))
                action = dist.sample()
                actions[t], logprobs[t] = action.cpu().numpy(), dist.log_prob(action).cpu().numpy()

                current_obs, rewards[t], terminated[t], truncated[t], _ = envs.step(actions[t])
                next_obs[t] = current_obs
                episode_return += rewards[t]
                episode_length += 1

                # [extra-02 2/2] Explicit reset (no autoreset)
                # A finished env restarts only here; its last state is kept in next_obs[t].
                done = terminated[t] | truncated[t]  # (N,)
                if done.any():
                    run.log_episodes(iteration, t, done, episode_return, episode_length)
                    episode_return[done], episode_length[done] = 0, 0
                    current_obs, _ = envs.reset(options={"reset_mask": done})

                # [continuous-06 5/5] Observation normalization
                # Counted is what the agent will act on: after an end the reset's observation. An
                # episode's last one is only normalized, for its value; any other is the next row's.
                agent.obs_stats.update(current_obs)
                current_obs = agent.normalize(current_obs)
                next_obs[t] = agent.normalize(next_obs[t]) if done.any() else current_obs

                # [continuous-08 4/4] Reward scaling
                # By the spread of discounted returns, so that values are of size 1. Subtracting the
                # mean would change the task. Source: common/vec_env/vec_normalize.py#L28-L33.
                # DEVIATION: --gamma, where the official code has 0.99 whatever its gamma is.
                discounted_return = args.gamma * discounted_return + rewards[t]
                agent.return_stats.update(discounted_return)
                discounted_return[done] = 0  # a time limit ends an episode, too
                rewards[t] /= agent.return_stats.std()

                # [continuous-09] Reward clipping
                # Acts in the first steps, when the divisor is hardly known.
                # Source: common/vec_env/vec_normalize.py#L32.
                rewards[t] = rewards[t].clip(-10, 10)

        # --- 3. Values and advantages, (T, N)
        with torch.inference_mode():  # all rows at once: faster than a value with each action
            values = agent.value(torch.as_tensor(obs, device=device)).cpu().numpy()
            next_values = agent.value(torch.as_tensor(next_obs, device=device)).cpu().numpy()
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

                dist, new_values = agent.policy(mb_obs), agent.value(mb_obs)
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
            if args.target_kl is not None and approx_kl(log_ratios[-1])[2] > args.target_kl:  # k3
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

        # [continuous-05 3/3] Clipped for the environment, stored unclipped
        # More and more clipped actions: the policy presses against the bounds.
        outside = (actions < space.low) | (actions > space.high)
        metrics["debug/clipped_actions"] = outside.mean()  # share of all components

        # [continuous-02 2/2] State-independent log standard deviation
        # Falls as the policy grows sure of itself.
        metrics["debug/action_std"] = agent.log_std.exp().mean().item()

        # [extra-05] Self-check that the first minibatch's ratio is 1
        # Nothing is learned yet: acting and learning must agree on the probability of each action.
        if (error := metrics["debug/first_ratio_error"]) > 1e-3:
            run.abort(f"first ratio off 1 by {error:.1g}: look for altered rows or dropout")

        arrays = {"observations": obs, "next observations": next_obs, "rewards": rewards}
        run.end_iteration(iteration, metrics, arrays)

    envs.close()
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
    if not isinstance(flat, gym.spaces.Box) or len(env.observation_space.shape or ()) == 3:
        fail(f"{args.env_id} shows no vector: wrap it, or use ppo_atari.py if it is an Atari game")
    if not all(0 <= entry < flat.shape[0] for entry in args.observe):
        fail(f"--observe takes entries of the flat observation, 0 to {flat.shape[0] - 1}")
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
        new = {"script": SCRIPT, "iteration": 0, "returns": []}
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
        stop, last = self.stopping, iteration == self.args.num_iterations
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


def evaluate(args: Args, agent: Agent, folder: Path, mode: str) -> list[float]:
    """Returns of full games, played one after the other with "sampled" or "greedy" actions."""
    envs = make_envs(args, 1, folder / "videos" / mode if args.capture_video else None)
    torch.manual_seed(spawn_seeds(args.seed, rank=0, iteration=0, phase=3, n=1)[0])
    device, returns, cut = next(agent.parameters()).device, [], 0
    for seed in spawn_seeds(args.seed, rank=0, iteration=0, phase=1, n=args.eval_episodes):
        obs, _ = envs.reset(seed=[seed])
        steps, total, over = 0, 0.0, False
        while not over and steps < 27_000:  # Atari's own limit, in steps of 4 frames
            # [extra-03 3/3] Statistics saved with the agent, frozen in evaluation
            # Normalized, but not counted.
            obs = agent.normalize(obs)

            with torch.inference_mode():
                dist = agent.policy(torch.as_tensor(obs, dtype=torch.float32, device=device))
                action = dist.mode if mode == "greedy" else dist.sample()
            obs, reward, terminated, truncated, _ = envs.step(action.cpu().numpy())
            steps, total, over = steps + 1, total + reward[0], terminated[0] or truncated[0]
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
