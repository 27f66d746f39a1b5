"""The details of ppo_multidiscrete.py, a test each."""

import math
from unittest.mock import patch

import gymnasium as gym
import known_envs
import numpy as np
import pytest
import torch
from gymnasium import spaces
from harness import Run


def joined(one: np.ndarray, two: np.ndarray) -> torch.Tensor:
    """Logits (2, 3) of a component of two choices and one of three."""
    return torch.tensor(np.array([[*one, 0], two]), dtype=torch.float32)


def two_components(ppo):
    """An agent that chooses one of 2 and one of 3, and the mask that says so."""
    agent = ppo.Agent(spaces.Box(-1, 1, (4,)), spaces.MultiDiscrete([2, 3]))
    return agent, torch.tensor([[True, True, False], [True, True, True]])


def test_multidiscrete_01_independent_action_components(ppo):
    """The probability of an action is the product of its components'; spaces of every kind."""
    agent, exists = two_components(ppo)
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
    obs = torch.randn(7, 4)
    actions = torch.tensor([[0, 0], [1, 2], [1, 0], [0, 1], [1, 1], [0, 2], [0, 0]])
    dist = agent.policy(obs, exists.expand(7, 2, 3))
    got = dist.log_prob(actions).detach().numpy()
    assert got.shape == (7,), "there is a log-probability for each component: sum them"
    assert not np.allclose(got, -math.log(6) / 2), "the components' mean is taken, not their sum"
    wrong = "log-probabilities are not sums over the components"
    np.testing.assert_allclose(got, [-math.log(6)] * 7, atol=1e-6, err_msg=wrong)
    got, wrong = dist.entropy().detach(), "entropies are not sums over the components"
    np.testing.assert_allclose(got, [math.log(6)] * 7, atol=1e-6, err_msg=wrong)
    with torch.no_grad():
        agent.actor[-1].bias[:] = torch.tensor([0.5, -0.5, 9.0, 1.0, 0.0, -1.0])
    one, two = (np.exp(b) / np.exp(b).sum() for b in ([0.5, -0.5], [1.0, 0, -1]))
    joint = np.outer(one, two)
    dist = agent.policy(obs[:1].expand(60_000, 4), exists.expand(60_000, 2, 3))
    samples = dist.sample()
    assert samples.shape == (60_000, 2)
    share = np.bincount((samples[:, 0] * 3 + samples[:, 1]).numpy(), minlength=6) / 60_000
    np.testing.assert_allclose(share.reshape(2, 3), joint, atol=0.01)
    logp = agent.policy(obs, exists.expand(7, 2, 3)).log_prob(actions)
    np.testing.assert_allclose(
        logp.detach(), np.log(joint[actions[:, 0], actions[:, 1]]), atol=1e-5
    )
    assert dist.mode()[0].tolist() == [0, 0]
    logits = torch.randn(7, 2, 5, dtype=torch.float64, requires_grad=True)
    both = [
        c(logits=logits).entropy().sum() for c in (ppo.Categorical, torch.distributions.Categorical)
    ]
    ours, theirs = (torch.autograd.grad(entropy, logits)[0] for entropy in both)
    np.testing.assert_allclose(ours, theirs, atol=1e-9, err_msg="the entropy's gradient")
    dist.log_prob(samples).sum().backward()  # one ratio for both: each part gets a gradient
    counts = [np.bincount(samples[:, i], minlength=n) for i, n in ((0, 2), (1, 3))]
    expected = [*(counts[0] - 60_000 * one), 0, *(counts[1] - 60_000 * two)]
    np.testing.assert_allclose(agent.actor[-1].bias.grad, expected, atol=1)


@pytest.mark.parametrize("script", ["ppo_multidiscrete.py"], indirect=True)
@pytest.mark.parametrize(
    ("space", "nvec", "action", "native"),
    [
        (
            spaces.MultiDiscrete([[2, 3], [4, 2]], np.int32, start=[[5, 0], [-1, 1]]),
            [2, 3, 4, 2],
            [1, 2, 3, 0],
            [[6, 2], [2, 1]],
        ),
        (spaces.MultiBinary((2, 2)), [2, 2, 2, 2], [1, 0, 0, 1], [[1, 0], [0, 1]]),
        (spaces.MultiBinary(3), [2, 2, 2], [1, 0, 1], [1, 0, 1]),
        (spaces.Discrete(3, start=5), [3], [2], 7),
        (spaces.Box(-1, 1, (2,)), [11, 11], [0, 10], [-10 / 11, 10 / 11]),
        (
            spaces.Box(np.float32([[0], [4]]), np.float32([[11], [15]])),
            [11, 11],
            [3, 5],
            [[3.5], [9.5]],
        ),
    ],
)
def test_actions_of_every_kind(ppo, monkeypatch, space, nvec, action, native):
    """The policy counts components from 0; the environment gets its own shape, start and type."""
    got, plain, step = [], known_envs.Ends(), known_envs.Ends.step
    plain.action_space = space
    monkeypatch.setattr(ppo.gym, "make", lambda *args, **kwargs: plain)
    monkeypatch.setattr(known_envs.Ends, "step", lambda self, a: got.append(a) or step(self, 0))
    env = ppo.make_env(ppo.Args())
    assert env.action_space.nvec.tolist() == nvec
    env.reset()
    env.step(np.array(action))
    np.testing.assert_allclose(got[0], native, atol=1e-6)
    assert space.contains(got[0])


