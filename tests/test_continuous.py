"""The details of ppo_continuous.py, a test each."""

import math
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import known_envs
import numpy as np
import pytest
import torch
from harness import Run

# Ends is unbounded, so that what it got is what was sampled; statistics count as in real use.
SCALED = {"plain": False}


def forward(agent, network: str, x: np.ndarray) -> np.ndarray:
    """Two hidden tanh layers and a linear one by hand, in float64, from an agent's parameters."""
    parameters = [p.detach().double().numpy() for p in getattr(agent, network).parameters()]
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = np.tanh(x @ weight.T + bias)
    return x @ parameters[-2].T + parameters[-1]


def statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of rows (n, ...) that were counted, and of what a script starts with: mean 0 and
    variance 1 with the weight of 1e-4 rows."""
    mean = rows.sum(0) / (len(rows) + 1e-4)
    squares = ((rows - mean) ** 2).sum(0) + 1e-4 * (1 + mean**2)
    return mean, np.sqrt(squares / (len(rows) + 1e-4) + 1e-8)


def counted(run) -> list[np.ndarray]:
    """After each step what has been counted of observations (n, 3): those that were acted on, and
    the next; before the first step, the first."""
    rollouts = run.rollouts
    obs = np.concatenate([rollout.obs for rollout in rollouts])
    last = rollouts[-1].next_obs[-1].copy()  # what follows the last row: after an end, a reset
    ended = rollouts[-1].dones[-1]
    last[ended, 1:] = last[ended, 1:] * [1, 0] + [0.1, 0]
    obs = np.concatenate([obs, last[None]])
    return [obs[: k + 1].reshape(-1, 3) for k in range(len(obs))]


def test_continuous_01_continuous_actions_via_normal_distributions(ppo):
    """Actions are normal around the network's output; the gradient reaches mean and std."""
    agent, obs = ppo.Agent(*ppo.adapter.spaces(4, 2)), torch.randn(4)
    with torch.no_grad():
        agent.actor[-1].bias[:] = torch.tensor([0.9, -0.3])
        agent.log_std[:] = torch.tensor([math.log(0.5), math.log(2.0)])
    dist = agent.policy(obs.expand(100_000, 4))
    samples = dist.sample().detach().double().numpy()
    mean = forward(agent, "actor", obs.double().numpy())
    np.testing.assert_allclose(dist.mode()[0].detach().numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(
        samples.std(0), [0.5, 2], rtol=0.02, err_msg="std is not exp(log_std)"
    )
    centred = (samples - samples.mean(0)) / samples.std(0)
    np.testing.assert_allclose((centred**4).mean(0), 3, rtol=0.05)  # as a normal's: no squashing
    assert (np.abs(samples) > 1).any(0).all()  # the bounds are the environment's business
    few = agent.policy(obs.expand(1000, 4))
    few.log_prob(torch.as_tensor(samples[:1000], dtype=torch.float32)).sum().backward()
    assert agent.log_std.grad is not None, "no gradient reaches the standard deviation"
    z = (samples[:1000] - mean) / [0.5, 2]
    np.testing.assert_allclose(agent.log_std.grad.numpy(), (z**2 - 1).sum(0), rtol=1e-3, atol=0.1)
    by_hand = (z / [0.5, 2]).sum(0)
    np.testing.assert_allclose(agent.actor[-1].bias.grad.numpy(), by_hand, rtol=1e-3, atol=0.1)


def test_continuous_02_state_independent_log_standard_deviation(ppo):
    """One std for all observations: 1 before training, another after it, learned by gradients."""
    agent, obs = ppo.Agent(*ppo.adapter.spaces(3, 2)), torch.randn(64, 3)
    np.testing.assert_array_equal(spreads(agent, obs), 1, err_msg="the std is not 1 at first")
    run = Run(ppo, "Ends-v0", iterations=3, ent_coef=0, **SCALED)
    spread = spreads(run.agents[0], obs)
    assert (np.abs(spread - 1) > 1e-3).all(), "the std has not been learned"
    assert np.ptp(spread, axis=0).max() == 0, "the std depends on the observation"
    with torch.no_grad():
        assert np.ptp(run.agents[0].policy(obs).mode().numpy(), axis=0).min() > 1e-3
    logged = [value for _, value in run.scalars["debug/action_std"]]
    assert logged[-1] == pytest.approx(spread[0].mean(), rel=1e-4) and logged[-1] != logged[0]


def spreads(agent, obs) -> np.ndarray:
    """The std of the policy in each of these observations, (n, A), from noise that is the same."""
    with torch.no_grad():
        dist = [agent.policy(row) for row in obs]
        found = []
        for row in dist:
            torch.manual_seed(0)
            found.append(row.sample().double() - row.mode().double())
        torch.manual_seed(0)
        noise = torch.randn(2).double()
    return np.round((torch.stack(found) / noise).numpy(), 4)


def test_continuous_03_independent_action_components(ppo):
    """Log-probabilities and entropies are sums over components, one number a row."""
    rng = np.random.default_rng(0)
    mean, actions = rng.normal(size=(2, 7, 3))
    log_std = rng.normal(size=3)
    density = np.exp(-0.5 * ((actions - mean) / np.exp(log_std)) ** 2)
    density /= np.exp(log_std) * np.sqrt(2 * np.pi)
    dist = ppo.Gaussian(torch.tensor(mean), torch.tensor(log_std))
    assert (dist.mode().numpy() == mean).all(), "mode() is the most likely action: the mean"
    got, right = dist.log_prob(torch.tensor(actions)).numpy(), np.log(density).sum(-1)
    assert got.shape == (7,), "there is a log-probability for each component: sum them"
    assert not np.allclose(got * 3, right), "the components' mean is taken, not their sum"
    np.testing.assert_allclose(got, right, rtol=1e-9)
    three = ppo.Gaussian(torch.zeros(5, 3), torch.zeros(3))
    np.testing.assert_allclose(three.log_prob(torch.zeros(5, 3)).numpy(), [-2.7568] * 5, atol=1e-4)
    np.testing.assert_allclose(three.entropy().numpy().mean(), 4.2568, atol=1e-4)
    many = ppo.Gaussian(torch.tensor(mean[0]).expand(100_000, 3), torch.tensor(log_std)).sample()
    wrong = "of sample() is not that of the distribution"
    off = (many.mean(0).numpy() - mean[0]) / np.exp(log_std)
    np.testing.assert_allclose(off, 0, atol=0.02, err_msg=f"the mean {wrong}")
    spread = many.std(0).numpy() / np.exp(log_std)
    np.testing.assert_allclose(spread, 1, rtol=0.02, err_msg=f"the standard deviation {wrong}")
    by_torch = torch.distributions.Normal(torch.tensor(mean), torch.tensor(log_std).exp())
    by_torch = by_torch.entropy().sum(-1).numpy()
    np.testing.assert_allclose(np.broadcast_to(dist.entropy(), 7), by_torch, rtol=1e-9)
    log_std = torch.zeros(3, requires_grad=True)
    ppo.Gaussian(torch.zeros(5, 3), log_std).entropy().mean().backward()
    assert (log_std.grad == 1).all(), "the entropy bonus must reach log_std"


def test_continuous_04_separate_mlp_networks(ppo):
    """Policy and value are two networks of two tanh layers that share no parameter."""
    agent, obs = ppo.Agent(*ppo.adapter.spaces(4, 2)), torch.randn(8, 4)
    for name, got in (("actor", agent.policy(obs).mode()), ("critic", agent.value(obs)[:, None])):
        by_hand = forward(agent, name, obs.double().numpy())
        np.testing.assert_allclose(got.detach().numpy(), by_hand, atol=1e-5)
    agent.policy(obs).log_prob(torch.ones(8, 2)).sum().backward()
    for parameter in agent.critic.parameters():
        assert parameter.grad is None or not parameter.grad.any(), "policy and value share weights"


def test_continuous_05_clipped_for_the_environment(ppo):
    """An environment with bounds gets the actions clipped that one without gets as sampled; what is
    learned is the same in both: the samples are stored, and scored, as they are."""
    free, bound = (Run(ppo, env, iterations=3, **SCALED) for env in ("Ends-v0", "Torque-v0"))
    for i, (one, other) in enumerate(zip(free.rollouts, bound.rollouts, strict=True)):
        outside = np.abs(one.actions) > 1
        assert outside.mean() > 0.2
        assert np.abs(other.actions).max() <= 1, "the environment got an action beyond its bounds"
        wrong = "what is learned depends on the clipping" if i else None
        clipped = one.actions.clip(-1, 1)
        np.testing.assert_allclose(other.actions, clipped, atol=1e-6, err_msg=wrong)
        share = dict(bound.scalars["debug/clipped_actions"])[64 * (i + 1)]
        assert share == pytest.approx(outside.mean())
    for name, weights in free.weights.items():
        assert (weights == bound.weights[name]).all(), "what is learned depends on the clipping"
    assert max(value for _, value in bound.scalars["debug/first_ratio_error"]) < 1e-4
    # A matrix of torques with a bound for each; the environment checks each action.
    ppo.main(["--env-id", "known_envs:Shapes-v0", *ppo.adapter.sizes.split(),
              "--total-timesteps", "64", "--eval-episodes", "1"])  # fmt: skip


def test_continuous_06_observation_normalization(ppo):
    """Each observation is scaled by mean and std of all so far that were acted on, itself included;
    an episode's last one, by those of the step after it, and not counted."""
    run = Run(ppo, iterations=3, **SCALED)
    raw = np.concatenate([rollout.obs for rollout in run.rollouts])
    stats = [statistics(rows) for rows in counted(run)]
    acted = np.array(run.acted)[: len(raw)]
    for k, (obs, got) in enumerate(zip(raw, acted, strict=True)):
        mean, std = stats[k]
        wrong = f"in step {k} the policy does not see (obs - mean) / std"
        right = ((obs - mean) / std).clip(-10, 10)
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4, err_msg=wrong)
    ends = 0
    for i, rollout in enumerate(run.rollouts):
        agent = run.agent(rollout.steps[0].weights)
        for t in range(16):
            mean, std = stats[16 * i + t + 1]
            after = ((rollout.next_obs[t] - mean) / std).clip(-10, 10)
            right = forward(agent, "critic", after)[:, 0] * ~rollout.terminated[t]
            wrong = f"the values of what follows step {16 * i + t} are of other numbers"
            np.testing.assert_allclose(
                rollout.gae["next_values"][t], right, rtol=1e-3, atol=1e-4, err_msg=wrong
            )
            ends += (rollout.dones[t] & ~rollout.terminated[t]).sum()
    assert ends >= 4
    stats = ppo.RunningMeanStd(())
    stats.m2, stats.count = np.array(0.0), np.array(1.0)
    assert stats.std() == pytest.approx(1e-4), "1e-8 is added to the variance, within the root"
    # A stream far from 0 loses nothing, in whatever portions it comes.
    data = 1e4 + np.random.default_rng(0).normal(size=(960, 5))
    for shape in ((5,), (1, 5), (8, 5)):  # a single row need not be wrapped
        stats = ppo.RunningMeanStd((5,))
        for batch in data.reshape(-1, *shape):
            stats.update(batch)
        np.testing.assert_allclose(stats.std(), statistics(data)[1], rtol=1e-6)


