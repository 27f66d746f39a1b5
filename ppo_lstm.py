"""PPO with memory in one file: ppo.py, and the five details of a recurrent policy (LSTM).

    python ppo_lstm.py --observe 0 2              CartPole-v1 without its velocities, 70 seconds
    python ppo_lstm.py --env-id Acrobot-v1        any Gymnasium environment that fits
    tensorboard --logdir runs                     the curves, live

What differs from ppo.py: one LSTM reads the observations in order, for policy and value function.
Its state, what it remembers, lives as long as an episode. Training goes through whole sequences.

Read from top to bottom: all of PPO stands before the end of train(), and the rest only runs it.
`# [core-07] Title` marks a detail (aux: optional, extra: ours), which docs/ explains. "Source" is
in baselines/ of openai/baselines, commit ea25b9e, the official PPO ("ppo2"). DEVIATION: we differ.

Shapes: T num_steps, N num_envs, B = T * N rows of a batch, M rows of a minibatch, D numbers in an
observation, (...) any further axes. Row t of every array of the rollout belongs to step t.
Here the M rows are all T steps of n envs: read (T, n) for (M,). The LSTM has H = 128 units.
"""
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "gymnasium[box2d,classic-control]==1.4.0", "moviepy==2.2.1", "numpy==2.4.6",
#     "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
# ]
# ///

import fcntl  # locks files; Windows has none
import json
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

SCRIPT, ACTIONS = Path(__file__).stem, gym.spaces.Discrete  # this file's name, the actions it fits


@dataclass
class Args:
    """PPO with an LSTM, for vector observations and discrete actions."""

    env_id: str = "CartPole-v1"  # Gymnasium id; module:Name-v0 imports your module first
    seed: int = 1  # same seed, machine and versions on a CPU: bit-identical weights
    total_timesteps: int = 1_000_000  # steps of all envs together, rounded down to whole rollouts
    num_envs: int = 32  # N, environments stepped side by side
    num_steps: int = 64  # T, steps in each environment between two updates
    observe: tuple[int, ...] = ()  # the entries of the flat observation to keep; none: all
    cuda: bool = False  # use a GPU if there is one; untried: small networks may be slower there

    learning_rate: float = 5e-3  # Adam's step size in the first update
    anneal_lr: bool = True  # lower the learning rate linearly over the run
    gamma: float = 0.98  # discount per step
    gae_lambda: float = 0.95  # GAE: 0 trusts the value function (bias), 1 the rewards (variance)
    bootstrap_truncation: bool = True  # a state cut off by a time limit keeps its value
    num_minibatches: int = 4  # equal parts of a batch, one gradient step each
    update_epochs: int = 4  # passes over a batch
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.2  # epsilon: how far new / old probability may move from 1 and still gain
    anneal_clip: bool = False  # lower epsilon linearly over the run
    clip_vloss: bool = True  # clip the value loss too, by the same epsilon
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.1  # weight of the value loss
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

    # [extra-08 1/2] Hidden entries of the observation
    # For example CartPole without its velocities: they have to be inferred from past positions.
    env = gym.wrappers.FlattenObservation(env)  # Dict and n-d Box to (D,), Discrete to one-hot
    keep, full = list(args.observe) or slice(None), env.observation_space
    part = gym.spaces.Box(full.low[keep], full.high[keep], dtype=full.dtype)
    return gym.wrappers.TransformObservation(env, lambda obs: obs[keep], part)


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


