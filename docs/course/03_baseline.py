"""Step 3. A baseline: an action becomes likelier if more came after it than the state promised.

    python docs/course/03_baseline.py

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
    total_timesteps: int = 200_000  # steps in the environment
    cuda: bool = False  # use a GPU if there is one; untried: small networks may be slower there

    learning_rate: float = 1e-3  # Adam's step size
    gamma: float = 0.99  # discount per step
    vf_coef: float = 0.5  # weight of the value loss


def make_env(args: Args) -> gym.Env:
    """One environment with observations (D,)."""
    env = gym.make(args.env_id)
    return gym.wrappers.FlattenObservation(env)


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


def train(args: Args) -> None:
    """Repeat: play an episode, make the actions that went better than expected likelier."""
    # --- Setup
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # networks this small gain nothing from a second core
    torch.manual_seed(args.seed)
    env = make_env(args)
    env.reset(seed=args.seed)
    agent = Agent(env.observation_space, env.action_space).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate)
    last_returns, step = [], 0  # of the last 100 episodes; steps played

    while step < args.total_timesteps:
        # --- Rollout: one episode of T steps
        # Row t: the agent saw obs[t], took actions[t] and got rewards[t].
        obs, actions, rewards, done = [], [], [], False
        current_obs, _ = env.reset()  # (D,)
        while not done:
            obs.append(current_obs)
            with torch.inference_mode():
                dist = agent.policy(torch.as_tensor(current_obs, device=device))
                actions.append(dist.sample().item())
            current_obs, reward, terminated, truncated, _ = env.step(actions[-1])
            rewards.append(reward)
            done = terminated or truncated

        # --- Values, returns and advantages, (T,)
        obs = np.array(obs)
        with torch.inference_mode():
            values = agent.value(torch.as_tensor(obs, device=device)).cpu().numpy()
        returns, later = np.zeros(len(rewards), np.float32), 0.0
        for t in reversed(range(len(rewards))):
            returns[t] = later = rewards[t] + args.gamma * later
        advantages = returns - values

        # --- Update
        rollout = (obs, np.array(actions), advantages, returns)
        batch = [torch.as_tensor(x, device=device) for x in rollout]  # each (T, ...)
        mb_obs, mb_actions, mb_advantages, mb_returns = batch  # minibatch: for now it is all rows
        dist, new_values = agent.policy(mb_obs), agent.value(mb_obs)
        policy_loss = -(dist.log_prob(mb_actions) * mb_advantages).mean()
        value_loss = 0.5 * ((new_values - mb_returns) ** 2).mean()
        loss = policy_loss + args.vf_coef * value_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        # --- Log
        last_returns = [*last_returns, sum(rewards)][-100:]
        before, step = step, step + len(rewards)
        if step // 10_000 > before // 10_000:
            print(f"step {step}: return {np.mean(last_returns):.1f}", flush=True)


if __name__ == "__main__":
    train(tyro.cli(Args))
