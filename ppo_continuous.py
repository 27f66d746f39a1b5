"""PPO for continuous actions in one file: ppo.py, and the nine details of continuous control.

    python ppo_continuous.py                      HalfCheetah-v5, a million steps, seven minutes
    python ppo_continuous.py --env-id Hopper-v5   any Gymnasium environment that fits
    tensorboard --logdir runs                     the curves, live

What differs from ppo.py: the policy is a Gaussian over the A numbers of an action, which the
environment gets clipped. Running statistics scale observations and rewards; they are saved, too.

Read from top to bottom: all of PPO stands before the end of train(), and the rest only runs it.
`# [core-07] Title` marks a detail (aux: optional, extra: ours), which docs/ explains. "Source" is
in baselines/ of openai/baselines, commit ea25b9e, the official PPO ("ppo2"). DEVIATION: we differ.

Shapes: T num_steps, N num_envs, B = T * N rows of a batch, M rows of a minibatch, D numbers in an
observation, (...) any further axes. Row t of every array of the rollout belongs to step t.
"""
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "gymnasium[box2d,classic-control]==1.4.0", "moviepy==2.2.1", "mujoco==4.0.0", "numpy==2.4.6",
#     "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
# ]
# ///

import fcntl  # locks files; Windows has none
import json
import math
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SCRIPT, ACTIONS = Path(__file__).stem, gym.spaces.Box  # this file's name, the actions it fits
if sys.platform == "linux" and "DISPLAY" not in os.environ and "--capture" in " ".join(sys.argv):
    os.environ.setdefault("MUJOCO_GL", "egl")  # films without a screen; read when MuJoCo is loaded
for spec in filter(lambda spec: "envs.mujoco" in str(spec.entry_point), gym.registry.values()):
    spec.kwargs["camera_name"] = "track"  # or robots leave the picture, in Gymnasium 1.4


@dataclass
class Args:
    """PPO for continuous actions, with CleanRL's hyperparameters (its ppo_continuous_action.py)."""

    env_id: str = "HalfCheetah-v5"  # Gymnasium id; module:Name-v0 imports your module first
    seed: int = 1  # same seed, machine and versions on a CPU: bit-identical weights
    total_timesteps: int = 1_000_000  # steps of all envs together, rounded down to whole rollouts
    num_envs: int = 1  # N, environments stepped side by side
    num_steps: int = 2048  # T, steps in each environment between two updates
    cuda: bool = False  # use a GPU if there is one; untried: small networks may be slower there

    learning_rate: float = 3e-4  # Adam's step size in the first update
    anneal_lr: bool = True  # lower the learning rate linearly over the run
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # GAE: 0 trusts the value function (bias), 1 the rewards (variance)
    bootstrap_truncation: bool = True  # a state cut off by a time limit keeps its value
    num_minibatches: int = 32  # equal parts of a batch, one gradient step each
    update_epochs: int = 10  # passes over a batch
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.2  # epsilon: how far new / old probability may move from 1 and still gain
    anneal_clip: bool = False  # lower epsilon linearly over the run
    clip_vloss: bool = True  # clip the value loss too, by the same epsilon
    ent_coef: float = 0.0  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest gradient norm, over all parameters together
    target_kl: float | None = None  # no more epochs once the policy's KL from the old is above it

    eval_episodes: int = 10  # games played after training, sampled and again greedy; 0: none
    capture_video: bool = False  # film 1,000 steps of each evaluation, into the run folder
    checkpoint_every: float = 10.0  # seconds between checkpoints: what Ctrl-C or a kill can lose
    resume: str | None = None  # run folder to continue; flags given with it replace its settings
    evaluate: str | None = None  # run folder whose agent plays, without training

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.batch_size


# ---------------------------------------- Environment ----------------------------------------
def make_env(args: Args, video: Path | None = None) -> gym.Env:
    """One environment with observations (D,); `video`: folder for a film of its first steps."""
    env = gym.make(args.env_id, **({"render_mode": "rgb_array"} if args.capture_video else {}))
    if video:
        env = gym.wrappers.RecordVideo(env, str(video), lambda game: game == 0, video_length=1000)
    return gym.wrappers.FlattenObservation(env)  # Dict and n-d Box to (D,), Discrete to one-hot


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


