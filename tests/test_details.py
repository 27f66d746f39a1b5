"""One test per detail: what the script does against a computation of its own.

test_removals.py runs each of these on the script without its detail and expects it to fail.
"""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import known_envs
import numpy as np
import pytest
import torch
from harness import ROOT, record, small
from torch.nn import functional

LR = 2.5e-4


def spaces(ppo, observations: int, actions: int):
    """An observation space, and one of `actions` choices or torques, for a script's Agent."""
    space = ppo.gym.spaces.Box(-1, 1, (observations,))
    if hasattr(ppo, "NatureCNN"):
        space = ppo.gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    if hasattr(ppo, "MaskInObservation"):  # as make_env gives it: mask included, one component
        space = ppo.gym.spaces.Box(-1, 1, (observations + actions,))
        return space, ppo.gym.spaces.MultiDiscrete([actions])
    if ppo.gym.spaces.Discrete in ppo.ACTION_SPACES:
        return space, ppo.gym.spaces.Discrete(actions)
    return space, ppo.gym.spaces.Box(-1, 1, (actions,))


def entropies(dist: dict) -> np.ndarray:
    """Of each row of a recorded distribution."""
    if parts := dist["parts"] or [dist[key] for key in ("logp",) if key in dist]:
        parts = [logp.astype(np.float64) for logp in parts]
        parts = [logp - np.log(np.exp(logp).sum(-1, keepdims=True)) for logp in parts]
        return sum(-(np.exp(logp) * logp).sum(-1) for logp in parts)
    one = dist["log_std"].astype(np.float64) + 0.5 * math.log(2 * math.pi * math.e)
    return np.full(len(dist["mean"]), one.sum())


def test_core_01(ppo):
    """Envs are reset once; the next rollout goes on from the last state of the one before."""
    rec = record(ppo, *small("Long-v0"))
    resets = [entry for entry in rec.log if entry[0] == "reset"]
    assert len(resets) == 4
    acted = np.array(rec.acted)  # (3 * 16, 4, 3): env, episode, t, each / 10
    assert acted.shape == (48, 4, 3)
    np.testing.assert_allclose(acted[:, :, 2], np.arange(48)[:, None].repeat(4, 1) / 10, atol=1e-6)
    assert len({*acted[0, :, 0]}) == 4  # four different envs side by side


def test_core_02(ppo):
    """Hidden weights times their transpose are 2 I, heads 1e-4 and 1; biases are 0."""
    agent = ppo.Agent(*spaces(ppo, 7, 3))
    gains = {32: 2.0, 64: 2.0, 512: 2.0, 3: 1e-4, 1: 1.0}
    seen = []
    for name, parameter in agent.named_parameters():
        if name.startswith("lstm"):
            continue  # lstm-01
        weight = parameter.detach().double().flatten(1 if parameter.ndim > 1 else 0).numpy()
        if weight.ndim == 1:
            assert not weight.any(), name
        else:
            short = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
            gain = gains[weight.shape[0]]
            np.testing.assert_allclose(
                short, gain * np.eye(len(short)), atol=1e-5 * max(gain, 1e-2)
            )
            seen.append(weight.shape[0])
    assert sorted(seen) in ([1, 3, 64, 64, 64, 64], [1, 3, 32, 64, 64, 512], [1, 3])


def test_core_03(ppo):
    """The first step for a gradient of 1e-5 is lr * 1e-5 / (1e-5 + epsilon): half of lr."""
    settings = record(ppo, *small(iterations=1)).optimizers[0]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], **settings)
    parameter.grad = torch.full((1,), 1e-5)
    optimizer.step()
    assert -parameter.item() == pytest.approx(LR / 2, rel=1e-3)
    assert len(record(ppo, *small(iterations=1)).optimizers) == 1


def test_core_04(ppo):
    """lr in the first update, lr / iterations in the last, constant within each."""
    rates = [step["lr"] for step in record(ppo, *small(iterations=5)).steps]
    assert len(rates) == 5 * 16
    expected = np.repeat([LR * (5 - i) / 5 for i in range(5)], 16)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    flat = [s["lr"] for s in record(ppo, *small("Ends-v0", "--no-anneal-lr", iterations=2)).steps]
    assert set(flat) == {LR}


def advantages_by_sums(rewards, values, next_values, dones, gamma, lam):
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, to the end of episode or rollout."""
    rewards, values, next_values = (x.astype(np.float64) for x in (rewards, values, next_values))
    total = np.zeros_like(rewards)
    for i in range(rewards.shape[1]):
        for t in range(len(rewards)):
            for k in range(t, len(rewards)):
                delta = rewards[k, i] + gamma * next_values[k, i] - values[k, i]
                total[t, i] += (gamma * lam) ** (k - t) * delta
                if dones[k, i]:
                    break
    return total


def test_core_05(ppo):
    """compute_gae equals the double sum of its definition, and what is learned is its result."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        arrays = rng.normal(size=(3, 12, 5)).astype(np.float32)
        dones = rng.random((12, 5)) < 0.25
        got = ppo.compute_gae(*arrays, dones, 0.97, 0.9)
        np.testing.assert_allclose(got, advantages_by_sums(*arrays, dones, 0.97, 0.9), atol=1e-5)
    ones = np.ones((3, 1), np.float32)
    values, after = np.array([[10.0], [20], [30]]), np.array([[20.0], [30], [40]])
    got = ppo.compute_gae(ones, values, after, np.zeros((3, 1), bool), 0.99, 0.95)
    np.testing.assert_allclose(got[:, 0], [30.2395, 20.6693, 10.6], atol=1e-4)

    rec = record(ppo, *small("Ends-v0", "--no-norm-adv", iterations=1))
    rewards, values, next_values, dones, gamma, lam, advantages = rec.gae[0]
    expected = advantages_by_sums(rewards, values, next_values, dones, gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    used = np.concatenate([m["advantages"] for m in rec.learned[:4]])
    np.testing.assert_allclose(np.sort(used), np.sort(expected.ravel()), atol=1e-5)
    targets = np.concatenate([m["returns"] for m in rec.learned[:4]])
    np.testing.assert_allclose(np.sort(targets), np.sort((expected + values).ravel()), atol=1e-5)


def test_core_06(ppo):
    """Each epoch cuts all rows into equal minibatches, in an order of its own."""
    rec = record(ppo, *small("Long-v0", "--num-envs", "8", "--num-steps", "8"))
    assert len(rec.learned) == len(rec.steps) == 3 * 4 * 4
    orders = []
    for epoch in range(12):
        parts = [m["obs"] for m in rec.learned[4 * epoch : 4 * epoch + 4]]
        assert [len(part) for part in parts] == [16, 16, 16, 16]
        rows = [tuple(row) for row in np.concatenate(parts)]
        first = 8 * (epoch // 4)
        batch = np.array(rec.acted[first : first + 8]).reshape(64, 3)
        assert sorted(rows) == sorted(tuple(row) for row in batch)
        orders.append(tuple(rows))
    assert len(set(orders)) == 12


def test_core_07(ppo):
    """Each minibatch's advantages have mean 0 and standard deviation 1; the batch's are others."""
    rec = record(ppo, *small())
    for minibatch in rec.learned:
        advantages = minibatch["advantages"].astype(np.float64)
        assert abs(advantages.mean()) < 1e-5
        assert advantages.std(ddof=1) == pytest.approx(1, abs=1e-4)
    raw = record(ppo, *small("Ends-v0", "--no-norm-adv")).learned[0]["advantages"]
    assert abs(raw.std(ddof=1) - 1) > 1e-2
    # Equal advantages have no spread to divide by: the result is 0, not NaN.
    constant = record(ppo, *small("Probe-constant-v0", "--vf-coef", "0", iterations=1))
    assert np.isfinite([m["advantages"] for m in constant.learned]).all()


def test_core_08(ppo):
    """The loss and its gradient by hand: no gradient where the ratio has moved far enough."""
    ratio = torch.tensor([1.3, 0.7, 1.3, 0.7, 1.1], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0])
    loss = ppo.policy_loss(advantages, ratio, 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.7 - 1.3 - 0.8 + 2.2) / 5, abs=1e-6)
    loss.backward()
    np.testing.assert_allclose(ratio.grad.numpy() * 5, [0, -1, 1, 0, -2], atol=1e-6)
    minibatch = record(ppo, *small(iterations=1)).learned[5]
    a, r = (minibatch[k].astype(np.float64) for k in ("advantages", "ratio"))
    by_hand = -np.minimum(r * a, np.clip(r, 0.8, 1.2) * a).mean()
    assert minibatch["pg_loss"] == pytest.approx(by_hand, abs=1e-6)