# [lstm-01 1/2] LSTM layer: orthogonal initialization, zero biases
# Gain 1; gates i, f, o start near 0.5. Both heads read one LSTM. Source: a2c/utils.py#L81-L102.
# DEVIATION: torch has a second bias vector, which stays 0 here, and orders the gates otherwise.
class Agent(nn.Module):
    """The policy (actor) and the value function (critic)."""

    def __init__(self, obs_space: gym.Space, action_space: gym.Space):
        super().__init__()
        self.lstm = nn.LSTM(obs_space.shape[0], 128)
        nn.init.orthogonal_(self.lstm.weight_ih_l0)
        nn.init.orthogonal_(self.lstm.weight_hh_l0)
        nn.init.zeros_(self.lstm.bias_ih_l0)
        nn.init.zeros_(self.lstm.bias_hh_l0).requires_grad_(False)
        self.actor = layer_init(nn.Linear(128, int(action_space.n)), gain=0.01)
        self.critic = layer_init(nn.Linear(128, 1), gain=1.0)
        torch.backends.cudnn.allow_tf32 = False  # it rounds to 10 bits: ratios may not be 1

    def read(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From L steps (L, n, D) and a state (2, n, H): outputs (L, n, H) and the next state."""
        hidden, state = self.lstm(obs, (state[:1], state[1:]))  # (h, c): last output, cells
        return hidden, torch.cat(state)

    def policy(self, hidden: torch.Tensor) -> Categorical:
        """The distribution over actions for each output of the LSTM (..., H)."""
        return Categorical(self.actor(hidden))

    def value(self, hidden: torch.Tensor) -> torch.Tensor:
        """Expected discounted returns (...) from outputs of the LSTM (..., H)."""
        return self.critic(hidden).squeeze(-1)  # else (T, n, 1) - (T, n) fails, or broadcasts


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
    next_obs, actions = np.zeros_like(obs), np.zeros(shape, np.int64)
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

    # [lstm-02 1/2] Zero state at first
    # Nothing is remembered yet. Source: common/models.py#L179, common/runners.py#L13.
    state = torch.zeros(2, args.num_envs, 128, device=device)
    states = torch.zeros(args.num_steps, *state.shape, device=device)  # (T, 2, N, H), after obs[t]

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
        # [lstm-05 1/2] States rebuilt from the rollout's start
        # The last rollout's last state. Training starts from it, too. Source: ppo2/runner.py#L23.
        first_state = state  # (2, N, H); read() returns a new tensor, so no reset below alters it

        with torch.inference_mode():
            for t in range(args.num_steps):
                obs[t] = current_obs
                # [lstm-01 2/2] LSTM layer: orthogonal initialization, zero biases
                hidden, state = agent.read(torch.as_tensor(obs[t : t + 1], device=device), state)
                states[t] = state
                dist = agent.policy(hidden[0])  # (1, N, H) -> (N, H)

                action = dist.sample()
                actions[t], logprobs[t] = action.cpu().numpy(), dist.log_prob(action).cpu().numpy()
                current_obs, rewards[t], terminated[t], truncated[t], _ = envs.step(actions[t])
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

                    # [lstm-03 1/3] State reset at the end of an episode
                    # states[t] is a copy and keeps the old state. Source: a2c/utils.py#L89-L91.
                    state[:, torch.as_tensor(dones[t], device=device)] = 0

        # --- 3. Values and advantages, (T, N)
        with torch.inference_mode():  # all rows at once; at a reset next_obs[t] isn't obs[t + 1]
            # [lstm-03 2/3] State reset at the end of an episode
            # next_obs[t] is read from states[t], its own episode's memory: B envs, one step each.
            values = agent.value(states[:, 0]).cpu().numpy()  # [:, 0]: the outputs
            ahead = torch.as_tensor(next_obs, device=device).flatten(0, 1)[None]  # (1, B, D)
            hidden, _ = agent.read(ahead, states.transpose(0, 1).flatten(1, 2))  # from (2, B, H)
            next_values = agent.value(hidden).view(shape).cpu().numpy()

        # [extra-01] Bootstrap at time limits
        # A time limit is no failure: the state it cut off keeps its value. DEVIATION: the official
        # code takes 0, as --no-bootstrap-truncation does: good states near a limit then look bad.
        next_values[terminated if args.bootstrap_truncation else dones] = 0

        advantages = compute_gae(rewards, values, next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values  # the value function's targets

        # --- 4. Update
        # [lstm-04 1/3] Whole sequences as minibatches
        # Cut along axis 1: an env's steps stay together, in order. Source: ppo2/ppo2.py#L167-L180.
        rollout = (obs, actions, logprobs, advantages, returns, values, dones, first_state)
        batch = [torch.as_tensor(x, device=device) for x in rollout]  # (T, N, ...), (2, N, H)

        log_ratios, losses = [], []  # of each gradient step
        for _ in range(args.update_epochs):
            # [core-06] Mini-batch updates
            # Shuffled anew each epoch, each row in one minibatch. Source: ppo2/ppo2.py#L157-L166.
            # [lstm-04 2/3] Whole sequences as minibatches
            order = torch.randperm(args.num_envs, device=device)
            for minibatch in zip(*(x[:, order].chunk(args.num_minibatches, 1) for x in batch)):
                *minibatch, mb_dones, mb_state = minibatch  # (T, n, ...), and (2, n, H)
                mb_obs, mb_actions, mb_logprobs, mb_advantages, mb_returns, mb_values = minibatch

                # [lstm-05 2/2] States rebuilt from the rollout's start
                # The current weights read the rollout again, from its first state on: gradients go
                # back through time. Source: ppo2/model.py#L151-L153.
                # [lstm-03 3/3] State reset at the end of an episode
                ends, outputs, begin = mb_dones.any(1), [], 0  # (T,): some env's episode ends
                ends[-1] = True  # a call per stretch: at least twice as fast as one per step
                for stop in (ends.nonzero().flatten() + 1).tolist():
                    hidden, mb_state = agent.read(mb_obs[begin:stop], mb_state)
                    mb_state, begin = mb_state * ~mb_dones[stop - 1].unsqueeze(-1), stop
                    outputs.append(hidden)
                hidden = torch.cat(outputs)  # (T, n, H)
                dist, new_values = agent.policy(hidden), agent.value(hidden)

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

    # [lstm-04 3/3] Whole sequences as minibatches
    if args.num_envs % args.num_minibatches:
        fail(f"--num-minibatches must divide the {args.num_envs} envs, whose sequences stay whole")

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
            with torch.inference_mode():
                # [lstm-02 2/2] Zero state at first
                if steps == 0:  # of each game
                    state = torch.zeros(2, 1, 128)
                row = torch.as_tensor(obs, dtype=torch.float32)[None, None]  # (1, 1, D)
                hidden, state = agent.read(row, state)
                dist = agent.policy(hidden[0, 0])
            action = dist.mode() if mode == "greedy" else dist.sample()
            obs, reward, terminated, truncated, _ = env.step(action.numpy()[()])
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

        # [extra-08 2/2] Hidden entries of the observation
        if args.observe != saved.observe:  # others would fit the network, and mean something else
            fail(f"--observe can't change in a run: this one was trained with {saved.observe}")

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