def test_continuous_07_observation_clipping(ppo):
    """After 1,000 standard normal observations an outlier of 1e6 arrives as 10."""
    agent = ppo.Agent(*ppo.adapter.spaces(2, 2))
    for row in np.random.default_rng(0).normal(size=(1000, 1, 2)):
        agent.obs_stats.update(row)
    outlier = agent.normalize(np.array([[1e6, -1e6]]))
    assert outlier.tolist() == [[10, -10]], "normalized observations are to stay within 10"
    assert outlier.dtype == np.float32
    inside = agent.normalize(np.array([[1.0, -2]]))
    assert np.abs(inside - [[1, -2]]).max() < 0.2


def scaled_rewards(run) -> np.ndarray:
    """What each reward (T, N) should become: divided by the std of the discounted returns so far of
    all environments, each set back to 0 at every end of an episode."""
    rewards = np.array([[step[3] for step in steps] for steps in run.taken]).T
    dones = np.concatenate([rollout.dones for rollout in run.rollouts])
    total, seen, found = np.zeros(rewards.shape[1]), [], []
    for reward, done in zip(rewards, dones, strict=True):
        total = run.args.gamma * total + reward
        seen.append(total.copy())
        found.append(reward / statistics(np.ravel(seen))[1])
        total[done] = 0
    return np.array(found)