def test_core_09(ppo):
    """V_old 0, V 0.5, epsilon 0.2: target 1 gives 0.5 * 0.64 and no gradient, -1 gives both."""
    for target, loss, gradient in ((1.0, 0.32, 0.0), (-1.0, 1.125, 1.5)):
        value = torch.tensor([0.5], requires_grad=True)
        got = ppo.value_loss(value, torch.zeros(1), torch.tensor([target]), 0.2)
        assert got.item() == pytest.approx(loss, abs=1e-6)
        got.backward()
        assert value.grad.item() == pytest.approx(gradient, abs=1e-6)
    plain = ppo.value_loss(torch.tensor([0.5]), torch.zeros(1), torch.tensor([1.0]), None)
    assert plain.item() == pytest.approx(0.125, abs=1e-6)
    minibatch = record(ppo, *small("Ends-v0", "--clip-coef", "0.001", iterations=1)).learned[9]
    new, old, target = (
        minibatch[k].astype(np.float64) for k in ("new_values", "old_values", "returns")
    )
    clipped = old + np.clip(new - old, -0.001, 0.001)
    by_hand = 0.5 * np.maximum((new - target) ** 2, (clipped - target) ** 2).mean()
    assert minibatch["v_loss"] == pytest.approx(by_hand, rel=1e-5)


def test_core_10(ppo):
    """What is differentiated is pg_loss - ent_coef * entropy + vf_coef * v_loss."""
    rec = record(ppo, *small("Ends-v0", "--ent-coef", "0.3", "--vf-coef", "0.7", iterations=1))
    assert len(rec.losses) == len(rec.learned) == 16
    for loss, minibatch in zip(rec.losses, rec.learned, strict=True):
        entropy = entropies(minibatch["dist"]).mean()
        expected = minibatch["pg_loss"] - 0.3 * entropy + 0.7 * minibatch["v_loss"]
        assert loss == pytest.approx(expected, abs=1e-5)


def test_core_11(ppo):
    """Over all parameters together the gradient is as long as max_grad_norm when it was longer."""
    free = record(ppo, *small("Ends-v0", "--max-grad-norm", "1e6", iterations=1)).steps[0]["grad"]
    clipped = record(ppo, *small("Ends-v0", "--max-grad-norm", "0.01", iterations=1)).steps
    assert np.linalg.norm(free) > 0.05
    for step in clipped:
        assert np.linalg.norm(step["grad"]) == pytest.approx(0.01, rel=1e-3)
    turned = clipped[0]["grad"] / 0.01 - free / np.linalg.norm(free)
    assert np.abs(turned).max() < 1e-3  # shortened, not turned


def test_core_12(ppo):
    """Logged numbers are means over all minibatches of all epochs of an iteration."""
    rec = record(ppo, *small())
    for i in range(3):
        step, minibatches = 64 * (i + 1), rec.learned[16 * i : 16 * i + 16]
        log_ratio = np.log([m["ratio"].astype(np.float64) for m in minibatches])
        ratio = np.exp(log_ratio)
        _, values, *_, advantages = rec.gae[i]
        returns = (advantages + values).astype(np.float64)
        expected = {
            "losses/policy_loss": np.mean([m["pg_loss"] for m in minibatches]),
            "losses/value_loss": np.mean([m["v_loss"] for m in minibatches]),
            "losses/entropy": np.mean([entropies(m["dist"]) for m in minibatches]),
            "losses/old_approx_kl": -log_ratio.mean(),
            "losses/approx_kl_k2": (log_ratio**2).mean() / 2,
            "losses/approx_kl": (ratio - 1 - log_ratio).mean(),
            "losses/clipfrac": (np.abs(ratio - 1) > 0.2).mean(),
            "losses/explained_variance": 1 - np.var(returns - values) / np.var(returns),
        }
        for tag, value in expected.items():
            logged = dict(rec.scalars[tag])[step]
            assert logged == pytest.approx(value, rel=1e-3, abs=2e-7), tag
    k1, k2, k3 = ppo.approx_kl(torch.tensor([0.1, -0.1]))
    np.testing.assert_allclose([k1, k2], [0, 0.005], atol=1e-7)
    assert k3.item() == pytest.approx(np.cosh(0.1) - 1, abs=1e-6)


def test_core_13(ppo):
    """The value loss moves no parameter of the policy, and the other way round."""
    agent = ppo.Agent(*spaces(ppo, 4, 2))
    obs = torch.randn(8, 4)
    actions = torch.ones(8, 2) if hasattr(agent, "log_std") else torch.ones(8, dtype=int)
    if hasattr(agent, "nvec"):
        obs, actions = torch.cat([obs, torch.ones(8, 2)], 1), actions[:, None]
    assert agent.value(obs).shape == (8,)  # a last axis of 1 would broadcast in the loss
    for own, other, loss in (
        (agent.critic, agent.actor, lambda: agent.value(obs).sum()),
        (agent.actor, agent.critic, lambda: agent.policy(obs).log_prob(actions).sum()),
    ):
        agent.zero_grad()
        loss().backward()
        assert all(p.grad is None or not p.grad.any() for p in other.parameters())
        assert all(p.grad is not None and p.grad.any() for p in own.parameters())


def test_aux_01(ppo):
    """With --anneal-clip epsilon falls from clip_coef to clip_coef / iterations; else it stays."""
    clips = [m["clip"] for m in record(ppo, *small("Ends-v0", "--anneal-clip")).learned]
    np.testing.assert_allclose(clips, np.repeat([0.2, 0.2 * 2 / 3, 0.2 / 3], 16), rtol=1e-12)
    assert {m["clip"] for m in record(ppo, *small()).learned} == {0.2}


def test_aux_03(ppo):
    """Any KL is above 1e-12, so each update stops after one epoch; without a target none does."""
    fast = ["--learning-rate", "0.01"]  # or a KL may be too small for a float32
    assert len(record(ppo, *small("Ends-v0", "--target-kl", "1e-12", *fast)).steps) == 3 * 4
    assert len(record(ppo, *small("Ends-v0", "--target-kl", "1e6")).steps) == 3 * 16
    assert len(record(ppo, *small()).steps) == 3 * 16


def test_extra_01(ppo):
    """At a time limit the value of the state that was cut off counts, not 0 and not the reset's."""
    names = ("terminated", "truncated", "true_next")
    for env in ("Ends-v0", "Reused-v0"):  # the second overwrites its observations
        rec = record(ppo, *small(env, iterations=2))
        for i in range(2):
            _, values, next_values, dones, *_ = rec.gae[i]
            obs = np.array(rec.acted[16 * i : 16 * i + 16])
            episode, t = (np.round(obs[..., j] * 10).astype(int) for j in (1, 2))
            last = np.where(episode % 2 == 0, t == 4, t == 6)
            rows = dict(zip(names, (last & (episode % 2 == 0), last & (episode % 2 == 1), ~last)))
            np.testing.assert_array_equal(dones, last)
            assert rows["terminated"].any() and rows["truncated"].any()
            assert not next_values[rows["terminated"]].any()
            assert (next_values[rows["truncated"]] != 0).all()
            inside = rows["true_next"][:-1]
            np.testing.assert_allclose(next_values[:-1][inside], values[1:][inside], atol=1e-6)
            # The cut states (episode 2k + 1, t = 7) differ from what the reset shows next.
            resets = values[1:][rows["truncated"][:-1]]
            assert np.abs(next_values[:-1][rows["truncated"][:-1]] - resets).min() > 1e-6
    # An environment whose own end and time limit come together ended for good.
    both = record(ppo, *small("Cut-v0", "--no-bootstrap-truncation", iterations=1)).gae[0]
    assert both[3].any() and not both[2][both[3]].any()
    # The table of golden numbers: the middle of three steps is truncated, V(cut off) = 25.
    values = np.array([[10.0], [20], [30]], np.float32)
    after = np.array([[20.0], [25], [40]], np.float32)
    done = np.array([[False], [True], [False]])
    got = ppo.compute_gae(np.ones((3, 1), np.float32), values, after, done, 0.99, 0.95)
    np.testing.assert_allclose(got[:, 0], [16.2079, 5.75, 10.6], atol=1e-4)
    after[1] = 0
    got = ppo.compute_gae(np.ones((3, 1), np.float32), values, after, done, 0.99, 0.95)
    np.testing.assert_allclose(got[:, 0], [-7.0695, -19, 10.6], atol=1e-4)


def test_extra_02(ppo):
    """Every row that is learned from is a step the env really took, with the action it took."""
    rec = record(ppo, *small())
    took = [entry[1:] for entry in rec.log if entry[0] == "step"]
    assert len(took) == 3 * 64
    states = {entry[:3] for entry in took}
    assert len(states) == 3 * 64
    learned = np.concatenate([m["obs"] for m in rec.learned])
    learned = {tuple(np.round(row * 10).astype(int).tolist()) for row in learned}
    assert learned == states
    lengths = [value for _, value in rec.scalars["charts/episodic_length"]]
    assert set(lengths) == {5, 7}