def mlp(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units and a linear head: (..., inputs) -> (..., outputs)."""
    return nn.Sequential(
        layer_init(nn.Linear(inputs, 64)),
        nn.Tanh(),
        layer_init(nn.Linear(64, 64)),
        nn.Tanh(),
        layer_init(nn.Linear(64, outputs), gain),
    )


# [continuous-03] Independent action components
# One number per action: log-probabilities and entropies are summed over its components, or each
# would have a ratio, and a clip, of its own. Source: common/distributions.py#L238-L248.
class Gaussian:
    """Distribution over actions (..., A) with mean (..., A) and log standard deviation (A,)."""

    def __init__(self, mean: torch.Tensor, log_std: torch.Tensor):
        self.mean, self.log_std, self.std = mean, log_std, log_std.exp()

    def sample(self) -> torch.Tensor:
        return self.mean + self.std * torch.randn_like(self.mean)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        z = (actions - self.mean) / self.std
        return -(0.5 * z * z + (self.log_std + 0.5 * math.log(2 * math.pi))).sum(-1)

    def entropy(self) -> torch.Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def mode(self) -> torch.Tensor:
        return self.mean


# [extra-03 1/3] Statistics saved with the agent, frozen in evaluation
# A policy is useless on inputs scaled otherwise than in training. Before any data: mean 0,
# variance 1, with the weight of 1e-4 rows. Source: common/running_mean_std.py#L7-L33.
class RunningMeanStd(nn.Module):
    """Mean and variance, m2 / count, of all rows (*shape) counted so far, in NumPy's float64."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.mean, self.m2, self.count = np.zeros(shape), np.full(shape, 1e-4), np.array(1e-4)

    def get_extra_state(self) -> tuple:  # what torch puts into the agent's state_dict
        return self.mean.tolist(), self.m2.tolist(), self.count.tolist()

    def set_extra_state(self, state: tuple) -> None:
        self.mean, self.m2, self.count = (np.array(x) for x in state)

    def update(self, x: np.ndarray) -> None:  # n rows (n, *shape), or one (*shape)
        x = x.reshape(-1, *self.mean.shape)
        delta = x - self.mean
        self.count += len(x)
        self.mean += delta.sum(0) / self.count
        self.m2 += (delta * (x - self.mean)).sum(0)

    def std(self) -> np.ndarray:
        return np.sqrt(self.m2 / self.count + 1e-8)


class Agent(nn.Module):
    """The policy (actor) and the value function (critic)."""

    def __init__(self, obs_space: gym.Space, action_space: gym.Space):
        super().__init__()
        # [continuous-01 1/3] Continuous actions via normal distributions
        # The network gives the mean, near 0 at first whatever the bounds are: wrap an environment
        # far from [-1, 1] in RescaleAction. Source: common/distributions.py#L96-L106.
        self.actor = mlp(obs_space.shape[0], math.prod(action_space.shape), gain=0.01)

        # [continuous-02 1/2] State-independent log standard deviation
        # One learned number per component, std 1 at first. Source: common/distributions.py#L104.
        # [extra-03 2/3] Statistics saved with the agent, frozen in evaluation
        self.log_std = nn.Parameter(torch.zeros(math.prod(action_space.shape)))
        self.obs_stats, self.return_stats = RunningMeanStd(obs_space.shape), RunningMeanStd(())

        # [core-13] Separate networks for policy and value function
        # In a shared trunk both losses pull at the same weights; a second network is cheap.
        # Source: common/policies.py#L154-L166 (value_network="copy").
        # [continuous-04] Separate MLP networks for policy and value function
        # As in the official code for MuJoCo. Source: ppo2/defaults.py#L12.
        self.critic = mlp(obs_space.shape[0], 1, gain=1.0)

    # [continuous-06 1/3] Observation normalization
    # Unscaled, large features saturate the tanh units and small ones go unseen.
    # Source: common/vec_env/vec_normalize.py#L36-L42.
    # [continuous-07] Observation clipping
    # To +-10: a feature that first moves after n equal rows would be sqrt(n) stds from its mean.
    def normalize(self, obs: np.ndarray) -> np.ndarray:
        """Raw observations (..., D) as policy() and value() want them, in float32."""
        return ((obs - self.obs_stats.mean) / self.obs_stats.std()).clip(-10, 10).astype(np.float32)

    # [continuous-01 2/3] Continuous actions via normal distributions
    def policy(self, obs: torch.Tensor) -> Gaussian:
        """The distribution over actions in each normalized observation (..., D)."""
        return Gaussian(self.actor(obs), self.log_std)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """Expected discounted returns (...) from observations (..., D)."""
        # Squeezed here, once: (M, 1) - (M,) would broadcast to an (M, M) loss without an error.
        return self.critic(obs).squeeze(-1)


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
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # networks this small gain nothing from a second core
    start = checkpoint["step"] // args.batch_size if checkpoint else 0  # iterations done
    torch_seed, *env_seeds = spawn_seeds(args.seed, f"train from {start}", 1 + args.num_envs)
    torch.manual_seed(torch_seed)
    envs = make_envs(args)
    agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)

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
    obs = np.zeros(shape + envs.single_observation_space.shape, np.float32)
    # [continuous-01 3/3] Continuous actions via normal distributions
    next_obs, actions = np.zeros_like(obs), np.zeros((*shape, len(agent.log_std)), np.float32)

    logprobs, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    terminated, truncated, dones = (np.zeros(shape, bool) for _ in range(3))
    episode_return, episode_length = np.zeros(args.num_envs), np.zeros(args.num_envs, int)
    last_returns = checkpoint["returns"] if checkpoint else []  # of the last 100 episodes

    writer = SummaryWriter(folder, purge_step=start * args.batch_size + 1)  # no step shows twice
    bar = tqdm(range(start + 1, args.num_iterations + 1), unit_scale=args.batch_size, unit=" steps")
    began, saved_at = time.monotonic(), -np.inf  # -inf: the first iteration is saved

    # [core-01] Vectorized architecture
    # All envs are reset here, once. A rollout goes on where the last one stopped, so that T can be
    # far shorter than an episode. Source: common/runners.py#L8-L14, ppo2/runner.py#L26.
    current_obs, _ = envs.reset(seed=env_seeds)  # (N, D)

    # [continuous-06 2/3] Observation normalization
    # [continuous-08 1/2] Reward scaling
    agent.obs_stats.update(current_obs)
    current_obs = agent.normalize(current_obs)
    discounted_return = np.zeros(args.num_envs)  # past rewards of each episode, older ones fading

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
                dist = agent.policy(torch.as_tensor(obs[t], device=device))
                action = dist.sample()
                actions[t], logprobs[t] = action.cpu().numpy(), dist.log_prob(action).cpu().numpy()
                # [continuous-05 1/3] Clipped for the environment, stored unclipped
                # log_prob belongs to the sample; what is clipped is not what the policy drew.
                # Source: common/wrappers.py#L21-L29. DEVIATION: NaN is not made 0, but stops a run.
                box = envs.action_space  # (N, ...)
                executed = actions[t].reshape(box.shape).clip(box.low, box.high)
                current_obs, rewards[t], terminated[t], truncated[t], _ = envs.step(executed)

                next_obs[t] = current_obs
                episode_return += rewards[t]
                episode_length += 1

                dones[t] = terminated[t] | truncated[t]
                if dones[t].any():
                    step = ((iteration - 1) * args.num_steps + t) * args.num_envs + 1
                    for i in np.flatnonzero(dones[t]):  # + i: no two envs log at the same step
                        writer.add_scalar("charts/episodic_return", episode_return[i], step + i)
                        writer.add_scalar("charts/episodic_length", episode_length[i], step + i)
                    last_returns = [*last_returns, *episode_return[dones[t]].tolist()][-100:]
                    episode_return[dones[t]] = episode_length[dones[t]] = 0

                    # [extra-02 2/2] Explicit reset (no autoreset)
                    # A finished env restarts only here; its last state is kept in next_obs[t].
                    current_obs, _ = envs.reset(options={"reset_mask": dones[t]})

                # [continuous-06 3/3] Observation normalization
                # What a reset returned is counted, an episode's last observation is not.
                agent.obs_stats.update(current_obs)
                current_obs = agent.normalize(current_obs)
                next_obs[t] = agent.normalize(next_obs[t]) if dones[t].any() else current_obs

                # [continuous-08 2/2] Reward scaling
                # Divides by discounted_return's std. To subtract a mean would change the task.
                # Source: common/vec_env/vec_normalize.py#L28-L33. DEVIATION: --gamma, not 0.99.
                # [continuous-09] Reward clipping
                # Matters in the first steps, while the divisor is a guess. Source: the same, L32.
                discounted_return = args.gamma * discounted_return + rewards[t]
                agent.return_stats.update(discounted_return)
                discounted_return[dones[t]] = 0  # a time limit ends an episode, too
                rewards[t] = (rewards[t] / agent.return_stats.std()).clip(-10, 10)  # logged above

        # --- 3. Values and advantages, (T, N)
        with torch.inference_mode():  # all rows at once; at a reset next_obs[t] isn't obs[t + 1]
            values = agent.value(torch.as_tensor(obs, device=device)).cpu().numpy()
            next_values = agent.value(torch.as_tensor(next_obs, device=device)).cpu().numpy()

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
                dist, new_values = agent.policy(mb_obs), agent.value(mb_obs)
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

                # [core-11] Global gradient clipping
                # One norm over all parameters: direction stays. Source: ppo2/model.py#L102-L108.
                grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)

                optimizer.step()
                log_ratios.append(log_ratio.detach())  # no .item(): it would wait for a GPU
                losses.append(torch.stack([policy_loss, value_loss, entropy, grad_norm]).detach())

            # [aux-03] Early stopping on KL
            # CleanRL's rule: the KL is k3 (see below) of an epoch's last minibatch. ppo2 has none.
            if args.target_kl is not None and (ratio - 1 - log_ratio).mean() > args.target_kl:
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

        # [continuous-02 2/2] State-independent log standard deviation
        # [continuous-05 2/3] Clipped for the environment, stored unclipped
        metrics["debug/action_std"] = agent.log_std.exp().mean().item()
        sampled = actions.reshape(-1, *box.shape)
        metrics["debug/clipped_actions"] = (sampled != sampled.clip(box.low, box.high)).mean()

        if bad := [tag for tag, value in metrics.items() if not np.isfinite(value)]:
            fail(f"{bad[0]} is not finite in iteration {iteration}; the last checkpoint is kept", 1)

        # [extra-05] Self-check that the first minibatch's ratio is 1
        # In an update's first minibatch the policy is still the one that acted: all ratios are 1.
        if metrics["debug/first_ratio_error"] > 1e-3:
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
    shape, space = envs.envs[0].unwrapped.observation_space.shape, envs.single_action_space
    if len(shape or ()) > 2 or not isinstance(space, ACTIONS) or np.any(getattr(space, "start", 0)):
        fits = "for pictures ppo_atari.py, for Box ppo_continuous.py, else ppo_multidiscrete.py"
        fail(f"{SCRIPT}.py does not fit {args.env_id}: observations {shape}, {space}; use {fits}")


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
            # [extra-03 3/3] Statistics saved with the agent, frozen in evaluation
            # [continuous-05 3/3] Clipped for the environment, stored unclipped
            with torch.inference_mode():
                dist = agent.policy(torch.as_tensor(agent.normalize(obs)))
            action, box = dist.mode() if mode == "greedy" else dist.sample(), env.action_space
            executed = action.numpy().reshape(box.shape).clip(box.low, box.high)
            obs, reward, terminated, truncated, _ = env.step(executed)
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
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
