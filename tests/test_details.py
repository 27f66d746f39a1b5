"""One test per detail: what the script does against a computation of its own.

test_removals.py runs each of these on the script without its detail and expects it to fail.
"""

import numpy as np
import pytest
import torch
from harness import record, small

LR = 2.5e-4


def softmax_log(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


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
    obs, actions = ppo.gym.spaces.Box(-1, 1, (7,)), ppo.gym.spaces.Discrete(3)
    agent = ppo.Agent(obs, actions)
    gains = {64: 2.0, 3: 1e-4, 1: 1.0}
    seen = []
    for name, parameter in agent.named_parameters():
        weight = parameter.detach().double().numpy()
        if name.endswith("bias"):
            assert not weight.any(), name
        else:
            short = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
            gain = gains[weight.shape[0]]
            np.testing.assert_allclose(
                short, gain * np.eye(len(short)), atol=1e-5 * max(gain, 1e-2)
            )
            seen.append(weight.shape[0])
    assert sorted(seen) == [1, 3, 64, 64, 64, 64]


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
    rec = record(ppo, *small("Long-v0"))
    assert len(rec.learned) == len(rec.steps) == 3 * 4 * 4
    orders = []
    for epoch in range(12):
        parts = [m["obs"] for m in rec.learned[4 * epoch : 4 * epoch + 4]]
        assert [len(part) for part in parts] == [16, 16, 16, 16]
        rows = [tuple(row) for row in np.concatenate(parts)]
        first = 16 * (epoch // 4)
        batch = np.array(rec.acted[first : first + 16]).reshape(64, 3)
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
        logp = softmax_log(minibatch["dist"].logp.detach().numpy())
        entropy = -(np.exp(logp) * logp).sum(-1).mean()
        expected = minibatch["pg_loss"] - 0.3 * entropy + 0.7 * minibatch["v_loss"]
        assert loss == pytest.approx(expected, abs=1e-5)
    uniform = ppo.Categorical(torch.zeros(2, 4))
    np.testing.assert_allclose(uniform.entropy().numpy(), np.log(4), rtol=1e-6)


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
        entropies = []
        for minibatch in minibatches:
            logp = softmax_log(minibatch["dist"].logp.detach().numpy())
            entropies.append(-(np.exp(logp) * logp).sum(-1).mean())
        _, values, *_, advantages = rec.gae[i]
        returns = (advantages + values).astype(np.float64)
        expected = {
            "losses/policy_loss": np.mean([m["pg_loss"] for m in minibatches]),
            "losses/value_loss": np.mean([m["v_loss"] for m in minibatches]),
            "losses/entropy": np.mean(entropies),
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
    agent = ppo.Agent(ppo.gym.spaces.Box(-1, 1, (4,)), ppo.gym.spaces.Discrete(2))
    obs = torch.randn(8, 4)
    assert agent.value(obs).shape == (8,)  # a last axis of 1 would broadcast in the loss
    for own, other, loss in (
        (agent.critic, agent.actor, lambda: agent.value(obs).sum()),
        (
            agent.actor,
            agent.critic,
            lambda: agent.policy(obs).log_prob(torch.ones(8, dtype=int)).sum(),
        ),
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
    assert len(record(ppo, *small("Ends-v0", "--target-kl", "1e-12")).steps) == 3 * 4
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
    policy = ppo.Agent.policy

    def noisy(self, obs):
        logp = policy(self, obs).logp
        return ppo.Categorical(logp + torch.rand_like(logp) if torch.is_grad_enabled() else logp)

    ppo.Agent.policy = noisy
    try:
        ppo.main([*small(), "--eval-episodes", "0"])
    except SystemExit as stop:
        code = stop.code
    else:
        code = 0
    assert code == 1
