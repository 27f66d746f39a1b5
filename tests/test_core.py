"""The details that all scripts share, a test each, on every script that carries the detail.

test_removals.py runs them on scripts without their detail and expects them to fail.
"""

import numpy as np
import pytest
import torch
from harness import Run, check_update
from reference import adam, advantages, norm

# The policy loss alone, and nothing in the way.
BARE = {"ent_coef": 0, "vf_coef": 0, "max_grad_norm": 1e9}
FREE = BARE | {"norm_adv": False, "clip_vloss": False, "clip_coef": 1e9}


def test_core_01_vectorized_architecture(ppo):
    """Four different envs are reset once; a rollout goes on where the one before stopped."""
    run = Run(ppo, "Long-v0", iterations=3)
    resets = [entry[1] for entry in run.log if entry[0] == "reset"]
    assert sorted(resets) == sorted({*resets}), "an env was reset again in the middle of an episode"
    assert len(resets) == 4, "there are not four envs"
    for rollout, start in zip(run.rollouts, (0, 16, 32), strict=True):
        t = rollout.obs[..., 2] * 10
        np.testing.assert_allclose(t, start + np.arange(16)[:, None].repeat(4, 1))
        learned = [run.rows(i, step) for i, r in enumerate(run.rollouts) for step in r.steps]
        assert len(np.unique(np.concatenate(learned))) == 64


def test_core_02_orthogonal_initialization(ppo):
    """Hidden weights times their transpose are 2 I, heads 1e-4 and 1; biases are 0."""
    agent = ppo.Agent(*ppo.adapter.spaces(7, 3))
    gains = {3: 1e-4, 1: 1.0}  # by the number of outputs: policy and value head; all others: 2
    seen = []
    for name, parameter in agent.named_parameters():
        if name.startswith("lstm") or name == "log_std":
            continue  # lstm-01, continuous-02
        weight = parameter.detach().double().flatten(1 if parameter.ndim > 1 else 0).numpy()
        if weight.ndim == 1:
            assert not weight.any(), f"{name} is not 0"
            continue
        square = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        gain = gains.get(weight.shape[0], 2.0)
        wrong = f"{name} is not orthogonal times {gain**0.5:g}"
        eye = np.eye(len(square))
        np.testing.assert_allclose(square, gain * eye, atol=1e-5 * max(gain, 1e-2), err_msg=wrong)
        seen.append(weight.shape[0])
    heads = "the agent lacks a linear layer: does layer_init return the layer?"
    assert seen.count(1) == seen.count(3) == 1, heads


def test_core_03_adams_epsilon(ppo):
    """Gradients of about 1e-5 move weights by half of what they would if epsilon were 0."""
    run = Run(ppo, max_grad_norm=1e-4, anneal_lr=False)
    steps = run.rollouts[0].steps
    for name, before in steps[0].weights.items():
        grads, moved = [step.grads[name] for step in steps], run.weights[name] - before
        by_eps = {eps: adam(grads, [step.lr for step in steps], eps) for eps in (1e-5, 1e-8, 1e-7)}
        by_eps["1e-5, but before the bias is corrected,"] = adam(
            grads, [step.lr for step in steps], 1e-5, before=True
        )
        near = {eps: np.allclose(moved, x, rtol=1e-2, atol=1e-6) for eps, x in by_eps.items()}
        if not near[1e-5]:
            like = [eps for eps, fits in near.items() if fits]
            raise AssertionError(
                f"{name} moved as if Adam's epsilon were {like or 'something else'}"
            )


def test_core_04_adam_learning_rate_annealing(ppo):
    """lr in the first update, lr / iterations in the last, constant within each."""
    run = Run(ppo, iterations=5, learning_rate=1e-3)
    for i, rollout in enumerate(run.rollouts):
        rates = {step.lr for step in rollout.steps}
        assert len(rates) == 1, "the learning rate changes within an update"
        wrong = f"{rates.pop() / 1e-3:.3g} of the learning rate in iteration {i + 1} of 5"
        assert rollout.steps[0].lr == pytest.approx(1e-3 * (5 - i) / 5, rel=1e-9), wrong
    constant = Run(ppo, iterations=2, learning_rate=1e-3, anneal_lr=False)
    rates = {step.lr for steps in constant.steps for step in steps}
    assert rates == {1e-3}, "--no-anneal-lr: the learning rate must stay"


