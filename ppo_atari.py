"""PPO for Atari games in one file: ppo.py, the nine Atari details, and training in parallel.

    python ppo_atari.py                                       Breakout, ten million steps, hours
    python ppo_atari.py --env-id PongNoFrameskip-v4           any Atari game
    torchrun --nproc-per-node 2 ppo_atari.py --num-envs 4     two processes, one agent
    tensorboard --logdir runs                                 the curves, live

What differs from ppo.py: wrappers turn the console's pictures into what the network sees, and one
convolutional network with two heads gives values with the actions. Processes average gradients. For
the agent an episode is one life and a reward is only its sign; scores are of whole games.

Read from top to bottom: all of PPO stands before the end of train(), and the rest only runs it.
`# [core-07] Title` marks a detail (aux: optional, extra: ours), which docs/ explains. "Source" is
in baselines/ of openai/baselines, commit ea25b9e, the official PPO ("ppo2"). DEVIATION: we differ.

Shapes: T num_steps, N num_envs, B = T * N rows of a process's batch, M rows of a minibatch. D is
short for 4, 84, 84, an observation. Row t of every array of the rollout belongs to step t.
"""
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "ale-py==0.12.1", "gymnasium==1.4.0", "moviepy==2.2.1", "numpy==2.4.6", "tqdm==4.70.1",
#     "opencv-python-headless==5.0.0.93", "tensorboard==2.21.0", "torch==2.13.0", "tyro==1.0.17",
# ]
# ///

import fcntl  # locks files; Windows has none
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partialmethod
from pathlib import Path
from tempfile import TemporaryDirectory

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import distributed, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT = Path(__file__).stem  # this file's name
SCORES = ("game_over", "episode_returns", "episode_lengths")  # attributes of the envs' wrappers
GAME = {"frameskip": 1, "repeat_action_probability": 0.0}  # ALE/*-v5 would do both by itself
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets these two
RANK = int(os.environ.get("RANK", 0)) % PROCESSES  # alone it is 0, whatever RANK says
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner at each start
cv2.setNumThreads(1)  # pictures this small gain nothing from a second core


@dataclass
class Args:
    """PPO for Atari games: the official hyperparameters, but for N, the steps and time limits."""

    env_id: str = "BreakoutNoFrameskip-v4"  # GameNoFrameskip-v4 or ALE/Game-v5, which play the same
    seed: int = 1  # same seed, machine and versions on a CPU: bit-identical weights
    total_timesteps: int = 10_000_000  # steps (of 4 frames) of all envs and processes together
    num_envs: int = 8  # N, environments stepped side by side, in each process
    num_steps: int = 128  # T, steps in each environment between two updates
    cuda: bool = True  # train on a GPU if there is one
    bf16: bool = False  # compute the features in bfloat16: faster on some hardware, slower on other

    learning_rate: float = 2.5e-4  # Adam's step size in the first update
    anneal_lr: bool = True  # lower the learning rate linearly over the run
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # GAE: 0 trusts the value function (bias), 1 the rewards (variance)
    bootstrap_truncation: bool = True  # a state cut off by a time limit keeps its value
    num_minibatches: int = 4  # equal parts of a batch, one gradient step each
    update_epochs: int = 4  # passes over a batch
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.1  # epsilon: how far new / old probability may move from 1 and still gain
    anneal_clip: bool = False  # lower epsilon linearly over the run
    clip_vloss: bool = True  # clip the value loss too, by the same epsilon
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest gradient norm, over all parameters together
    target_kl: float | None = None  # no more epochs once the policy's KL from the old is above it

    eval_episodes: int = 10  # games played after training, sampled and again greedy; 0: none
    capture_video: bool = False  # film 1,000 steps of each evaluation, into the run folder
    checkpoint_every: float = 10.0  # seconds between checkpoints: what Ctrl-C or a kill can lose
    resume: str | None = None  # run folder to continue; flags given with it replace its settings
    evaluate: str | None = None  # run folder whose agent plays, without training

    # [aux-02 1/6] Parallel gradient update
    # batch_size counts all processes' rows; a gradient step averages over one minibatch of each.
    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps * PROCESSES

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.batch_size


