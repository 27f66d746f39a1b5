"""Does it learn? Probe environments with one thing to learn each, and CartPole."""

import numpy as np
import pytest
import torch
from harness import SAME, load, unscaled

FAST = "--num-steps 16 --learning-rate 0.01 --total-timesteps 9600 --no-clip-vloss"


@pytest.fixture
def learn(ppo):
    def train(env: str, *flags: str):
        flags = [*SAME, *FAST.split(), "--eval-episodes", "0", *flags]
        if hasattr(ppo, "LSTM"):  # as many updates; a sequence costs the same for more envs
            flags += ["--num-envs", "8", "--total-timesteps", "9600"]
        ppo.main(["--env-id", f"known_envs:Probe-{env}-v0", *flags])
        return ppo.trained

    inner = unscaled(ppo).train

    def keep(*args):
        ppo.trained = inner(*args)
        return ppo.trained

    ppo.train = keep
    return train


def seen(agent, *observations) -> torch.Tensor:
    """Observations of one number each, the steps of an episode, as what policy and value read."""
    if hasattr(agent, "lstm"):
        steps = torch.tensor([[[o]] for o in observations])
        return agent.lstm(steps, torch.zeros(2, 1, 128))[0][:, 0]
    if hasattr(agent, "sizes"):
        return torch.tensor([[o, *[1.0] * agent.sizes[1]] for o in observations])
    if not hasattr(agent, "trunk"):
        return torch.tensor([[o] for o in observations])
    pictures = torch.full((len(observations), 4, 84, 84), 100, dtype=torch.uint8)
    pictures[:, 3, 0, 0] = torch.tensor([100 + 10 * o for o in observations])
    return pictures


def values(agent, *observations) -> list[float]:
    with torch.no_grad():
        return agent.value(seen(agent, *observations)).tolist()


def probability_of_1(agent, observation: float) -> float:
    """Of the second action, or of a torque above 0."""
    with torch.no_grad():
        actions = agent.policy(seen(agent, observation).repeat_interleave(2000, 0)).sample()
    return (actions.reshape(2000, -1)[:, 0] > 0).float().mean().item()


def test_value_of_a_constant_reward(learn):
    assert values(learn("constant"), 0.0) == pytest.approx([1], abs=0.1)


def test_discounted_value_of_a_delayed_reward(learn):
    agent = learn("delayed", "--gamma", "0.5")
    assert values(agent, 0.0, 1.0) == pytest.approx([0.5, 1], abs=0.1)


def test_the_better_action(learn):
    assert probability_of_1(learn("action"), 0.0) > 0.9


def test_the_action_that_the_observation_names(learn):
    agent = learn("observed", "--learning-rate", "0.003")  # at 0.01 one seed in five settles early
    assert probability_of_1(agent, 1.0) > 0.9 and probability_of_1(agent, -1.0) < 0.1


def test_value_at_a_time_limit(learn):
    """1 a step without end is worth 1 / (1 - 0.9) = 10; a limit of 10 steps makes it no less."""
    assert values(learn("endless", "--gamma", "0.9"), 0.0) == pytest.approx([10], abs=0.5)
    deaths = values(learn("endless", "--gamma", "0.9", "--no-bootstrap-truncation"), 0.0)
    assert deaths[0] < 6.6  # (1 - 0.9^10) / (1 - 0.9), at the most


def test_memory():
    """What the first of three observations says is asked for in the last."""
    flags = [*SAME, *FAST.split(), "--gamma", "0.9", "--total-timesteps", "38400"]
    flags = ["--env-id", "known_envs:Recall-v0", *flags]
    scores = {script: load(script).main(flags)["greedy"] for script in ("ppo.py", "ppo_lstm.py")}
    assert np.mean(scores["ppo_lstm.py"]) == 1 and np.mean(scores["ppo.py"]) < 1


def test_cartpole():
    """A random policy scores 22."""
    flags = ["--total-timesteps", "51200", "--learning-rate", "0.0025"]
    assert np.mean(load("ppo.py").main(flags)["sampled"]) > 195


def test_the_best_action_is_at_the_bound():
    """All samples beyond the bound earn the same, so the mean gets there, and need not go on."""
    flags = ["--env-id", "known_envs:Bound-v0", *SAME, *FAST.split(), "--ent-coef", "0"]
    scores = load("ppo_continuous.py").main(flags)
    assert np.mean(scores["greedy"]) > 0.49 and np.mean(scores["sampled"]) > 0.4


def test_pendulum_in_a_cart():
    """A random policy scores 6."""
    flags = ["--env-id", "InvertedPendulum-v5", *SAME, "--learning-rate", "0.0025"]
    scores = load("ppo_continuous.py").main([*flags, "--total-timesteps", "40960"])
    assert np.mean(scores["greedy"]) > 100