def test_core_05_generalized_advantage_estimation(ppo):
    """compute_gae equals the double sum of its definition, and is what the update learns from."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        rewards, values, after = arrays = rng.normal(size=(3, 12, 5)).astype(np.float32)
        dones = rng.random((12, 5)) < 0.25
        got = ppo.compute_gae(*arrays, dones, 0.97, 0.9)
        right = advantages(*arrays, dones, 0.97, 0.9)
        shifted = np.concatenate([dones[1:], dones[:1] & False])
        turned = [x[::-1] for x in (*arrays, dones)]
        if np.allclose(got, right, atol=1e-5):
            continue
        for wrong, hint in [
            (advantages(*arrays, dones, 0.97, 1.0), "lambda is missing: gae fades by gamma lambda"),
            (advantages(*arrays, dones, 0.9, 0.97), "gamma and lambda are exchanged"),
            (advantages(*arrays, dones, 0.97, 0.9, across=True), "the sum goes on over the dones"),
            (right + values, "these are returns: without the values they are advantages"),
            (
                advantages(rewards, values, after * ~dones, dones, 0.97, 0.9),
                "dones cut the delta, too: next_values is 0 already where nothing follows",
            ),
            (
                advantages(rewards + 0.97 * after, values, 0 * after, dones, 1.0, 0.9),
                "gamma is missing: gae fades by gamma lambda",
            ),
            (
                advantages(*arrays, shifted, 0.97, 0.9),
                "dones is one row off: dones[t] cuts off what follows row t",
            ),
            (
                advantages(*turned, 0.97, 0.9)[::-1],
                "the loop runs forwards: the last row comes first",
            ),
        ]:
            assert not np.allclose(got, wrong, atol=1e-5), hint
        raise AssertionError("compute_gae is not the sum of (gamma lambda)^k delta_{t+k}")
    ones, never = np.ones((3, 1), np.float32), np.zeros((3, 1), bool)
    values, after = np.array([[10.0], [20], [30]]), np.array([[20.0], [30], [40]])
    got = ppo.compute_gae(ones, values, after, never, 0.99, 0.95)
    np.testing.assert_allclose(got[:, 0], [30.2395, 20.6693, 10.6], atol=1e-4)
    run = Run(ppo, gamma=0.9, gae_lambda=0.8, **FREE | {"vf_coef": 1})
    zero = {"gae": {"gae_lambda": 1.0}}
    check_update(run, {"lambda is missing": zero, "gamma is missing": {"gae": {"gamma": 1.0}}})


def test_core_06_mini_batch_updates(ppo):
    """Each epoch cuts all rows into equal minibatches, in an order of its own."""
    run = Run(ppo, "Long-v0", iterations=3, num_envs=8, num_steps=8)
    epochs, parts, orders = run.args.update_epochs, run.args.num_minibatches, []
    for i, rollout in enumerate(run.rollouts):
        steps = [run.rows(i, step) for step in rollout.steps]
        assert len(steps) == epochs * parts, f"{len(steps)} steps, not {parts} in each of {epochs}"
        for epoch in range(epochs):
            rows = steps[parts * epoch : parts * epoch + parts]
            assert {len(part) for part in rows} == {64 // parts}, "minibatches aren't equally large"
            spread = [len(set(x)) for part in rows for x in (part % 8, part // 8)]
            mixed = min(spread) > 2 or "lstm" in ppo.adapter.name
            assert mixed, "a minibatch holds whole envs, or whole steps: mix all rows"
            order = np.concatenate(rows)
            assert sorted(order) == list(range(64)), (
                "a row is in no minibatch of an epoch, or in two"
            )
            orders.append(tuple(order))
    assert len(set(orders)) == len(orders), "two epochs have the same order"


def test_core_07_advantage_normalization(ppo):
    """The policy's gradient is that of advantages with mean 0 and std 1 in each minibatch."""
    hints = {
        "the advantages are not normalized": {"normalize": "none"},
        "mean and std are the whole batch's, not the minibatch's": {"normalize": "batch"},
        "the mean is subtracted, but nothing divided": {"normalize": "mean"},
        "they are divided by the std, but the mean is not subtracted": {"normalize": "std"},
        "the std is that with n, not with n - 1": {"normalize": "n"},
    }
    check_update(Run(ppo, **BARE), hints)
    check_update(Run(ppo, num_envs=8, **BARE), {})  # where a minibatch is more than one env's
    check_update(
        Run(ppo, **BARE | {"norm_adv": False}),
        {"--no-norm-adv has no effect": {"normalize": "minibatch"}},
    )
    # Equal advantages have no spread to divide by: they become 0, not NaN.
    constant = Run(ppo, gamma=0, gae_lambda=0, env="Flat-v0", **BARE)
    assert all(
        np.isfinite(grad).all() for s in constant.steps for x in s for grad in x.grads.values()
    )