# ---------------------------------------- Environment ----------------------------------------
# [atari-01 1/2] No-op reset
# Else a policy could learn a game's one start by heart. Source: common/atari_wrappers.py#L12-L39.
class NoopReset(gym.Wrapper):
    """Starts a game with 1 to 30 raw frames in which nothing is pressed."""

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        for _ in range(self.unwrapped.np_random.integers(1, 31)):
            obs, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                obs, info = self.env.reset()
        return obs, info


# [atari-02 1/2] Frame skip with a maximum over two frames
# Many games draw some sprites in every other frame only: the maximum of two holds them.
# Source: common/atari_wrappers.py#L97-L123. DEVIATION: the two frames are cleared at a reset.
class MaxAndSkip(gym.Wrapper):
    """Repeats an action for 4 raw frames: rewards summed, pixels the maximum of the last two."""

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


# [atari-03 1/3] A lost life ends the episode, not the game
# A death is bad at once, not only when the game ends; the reset after it goes on with the game.
# Contested: Machado et al. 2018 advise against it.
# Source: common/atari_wrappers.py#L61-L95. DEVIATION: a no-op that ends the game starts the next.
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
        lost = 0 < info["lives"] < self.lives  # at 0 lives some games play on for a while
        self.lives = info["lives"]
        return obs, reward, terminated or lost, truncated, info


# [atari-04 1/2] FIRE after a reset
# Some games wait for FIRE to begin and, as Breakout, to go on after each lost life: an agent would
# have to find that out first. Source: common/atari_wrappers.py#L41-L59.
# DEVIATION: if action 2 ends a life or a game, the next one's picture is returned, not the last's.
class FireReset(gym.Wrapper):
    """Presses FIRE and then action 2, as the official code does, 4 frames each, at every reset."""

    def reset(self, **kwargs):
        self.env.reset(**kwargs)
        for action in (1, 2):
            obs, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                obs, info = self.env.reset()
        return obs, info


