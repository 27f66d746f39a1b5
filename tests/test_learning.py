"""Does it learn? Probe environments with one thing to learn each, and CartPole."""

import known_envs
import numpy as np
import pytest
import torch
from harness import load

SAME = """--num-envs 8 --num-steps 16 --num-minibatches 2 --update-epochs 4 --gamma 0.99
--ent-coef 0.01 --vf-coef 0.5 --clip-coef 0.2""".split()
FAST = [*SAME, *"--learning-rate 0.01 --no-clip-vloss --total-timesteps 6400".split()]


class Reader(torch.nn.Module):
    """In place of the convolutions, which would take minutes: reads numbers, below 0 from 128."""

    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(3, 512)
        torch.nn.init.orthogonal_(self.hidden.weight)

    def forward(self, numbers):
        numbers = (numbers.flatten(1) * 255 + 128) % 256 - 128
        return self.hidden(numbers / 10).tanh()


@pytest.fixture
def learn(ppo):
    """Train on a probe; what was learned about the first steps of an episode, by observation."""
    made, init = [], ppo.Agent.__init__

    def keep(agent, *spaces):
        init(agent, *spaces)
        if hasattr(agent, "trunk"):
            agent.trunk = Reader()
        made.append(agent)

    ppo.Agent.__init__ = keep
    ppo.adapter.plain(ppo)
    if ppo.adapter.actions == "atari":
        ppo.make_env = lambda args, video=None: known_envs.Glimpse(ppo.gym.make(args.env_id))

    def train(env: str, *flags: str):
        made.clear()
        ppo.main(["--env-id", f"known_envs:Probe-{env}-v0", *FAST, *flags, "--eval-episodes", "0"])
        return made[0]

    return train


def seen(ppo, agent, observations):
    """The policy and the values in the first steps of an episode, by what is observed in them."""
    with torch.no_grad():
        if ppo.adapter.actions == "atari":
            numbers = [[int(10 * o) % 256, 0, 0] for o in observations]
            return agent(torch.tensor(numbers, dtype=torch.uint8)[..., None, None])
        obs = [[o] for o in observations]
        return ppo.adapter.policy(agent, obs), ppo.adapter.value(agent, obs)


def values(ppo, agent, *observations) -> list[float]:
    return seen(ppo, agent, observations)[1].tolist()


def probability_of_1(ppo, agent, observation: float) -> float:
    """Of the second action, or of a torque above 0."""
    dist, _ = seen(ppo, agent, [observation])
    actions = torch.stack([dist.sample() for _ in range(1000)])
    return (actions.reshape(1000, -1)[:, 0] > 0).float().mean().item()


def test_value_of_a_constant_reward(ppo, learn):
    assert values(ppo, learn("constant"), 0.0) == pytest.approx([1], abs=0.1)


def test_discounted_value_of_a_delayed_reward(ppo, learn):
    agent = learn("delayed", "--gamma", "0.5")
    assert values(ppo, agent, 0.0, 1.0) == pytest.approx([0.5, 1], abs=0.1)


def test_the_better_action(ppo, learn):
    assert probability_of_1(ppo, learn("action"), 0.0) > 0.9


def test_the_action_that_the_observation_names(ppo, learn):
    agent = learn("observed", "--learning-rate", "0.003")  # at 0.01 one seed in five settles early
    assert probability_of_1(ppo, agent, 1.0) > 0.9 and probability_of_1(ppo, agent, -1.0) < 0.1


def test_value_at_a_time_limit(ppo, learn):
    """1 a step without end is worth 1 / (1 - 0.9) = 10; a limit of 10 steps makes it no less."""
    agent = learn("endless", "--gamma", "0.9")
    assert values(ppo, agent, 0.0) == pytest.approx([10], abs=0.5)
    deaths = learn("endless", "--gamma", "0.9", "--no-bootstrap-truncation")
    assert values(ppo, deaths, 0.0)[0] < 6.6  # (1 - 0.9^10) / (1 - 0.9), at the most


def test_memory():
    """What the first of three observations says is asked for in the last."""
    flags = ["--env-id", "known_envs:Recall-v0", *FAST, "--gamma", "0.9"]
    scores = {
        script: load(script).main([*flags, "--total-timesteps", "12800"])["greedy"]
        for script in ("ppo.py", "ppo_lstm.py")
    }
    assert np.mean(scores["ppo_lstm.py"]) == 1 and np.mean(scores["ppo.py"]) < 1


def test_cartpole():
    """A random policy scores 22."""
    flags = ["--total-timesteps", "51200", "--learning-rate", "0.0025", "--eval-episodes", "5"]
    assert np.mean(load("ppo.py").main(flags)["sampled"]) > 195


def test_the_best_action_is_at_the_bound():
    """All samples beyond the bound earn the same, so the mean gets there, and need not go on."""
    flags = ["--env-id", "known_envs:Bound-v0", *FAST, "--ent-coef", "0"]
    scores = load("ppo_continuous.py").main(flags)
    assert np.mean(scores["greedy"]) > 0.49 and np.mean(scores["sampled"]) > 0.4


def test_pendulum_in_a_cart():
    """A random policy scores 6."""
    flags = ["--env-id", "InvertedPendulum-v5", *SAME, "--num-steps", "64"]
    flags += ["--learning-rate", "0.0025", "--total-timesteps", "25600", "--eval-episodes", "3"]
    assert np.mean(load("ppo_continuous.py").main(flags)["greedy"]) > 100