def test_core_08_clipped_surrogate_objective(ppo):
    """No gradient where the ratio has moved far enough, but one where it moved the wrong way."""
    run = Run(ppo, iterations=2, clip_coef=0.05, anneal_clip=True, **BARE)
    hints = {
        "the ratio is not clipped": {"policy": "unclipped"},
        "only the clipped term is there: take the smaller of the two": {"policy": "clipped"},
        "the larger of the two terms is taken, not the smaller": {"policy": "optimistic"},
        "the loss has the wrong sign: Adam goes down, the objective up": {"sign": -1},
        "twice the loss": {"sign": 2},
        "half the loss": {"sign": 0.5},
        "the smaller ratio is taken: the smaller of ratio x advantage": {"policy": "ratios"},
        "the ratio is held near 0: it must be held near 1": {"policy": "around 0"},
    }
    check_update(run, hints)
    constant = "epsilon is not annealed: it is clip_coef, not args.clip_coef"
    check_update(run, {constant: {"epsilon": 0.05}}, 1, 0.025)
    rows = list(run.minibatches(0))
    ratio, advantage = (np.concatenate([x[k] for x in rows]) for k in ("ratio", "normalized"))
    for side in (ratio > 1.05, ratio < 0.95):
        assert (side & (advantage > 0)).any() and (side & (advantage < 0)).any()
    run = Run(ppo, clip_coef=0.5, update_epochs=8, **BARE)
    check_update(run, {})
    ratio = np.concatenate([x["ratio"] for x in run.minibatches(0)])
    assert ((ratio > 0.5) & (ratio < 1 / 1.5)).any()  # 1 / 1.5 is no lower bound


def test_core_09_value_function_loss_clipping(ppo):
    """Half the mean of the larger of two squared errors, one of a value kept near its old one."""
    bare = BARE | {"vf_coef": 1, "clip_coef": 0.02}
    run = Run(ppo, **bare)
    hints = {
        "half the expected value: is it 1/2 twice?": {"half": 0.5},
        "twice the expected value: did you forget the 1/2?": {"half": 2},
        "the clip has no effect: hold the new value near the old one": {"error": "unclipped"},
        "the larger of the two means: take the larger error of each row": {"error": "means"},
        "only the clipped error is there: take the larger of the two": {"error": "clipped"},
        "the smaller of the two errors is taken, not the larger": {"error": "optimistic"},
    }
    check_update(run, hints)
    rows = list(run.minibatches(0))
    new, old, target = (
        np.concatenate([x[k] for x in rows]) for k in ("value", "old_value", "target")
    )
    far, beyond = np.abs(new - old) > 0.02, (new > old) == (new > target)
    assert (far & beyond).any() and (far & ~beyond).any()
    deaf = {"--no-clip-vloss has no effect": {"error": "pessimistic"}}
    check_update(Run(ppo, clip_vloss=False, **bare), deaf)


def test_core_10_overall_loss_and_entropy_bonus(ppo):
    """policy loss - ent_coef * entropy + vf_coef * value loss."""
    run = Run(ppo, **BARE | {"ent_coef": 0.3, "vf_coef": 0.7})
    hints = {
        "the entropy is missing": {"entropy": 0},
        "the entropy has the wrong sign: more of it should lower the loss": {"entropy": -1},
        "the value loss is not multiplied by vf_coef": {"vf": 1},
        "the value loss is missing": {"vf": 0},
        "the value loss has the wrong sign": {"vf": -0.7},
    }
    check_update(run, hints)
    later = Run(ppo, iterations=3, **BARE | {"ent_coef": 0.3, "vf_coef": 0.7})
    check_update(later, {}, 2)  # the weights stay while the learning rate falls
    entropy = np.mean([x["entropy"].mean() for x in run.minibatches(0)])
    assert run.scalars["losses/entropy"][0][1] == pytest.approx(entropy, rel=1e-3), (
        "entropy is not what is logged as such"
    )