# [atari-05 1/2] Grey frames of 84 x 84
# A fourteenth of the numbers, with what matters still visible. INTER_AREA averages what it merges,
# so that a shot one pixel wide does not vanish. Source: common/atari_wrappers.py#L134-L185.
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
class FrameStack(gym.ObservationWrapper):
    """The last 4 frames (4, 84, 84), oldest first; zeros where there are none yet."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)

    def reset(self, **kwargs):
        self.frames = np.zeros((4, 84, 84), np.uint8)
        return super().reset(**kwargs)

    def observation(self, frame):
        self.frames = np.concatenate([self.frames[1:], frame[None]])
        return self.frames


def make_env(args: Args, video: Path | None = None) -> gym.Env:
    """One environment with observations (D,); `video`: folder for a film of its first steps."""
    # [atari-02 2/2] Frame skip with a maximum over two frames
    # [atari-01 2/2] No-op reset
    # No-ops are raw frames, so they come before the skip. From there on a step is 4 frames.
    try:
        env = gym.make(
            args.env_id, **({"render_mode": "rgb_array"} if args.capture_video else {}), **GAME
        )
    except TypeError as error:  # it does not know frames to skip
        raise ValueError("no Atari game: use ppo.py; for pictures docs/ppo_atari.md") from error
    env = MaxAndSkip(NoopReset(env))
    if video:
        film = {"video_length": 1000, "fps": 15}  # of 60 frames a second
        env = gym.wrappers.RecordVideo(env, str(video), lambda game: game == 0, **film)

    # [atari-03 2/3] A lost life ends the episode, not the game
    # Scores are counted before lives and signs come in: for whole games, in the game's own points.
    env = EpisodicLife(gym.wrappers.RecordEpisodeStatistics(env))

    # [atari-04 2/2] FIRE after a reset
    if env.unwrapped.get_action_meanings()[1] == "FIRE":  # some have none, two have it elsewhere
        env = FireReset(env)  # outside EpisodicLife: after every lost life, too

    # [atari-05 2/2] Grey frames of 84 x 84
    env = WarpFrame(env)  # after the maximum: that of grey frames would be another

    # [atari-06 1/2] Reward clipping to the sign
    # One learning rate and one value scale for all games; 10 points count as 1. The sign is that of
    # the sum over 4 frames: a step can't earn 4. Source: common/atari_wrappers.py#L125-L131.
    env = gym.wrappers.TransformReward(env, np.sign)

    # [atari-07 2/2] Frame stack
    return FrameStack(env)


# [extra-02 1/2] Explicit reset (no autoreset)
# By default Gymnasium spends a whole step on a reset and ignores its action: a row that teaches
# nothing. Without autoreset we reset ourselves, and step() always returns the true successor.
# copy=False, 2% faster: the next step overwrites what step() returned, so copy what you keep.
def make_envs(args: Args) -> gym.vector.VectorEnv:
    """N environments stepped together: observations (N, D), rewards (N,)."""
    how = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "copy": False}
    envs = gym.vector.SyncVectorEnv([lambda: make_env(args)] * args.num_envs, **how)
    envs._add_info = lambda infos, info, i: infos  # drops infos: unread, and some can't be merged
    return envs


# [extra-04] Seeds that no two runs share, nor a run and its evaluation
# With seed + i for env i, runs 1 and 2 would share all envs but one: no independent scores.
def spawn_seeds(seed: int, stage: str, n: int) -> list[int]:
    """n seeds for a stage of the run, "train from 0" or "evaluate"."""
    return np.random.SeedSequence([seed, *stage.encode()]).generate_state(n, np.uint64).tolist()


# ------------------------------------------ Network ------------------------------------------
# [core-02] Orthogonal initialization, zero biases
# Gain sqrt(2) in hidden layers; 0.01 for the policy head: the first policy is almost the same in
# every state; 1 for the value head. Source: a2c/utils.py#L20-L35, common/policies.py#L49-L63.
def layer_init(layer: nn.Linear, gain: float = 2**0.5) -> nn.Linear:
    """The same layer, its weight orthogonal times `gain` and its bias 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Categorical:
    """Distribution over actions from logits (..., actions); at least 4 times as fast as torch's."""

    def __init__(self, logits: torch.Tensor):
        self.logp = logits.log_softmax(-1)

    def sample(self) -> torch.Tensor:
        # Gumbel-max: argmax(log p - log Exp(1)) samples p: common/distributions.py#L199-L201.
        return (self.logp - torch.empty_like(self.logp).exponential_().log()).argmax(-1)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        return self.logp.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        return -(self.logp.exp() * self.logp).sum(-1)

    def mode(self) -> torch.Tensor:
        return self.logp.argmax(-1)