def test_extra_04(ppo):
    """No two of 1,000 seeds x 8 ranks x 64 envs x training and evaluation share an env seed."""
    seeds = np.array(
        [
            ppo.spawn_seeds(seed, rank, 0, phase, 64)
            for seed in range(1000)
            for rank in range(8)
            for phase in (0, 1)
        ],
        dtype=np.uint64,
    )
    assert len(np.unique(seeds)) == 1000 * 8 * 64 * 2
    assert all(type(s) is int for s in ppo.spawn_seeds(1, 0, 0, 0, 4))
    first, second = (
        [e[2] for e in record(ppo, *small("Long-v0", "--seed", s)).log if e[0] == "reset"]
        for s in ("1", "2")
    )
    assert len({*first, *second}) == 8 and None not in first


def test_extra_05(ppo):
    """A policy that learns from other numbers than it acted on is stopped; a right one is not."""
    rec = record(ppo, *small())
    assert max(value for _, value in rec.scalars["debug/first_ratio_error"]) < 1e-5
    name = "forward" if "forward" in vars(ppo.Agent) else "policy"
    act = getattr(ppo.Agent, name)

    def noisy(self, obs):
        noise = torch.randint(0, 2, obs.shape).to(obs.dtype)
        return act(self, obs + noise if torch.is_grad_enabled() else obs)

    setattr(ppo.Agent, name, noisy)
    try:
        ppo.main([*small(), "--eval-episodes", "0"])
    except SystemExit as stop:
        code = stop.code
    else:
        code = 0
    assert code == 1


def numpy_mlp(parameters: dict, name: str, x: np.ndarray) -> np.ndarray:
    """A network of two hidden tanh layers by hand, from the agent's parameters of that name."""
    get = {k: v.detach().double().numpy() for k, v in parameters.items()}
    for layer in ("hidden1", "hidden2"):
        x = np.tanh(x @ get[f"{name}.{layer}.weight"].T + get[f"{name}.{layer}.bias"])
    return x @ get[f"{name}.head.weight"].T + get[f"{name}.head.bias"]


def test_continuous_01(ppo):
    """Actions are normal around the network's output; the gradient reaches mean and std."""
    agent = ppo.Agent(*spaces(ppo, 4, 2))
    with torch.no_grad():
        agent.actor.head.bias[:] = torch.tensor([0.9, -0.3])
        agent.log_std[:] = torch.tensor([math.log(0.5), math.log(2.0)])
    obs = torch.randn(4)
    dist = agent.policy(obs.expand(100_000, 4))
    samples = dist.sample().detach().double().numpy()
    mean = numpy_mlp(dict(agent.named_parameters()), "actor", obs.double().numpy())
    np.testing.assert_allclose(dist.mode[0].detach().numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(samples.std(0), [0.5, 2], rtol=0.02)
    centred = (samples - samples.mean(0)) / samples.std(0)
    np.testing.assert_allclose((centred**4).mean(0), 3, rtol=0.05)  # as a normal's: no squashing
    assert (np.abs(samples) > 1).any(0).all()  # the bounds are the environment's business
    few = agent.policy(obs.expand(1000, 4))
    few.log_prob(torch.as_tensor(samples[:1000], dtype=torch.float32)).sum().backward()
    z = (samples[:1000] - mean) / [0.5, 2]
    np.testing.assert_allclose(agent.log_std.grad.numpy(), (z**2 - 1).sum(0), rtol=1e-3, atol=0.1)
    by_hand = (z / [0.5, 2]).sum(0)
    np.testing.assert_allclose(agent.actor.head.bias.grad.numpy(), by_hand, rtol=1e-3, atol=0.1)


def test_continuous_02(ppo):
    """One std for all observations: 1 before training, another after it, learned by gradients."""
    agent, obs = ppo.Agent(*spaces(ppo, 4, 2)), torch.randn(64, 4)
    dist = agent.policy(obs)
    assert (dist.std.expand_as(dist.mean) == 1).all()
    rec = record(ppo, *small("Ends-v0", "--learning-rate", "0.01", "--ent-coef", "0"), scaled=True)
    last = rec.learned[-1]["dist"]
    std = np.broadcast_to(last["std"], last["mean"].shape)
    assert (std == std[0]).all() and (np.abs(std[0] - 1) > 1e-3).all()
    assert np.ptp(last["mean"], axis=0).min() > 1e-3  # while the mean does depend on them
    logged = [value for _, value in rec.scalars["debug/action_std"]]
    assert logged[-1] == pytest.approx(std[0].mean(), rel=0.02) and logged[-1] != logged[0]


def test_continuous_03(ppo):
    """Log-probabilities and entropies are sums over components, one number a row."""
    three = ppo.Gaussian(torch.zeros(5, 3), torch.zeros(3))
    np.testing.assert_allclose(three.log_prob(torch.zeros(5, 3)).numpy(), [-2.7568] * 5, atol=1e-4)
    np.testing.assert_allclose(three.entropy().numpy(), [4.2568] * 5, atol=1e-4)
    rng = np.random.default_rng(0)
    mean, actions = rng.normal(size=(2, 7, 3))
    log_std = rng.normal(size=3)
    density = np.exp(-0.5 * ((actions - mean) / np.exp(log_std)) ** 2)
    density /= np.exp(log_std) * np.sqrt(2 * np.pi)
    dist = ppo.Gaussian(torch.tensor(mean), torch.tensor(log_std))
    got = dist.log_prob(torch.tensor(actions))
    np.testing.assert_allclose(got.numpy(), np.log(density.prod(-1)), rtol=1e-9)
    normal = torch.distributions.Normal(dist.mean, dist.std)
    np.testing.assert_allclose(dist.entropy().numpy(), normal.entropy().sum(-1).numpy(), rtol=1e-9)
    assert got.shape == dist.entropy().shape == (7,)


def test_continuous_04(ppo):
    """Policy and value are two networks of two tanh layers that share no parameter."""
    agent, obs = ppo.Agent(*spaces(ppo, 4, 2)), torch.randn(8, 4)
    parameters = dict(agent.named_parameters())
    for name, got in (("actor", agent.policy(obs).mode), ("critic", agent.value(obs)[:, None])):
        by_hand = numpy_mlp(parameters, name, obs.double().numpy())
        np.testing.assert_allclose(got.detach().numpy(), by_hand, atol=1e-5)
    agent.policy(obs).log_prob(torch.ones(8, 2)).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in agent.critic.parameters())


def test_continuous_05(ppo):
    """The environment gets clipped actions; the rollout keeps, and learns from, the samples."""
    sampled, step = [], ppo.gym.vector.SyncVectorEnv.step

    def spy(self, actions):
        sampled.append(np.copy(actions))
        return step(self, actions)

    ppo.gym.vector.SyncVectorEnv.step = spy
    try:
        rec = record(ppo, *small(), scaled=True)
    finally:
        ppo.gym.vector.SyncVectorEnv.step = step
    sampled = np.array(sampled)  # (3 * 16, 4, 2)
    applied = np.array([e[4] for e in rec.log if e[0] == "step"]).reshape(sampled.shape)
    assert (np.abs(sampled) > 1).mean() > 0.2
    np.testing.assert_allclose(applied, np.clip(sampled, -1, 1), atol=1e-6)
    for i in range(3):
        learned = np.concatenate([m["actions"] for m in rec.learned[16 * i : 16 * i + 4]])
        rollout = sampled[16 * i : 16 * i + 16].reshape(64, 2)
        assert sorted(map(tuple, learned)) == sorted(map(tuple, rollout))
        share = dict(rec.scalars["debug/clipped_actions"])[64 * (i + 1)]
        assert share == pytest.approx((np.abs(rollout) > 1).mean())
    assert max(value for _, value in rec.scalars["debug/first_ratio_error"]) < 1e-5
    env = ppo.make_env(ppo.Args(env_id="known_envs:Ends-v0"))
    env.reset()
    for action, right in (([np.nan, 0.3], [0, 0.3]), ([np.inf, -np.inf], [1, -1])):
        env.step(np.array(action, np.float32))
        np.testing.assert_allclose(known_envs.LOG[-1][4], right, atol=1e-6)
    env = ppo.make_env(ppo.Args(env_id="known_envs:Shapes-v0"))  # a matrix, a bound for each
    env.reset()
    env.step(np.array([-9, 9, 9, 9], np.float32))
    np.testing.assert_allclose(known_envs.LOG[-1][4], [[-0.1, 0.4], [0.5, 9]], atol=1e-6)


