"""Step 10. Time limits, seeds and a log: the lesson of ppo.py.

    python docs/course/10_ppo.py
    tensorboard --logdir runs

What is new in it, and why: docs/course.md.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    env_id: str = "CartPole-v1"  # Gymnasium id
    seed: int = 1  # same seed, machine and versions on a CPU: bit-identical weights
    total_timesteps: int = 500_000  # steps of all envs together, rounded down to whole rollouts
    num_envs: int = 4  # N, environments stepped side by side
    num_steps: int = 128  # T, steps in each environment between two updates
    cuda: bool = False  # use a GPU if there is one; untried: small networks may be slower there

    learning_rate: float = 2.5e-4  # Adam's step size in the first update
    anneal_lr: bool = True  # lower the learning rate linearly over the run
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # GAE: 0 trusts the value function (bias), 1 the rewards (variance)
    bootstrap_truncation: bool = True  # a state cut off by a time limit keeps its value
    num_minibatches: int = 4  # equal parts of a batch, one gradient step each
    update_epochs: int = 4  # passes over a batch
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.2  # epsilon: how far new / old probability may move from 1 and still gain
    anneal_clip: bool = False  # lower epsilon linearly over the run
    clip_vloss: bool = True  # clip the value loss too, by the same epsilon
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # largest gradient norm, over all parameters together
    target_kl: float | None = None  # no more epochs once the policy's KL from the old is above it

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.batch_size


def make_env(args: Args) -> gym.Env:
    """One environment with observations (D,)."""
    env = gym.make(args.env_id)
    return gym.wrappers.FlattenObservation(env)


def make_envs(args: Args) -> gym.vector.VectorEnv:
    """N environments stepped together: observations (N, D), rewards (N,)."""
    how = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "copy": False}
    return gym.vector.SyncVectorEnv([lambda: make_env(args)] * args.num_envs, **how)


def spawn_seeds(seed: int, stage: str, n: int) -> list[int]:
    """n seeds for a stage of the run, "train from 0" or "evaluate"."""
    return np.random.SeedSequence([seed, *stage.encode()]).generate_state(n, np.uint64).tolist()


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


class Categorical:
    """Distribution over actions from logits (..., actions); at least 4 times as fast as torch's."""

    def __init__(self, logits: torch.Tensor):
        self.logp = logits.log_softmax(-1)

    def sample(self) -> torch.Tensor:
        # Gumbel-max: argmax(log p + Gumbel noise) samples p.
        return (self.logp - torch.empty_like(self.logp).exponential_().log()).argmax(-1)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        return self.logp.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        return -(self.logp.exp() * self.logp).sum(-1)


class Agent(nn.Module):
    """The policy (actor) and the value function (critic)."""

    def __init__(self, obs_space: gym.Space, action_space: gym.Space):
        super().__init__()
        self.actor = mlp(obs_space.shape[0], int(action_space.n), gain=0.01)
        self.critic = mlp(obs_space.shape[0], 1, gain=1.0)

    def policy(self, obs: torch.Tensor) -> Categorical:
        """The distribution over actions in each observation (..., D)."""
        return Categorical(self.actor(obs))

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """Expected discounted returns (...) from observations (..., D)."""
        # Squeezed here, once: (M, 1) - (M,) would broadcast to an (M, M) loss without an error.
        return self.critic(obs).squeeze(-1)


def compute_gae(rewards, values, next_values, dones, gamma: float, gae_lambda: float) -> np.ndarray:
    """Advantages (T, N) of T steps in N envs, from arrays (T, N).

    `next_values`: V of the states that were reached, 0 after an episode's end. `dones`: True at the
    last step of an episode: its own delta counts, later ones do not.
    """
    deltas = rewards + gamma * next_values - values
    advantages, gae = np.zeros_like(deltas), 0.0
    for t in reversed(range(len(deltas))):  # in NumPy: torch would take four times as long
        advantages[t] = gae = deltas[t] + gamma * gae_lambda * ~dones[t] * gae
    return advantages