# [atari-08 1/4] Shared Nature CNN
# What to see is learned once, for both heads; vf_coef weighs the value's part in it.
# Source: Mnih et al. 2015; common/models.py#L15-L26, common/policies.py#L156-L157.
class Agent(nn.Module):
    """One network with two heads: the policy (actor) and the value function (critic)."""

    def __init__(self, obs_space: gym.Space, action_space: gym.Space):
        super().__init__()
        self.bf16 = False  # train() sets it; evaluation computes in float32
        self.trunk = nn.Sequential(
            layer_init(nn.Conv2d(obs_space.shape[0], 32, 8, stride=4)),  # 84 -> 20
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),  # 20 -> 9
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)),  # 9 -> 7
            nn.ReLU(),
            nn.Flatten(),
            layer_init(nn.Linear(64 * 7 * 7, 512)),
            nn.ReLU(),
        )
        self.actor = layer_init(nn.Linear(512, int(action_space.n)), 0.01)
        self.critic = layer_init(nn.Linear(512, 1), 1.0)

    def forward(self, obs: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """The distribution over actions and the value (M,) of each observation (M, 4, 84, 84)."""
        # [atari-09 1/2] Scaling of images to [0, 1]
        # Here and not in the environment: rows of the rollout stay uint8, a quarter of the memory.
        # Source: common/models.py#L19. channels_last: convolutions on a CPU are 1.4 times as fast.
        obs = obs.to(memory_format=torch.channels_last).float() / 255

        # [extra-07 1/3] The network in bfloat16
        # Its 8 bits of precision do for features; weights, heads, losses and Adam keep float32.
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.trunk(obs).float()

        # Squeezed here, once: (M, 1) - (M,) would broadcast to an (M, M) loss without an error.
        return Categorical(self.actor(features)), self.critic(features).squeeze(-1)


# [aux-02 2/6] Parallel gradient update
# As the official code does with MPI. Source: common/mpi_adam_optimizer.py#L11-L51.
def average(tensors) -> None:
    """Overwrite each tensor with its mean over all processes; each of them must call this."""
    for x in tensors if PROCESSES > 1 else ():
        distributed.all_reduce(x)
        x /= PROCESSES


# ------------------------------------------ Training ------------------------------------------
# [core-05] Generalized Advantage Estimation
# A delta says how much better a step went than the value function V expected. The advantage adds
# the later deltas of its episode, faded by gamma * lambda a step. next_values[-1] stands for
# all after the rollout. Source: ppo2/runner.py#L52-L65; Schulman et al. 2016, equation 16.
def compute_gae(rewards, values, next_values, dones, gamma: float, gae_lambda: float) -> np.ndarray:
    """Advantages (T, N) of T steps in N envs, from arrays (T, N).

    `next_values`: V of the states that were reached, 0 where an episode terminated. `dones`: True
    at the last step of an episode, however it ended: its own delta counts, later ones do not.
    """
    deltas = rewards + gamma * next_values - values
    advantages, gae = np.zeros_like(deltas), 0.0
    for t in reversed(range(len(deltas))):  # in NumPy: torch would take four times as long
        advantages[t] = gae = deltas[t] + gamma * gae_lambda * ~dones[t] * gae
    return advantages


def train(args: Args, folder: Path, checkpoint: dict | None = None) -> None:
    """Repeat: play T steps, estimate advantages, make better actions likelier, log and save."""
    # --- 0. Setup
    # [aux-02 3/6] Parallel gradient update
    # torchrun starts this once per process: each has own envs, chances and GPU, rank 0's weights.
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(gpu if args.cuda and torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # it rounds to 10 bits: another network than a CPU's
    torch.set_num_threads(1)  # more threads wait for each other if busy, and give other weights
    start = checkpoint["step"] // args.batch_size if checkpoint else 0  # iterations done
    stage = f"train from {start}" + f" on {RANK}" * (RANK > 0)
    torch_seed, *env_seeds = spawn_seeds(args.seed, stage, 1 + args.num_envs)
    torch.manual_seed(torch_seed)
    envs = make_envs(args)
    agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)
    if PROCESSES > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        for parameter in agent.parameters():
            distributed.broadcast(parameter.data, 0)
    # [extra-07 2/3] The network in bfloat16
    agent.bf16 = args.bf16

    # [core-03] Adam's epsilon
    # 1e-5, where torch has 1e-8: tiny gradients take smaller steps. Source: ppo2/model.py#L100.
    # DEVIATION: TensorFlow adds it before bias correction: TensorFlow's early steps are smaller.
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])  # its eps and betas, too

    # Row t: the agent saw obs[t], took actions[t] with log-probability logprobs[t], got rewards[t]
    # and reached next_obs[t], never a reset's. dones[t]: terminated, or truncated by a time limit.
    shape = (args.num_steps, args.num_envs)  # (T, N)
    # [atari-09 2/2] Scaling of images to [0, 1]
    obs = np.zeros(shape + envs.single_observation_space.shape, np.uint8)
    next_obs, actions = np.zeros_like(obs), np.zeros(shape, np.int64)
    logprobs, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    terminated, truncated, dones = (np.zeros(shape, bool) for _ in range(3))
    values = np.zeros(shape, np.float32)  # of obs[t], computed together with actions[t]
    last_returns = checkpoint["returns"] if checkpoint else []  # of the last 100 episodes

    writer = SummaryWriter(folder, purge_step=start * args.batch_size + 1)  # no step shows twice
    bar = tqdm(range(start + 1, args.num_iterations + 1), unit_scale=args.batch_size, unit=" steps")
    began, saved_at = time.monotonic(), -np.inf  # -inf: the first iteration is saved

    # [core-01] Vectorized architecture
    # All envs are reset here, once. A rollout goes on where the last one stopped, so that T can be
    # far shorter than an episode. Source: common/runners.py#L8-L14, ppo2/runner.py#L26.
    current_obs, _ = envs.reset(seed=env_seeds)  # (N, D)

    for iteration in bar:
        # --- 1. Annealing
        # [core-04] Adam learning rate annealing
        # Iterations count from 1: the last uses lr / num_iterations. Source: ppo2/ppo2.py#L133.
        remaining = 1 - (iteration - 1) / args.num_iterations
        optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1)

        # [aux-01] Clip range annealing
        # Off by default, as in the official code. Source: ppo2/ppo2.py#L136-L137.
        clip_coef = args.clip_coef * (remaining if args.anneal_clip else 1)

        # --- 2. Rollout: T steps in N envs
        with torch.inference_mode():
            for t in range(args.num_steps):
                obs[t] = current_obs
                # [atari-08 2/4] Shared Nature CNN
                # The value costs next to nothing once there are features: it comes with the action.
                dist, value = agent(torch.as_tensor(obs[t], device=device))
                values[t] = value.cpu().numpy()
                action = dist.sample()
                actions[t], logprobs[t] = action.cpu().numpy(), dist.log_prob(action).cpu().numpy()
                current_obs, rewards[t], terminated[t], truncated[t], _ = envs.step(actions[t])
                next_obs[t] = current_obs

                dones[t] = terminated[t] | truncated[t]
                if dones[t].any():
                    # [atari-03 3/3] A lost life ends the episode, not the game
                    # The log shows whole games. (One that ends within a reset goes unlogged: rare.)
                    over, episode_return, episode_length = map(np.array, map(envs.get_attr, SCORES))
                    step = ((iteration - 1) * args.num_steps + t) * args.num_envs * PROCESSES + 1
                    for i in np.flatnonzero(over):  # + i: no two envs log at the same step
                        writer.add_scalar("charts/episodic_return", episode_return[i], step + i)
                        writer.add_scalar("charts/episodic_length", episode_length[i], step + i)
                    last_returns = [*last_returns, *episode_return[over].tolist()][-100:]

                    # [extra-02 2/2] Explicit reset (no autoreset)
                    # A finished env restarts only here; its last state is kept in next_obs[t].
                    current_obs, _ = envs.reset(options={"reset_mask": dones[t]})

        # --- 3. Values and advantages, (T, N)
        # [atari-08 3/4] Shared Nature CNN
        # Row t led to the state of row t + 1, whose value is there. Nobody acted on the state after
        # the last row, nor on one that a time limit cut off. (Terminated rows become 0 below.)
        next_values, unknown = np.roll(values, -1, axis=0), truncated.copy()
        unknown[-1] = True
        with torch.inference_mode():
            _, value = agent(torch.as_tensor(next_obs[unknown], device=device))
        next_values[unknown] = value.cpu().numpy()

        # [extra-01] Bootstrap at time limits
        # A time limit is no failure: the state it cut off keeps its value. DEVIATION: the official
        # code takes 0, as --no-bootstrap-truncation does: good states near a limit then look bad.
        next_values[terminated if args.bootstrap_truncation else dones] = 0

        advantages = compute_gae(rewards, values, next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values  # the value function's targets

        # --- 4. Update
        rollout = (obs, actions, logprobs, advantages, returns, values)
        batch = [torch.as_tensor(x, device=device).flatten(0, 1) for x in rollout]  # each (B, ...)
        log_ratios, losses = [], []  # of each gradient step
        for _ in range(args.update_epochs):
            # [core-06] Mini-batch updates
            # Shuffled anew each epoch, each row in one minibatch. Source: ppo2/ppo2.py#L157-L166.
            order = torch.randperm(len(batch[0]), device=device)
            for minibatch in zip(*(x[order].chunk(args.num_minibatches) for x in batch)):
                mb_obs, mb_actions, mb_logprobs, mb_advantages, mb_returns, mb_values = minibatch

                # [atari-08 4/4] Shared Nature CNN
                dist, new_values = agent(mb_obs)

                log_ratio = dist.log_prob(mb_actions) - mb_logprobs  # log(p new / p old), (M,)
                ratio = log_ratio.exp()  # > 1: the new policy takes this action more often

                # [core-07] Advantage normalization, per minibatch
                # Frees the policy's steps from the rewards' scale. Source: ppo2/model.py#L136-L139.
                # DEVIATION: torch's std divides by M - 1, not by M (0.4% apart at M = 128).
                if args.norm_adv:
                    mb_advantages = mb_advantages - mb_advantages.mean()
                    mb_advantages = mb_advantages / (mb_advantages.std() + 1e-8)

                # [core-08] Clipped surrogate objective
                # Rows tell of policies near the one that played: a ratio beyond 1 +- epsilon earns
                # nothing more; a wrong move is still pulled back. Source: ppo2/model.py#L77-L86.
                clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
                policy_loss = -torch.min(ratio * mb_advantages, clipped * mb_advantages).mean()

                # [core-09] Value function loss clipping
                # The worse of two errors: that of the new value, and that of the new value held
                # within epsilon of the old one. Studies saw no gain, and epsilon ignores the
                # scale of returns. Source: ppo2/model.py#L68-L75.
                error = (new_values - mb_returns) ** 2
                if args.clip_vloss:
                    near = mb_values + (new_values - mb_values).clamp(-clip_coef, clip_coef)
                    error = torch.max(error, (near - mb_returns) ** 2)
                value_loss = 0.5 * error.mean()

                # [core-10] Overall loss and entropy bonus
                # One loss for policy and value; the bonus keeps the policy from committing itself
                # before it has tried what else there is. Source: ppo2/model.py#L91.
                entropy = dist.entropy().mean()
                loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss

                optimizer.zero_grad()
                loss.backward()

                # [aux-02 4/6] Parallel gradient update
                # Before the clipping, which is then the same everywhere, as is Adam's step.
                average(parameter.grad for parameter in agent.parameters())

                # [core-11] Global gradient clipping
                # One norm over all parameters: direction stays. Source: ppo2/model.py#L102-L108.
                grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)

                optimizer.step()
                log_ratios.append(log_ratio.detach())  # no .item(): it would wait for a GPU
                losses.append(torch.stack([policy_loss, value_loss, entropy, grad_norm]).detach())

            # [aux-03] Early stopping on KL
            # CleanRL's rule: the KL is k3 (see below) of an epoch's last minibatch. ppo2 has none.
            # [aux-02 5/6] Parallel gradient update
            # By the mean over processes: if one stopped alone, gradients of two updates would mix.
            average([kl := (ratio - 1 - log_ratio).detach().mean()])
            if args.target_kl is not None and kl > args.target_kl:
                break

        # --- 5. Log, check, save
        # [core-12] Debug variables
        # Means over all minibatches of all epochs: the last one alone is noise. k1, k2 and k3
        # estimate KL(old, new) (Schulman 2020). Explained variance: 1 is perfect, 0 no better than
        # a constant. Source: ppo2/ppo2.py#L183-L210.
        log_ratios = torch.stack(log_ratios)  # (gradient steps, M)
        ratios, step = log_ratios.exp(), iteration * args.batch_size
        names = ("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm")
        metrics = dict(zip(names, torch.stack(losses).mean(0).tolist())) | {
            "losses/old_approx_kl": -log_ratios.mean().item(),  # k1: unbiased, may be negative
            "losses/approx_kl_k2": (log_ratios**2).mean().item() / 2,  # k2: the official code's
            "losses/approx_kl": (ratios - 1 - log_ratios).mean().item(),  # k3: unbiased, never < 0
            "losses/clipfrac": ((ratios - 1).abs() > clip_coef).float().mean().item(),
            "losses/explained_variance": 1 - (returns - values).var() / max(returns.var(), 1e-8),
            "charts/learning_rate": optimizer.param_groups[0]["lr"],
            "charts/SPS": (iteration - start) * args.batch_size / (time.monotonic() - began),
            "debug/first_ratio_error": (ratios[0] - 1).abs().max().item(),
        }
        if bad := [tag for tag, value in metrics.items() if not np.isfinite(value)]:
            fail(f"{bad[0]} is not finite in iteration {iteration}; the last checkpoint is kept", 1)

        # [extra-05] Self-check that the first minibatch's ratio is 1
        # In an update's first minibatch the policy is still the one that acted: all ratios are 1.
        # [extra-07 3/3] The network in bfloat16
        if metrics["debug/first_ratio_error"] > (1e-1 if args.bf16 else 1e-3):
            fail("the first ratio of an update is not 1: look for altered rows or dropout", 1)

        for tag, value in metrics.items():
            writer.add_scalar(tag, value, step)
        bar.set_postfix_str(f"return {np.mean(last_returns or np.nan):.1f}", refresh=False)
        if iteration == args.num_iterations or time.monotonic() - saved_at > args.checkpoint_every:
            writer.flush()
            save(folder, args, agent, optimizer, step, last_returns)
            saved_at = time.monotonic()

    writer.close()
    envs.close()