class Stream:
    """The raw observations, rewards and ends of a recorded run, through Stable-Baselines3's
    VecNormalize, and what the script made of them."""

    def __init__(self, ppo, *flags: str, iterations: int = 3):
        from stable_baselines3.common.vec_env import VecEnv, VecNormalize

        calls, vector = [], ppo.gym.vector.SyncVectorEnv
        step, reset = vector.step, vector.reset

        def spy_step(envs, actions):
            obs, rewards, terminated, truncated, infos = step(envs, actions)
            calls.append(("step", obs.copy(), rewards.copy(), terminated | truncated))
            return obs, rewards, terminated, truncated, infos

        def spy_reset(envs, **options):
            obs, infos = reset(envs, **options)
            calls.append(("reset", obs.copy()))
            return obs, infos

        vector.step, vector.reset = spy_step, spy_reset
        try:
            self.rec = record(ppo, *small("Ends-v0", *flags, iterations=iterations), scaled=True)
        finally:
            vector.step, vector.reset = step, reset

        class Replay(VecEnv):
            def __init__(self):
                obs = calls[0][1]
                space = ppo.gym.spaces.Box(-np.inf, np.inf, obs.shape[1:], np.float64)
                super().__init__(len(obs), space, ppo.gym.spaces.Box(-1, 1, (2,)))

            def reset(self):
                return calls[0][1]

            def step_async(self, row):
                self.row = row

            def step_wait(self):
                return self.row

            def close(self):
                pass

            def get_attr(self, name, indices=None):
                return [None] * self.num_envs

            set_attr = env_method = env_is_wrapped = get_attr

        gamma = float(dict(zip(flags[::2], flags[1::2], strict=True)).get("--gamma", 0.99))
        oracle = VecNormalize(Replay(), clip_obs=10, clip_reward=10, gamma=gamma, epsilon=1e-8)
        self.obs, self.next_obs, self.rewards = [oracle.reset()], [], []
        self.seen = [calls[0][1]]
        for i, call in enumerate(calls):
            if call[0] == "reset":
                continue
            _, obs, rewards, dones = call
            after = calls[i + 1][1] if dones.any() else obs
            infos = [{"terminal_observation": row} for row in obs]
            normal, scaled, _, infos = oracle.step((after, rewards, dones, infos))
            self.seen.append(after)
            self.obs.append(normal)
            self.rewards.append(scaled)
            last = np.array([info["terminal_observation"] for info in infos])
            self.next_obs.append(np.where(dones[:, None], last, normal))
        self.ours_obs = np.array(self.rec.acted)
        self.ours_next_obs = np.concatenate(self.rec.valued[1::2])
        self.ours_rewards = np.concatenate([gae[0] for gae in self.rec.gae])
        self.dones = np.concatenate([gae[3] for gae in self.rec.gae])
        folder = self.rec.result["folder"]
        self.saved = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["agent"]


def test_continuous_06(ppo):
    """Observations, the last ones of episodes too, are what VecNormalize makes of the stream."""
    stream = Stream(ppo)
    assert stream.dones.any()
    np.testing.assert_allclose(stream.ours_obs, stream.obs[:-1], atol=1e-4)
    np.testing.assert_allclose(stream.ours_next_obs, stream.next_obs, atol=1e-4)
    # Inside an episode the successor is the next row itself.
    inside = ~stream.dones[:-1]
    np.testing.assert_array_equal(stream.ours_next_obs[:-1][inside], stream.ours_obs[1:][inside])
    # The statistics are NumPy's of all that was acted on; the last state of no episode counts.
    seen = np.concatenate(stream.seen)
    count, mean, m2 = (stream.saved[f"obs_stats.{k}"].numpy() for k in ("count", "mean", "m2"))
    assert count == pytest.approx(len(seen) + 1e-4)
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(m2 / count, seen.var(0), rtol=1e-4)
    # A stream far from 0 loses nothing, in whatever portions it comes. The official start, mean 0
    # and variance 1 with the weight of 1e-4 observations, is part of it.
    data = 1e4 + np.random.default_rng(0).normal(size=(960, 5))
    center = data.sum(0) / (960 + 1e-4)
    variance = (((data - center) ** 2).sum(0) + 1e-4 * (1 + center**2)) / (960 + 1e-4)
    for n in (1, 8):
        stats = ppo.RunningMeanStd((5,))
        for batch in data.reshape(-1, n, 5):
            stats.update(batch)
        np.testing.assert_allclose(stats.std() ** 2, variance, rtol=1e-6)
    agent = ppo.Agent(*spaces(ppo, 3, 2))
    agent.obs_stats.update(np.array([[0.0, 0, 0], [4, 0, 8]]))  # two envs, one common mean
    np.testing.assert_allclose(agent.normalize(np.array([[2, 0, 8.0]])), [[0, 0, 1]], atol=1e-3)


def test_continuous_07(ppo):
    """After 1,000 standard normal observations an outlier of 1e6 arrives as 10."""
    agent = ppo.Agent(*spaces(ppo, 2, 2))
    for row in np.random.default_rng(0).normal(size=(1000, 1, 2)):
        agent.obs_stats.update(row)
    assert agent.normalize(np.array([[1e6, -1e6]])).tolist() == [[10, -10]]
    inside = agent.normalize(np.array([[1.0, -2]]))
    assert np.abs(inside - [[1, -2]]).max() < 0.2


def test_continuous_08(ppo):
    """Rewards are what VecNormalize makes of the stream, its accumulator 0 after every end."""
    for gamma in ("0.99", "0.9"):
        stream = Stream(ppo, "--gamma", gamma)
        np.testing.assert_allclose(stream.ours_rewards, stream.rewards, rtol=1e-3, atol=1e-4)
    counted, update = [], ppo.RunningMeanStd.update

    def spy(self, x):
        if self.mean.shape == ():
            counted.append(x.copy())
        update(self, x)

    ppo.RunningMeanStd.update = spy
    flags = ["--num-envs", "1", "--num-minibatches", "1", "--total-timesteps", "16"]
    rec = record(ppo, *small("Limit-v0", *flags), scaled=True)
    np.testing.assert_allclose(np.ravel(counted)[:7], [1, 1.99, 2.9701] * 2 + [1], rtol=1e-6)
    variance = np.var([1, 1.99, 2.9701])  # after three steps, but for the prior's 1e-4
    assert rec.gae[0][0][2, 0] == pytest.approx(1 / math.sqrt(variance), rel=1e-3)
    returns = [value for _, value in rec.scalars["charts/episodic_return"]]
    assert set(returns) == {3}  # the log shows the environment's own


def test_continuous_09(ppo):
    """The first reward of 1 would be scaled to 70 and is stored as 10; the log shows 1."""
    rec = record(ppo, *small("Probe-constant-v0", iterations=1), scaled=True)
    assert (rec.gae[0][0][0] == 10).all()
    assert rec.scalars["charts/episodic_return"][0][1] == 1


def test_extra_03(ppo):
    """A saved agent acts as it did, bit for bit, in a new process, on statistics that stay."""
    folder = ppo.main(small("Ends-v0", "--eval-episodes", "2"))["folder"]
    saved = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["agent"]
    assert "obs_stats.count" in saved and saved["obs_stats.count"] > 3 * 64
    raw = np.random.default_rng(0).normal(size=(50, 3)) * 5
    agent = ppo.Agent(*spaces(ppo, 3, 2))
    agent.load_state_dict(saved)
    before = {key: tensor.clone() for key, tensor in saved.items()}
    with torch.no_grad():
        there = agent.policy(torch.as_tensor(agent.normalize(raw))).mode.numpy()
    by_hand = (raw - saved["obs_stats.mean"].numpy()) / np.sqrt(
        (saved["obs_stats.m2"] / saved["obs_stats.count"]).numpy() + 1e-8
    )
    parameters = {key: tensor for key, tensor in saved.items() if "stats" not in key}
    by_hand = numpy_mlp(parameters, "actor", by_hand.clip(-10, 10))
    np.testing.assert_allclose(there, by_hand, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items())
    np.save("raw.npy", raw)
    code = f"""
import numpy, torch
from ppo_continuous import Agent
from gymnasium.spaces import Box
agent = Agent(Box(-1, 1, (3,)), Box(-1, 1, (2,)))
agent.load_state_dict(torch.load("{folder}/checkpoint.pt", weights_only=True)["agent"])
raw = numpy.load("raw.npy")
numpy.save("acted", agent.policy(torch.as_tensor(agent.normalize(raw))).mode.detach().numpy())
"""
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=True)
    assert np.load("acted.npy").tobytes() == there.tobytes()
    # Evaluating again counts nothing, and resets nothing.
    ppo.main(["--evaluate", folder, "--eval-episodes", "2"])
    again = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["agent"]
    assert all(torch.equal(before[k], v) for k, v in again.items())
    # Casts and moves of the agent leave the statistics as they are.
    assert agent.half().obs_stats.mean.dtype == torch.float64