def test_core_11_global_gradient_clipping(ppo):
    """All gradients together are as long as max_grad_norm if they were longer, and not turned."""
    hints = {
        "the gradients are not clipped": {"limit": "none"},
        "each parameter is clipped alone: the norm is that of all together": {"limit": "each"},
        "each number is clipped, not the norm of all": {"limit": "number"},
        "policy and value function are clipped apart": {"limit": "apart"},
    }
    run = Run(ppo, max_grad_norm=0.1, vf_coef=1.0)
    check_update(run, hints)
    before = [norm(x["grads"]) for x in run.minibatches(0)]
    assert max(before) > 0.2
    assert run.scalars["losses/grad_norm"][0][1] == pytest.approx(np.mean(before), rel=1e-3), (
        "grad_norm is not the norm before the clipping"
    )
    check_update(Run(ppo, max_grad_norm=2 * max(before), vf_coef=1.0), hints)


def test_core_12_debug_variables(ppo):
    """Logged numbers are means over all minibatches of all epochs of an iteration."""
    run = Run(ppo, iterations=2, anneal_lr=False, **BARE | {"vf_coef": 0.05, "clip_coef": 0.02})
    for i, rollout in enumerate(run.rollouts):
        parts, values = list(run.minibatches(i)), rollout.gae["values"]
        returns = rollout.advantages + values
        expected, last = averages(parts), averages(parts[-1:])
        assert expected["losses/clipfrac"] > (0 if i else 0.05)
        expected["losses/explained_variance"] = 1 - np.var(returns - values) / np.var(returns)
        for tag, value in expected.items():
            assert tag in run.scalars, f"{tag} is not logged"
            logged = dict(run.scalars[tag]).get(run.args.batch_size * (i + 1))
            alone = np.isclose(logged, last.get(tag, np.nan), rtol=1e-3)
            wrong = f"{tag} of iteration {i + 1}{' is that of the last minibatch' if alone else ''}"
            assert logged == pytest.approx(value, rel=2e-3, abs=2e-6), wrong


def averages(parts: list[dict]) -> dict[str, float]:
    """What should be logged of these minibatches."""
    ratio = np.concatenate([x["ratio"] for x in parts])
    log_ratio, names = np.log(ratio), ("policy_loss", "value_loss", "entropy")
    assert np.abs(np.abs(ratio - 1) - 0.02).min() > 1e-7  # on the border either side is right
    return {f"losses/{name}": np.mean([x[name].mean() for x in parts]) for name in names} | {
        "losses/grad_norm": np.mean([norm(x["grads"]) for x in parts]),
        "losses/old_approx_kl": -log_ratio.mean(),
        "losses/approx_kl_k2": (log_ratio**2).mean() / 2,
        "losses/approx_kl": (ratio - 1 - log_ratio).mean(),
        "losses/clipfrac": (np.abs(ratio - 1) > 0.02).mean(),
    }


def test_core_13_separate_networks(ppo):
    """The value moves no parameter that the policy depends on, and the other way round."""
    agent, obs = ppo.Agent(*ppo.adapter.spaces(3, 4)), np.random.default_rng(0).normal(size=(8, 3))
    value, dist = ppo.adapter.value(agent, obs), ppo.adapter.policy(agent, obs)
    assert value.shape == (8,), "values (M, 1) would broadcast to (M, M) in the loss"
    moved = []
    for loss in (value.sum(), dist.log_prob(dist.sample().detach()).sum() + dist.entropy().sum()):
        agent.zero_grad()
        loss.backward()
        grads = {name: p.grad for name, p in agent.named_parameters()}
        moved.append({name for name, grad in grads.items() if grad is not None and grad.any()})
    both = moved[0] & moved[1]
    assert not both, f"policy and value share {sorted(both)}"
    assert moved[0] | moved[1] == {name for name, _ in agent.named_parameters()}


def test_aux_01_clip_range_annealing(ppo):
    """With --anneal-clip epsilon falls from clip_coef to clip_coef / iterations; else it stays."""
    for anneal in (True, False):
        flags = {"anneal_clip": anneal, "anneal_lr": False, "clip_coef": 0.005, **BARE}
        run = Run(ppo, iterations=3, seed=2, **flags)  # with 1 a ratio is 1.005 to eight digits
        for i, share in enumerate((1, 2 / 3, 1 / 3)):
            epsilon = 0.005 * (share if anneal else 1)
            other = 0.005 * (1 if anneal else share)
            hint = "epsilon is not annealed" if anneal else "--no-anneal-clip: epsilon is annealed"
            check_update(run, {hint: {"epsilon": other}}, i, epsilon)
            ratio = np.concatenate([x["ratio"] for x in run.minibatches(i)])
            assert (np.abs(ratio - 1) > 0.005).any()
    # So does that of the value loss, and of what counts as clipped in the log.
    run = Run(ppo, iterations=2, anneal_clip=True, **BARE | {"vf_coef": 1, "clip_coef": 0.02})
    check_update(run, {"the value's epsilon is not annealed": {"epsilon": 0.02}}, 1, 0.01)
    clipped = [np.abs(x["ratio"] - 1) > 0.01 for x in run.minibatches(1)]
    assert run.scalars["losses/clipfrac"][1][1] == pytest.approx(np.mean(clipped), abs=1e-6)