class Told(known_envs.Masked):
    """Masked, but it takes invalid actions too: the log tells. Its last states have valid choices,
    unless it is `stuck`."""

    def info(self, over=False):
        return super().info()

    def step(self, action):
        with patch.object(self, "mask", [np.ones_like(part) for part in self.mask]):
            return super().step(action)


for kind in ("one", "pair", "stuck"):
    gym.register(f"Told-{kind}-v0", Told, kwargs={"kind": kind})


def valid(state, kind: str) -> np.ndarray:
    """What Masked says is valid in a state (episode, t), as the policy's mask (A, K)."""
    episode, t = state
    parts = known_envs.valid_choices(episode, t, kind)
    if t % 4 == 3:  # every fourth state comes without a mask
        parts = [np.ones_like(part) for part in parts]
    grid = np.zeros((len(parts), max(map(len, parts))), bool)
    for row, part in zip(grid, parts, strict=True):
        row[: len(part)] = part
    return grid


def obeyed(run, kind: str) -> np.ndarray:
    """Of each step, whether its action was valid in its state."""
    found = []
    for rollout in run.rollouts:
        states = np.rint(rollout.obs[..., 1:] * 10).astype(int).reshape(-1, 2)
        actions = rollout.actions.reshape(len(states), -1)
        for state, action in zip(states, actions, strict=True):
            found.append(valid(state, kind)[np.arange(len(action)), action].all())
    return np.array(found)


def test_aux_04_invalid_action_masking(ppo):
    """No masked action is taken; a masked choice's probability, gradient and share of the entropy
    are 0; the update meets the mask of the sample."""
    agent = ppo.Agent(spaces.Box(-1, 1, (4,)), spaces.MultiDiscrete([5]))
    obs, mask = torch.randn(10_000, 4), torch.tensor([[True, False, True, False, True]])
    dist = agent.policy(obs, mask.expand(10_000, 1, 5))
    actions = dist.sample()
    assert set(actions.ravel().tolist()) == {0, 2, 4}, "a masked choice was sampled"
    (dist.log_prob(actions).mean() + dist.entropy().mean()).backward()
    grad = agent.actor[-1].bias.grad
    assert grad.isfinite().all(), "the gradient is not finite: minus infinity times 0 is NaN"
    assert (grad[[1, 3]] == 0).all(), "a masked choice gets a gradient"
    assert (grad[[0, 2, 4]] != 0).all() and (agent.actor[-1].weight.grad[[1, 3]] == 0).all()
    three = torch.distributions.Categorical(logits=agent.actor(obs)[:, [0, 2, 4]])
    np.testing.assert_allclose(dist.entropy().detach(), three.entropy().detach(), atol=1e-5)
    with torch.no_grad():
        agent.actor[-1].bias[[0, 2, 4]] -= 100
    left = agent.policy(obs, mask.expand(10_000, 1, 5)).log_prob(actions).exp()
    assert (left > 0.01).all(), "where all valid choices are unlikely, a masked one wins"

    calls, policy = [], ppo.Agent.policy

    def spy(agent, obs, mask):
        states = np.rint(obs.numpy() * 10).astype(int)[:, 1:].tolist()
        calls.extend(zip(states, mask.numpy().copy(), strict=True))
        return policy(agent, obs, mask)

    ppo.Agent.policy = spy
    for kind, choices in (("one", 5), ("pair", 12)):
        calls.clear()
        run = Run(ppo, f"Told-{kind}-v0", iterations=6, ent_coef=0.3)
        assert len(calls) == 6 * (64 + 4 * 64)
        for state, given in calls:
            wrong = f"in episode and step {state} the policy was given another state's mask"
            assert (given == valid(state, kind)).all(), wrong
        assert obeyed(run, kind).all(), "an invalid action was taken"
        assert max(value for _, value in run.scalars["debug/first_ratio_error"]) < 1e-4
        assert max(value for _, value in run.scalars["losses/entropy"]) < math.log(choices) - 0.1

    calls.clear()
    run = Run(ppo, "Told-pair-v0", masks=False)
    exists = [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert all((mask == exists).all() for _, mask in calls), "--no-masks has masks"
    assert not obeyed(run, "pair").all()


@pytest.mark.parametrize("script", ["ppo_multidiscrete.py"], indirect=True)
def test_nothing_valid_stops_the_run(ppo):
    """Before anything is played there; the environment's mistake is a traceback that names it."""
    with pytest.raises(ValueError, match="action_mask leaves nothing valid"):
        Run(ppo, "Told-stuck-v0")
    assert max(entry[3] for entry in known_envs.LOG if entry[0] == "step") == 1


@pytest.mark.parametrize("script", ["ppo_multidiscrete.py"], indirect=True)
def test_a_mask_of_another_size(ppo, capsys):
    """Each choice has a flag of its own; one flag is not taken for all."""
    with pytest.raises(SystemExit):
        ppo.main(["--env-id", "known_envs:Masked-short-v0"])
    assert "can't be made and played (Atari: ppo_atari.py): ValueError" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["ppo_multidiscrete.py"], indirect=True)
@pytest.mark.parametrize("kind", ["one", "pair"])
def test_strict_environments(ppo, kind):
    """An environment may refuse invalid actions, and leave nothing valid in an episode's last
    state, where nobody acts; its training and its evaluation obey the masks."""
    run = Run(ppo, f"Masked-{kind}-v0", iterations=2)
    assert obeyed(run, kind).all()
    assert len(ppo.main(["--evaluate", run.folder, "--eval-episodes", "2"])["sampled"]) == 2