def numpy_lstm(lstm, x: np.ndarray, h: np.ndarray, c: np.ndarray):
    """One step by hand, in float64: outputs and cells (n, H) from observations (n, D)."""
    get = {k: v.detach().double().numpy() for k, v in lstm.named_parameters()}
    gates = x @ get["weight_ih_l0"].T + h @ get["weight_hh_l0"].T
    i, f, g, o = np.split(gates + get["bias_ih_l0"] + get["bias_hh_l0"], 4, axis=1)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def reads(ppo, *flags: str) -> list[tuple]:
    """All calls of the LSTM in a run, evaluation included: whether it was learning, observations
    (L, n, D), states before and after (2, n, H)."""
    calls, forward = [], ppo.LSTM.forward

    def spy(self, x, state):
        result = forward(self, x, state)
        arrays = (y.detach().numpy().copy() for y in (x, state, result[1]))
        calls.append((torch.is_grad_enabled(), *arrays))
        return result

    ppo.LSTM.forward = spy
    ppo.main(list(flags))
    ppo.LSTM.forward = forward
    return calls


def test_lstm_01(ppo):
    """Both matrices are orthogonal, biases 0, the second of them for good; both heads read it."""
    agent = ppo.Agent(*spaces(ppo, 7, 3))
    w = {k: v.detach().double().numpy() for k, v in agent.lstm.named_parameters()}
    assert w["weight_ih_l0"].shape == (512, 7) and w["weight_hh_l0"].shape == (512, 128)
    np.testing.assert_allclose(w["weight_ih_l0"].T @ w["weight_ih_l0"], np.eye(7), atol=1e-5)
    np.testing.assert_allclose(w["weight_hh_l0"].T @ w["weight_hh_l0"], np.eye(128), atol=1e-5)
    assert not w["bias_ih_l0"].any() and not w["bias_hh_l0"].any()

    rng = np.random.default_rng(0)
    x, h, c = rng.normal(size=(5, 4, 7)), *rng.normal(size=(2, 4, 128))
    state = torch.tensor(np.stack([h, c]), dtype=torch.float32)
    hidden, after = agent.lstm(torch.tensor(x, dtype=torch.float32), state)
    for t in range(5):
        h, c = numpy_lstm(agent.lstm, x[t], h, c)
        np.testing.assert_allclose(hidden[t].detach().numpy(), h, atol=1e-5)
    np.testing.assert_allclose(after.detach().numpy(), [h, c], atol=1e-5)
    logits = h @ agent.actor.weight.detach().double().numpy().T
    value = h @ agent.critic.weight.detach().double().numpy()[0]
    logp = torch.tensor(logits).log_softmax(-1).numpy()
    np.testing.assert_allclose(agent.policy(hidden[-1]).logp.detach().numpy(), logp, atol=1e-5)
    np.testing.assert_allclose(agent.value(hidden[-1]).detach().numpy(), value, atol=1e-5)

    folder = record(ppo, *small("Ends-v0", "--learning-rate", "0.01")).result["folder"]
    saved = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["agent"]
    assert saved["lstm.bias_ih_l0"].any() and not saved["lstm.bias_hh_l0"].any()


def test_lstm_02(ppo):
    """A state of zeros before the first step of all, and of every game of an evaluation; but not
    before the later rollouts, which go on with the state they find."""
    calls = reads(ppo, *small("Long-v0"), "--eval-episodes", "2")
    acting = [call for call in calls if not call[0] and call[1].shape == (1, 4, 3)]
    assert len(acting) == 3 * 16
    assert not acting[0][2].any()
    for before, after in itertools.pairwise(acting):
        np.testing.assert_array_equal(before[3], after[2])
    games = [call for call in calls if call[1].shape == (1, 1, 3)]
    assert len(games) == 4 * 1000
    for _, x, state, _ in games:
        assert state.any() == (x[0, 0, 2] > 0)  # the last of the three numbers is t / 10


def counting(ppo) -> None:
    """Make the LSTM count what it has read since its state was zero: the value is tanh(k / 10)
    after the k-th observation of an episode."""
    init = ppo.Agent.__init__

    def count(self, *spaces):
        init(self, *spaces)
        with torch.no_grad():
            for parameter in (*self.lstm.parameters(), *self.critic.parameters()):
                parameter.zero_()
            i, f, g, o = self.lstm.bias_ih_l0.chunk(4)
            for gate in (i, f, o):
                gate[:] = 40.0  # open
            g[:] = math.atanh(0.1)
            self.critic.weight[0, 0] = 1.0

    ppo.Agent.__init__ = count


def test_lstm_03(ppo):
    """An episode begins with a state of zeros, and its last state is judged with its memory."""
    calls = reads(ppo, *small(), "--eval-episodes", "0")
    acting = [call for call in calls if not call[0] and call[1].shape == (1, 4, 3)]
    for i, (_, x, state, _) in enumerate(acting):
        started = np.round(x[0, :, 2] * 10) == 0
        assert not state[:, started].any()
        if i:
            np.testing.assert_array_equal(state[:, ~started], acting[i - 1][3][:, ~started])
    # By the count: the k-th observation of an episode is worth tanh(k / 10).
    counting(ppo)
    rec = record(ppo, *small("Ends-v0", "--learning-rate", "1e-12", iterations=2))
    for i in range(2):
        _, values, next_values, dones, *_ = rec.gae[i]
        obs = np.array(rec.acted[16 * i : 16 * i + 16])
        episode, t = (np.round(obs[..., j] * 10).astype(int) for j in (1, 2))
        np.testing.assert_allclose(values, np.tanh((t + 1) / 10), atol=1e-5)
        expected = np.tanh((t + 2) / 10)
        expected[dones & (episode % 2 == 0)] = 0  # terminated
        np.testing.assert_allclose(next_values, expected, atol=1e-5)
        limits = dones & (episode % 2 == 1)
        np.testing.assert_allclose(next_values[limits], np.tanh(0.8), atol=1e-5)
        assert limits.any()
    # In the update, too.
    for minibatch in rec.learned:
        t = np.round(minibatch["obs"][:, 2] * 10)
        np.testing.assert_allclose(minibatch["new_values"], np.tanh((t + 1) / 10), atol=1e-5)