def test_aux_03_early_stopping_on_kl(ppo):
    """After each epoch, by k3 of its last minibatch; without a target no epoch is left out."""
    parts, epochs = ppo.adapter.parts, 4
    settings = BARE | {"learning_rate": 0.003, "update_epochs": epochs}
    whole = Run(ppo, **settings)
    assert len(whole.steps[0]) == epochs * parts
    ratio = [x["ratio"] for x in list(whole.minibatches(0))[parts - 1 :: parts]]
    k3 = [(r - 1 - np.log(r)).mean() for r in ratio]  # after each epoch
    k2 = [(np.log(r) ** 2).mean() / 2 for r in ratio]
    steps = len(Run(ppo, target_kl=2 * max(k3), **settings).steps[0])
    assert steps == epochs * parts, "it stops although the KL stays below the target"
    between = [(a + b) / 2 for a, b in zip(k2, k3) if abs(a / b - 1) > 0.005]
    assert between
    for target in (k3[0] / 2, k3[0] * 1.005, k3[1] * 0.9, k3[2] * 0.9, *between):
        stop = next((i for i, kl in enumerate(k3, 1) if kl > target), epochs)
        steps = len(Run(ppo, target_kl=target, **settings).steps[0])
        wrong = f"{steps} gradient steps instead of {stop * parts}: the KL tells to stop after"
        wrong += f" {stop} of {epochs} epochs. Is it k3 of the last minibatch, above the target?"
        assert steps == stop * parts, wrong


def test_extra_01_bootstrap_at_time_limits(ppo):
    """A time limit's state keeps its own value, not 0, and not that of what the reset shows."""
    for env in ("Ends-v0", "Reused-v0"):  # the second overwrites its observations
        for bootstrap in (True, False):
            run = Run(ppo, env, iterations=2, bootstrap_truncation=bootstrap)
            limits = 0
            for i, rollout in enumerate(run.rollouts):
                values, after = before_and_after(run, i)
                np.testing.assert_array_equal(rollout.gae["dones"], rollout.dones)
                np.testing.assert_allclose(rollout.gae["values"], values, atol=1e-5)
                cut = rollout.dones & ~rollout.terminated
                got, limits = rollout.gae["next_values"], limits + cut.sum()
                zero = got[rollout.terminated if bootstrap else rollout.dones]
                flag = "--no-bootstrap-truncation: that after a time limit must be 0, too"
                assert not zero.any(), "the value after an end must be 0" if bootstrap else flag
                assert after.all()
                if bootstrap:
                    assert got[cut].all(), "the value after a time limit is 0"
                    wrong = "the value after a time limit is not that of the state it cut off"
                    np.testing.assert_allclose(got[cut], after[cut], atol=1e-5, err_msg=wrong)
                np.testing.assert_allclose(got[~rollout.dones], after[~rollout.dones], atol=1e-5)
            assert limits >= 4
    # An environment whose own end and time limit come together ended for good.
    both = Run(ppo, "Both-v0").gae[0][0]
    wrong = "an end of the env's own at the time limit is an end: the value after it is 0"
    assert both["dones"].any() and not both["next_values"][both["dones"] & even(both)].any(), wrong