def test_continuous_08_reward_scaling(ppo):
    """Rewards are divided by the std of discounted returns, whose discount is --gamma."""
    for gamma in (0.99, 0.5):
        run = Run(ppo, iterations=3, gamma=gamma, **SCALED)
        got = np.concatenate([rollout.gae["rewards"] for rollout in run.rollouts])
        wrong = "rewards are not divided by the std of the discounted returns so far"
        right = scaled_rewards(run).clip(-10, 10)
        np.testing.assert_allclose(got, right, rtol=1e-3, atol=1e-4, err_msg=wrong)
        returns = [value for _, value in run.scalars["charts/episodic_return"]]
        raw = [sum(np.sin(3.0 * e + t) for t in range(n)) for e, n in ((0, 5), (1, 7))]
        for value in raw:
            assert np.isclose(returns, value, atol=1e-4).sum() == 4, "the log has scaled returns"


def test_continuous_09_reward_clipping(ppo):
    """The first reward of 1 would be scaled to 70 and is stored as 10; the log shows 1."""
    run = Run(ppo, "Probe-constant-v0", **SCALED)
    assert (run.gae[0][0]["rewards"][0] == 10).all(), "scaled rewards are to stay within 10"
    assert run.scalars["charts/episodic_return"][0][1] == 1
    step = known_envs.Probe.step

    def owing(env, action):
        obs, reward, *rest = step(env, action)
        return obs, -reward, *rest

    with patch.object(known_envs.Probe, "step", owing):
        run = Run(ppo, "Probe-constant-v0", **SCALED)
    assert (run.gae[0][0]["rewards"][0] == -10).all(), "only rewards above 0 are clipped"