def test_lstm_04(ppo):
    """A minibatch is all steps of some envs, in order; each env is in one minibatch an epoch."""
    rec = record(ppo, *small("Long-v0", "--num-envs", "8", "--num-steps", "8"))
    for i, minibatch in enumerate(rec.learned):
        number, _, t = np.round(minibatch["obs"].reshape(8, 2, 3) * 10).astype(int).T
        assert (number == number[:, :1]).all()
        assert (t == 8 * (i // 16) + np.arange(8)).all()
    for epoch in range(12):
        numbers = [m["obs"].reshape(8, 2, 3)[0, :, 0] for m in rec.learned[4 * epoch :][:4]]
        assert len(set(np.concatenate(numbers))) == 8


def test_lstm_05(ppo):
    """Sequences read again from the states that the rollout began with give the log-probabilities
    it stored, through ends and over the border of rollouts; and gradients go back in time."""
    init = ppo.Agent.__init__

    def decided(self, *spaces):
        init(self, *spaces)
        with torch.no_grad():
            self.actor.weight *= 3000  # as after training: what is remembered decides
            self.lstm.weight_ih_l0 *= 20

    ppo.Agent.__init__ = decided
    ppo.Run.abort = lambda *_: None
    rec = record(ppo, *small("Ends-v0", "--learning-rate", "1e-12"))
    assert all(gae[3].any() for gae in rec.gae)
    spread = np.ptp(rec.learned[0]["dist"]["logp"], axis=0)
    assert spread.min() > 0.3  # the same policy for all would hide what is wrong
    for minibatch in rec.learned:
        np.testing.assert_allclose(np.log(minibatch["ratio"]), 0, atol=1e-5)
    # In the update, the gradient of the last step's value reaches the first observation.
    inputs, forward = [], ppo.LSTM.forward

    def watch(self, x, state):
        if torch.is_grad_enabled():
            x = x.clone().requires_grad_()
            inputs.append(x)
        return forward(self, x, state)

    ppo.LSTM.forward = watch
    value_loss, grads = ppo.value_loss, []

    def last_only(new_values, *rest):
        grads.append(torch.autograd.grad(new_values[-1].sum(), inputs[-1], retain_graph=True)[0])
        return value_loss(new_values, *rest)

    ppo.value_loss = last_only
    ppo.main([*small("Long-v0", iterations=1), "--eval-episodes", "0"])
    assert all(grad.shape == (16, 1, 3) and (grad[0] != 0).any() for grad in grads)


def test_multidiscrete_01(ppo):
    """The probability of an action is the product of its components'; spaces of every kind."""
    agent = ppo.Agent(ppo.gym.spaces.Box(-1, 1, (4 + 5,)), ppo.gym.spaces.MultiDiscrete([2, 3]))
    assert agent.actor.head.weight.shape == (5, 64)
    with torch.no_grad():
        agent.actor.head.weight.zero_()
    obs = torch.cat([torch.randn(7, 4), torch.ones(7, 5)], 1)
    actions = torch.tensor([[0, 0], [1, 2], [1, 0], [0, 1], [1, 1], [0, 2], [0, 0]])
    dist = agent.policy(obs)
    np.testing.assert_allclose(dist.log_prob(actions).detach(), [-math.log(6)] * 7, atol=1e-6)
    np.testing.assert_allclose(dist.entropy().detach(), [math.log(6)] * 7, atol=1e-6)
    with torch.no_grad():
        agent.actor.head.bias[:] = torch.tensor([0.5, -0.5, 1.0, 0.0, -1.0])
    one, two = (np.exp(b) / np.exp(b).sum() for b in ([0.5, -0.5], [1.0, 0, -1]))
    joint = np.outer(one, two)
    dist = agent.policy(obs[:1].expand(60_000, 9))
    samples = dist.sample()
    assert samples.shape == (60_000, 2)
    share = np.bincount((samples[:, 0] * 3 + samples[:, 1]).numpy(), minlength=6) / 60_000
    np.testing.assert_allclose(share.reshape(2, 3), joint, atol=0.01)
    by_hand = np.log(joint[actions[:, 0], actions[:, 1]])
    np.testing.assert_allclose(agent.policy(obs).log_prob(actions).detach(), by_hand, atol=1e-5)
    assert dist.mode[0].tolist() == [0, 0]
    dist.log_prob(samples).sum().backward()  # one ratio for both: each part gets a gradient
    counts = [np.bincount(samples[:, i], minlength=n) for i, n in ((0, 2), (1, 3))]
    expected = np.concatenate([counts[0] - 60_000 * one, counts[1] - 60_000 * two])
    np.testing.assert_allclose(agent.actor.head.bias.grad, expected, atol=1)

    spaces, made = ppo.gym.spaces, ppo.gym.make
    kinds = [
        (spaces.MultiDiscrete([[2, 3], [4, 2]], np.int32, start=[[5, 0], [-1, 1]]),
         [2, 3, 4, 2], [1, 2, 3, 0], [[6, 2], [2, 1]]),
        (spaces.MultiBinary((2, 2)), [2, 2, 2, 2], [1, 0, 0, 1], [[1, 0], [0, 1]]),
        (spaces.MultiBinary(3), [2, 2, 2], [1, 0, 1], [1, 0, 1]),
        (spaces.Discrete(3, start=5), [3], [2], 7),
        (spaces.Box(-1, 1, (2,)), [11, 11], [0, 10], [-10 / 11, 10 / 11]),
        (spaces.Box(np.float32([[0], [4]]), np.float32([[11], [15]])), [11, 11], [3, 5],
         [[3.5], [9.5]]),
    ]  # fmt: skip
    step = known_envs.Ends.step
    for space, nvec, action, native in kinds:
        got, plain = [], known_envs.Ends()
        plain.action_space = space
        ppo.gym.make = lambda *args, plain=plain, **kwargs: plain
        known_envs.Ends.step = lambda self, a, got=got: got.append(a) or step(self, 0)
        try:
            env = ppo.make_env(ppo.Args())
            assert env.action_space.nvec.tolist() == nvec
            env.reset()
            env.step(np.array(action))
        finally:
            ppo.gym.make, known_envs.Ends.step = made, step
        np.testing.assert_allclose(got[0], native, atol=1e-6)
        assert space.contains(got[0])


def test_aux_04(ppo):
    """No masked action is taken, as the environment itself asserts; a masked choice's probability,
    gradient and share of the entropy are 0; the update meets the mask of the sample."""

    # What Masked says is valid, by episode and t; every fourth state has no mask.
    def masks(obs, kind):
        _, episode, t = np.round(obs * 10).astype(int).T
        return [
            np.hstack([np.ones_like(p) if t % 4 == 3 else p for p in
                       known_envs.valid_choices(e, t, kind)])
            for e, t in zip(episode, t, strict=True)
        ]  # fmt: skip

    for kind, sizes in (("one", [5]), ("pair", [4, 3])):
        rec = record(ppo, *small(f"Masked-{kind}-v0", "--ent-coef", "0.3", iterations=40))
        assert sum(len(entry) == 5 for entry in rec.log) == 40 * 64
        for minibatch in rec.learned:
            valid = np.array(masks(minibatch["obs"], kind)).astype(bool)
            logp = np.concatenate(minibatch["dist"]["parts"], 1)
            np.testing.assert_array_equal(np.exp(logp) > 0, valid)
            taken = minibatch["actions"] + np.cumsum([0, *sizes[:-1]])
            assert np.take_along_axis(valid, taken, 1).all()
        assert max(value for _, value in rec.scalars["debug/first_ratio_error"]) < 1e-5
        assert max(value for _, value in rec.scalars["losses/entropy"]) < math.log(np.prod(sizes))

    agent = ppo.Agent(ppo.gym.spaces.Box(-1, 1, (4 + 5,)), ppo.gym.spaces.MultiDiscrete([5]))
    obs = torch.cat([torch.randn(10_000, 4), torch.tensor([1.0, 0, 1, 0, 1]).expand(10_000, 5)], 1)
    dist = agent.policy(obs)
    actions = dist.sample()
    assert set(actions.ravel().tolist()) == {0, 2, 4}
    (dist.log_prob(actions).mean() + dist.entropy().mean()).backward()
    grad = agent.actor.head.bias.grad
    assert (grad[[1, 3]] == 0).all() and (grad[[0, 2, 4]] != 0).all()
    assert (agent.actor.head.weight.grad[[1, 3]] == 0).all()
    three = torch.distributions.Categorical(logits=agent.actor(obs[:, :4])[:, [0, 2, 4]])
    np.testing.assert_allclose(dist.entropy().detach(), three.entropy().detach(), atol=1e-5)
    # The networks read the environment's numbers alone.
    other = torch.cat([obs[:, :4], torch.ones(10_000, 5)], 1)
    assert torch.equal(agent.value(obs), agent.value(other))

    rec = record(ppo, *small("Ends-v0", "--no-masks"))
    assert all((np.exp(p) > 0).all() for m in rec.learned for p in m["dist"]["parts"])
    with pytest.raises(AssertionError, match="an invalid action was taken"):
        ppo.main([*small("Masked-one-v0", "--no-masks"), "--eval-episodes", "0"])


def console(ppo, name: str, calm: bool = True):
    """A scripted game as the agent sees it; `calm`: without the no-ops, so that frames count."""
    if calm:
        ppo.NoopReset = lambda env: env
    known_envs.LOG.clear()
    return ppo.make_env(ppo.Args(env_id=f"known_envs:{name}"))


def pressed() -> list[int]:
    """The actions of all raw frames since LOG was cleared."""
    return [entry[4] for entry in known_envs.LOG if entry[0] == "step"]


def seen_as(*times: int) -> np.ndarray:
    """What the network gets to see of the maximum of these frames of a scripted game."""
    frame = np.zeros(210 * 160, np.uint8)
    frame[list(times)] = 255  # white stays white in grey
    return cv2.resize(frame.reshape(210, 160), (84, 84), interpolation=cv2.INTER_AREA)


def test_atari_01(ppo):
    """A game begins with 1 to 30 raw frames of action 0, each number as likely; then it is on."""
    env, counts = console(ppo, "Quiet-v0", calm=False), []
    for seed in range(600):
        known_envs.LOG.clear()
        obs, _ = env.reset(seed=seed)
        assert set(pressed()) == {0}
        np.testing.assert_array_equal(obs[3], seen_as(len(pressed())))
        counts.append(len(pressed()))
    assert set(counts) == set(range(1, 31)) and np.bincount(counts).max() < 60
    again = env.reset(seed=7)[0], env.reset(seed=7)[0]
    np.testing.assert_array_equal(*again)
    # A game of ten frames is begun anew in the middle of it, and the count goes on.
    env = console(ppo, "Short-v0", calm=False)
    for seed in range(50):
        known_envs.LOG.clear()
        env.reset(seed=seed)
        assert pressed() == [0] * counts[seed]
        assert len(known_envs.LOG) - len(pressed()) == 1 + counts[seed] // 10  # resets


def test_atari_02(ppo):
    """A step is four raw frames of one action; the picture is the maximum of the last two."""
    env = console(ppo, "Quiet-v0")
    env.reset(seed=1)
    for step in range(5):
        obs, *_ = env.step(2)
        np.testing.assert_array_equal(obs[3], seen_as(4 * step + 3, 4 * step + 4))
    assert pressed() == [2] * 20
    assert env.get_wrapper_attr("episode_returns") == 60  # the sum over all frames
    # A game that ends in the middle of a step; frames of one game don't show in the next.
    raw = ppo.gym.make("known_envs:Short-v0")
    skip = ppo.MaxAndSkip(raw)
    for _ in range(2):
        skip.reset(seed=1)
        rows = [skip.step(1) for _ in range(3)]
        assert [row[1] for row in rows] == [12, 12, 6] and [row[2] for row in rows] == [0, 0, 1]
        lit = np.flatnonzero(rows[2][0].max(-1))
        assert lit.tolist() == [7, 8]  # the last two that a whole step kept
    once = ppo.MaxAndSkip(ppo.gym.make("known_envs:Short-v0"))
    once.reset()
    once.step(1)
    once.reset()
    once.unwrapped.lives = [0]
    assert not once.step(1)[0].any()
    # ALE's own skipping and sticky actions are off, whatever the id.
    for name in ("ALE/Pong-v5", "Pong-v0", "PongNoFrameskip-v4"):
        env = ppo.make_env(ppo.Args(env_id=name))
        before = env.unwrapped.ale.getFrameNumber()
        assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0
        env.reset(seed=1)
        before = env.unwrapped.ale.getFrameNumber()
        env.step(2)
        assert env.unwrapped.ale.getFrameNumber() - before == 4, name


def by_lives(lives: list[int]) -> list[bool]:
    """Whether each step of a game played to its end says "terminated", from lives per frame."""
    ends, t, before = [], 0, lives[0]
    while t < len(lives):
        t += 4
        now = lives[t] if t < len(lives) else 0
        ends.append(t >= len(lives) or (now < before and now > 0))
        before = now
        if ends[-1] and t < len(lives):  # the no-op of the reset
            t += 4
            before = lives[t]
    return ends


def test_atari_03(ppo):
    """A lost life terminates, the last one with the game; only a game that is over is reset."""
    env = console(ppo, "Lives-v0")
    expected = by_lives(known_envs.LIVES)
    assert sum(expected) == 4 and expected[-1]  # three lives lost at 1 or more, then the end
    for seed in (1, None):
        env.reset(seed=seed)
        ends = []
        for number, _ in enumerate(expected, 1):
            _, _, terminated, truncated, info = env.step(1)
            ends.append(terminated)
            assert not truncated and ("episode" in info) == (number == len(expected))
            if terminated and number < len(expected):
                env.reset()
        assert ends == expected
    resets = [entry for entry in known_envs.LOG if entry[0] == "reset"]
    assert len(resets) == 2  # one a game
    assert info["episode"]["r"] == 3 * len(known_envs.LIVES)
    # The log and the evaluation have whole games, in the game's own points.
    flags = small("Lives-v0", "--num-steps", "64", "--total-timesteps", "512")
    rec = record(ppo, *flags, scaled=True)
    returns = [value for _, value in rec.scalars["charts/episodic_return"]]
    lengths = [value for _, value in rec.scalars["charts/episodic_length"]]
    assert len(returns) >= 8 and set(returns) == {3 * len(known_envs.LIVES)}
    assert set(lengths) == {math.ceil(len(known_envs.LIVES) / 4)}
    assert sum(gae[3].sum() for gae in rec.gae) > 3 * len(returns)
    scores = ppo.main([*flags, "--eval-episodes", "2"])
    assert scores["sampled"] == scores["greedy"] == [3 * len(known_envs.LIVES)] * 2
    # ALE's limit on frames truncates.
    env = console(ppo, "Limited-v0")
    env.reset(seed=1)
    assert [env.step(1)[2:4] for _ in range(8)] == [(False, False)] * 7 + [(False, True)]


def test_atari_04(ppo):
    """After every reset, of a game or after a lost life, FIRE and the next action come first."""
    env = console(ppo, "Fire-v0")
    env.reset(seed=1)
    assert pressed() == [1] * 4 + [2] * 4
    terminated = False
    while not terminated:
        terminated = env.step(0)[2]
    known_envs.LOG.clear()
    env.reset()
    assert pressed() == [0] * 4 + [1] * 4 + [2] * 4  # the no-op that goes on with the game
    quiet = console(ppo, "Lives-v0")
    quiet.reset(seed=1)
    assert pressed() == []
    # Where FIRE itself costs a life, the life after it is begun as any other.
    fatal = console(ppo, "Fatal-v0")
    obs, _ = fatal.reset(seed=1)
    assert pressed() == [1] * 4 + [0] * 4 + [2] * 4 and not fatal.step(0)[2]
    np.testing.assert_array_equal(obs[3], seen_as(11, 12))


def area(length: int, parts: int = 84) -> np.ndarray:
    """Weights (parts, length): each part's mean over the stretch that it covers."""
    edges = np.arange(length + 1) * parts / length
    left, right = edges[:-1], edges[1:]
    k = np.arange(parts)[:, None]
    return np.clip(np.minimum(right, k + 1) - np.maximum(left, k), 0, None)


def test_atari_05(ppo):
    """Grey by the luminance weights, shrunk by averaging what falls into each pixel."""
    warp = ppo.WarpFrame(ppo.gym.make("known_envs:Quiet-v0"))
    for colour, grey in (((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)):
        frame = np.broadcast_to(np.array(colour, np.uint8), (210, 160, 3)).copy()
        assert set(warp.observation(frame).ravel()) == {grey}
    for _ in range(5):
        frame = np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8)
        grey = np.rint(frame @ [0.299, 0.587, 0.114])
        by_hand = area(210) @ grey @ area(160).T
        got = warp.observation(frame)
        assert got.shape == (84, 84) and got.dtype == np.uint8
        assert np.abs(got - by_hand).max() < 1.1
    assert warp.observation_space.contains(got)


def test_atari_06(ppo):
    """Of four frames of 3 points each the agent gets 1, the log 12; of -0.1 it gets -1."""
    for name, sign in (("Quiet-v0", 1), ("Loss-v0", -1)):
        env = console(ppo, name)
        env.reset(seed=1)
        assert [env.step(1)[1] for _ in range(3)] == [sign] * 3
    assert env.get_wrapper_attr("episode_returns") == pytest.approx(-1.2)
    still = ppo.gym.wrappers.TransformReward(env.unwrapped, lambda reward: 0.0)
    ppo.gym.make = lambda *args, make=ppo.gym.make, **kwargs: still
    try:
        env = ppo.make_env(ppo.Args())
        env.reset(seed=1)
        assert env.step(1)[1] == 0
    finally:
        ppo.gym.make = sys.modules["gymnasium.envs.registration"].make


def test_atari_07(ppo):
    """Four frames, oldest first; black before the reset and before a lost life."""
    env = console(ppo, "Lives-v0")
    obs, _ = env.reset(seed=1)
    assert obs.shape == (4, 84, 84) and obs.dtype == np.uint8
    assert env.observation_space.contains(obs)
    np.testing.assert_array_equal(obs, [*np.zeros((3, 84, 84)), seen_as(0)])
    first, _, terminated, *_ = env.step(1)
    np.testing.assert_array_equal(first, [*obs[1:], seen_as(3, 4)])
    second, _, terminated, *_ = env.step(1)
    np.testing.assert_array_equal(second, [*first[1:], seen_as(7, 8)])
    assert terminated and first[2].any()  # what was given out before does not change
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, [*np.zeros((3, 84, 84)), seen_as(11, 12)])


def test_atari_08(ppo):
    """The published sizes, one trunk for both heads, and values that came with the actions."""
    agent = ppo.Agent(*spaces(ppo, 3, 4))
    assert sum(p.numel() for p in agent.parameters()) == 1_686_693
    obs = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    w = {name: p.detach().double() for name, p in agent.named_parameters()}
    x = obs.double() / 255
    for layer, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
        name = f"trunk.{layer}"
        x = functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride).relu()
    x = (x.flatten(1) @ w["trunk.hidden.weight"].T + w["trunk.hidden.bias"]).relu()
    dist, value = agent(obs)
    logits = x @ w["actor.weight"].T + w["actor.bias"]
    np.testing.assert_allclose(dist.logp.detach(), logits.log_softmax(-1), atol=1e-5)
    np.testing.assert_allclose(value.detach(), (x @ w["critic.weight"].T)[:, 0], atol=1e-4)
    assert value.shape == (5,)  # a last axis of 1 would broadcast in the loss
    actions = torch.ones(5, dtype=int)
    for loss in (agent.value(obs).sum(), agent.policy(obs).log_prob(actions).sum()):
        agent.zero_grad()
        loss.backward()
        assert agent.trunk.conv1.weight.grad.any()

    rec = record(ppo, *small(iterations=2))
    _, values, next_values, dones, *_ = rec.gae[1]
    first = rec.learned[16]  # of the second update, whose values the rollout had
    assert first["new_values"] == pytest.approx(first["old_values"], abs=1e-6)
    inside = ~dones[:-1]
    np.testing.assert_array_equal(next_values[:-1][inside], values[1:][inside])