def before_and_after(run, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (T, N) of the states that rollout i saw, and of those that its steps led to."""
    rollout = run.rollouts[i]
    agent = run.agent(rollout.steps[0].weights)
    with torch.no_grad():
        _, values = run.adapter.play(run, agent, i)
        after = run.adapter.follow(run, agent, i)
    return tuple(x.numpy().reshape(rollout.dones.shape) for x in (values, after))


def even(gae) -> np.ndarray:
    """Rows of Both-v0's even episodes, of three steps each, which end by themselves."""
    return (np.arange(len(gae["dones"])) // 3 % 2 == 0)[:, None] & np.ones_like(gae["dones"])


def test_extra_02_explicit_reset(ppo):
    """Every row that is learned from is a step that the env really took, with its own reward, and
    what came after it is what this step led to, not what a reset shows."""
    run = Run(ppo, iterations=3)
    for i, rollout in enumerate(run.rollouts):
        learned = np.concatenate([run.rows(i, step) for step in rollout.steps])
        assert set(learned) == set(range(run.args.batch_size))
        rewards = [[s[3] for s in env[16 * i : 16 * i + 16]] for env in run.taken]
        np.testing.assert_allclose(rollout.gae["rewards"], np.array(rewards).T, atol=1e-6)
        cut, (_, after) = rollout.dones & ~rollout.terminated, before_and_after(run, i)
        wrong = "the last state of an episode is lost: its value is another's"
        got = rollout.gae["next_values"][cut]
        np.testing.assert_allclose(got, after[cut], atol=1e-5, err_msg=wrong)
    assert cut.any()
    for env in ("Ends-v0", "Staggered-v0"):
        run = Run(ppo, env, iterations=3)
        lengths = {value for _, value in run.scalars["charts/episodic_length"]}
        assert lengths == {5, 7}, "an env that was not done was reset, or one that was done was not"


def test_extra_04_seeds_that_no_two_runs_share(ppo):
    """No two of 1,000 seeds x 4 stages x 16 envs share an env seed; and runs are given them."""
    stages = ("train from 0", "train from 0 on 1", "train from 10", "evaluate")
    seeds = [s for seed in range(1000) for x in stages for s in ppo.spawn_seeds(seed, x, 16)]
    assert all(type(s) is int for s in seeds), "seeds must be Python's own integers, for Gymnasium"
    assert len(set(seeds)) == 1000 * 4 * 16, "runs with neighbouring seeds share envs"
    runs = [Run(ppo, "Long-v0", seed=seed) for seed in (1, 2)]
    given = [entry[2] for run in runs for entry in run.log if entry[0] == "reset"]
    assert len(given) == 8 and None not in given and len(set(given)) == 8


def test_extra_05_self_check(ppo):
    """A policy that learns from other numbers than it acted on is stopped; a right one is not."""
    run = Run(ppo, iterations=3)
    assert max(value for _, value in run.scalars["debug/first_ratio_error"]) < 1e-4
    cls, name = getattr(ppo, ppo.adapter.reads[0]), ppo.adapter.reads[1]
    reads = getattr(cls, name)

    def noisy(self, obs, *rest):
        noise = torch.randint(0, 2, obs.shape).to(obs.dtype)
        return reads(self, obs + noise if torch.is_grad_enabled() else obs, *rest)

    setattr(cls, name, noisy)
    try:
        ppo.main(run.flags)
    except SystemExit as stop:
        assert stop.code == 1
    else:
        raise AssertionError("nothing noticed that acting and learning disagree")
    # Each ratio counts: neither their mean nor one side alone.
    setattr(cls, name, reads)
    cls = getattr(ppo, "Gaussian", None) or ppo.Categorical
    log_prob = cls.log_prob
    for signs in ([-1.0, -1.0], [1.0, -1.0]):

        def off(dist, actions, signs=signs):
            right = log_prob(dist, actions)
            shift = 0.005 * torch.tensor(signs).repeat(right.numel() // 2).view(right.shape)
            return right + shift * torch.is_grad_enabled()

        cls.log_prob = off
        with pytest.raises(SystemExit):
            ppo.main(run.flags)


@pytest.mark.parametrize("script", ["ppo.py", "ppo_lstm.py", "ppo_atari.py"], indirect=True)
def test_the_categorical_distribution_is_torchs(ppo):
    """The tests above take its log-probabilities, its entropies and their gradient as they are."""
    logits = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    ours, theirs = ppo.Categorical(logits), torch.distributions.Categorical(logits=logits)
    for a in range(5):
        actions = torch.full((7,), a)
        np.testing.assert_allclose(ours.log_prob(actions), theirs.log_prob(actions), rtol=1e-9)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-9)
    np.testing.assert_array_equal(ours.mode(), logits.argmax(-1))
    many = ppo.Categorical(logits[:1].expand(100_000, 5)).sample()
    np.testing.assert_allclose(many.bincount(minlength=5) / 1e5, theirs.probs[0], atol=0.01)
    logits.requires_grad_()
    both = [c(logits=logits).entropy().sum() for c in (ppo.Categorical, type(theirs))]
    ours, theirs = (torch.autograd.grad(entropy, logits)[0] for entropy in both)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