def test_extra_03_statistics_saved_with_the_agent(ppo):
    """A saved agent acts as it did, bit for bit, in a new process, on statistics that stay."""
    run = Run(ppo, iterations=3, **SCALED)
    path, raw = f"{run.folder}/checkpoint.pt", np.random.default_rng(0).normal(size=(50, 3)) * 5
    saved = torch.load(path, weights_only=True)["agent"]
    agent = ppo.Agent(*ppo.adapter.spaces(3, 2))
    agent.load_state_dict(saved)
    mean, std = statistics(counted(run)[-1])
    by_hand = forward(agent, "actor", ((raw - mean) / std).clip(-10, 10))
    with torch.no_grad():
        there = agent.policy(torch.as_tensor(agent.normalize(raw))).mode().numpy()
    wrong = "the loaded agent scales observations otherwise than the one that was trained"
    np.testing.assert_allclose(there, by_hand, atol=1e-4, err_msg=wrong)
    np.save("raw.npy", raw)
    Path("graded_continuous.py").write_text(ppo.source)
    code = f"""
import numpy, torch
from graded_continuous import Agent
from gymnasium.spaces import Box
agent = Agent(Box(-1, 1, (3,)), Box(-1, 1, (2,)))
agent.load_state_dict(torch.load("{path}", weights_only=True)["agent"])
raw = numpy.load("raw.npy")
numpy.save("acted", agent.policy(torch.as_tensor(agent.normalize(raw))).mode().detach().numpy())
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert np.load("acted.npy").tobytes() == there.tobytes()
    # An evaluation counts nothing, and no file changes. A resumed run counts on.
    with patch.object(ppo.RunningMeanStd, "update", side_effect=AssertionError("counted")):
        ppo.main(["--evaluate", run.folder, "--eval-episodes", "1"])
    scores = [ppo.main(["--evaluate", run.folder, "--eval-episodes", "2"]) for _ in range(2)]
    assert scores[0] == scores[1]
    again = torch.load(path, weights_only=True)["agent"]
    assert str(again) == str(saved)
    more = str(2 * run.args.total_timesteps)
    resumed = ppo.main(["--resume", run.folder, "--total-timesteps", more, "--eval-episodes", "0"])
    twice = ppo.Agent(*ppo.adapter.spaces(3, 2))
    state = torch.load(f"{resumed['folder']}/checkpoint.pt", weights_only=True)["agent"]
    twice.load_state_dict(state)
    for name, counts in (("obs_stats", 2 * 4 * 49), ("return_stats", 2 * 4 * 48)):
        assert getattr(twice, name).count == pytest.approx(counts + 1e-4), f"{name} begin anew"
    # A half-precision copy keeps the statistics in full.
    agent.half()
    np.testing.assert_allclose(agent.obs_stats.mean, mean, rtol=1e-9)