def test_atari_09(ppo):
    """Rollouts hold bytes; what enters the first convolution is a 255th of them."""
    entered, kept, forward = [], [], ppo.NatureCNN.forward

    def spy(self, x):
        kept.append(x.clone())
        return forward(self, x)

    def hook(module, inputs):
        entered.append(inputs[0].clone())

    ppo.NatureCNN.forward = spy
    init = ppo.NatureCNN.__init__

    def watched(self, *args):
        init(self, *args)
        self.conv1.register_forward_pre_hook(hook)

    ppo.NatureCNN.__init__ = watched
    flags = ["--env-id", "PongNoFrameskip-v4", *small(iterations=1)[2:]]
    ppo.main([*flags, "--eval-episodes", "0"])
    assert len(kept) == len(entered) == 16 + 1 + 16  # acting, the last values, learning
    for x, y in zip(kept, entered, strict=True):
        assert x.dtype == torch.uint8 and x.max() > 200
        np.testing.assert_allclose(y.numpy(), x.numpy() / 255, atol=1e-7)


TWO = """
import sys, torch
import lone as ppo

rank, kept, first = ppo.RANK, {"seeds": []}, {}
forward, clip, step = ppo.Agent.forward, torch.nn.utils.clip_grad_norm_, torch.optim.Adam.step
pg, vf, vector = ppo.policy_loss, ppo.value_loss, ppo.gym.vector.SyncVectorEnv
reset = vector.reset

def spy_forward(self, obs):
    dist, value = forward(self, obs)
    if torch.is_grad_enabled() and "obs" not in first:
        first["obs"] = obs.clone()
        first["agent"] = {k: v.clone() for k, v in self.state_dict().items()}
        inner = dist.log_prob
        def log_prob(actions):
            first["actions"] = actions.clone()
            return inner(actions)
        dist.log_prob = log_prob
    return dist, value

def spy_pg(advantages, ratio, epsilon):
    first.setdefault("advantages", advantages.clone())
    return pg(advantages, ratio, epsilon)

def spy_vf(new, old, returns, epsilon):
    first.setdefault("returns", returns.clone())
    first.setdefault("old_values", old.clone())
    return vf(new, old, returns, epsilon)

def spy_clip(weights, limit):
    first.setdefault("grad", weights.grad.clone())
    return clip(weights, limit)

def spy_step(self, *args):
    result = step(self, *args)
    kept["weights"] = self.param_groups[0]["params"][0].detach().clone()
    torch.save(kept | first, f"rank{rank}.pt")
    return result

def spy_reset(self, *, seed=None, options=None):
    kept["seeds"] += seed or []
    return reset(self, seed=seed, options=options)

ppo.Agent.forward, torch.nn.utils.clip_grad_norm_ = spy_forward, spy_clip
ppo.policy_loss, ppo.value_loss, vector.reset = spy_pg, spy_vf, spy_reset
torch.optim.Adam.step = spy_step
ppo.main(sys.argv[1:])
"""


