"""Step 6. Several passes over the same rows, and watching the policy go too far.

    python docs/course/06_epochs.py

What is new in it, and why: docs/course.md.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn


@dataclass
class Args:
    env_id: str = "CartPole-v1"  # Gymnasium id
    seed: int = 1  # same seed and machine: same run
    total_timesteps: int = 200_000  # steps of all envs together, rounded down to whole rollouts
    num_envs: int = 4  # N, environments stepped side by side
    num_steps: int = 32  # T, steps in each environment between two updates
    cuda: bool = False  # use a GPU if there is one; untried: small networks may be slower there

    learning_rate: float = 1e-3  # Adam's step size
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # GAE: 0 trusts the value function (bias), 1 the rewards (variance)
    update_epochs: int = 4  # passes over a batch
    vf_coef: float = 0.5  # weight of the value loss


def make_env(args: Args) -> gym.Env:
    """One environment with observations (D,)."""
    env = gym.make(args.env_id)
    return gym.wrappers.FlattenObservation(env)


def make_envs(args: Args) -> gym.vector.VectorEnv:
    """N environments stepped together: observations (N, D), rewards (N,)."""
    how = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "copy": False}
    return gym.vector.SyncVectorEnv([lambda: make_env(args)] * args.num_envs, **how)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 64 tanh units and a linear head: (..., inputs) -> (..., outputs)."""
    return nn.Sequential(
        nn.Linear(inputs, 64),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, outputs),
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


class Agent(nn.Module):
    """The policy (actor) and the value function (critic)."""

    def __init__(self, obs_space: gym.Space, action_space: gym.Space):
        super().__init__()
        self.actor = mlp(obs_space.shape[0], int(action_space.n))
        self.critic = mlp(obs_space.shape[0], 1)

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


def train(args: Args) -> None:
    """Repeat: play T steps, make the actions that went better than expected likelier."""
    # --- Setup
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # networks this small gain nothing from a second core
    torch.manual_seed(args.seed)
    envs = make_envs(args)
    agent = Agent(envs.single_observation_space, envs.single_action_space).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate)

    # Row t: the agent saw obs[t], took actions[t] with log-probability logprobs[t], got rewards[t]
    # and reached next_obs[t], never a reset's. dones[t]: terminated, or truncated by a time limit.
    shape = (args.num_steps, args.num_envs)  # (T, N)
    obs = np.zeros(shape + envs.single_observation_space.shape, np.float32)
    next_obs, actions = np.zeros_like(obs), np.zeros(shape, np.int64)
    logprobs, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    dones = np.zeros(shape, bool)
    episode_return = np.zeros(args.num_envs)
    last_returns = []  # of the last 100 episodes

    current_obs, _ = envs.reset(seed=args.seed)  # (N, D)
    batch_size = args.num_envs * args.num_steps  # B
    for iteration in range(1, args.total_timesteps // batch_size + 1):
        # --- Rollout: T steps in N envs
        with torch.inference_mode():
            for t in range(args.num_steps):
                obs[t] = current_obs
                dist = agent.policy(torch.as_tensor(obs[t], device=device))
                action = dist.sample()
                actions[t], logprobs[t] = action.cpu().numpy(), dist.log_prob(action).cpu().numpy()
                current_obs, rewards[t], terminated, truncated, _ = envs.step(actions[t])
                next_obs[t] = current_obs
                episode_return += rewards[t]

                dones[t] = terminated | truncated
                if dones[t].any():
                    last_returns = [*last_returns, *episode_return[dones[t]].tolist()][-100:]
                    episode_return[dones[t]] = 0
                    current_obs, _ = envs.reset(options={"reset_mask": dones[t]})

        # --- Values and advantages, (T, N)
        with torch.inference_mode():  # all rows at once; at a reset next_obs[t] isn't obs[t + 1]
            values = agent.value(torch.as_tensor(obs, device=device)).cpu().numpy()
            next_values = agent.value(torch.as_tensor(next_obs, device=device)).cpu().numpy()
        next_values[dones] = 0
        advantages = compute_gae(rewards, values, next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values  # the value function's targets

        # --- Update
        rollout = (obs, actions, logprobs, advantages, returns)
        batch = [torch.as_tensor(x, device=device).flatten(0, 1) for x in rollout]  # each (B, ...)
        log_ratios = []  # of each gradient step
        for _ in range(args.update_epochs):
            mb_obs, mb_actions, mb_logprobs, mb_advantages, mb_returns = batch
            dist, new_values = agent.policy(mb_obs), agent.value(mb_obs)
            log_ratio = dist.log_prob(mb_actions) - mb_logprobs  # log(p new / p old), (M,)
            policy_loss = -(dist.log_prob(mb_actions) * mb_advantages).mean()
            value_loss = 0.5 * ((new_values - mb_returns) ** 2).mean()
            loss = policy_loss + args.vf_coef * value_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log_ratios.append(log_ratio.detach())

        # --- Log
        log_ratios = torch.stack(log_ratios)  # (gradient steps, M)
        ratios, step = log_ratios.exp(), iteration * batch_size
        metrics = {"losses/approx_kl": (ratios - 1 - log_ratios).mean().item()}
        if iteration % 80 == 0:
            said = ", ".join(f"{tag} {value:.4f}" for tag, value in metrics.items())
            print(f"step {step}: return {np.mean(last_returns):.1f}, {said}", flush=True)


if __name__ == "__main__":
    train(tyro.cli(Args))