def train(args: Args, folder: Path) -> None:
    """Repeat: play T steps, estimate advantages, make better actions likelier, log."""
    # --- Setup
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # networks this small gain nothing from a second core
    torch_seed, *env_seeds = spawn_seeds(args.seed, "train from 0", 1 + args.num_envs)
    torch.manual_seed(torch_seed)
    envs = make_envs(args)
    agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)

    # Row t: the agent saw obs[t], took actions[t] with log-probability logprobs[t], got rewards[t]
    # and reached next_obs[t], never a reset's. dones[t]: terminated, or truncated by a time limit.
    shape = (args.num_steps, args.num_envs)  # (T, N)
    obs = np.zeros(shape + envs.single_observation_space.shape, np.float32)
    next_obs, actions = np.zeros_like(obs), np.zeros(shape, np.int64)
    logprobs, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    terminated, truncated, dones = (np.zeros(shape, bool) for _ in range(3))
    episode_return, episode_length = np.zeros(args.num_envs), np.zeros(args.num_envs, int)
    last_returns = []  # of the last 100 episodes

    writer = SummaryWriter(folder)
    bar = tqdm(range(1, args.num_iterations + 1), unit_scale=args.batch_size, unit=" steps")
    began = time.monotonic()
    current_obs, _ = envs.reset(seed=env_seeds)  # (N, D)
    for iteration in bar:
        # --- Annealing
        remaining = 1 - (iteration - 1) / args.num_iterations
        optimizer.param_groups[0]["lr"] = args.learning_rate * (remaining if args.anneal_lr else 1)
        clip_coef = args.clip_coef * (remaining if args.anneal_clip else 1)

        # --- Rollout: T steps in N envs
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

                dones[t] = terminated[t] | truncated[t]
                if dones[t].any():
                    step = ((iteration - 1) * args.num_steps + t) * args.num_envs + 1
                    for i in np.flatnonzero(dones[t]):  # + i: no two envs log at the same step
                        writer.add_scalar("charts/episodic_return", episode_return[i], step + i)
                        writer.add_scalar("charts/episodic_length", episode_length[i], step + i)
                    last_returns = [*last_returns, *episode_return[dones[t]].tolist()][-100:]
                    episode_return[dones[t]] = episode_length[dones[t]] = 0
                    current_obs, _ = envs.reset(options={"reset_mask": dones[t]})

        # --- Values and advantages, (T, N)
        with torch.inference_mode():  # all rows at once; at a reset next_obs[t] isn't obs[t + 1]
            values = agent.value(torch.as_tensor(obs, device=device)).cpu().numpy()
            next_values = agent.value(torch.as_tensor(next_obs, device=device)).cpu().numpy()

        # A time limit is not a failure: the state it cut off keeps its value.
        next_values[terminated if args.bootstrap_truncation else dones] = 0

        advantages = compute_gae(rewards, values, next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values  # the value function's targets

        # --- Update
        rollout = (obs, actions, logprobs, advantages, returns, values)
        batch = [torch.as_tensor(x, device=device).flatten(0, 1) for x in rollout]  # each (B, ...)
        log_ratios, losses = [], []  # of each gradient step
        for _ in range(args.update_epochs):
            # Shuffled anew each epoch, each row in one minibatch.
            order = torch.randperm(len(batch[0]), device=device)
            for minibatch in zip(*(x[order].chunk(args.num_minibatches) for x in batch)):
                mb_obs, mb_actions, mb_logprobs, mb_advantages, mb_returns, mb_values = minibatch
                dist, new_values = agent.policy(mb_obs), agent.value(mb_obs)
                log_ratio = dist.log_prob(mb_actions) - mb_logprobs  # log(p new / p old), (M,)
                ratio = log_ratio.exp()  # > 1: the new policy takes this action more often

                # Frees the policy's steps from the rewards' scale.
                if args.norm_adv:
                    mb_advantages = mb_advantages - mb_advantages.mean()
                    mb_advantages = mb_advantages / (mb_advantages.std() + 1e-8)

                # Rows tell of policies near the one that played: a ratio beyond 1 +- epsilon earns
                # nothing more; a wrong move is still pulled back.
                clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
                policy_loss = -torch.min(ratio * mb_advantages, clipped * mb_advantages).mean()

                # The worse of two errors: that of the new value, and that of the new value held
                # within epsilon of the old one.
                error = (new_values - mb_returns) ** 2
                if args.clip_vloss:
                    near = mb_values + (new_values - mb_values).clamp(-clip_coef, clip_coef)
                    error = torch.max(error, (near - mb_returns) ** 2)
                value_loss = 0.5 * error.mean()

                # The bonus keeps the policy from committing itself before it has tried what else
                # there is.
                entropy = dist.entropy().mean()
                loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss

                optimizer.zero_grad()
                loss.backward()
                grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                log_ratios.append(log_ratio.detach())
                losses.append(torch.stack([policy_loss, value_loss, entropy, grad_norm]).detach())

            if args.target_kl is not None and (ratio - 1 - log_ratio).mean() > args.target_kl:
                break

        # --- Log
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
            "charts/SPS": iteration * args.batch_size / (time.monotonic() - began),
            "debug/first_ratio_error": (ratios[0] - 1).abs().max().item(),
        }
        for tag, value in metrics.items():
            writer.add_scalar(tag, value, step)
        bar.set_postfix_str(f"return {np.mean(last_returns or np.nan):.1f}", refresh=False)

    writer.close()
    envs.close()


if __name__ == "__main__":
    train(tyro.cli(Args), Path("runs", time.strftime("course-%Y%m%d-%H%M%S")))