def torchrun(*command) -> list:
    """A command that starts two processes, without a fixed port."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            *map(str, command)]  # fmt: skip


def test_aux_02(ppo):
    """Two processes: equal weights after each update; the averaged gradient is that of one process
    on the rows of both."""
    Path("lone.py").write_text(ppo.source)
    Path("two.py").write_text(TWO)
    flags = ["--env-id", "PongNoFrameskip-v4", *small(iterations=4)[2:], "--no-norm-adv"]
    flags += ["--num-envs", "2", "--eval-episodes", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(torchrun("two.py", *flags), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(a["weights"], b["weights"]) and torch.equal(a["grad"], b["grad"])
    assert len({*a["seeds"], *b["seeds"]}) == 4  # no two envs play the same game
    assert not torch.equal(a["obs"], b["obs"])
    agent = ppo.Agent(*spaces(ppo, 3, 6))
    agent.load_state_dict(a["agent"])
    assert all(torch.equal(a["agent"][key], b["agent"][key]) for key in a["agent"])
    union = {
        key: torch.cat([a[key], b[key]])
        for key in ("obs", "actions", "advantages", "returns", "old_values")
    }
    dist, values = agent(union["obs"])
    logp = dist.log_prob(union["actions"])
    ratio = (logp - logp.detach()).exp()  # 1, as nothing is learned yet
    entropy = -(dist.logp.exp() * dist.logp).sum(-1).mean()
    error = 0.5 * ((values - union["returns"]) ** 2).mean()  # the first epsilon is not reached
    loss = -(ratio * union["advantages"]).mean() - 0.01 * entropy + 0.5 * error
    loss.backward()
    grad = torch.cat([p.grad.flatten() for p in agent.parameters()])
    assert grad.norm() > 1e-3
    np.testing.assert_allclose(a["grad"], grad, atol=1e-6)
    # One writes: a single run, its steps those of both processes.
    (folder,) = Path("runs").iterdir()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert saved["iteration"] == 4 and saved["processes"] == 2
    assert "2 processes x 2 envs x 16 steps = 64 rows" in done.stdout
    assert done.stdout.count("sampled: return") == 1
    flat = torch.cat([tensor.flatten() for tensor in saved["agent"].values()])
    assert torch.equal(flat, a["weights"])


def test_extra_06(ppo):
    """Workers play the same games: equal weights; nothing is played in this process."""
    flags = [*small("Fire-v0", iterations=2), "--eval-episodes", "0"]
    make_envs, pids = ppo.make_envs, []

    def spy(*args):
        envs = make_envs(*args)
        pids.extend(process.pid for process in getattr(envs, "processes", []))
        for pid in pids:
            status = Path(f"/proc/{pid}/status")
            if status.exists():
                ignored = int(status.read_text().split("SigIgn:")[1].split()[0], 16)
                assert ignored & 0b10, "SIGINT would end the worker"
        return envs

    ppo.make_envs = spy
    runs = []
    for flag in ("--no-async-envs", "--async-envs"):
        known_envs.LOG.clear()
        folder = ppo.main([*flags, flag])["folder"]
        here = any(entry[0] == "step" for entry in known_envs.LOG)
        assert here == (flag == "--no-async-envs")
        runs.append(torch.load(f"{folder}/checkpoint.pt", weights_only=True)["agent"])
    assert len(pids) == 4
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_extra_07(ppo):
    """With --bf16 the trunk computes in bfloat16, in training and in evaluation; heads, weights and
    what is learned stay in float32; and the check of the first ratio allows for it."""
    init, dtypes = ppo.NatureCNN.__init__, set()

    def watched(self, *args):
        init(self, *args)
        self.hidden.register_forward_hook(lambda *call: dtypes.add(call[-1].dtype))

    ppo.NatureCNN.__init__ = watched
    flags = [*small("Ends-v0", iterations=1), "--eval-episodes", "1"]
    for flag, dtype in (("--bf16", torch.bfloat16), ("--no-bf16", torch.float32)):
        dtypes.clear()
        folder = ppo.main([*flags, flag])["folder"]
        assert dtypes == {dtype}
        saved = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
        assert {tensor.dtype for tensor in saved["agent"].values()} == {torch.float32}
        agent = ppo.Agent(*spaces(ppo, 3, 3))
        agent.bf16 = flag == "--bf16"
        dist, value = agent(torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))
        assert dist.logp.dtype == value.dtype == torch.float32
    forward = ppo.Agent.forward

    def biased(self, obs):  # all logarithms of ratios are off by 0.05 at first
        dist, value = forward(self, obs)
        dist.logp = dist.logp + (0.05 if torch.is_grad_enabled() else 0)
        return dist, value

    ppo.Agent.forward = biased
    ppo.main([*flags, "--bf16", "--eval-episodes", "0"])
    with pytest.raises(SystemExit):
        ppo.main([*flags, "--eval-episodes", "0"])