# ------------------------ Running it: checkpoint, evaluation, command line ------------------------
def fail(message: str, code: int = 2) -> None:
    """End the program with one sentence: what is wrong, and what to do."""
    print("\nerror:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)


def check(args: Args, weights: dict | None) -> None:
    """Refuse settings that can't work, before a file is written."""
    for name, value in vars(args).items():
        low = 1 if name in ("num_envs", "num_steps", "num_minibatches", "update_epochs") else 0
        high = {"gamma": 1, "gae_lambda": 1, "eval_episodes": 10_000}.get(name, 1e12)
        if type(value) in (int, float) and not low <= value <= high:  # NaN fails too
            fail(f"--{name.replace('_', '-')} {value} must lie between {low} and {high:g}")
    if args.batch_size % args.num_minibatches or args.batch_size < 2 * args.num_minibatches:
        fail(f"--num-minibatches must cut {args.batch_size} rows into equal parts of 2 or more")
    if args.num_iterations < 1:
        fail(f"--total-timesteps must be at least one rollout (envs x steps): {args.batch_size}")
    try:
        envs = make_envs(args)
        envs.reset(seed=spawn_seeds(args.seed, "check", args.num_envs))
        envs.step(envs.action_space.sample())
        envs.close()
        if weights:  # the run may be of another network
            Agent(envs.single_observation_space, envs.single_action_space).load_state_dict(weights)
    except Exception as error:  # an environment may raise any
        fail(f"--env-id {args.env_id} can't be made and played (Atari: ppo_atari.py): {error!r}")


def save(folder: Path, args: Args, agent: Agent, optimizer, step: int, returns: list) -> None:
    """Write a file and rename it: a kill leaves a whole one. Episodes in flight are not kept."""
    state = {"script": SCRIPT, "args": vars(args), "step": step, "returns": returns}  # plain types
    state |= {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")


def load(folder: Path) -> tuple[Args, dict]:
    """Settings and checkpoint of a run; the file holds tensors and plain types only."""
    try:
        checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        if checkpoint["script"] != SCRIPT:
            fail(f"{folder} is a run of {checkpoint['script']}.py: use that script")
        return Args(**checkpoint["args"] | {"capture_video": False}), checkpoint
    except Exception as error:  # a damaged file makes torch raise any of a dozen kinds
        fail(f"{folder} holds no checkpoint that this file can read; give a run's: {error!r:.200}")


def evaluate(args: Args, checkpoint: dict, folder: Path, mode: str) -> list[float]:
    """Returns of full games, played one after the other with "sampled" or "greedy" actions."""
    env = make_env(args, folder / "videos" / mode if args.capture_video else None)
    agent = Agent(env.observation_space, env.action_space)
    agent.load_state_dict(checkpoint["agent"])
    torch_seed, *env_seeds = spawn_seeds(args.seed, "evaluate", 1 + args.eval_episodes)
    torch.manual_seed(torch_seed)
    returns, cut = [], 0
    for seed in tqdm(env_seeds, mode, unit=" games", leave=False):
        (obs, _), total, steps, over = env.reset(seed=seed), 0.0, 0, False
        while not over and steps < 27_000:  # some games never end; Atari's limit
            # [atari-06 2/2] Reward clipping to the sign
            # Scores are whole games' points. A lost life is followed by a reset, as in training,
            # which may itself end the game: so games are counted. Own limit: 108,000 frames.
            games = env.get_wrapper_attr("episode_count")
            with torch.inference_mode():
                dist, _ = agent(torch.as_tensor(obs)[None])  # (1, 4, 84, 84)
            action = dist.mode() if mode == "greedy" else dist.sample()
            obs, _, terminated, truncated, _ = env.step(action.item())
            total, steps = float(env.get_wrapper_attr("episode_returns")), steps + 1
            if terminated or truncated:
                obs, _ = env.reset()
            over = env.get_wrapper_attr("episode_count") > games and not truncated
            steps = 27_000 if truncated else steps  # the game's own limit: counts as cut
        returns.append(total)
        cut += not over
    env.close()
    print(f"{mode}: return {np.mean(returns):.1f} +- {np.std(returns):.1f}", end=" ")
    print(f"in {len(returns)} games" + f", {cut} cut at 27,000 steps" * (cut > 0))
    return returns


def main(argv: list[str] | None = None) -> dict:
    """Train, resume or evaluate as the command line says; the run's folder and its scores."""
    args, checkpoint = tyro.cli(Args, args=argv), None
    flag = "--resume" if args.evaluate is None else "--evaluate"  # train (a new run, too), or play
    run = args.resume if args.evaluate is None else args.evaluate
    name = f"{args.env_id}__{SCRIPT}__{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
    folder = Path(f"runs/{name.replace('/', '-').replace(':', '-')}" if run is None else run)
    if run is not None:
        saved, checkpoint = load(folder)  # its settings, which flags given now replace
        args = replace(tyro.cli(Args, args=argv, default=saved), resume=None, evaluate=None)
    check(args, checkpoint and checkpoint["agent"])
    if run and flag == "--resume" and checkpoint["step"] // args.batch_size >= args.num_iterations:
        fail(f"{folder} is trained to its end: use --evaluate, or give more --total-timesteps")

    # [aux-02 6/6] Parallel gradient update
    # First the rows of one process. Rank 0 alone writes (its own games and losses) and evaluates.
    rows = args.num_envs * args.num_steps
    if rows % args.num_minibatches or rows < 2 * args.num_minibatches:
        fail(f"--num-minibatches must cut the {rows} rows of each process into equal parts of 2+")
    if RANK:
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
        with TemporaryDirectory() as nowhere:
            if flag == "--resume":
                train(args, Path(nowhere), checkpoint)
        raise SystemExit

    try:
        if flag == "--resume":
            print(f"{args.num_iterations} x {args.batch_size} steps, into {folder}", flush=True)
            folder.mkdir(parents=True, exist_ok=run is not None)
            with open(folder / "args.json", "a") as lock:  # one process trains a folder
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / "args.json").write_text(json.dumps(vars(args), indent=2))
                train(args, folder.absolute(), checkpoint)  # an env may change the directory
            (_, checkpoint), flag = load(folder), "--evaluate"
        modes = ["sampled", "greedy"] if args.eval_episodes else []
        scores = {mode: evaluate(args, checkpoint, folder, mode) for mode in modes}
    except BlockingIOError:
        fail(f"{folder} is being trained by another process: wait for it, or stop it")
    except KeyboardInterrupt:
        fail(f"stopped; if it was saved, go on: python {SCRIPT}.py {flag} {folder}", code=130)
    print(f"watch it: python {SCRIPT}.py --evaluate {folder} --capture-video --eval-episodes 1")
    return {"folder": str(folder), **scores}


if __name__ == "__main__":
    main()
