"""The details of ppo_lstm.py, a test each."""

import itertools
import math
from contextlib import contextmanager

import gymnasium as gym
import known_envs
import numpy as np
import pytest
import torch
from harness import Run, check_update
from test_core import BARE


class Apart(known_envs.Ends):
    """Ends, but neighbours do not end together."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.lengths = (3 + self.number % 3, 7)


gym.register("Apart-v0", Apart)


@contextmanager
def mistake(hint: str):
    """What a failure in here most likely comes from."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{hint}: {error}") from error


def lstm_step(lstm, x: np.ndarray, h: np.ndarray, c: np.ndarray):
    """One step by hand, in float64: outputs and cells (n, H) from observations (n, D)."""
    get = {k: v.detach().double().numpy() for k, v in lstm.named_parameters()}
    gates = x @ get["weight_ih_l0"].T + h @ get["weight_hh_l0"].T
    i, f, g, o = np.split(gates + get["bias_ih_l0"] + get["bias_hh_l0"], 4, axis=1)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


class Reads:
    """All that the LSTM reads from here on: observations (L, n, D), states before and after."""

    def __init__(self, ppo):
        self.calls, self.read = [], ppo.Agent.read

        def spy(agent, obs, state):
            result = self.read(agent, obs, state)
            arrays = (x.detach().numpy().copy() for x in (obs, state, result[1]))
            self.calls.append((torch.is_grad_enabled(), *arrays))
            return result

        ppo.Agent.read = spy

    def acting(self, envs: int, iterations: int | None = None) -> list[tuple]:
        """Observations (n, D) and states, where it read one step of so many environments. What it
        read so after the 16 steps of a rollout, to judge their successors, is left out."""
        calls = [call[1:] for call in self.calls if not call[0] and call[1].shape[:2] == (1, envs)]
        if iterations:
            each = len(calls) // iterations
            calls = [call for i, call in enumerate(calls) if i % each < 16]
        return [(np.rint(obs[0] * 10).astype(int), *states) for obs, *states in calls]


def begins_with(ppo, prepare) -> None:
    """Let each new agent begin with weights that `prepare` changes."""
    init = ppo.Agent.__init__

    def prepared(self, *spaces):
        init(self, *spaces)
        with torch.no_grad():
            prepare(self)

    ppo.Agent.__init__ = prepared


def counting(agent) -> None:
    """Make the LSTM count what it has read since its state was zero: the value is tanh(k / 10)
    after the k-th observation of an episode."""
    for parameter in (*agent.lstm.parameters(), *agent.critic.parameters()):
        parameter.zero_()
    i, f, g, o = agent.lstm.bias_ih_l0.chunk(4)
    for gate in (i, f, o):
        gate[:] = 40.0  # open
    g[:] = math.atanh(0.1)
    agent.critic.weight[0, 0] = 1.0


def decided(agent) -> None:
    """A policy as after training: what is remembered decides."""
    agent.actor.weight *= 300
    agent.lstm.weight_ih_l0 *= 20


def test_lstm_01_lstm_layer(ppo):
    """Both matrices are orthogonal, biases 0, the second of them for good; both heads read it."""
    agent = ppo.Agent(*ppo.adapter.spaces(7, 3))
    w = {k: v.detach().double().numpy() for k, v in agent.lstm.named_parameters()}
    assert w["weight_ih_l0"].shape == (512, 7) and w["weight_hh_l0"].shape == (512, 128)
    for name, n in (("weight_ih_l0", 7), ("weight_hh_l0", 128)):
        wrong = f"{name} is not orthogonal (gain 1)"
        np.testing.assert_allclose(w[name].T @ w[name], np.eye(n), atol=1e-5, err_msg=wrong)
    assert not w["bias_ih_l0"].any() and not w["bias_hh_l0"].any(), "biases are not 0 at first"

    rng = np.random.default_rng(0)
    x, h, c = rng.normal(size=(5, 4, 7)), *rng.normal(size=(2, 4, 128))
    state = torch.tensor(np.stack([h, c]), dtype=torch.float32)
    hidden, after = agent.read(torch.tensor(x, dtype=torch.float32), state)
    for t in range(5):
        h, c = lstm_step(agent.lstm, x[t], h, c)
        wrong = f"after {t + 1} steps the output is not that of an LSTM with these weights"
        np.testing.assert_allclose(hidden[t].detach().numpy(), h, atol=1e-5, err_msg=wrong)
    np.testing.assert_allclose(after.detach().numpy(), [h, c], atol=1e-5)
    logits = h @ agent.actor.weight.detach().double().numpy().T
    value = h @ agent.critic.weight.detach().double().numpy()[0]
    logp = torch.tensor(logits).log_softmax(-1).numpy()
    got = [agent.policy(hidden[-1]).log_prob(torch.full((4,), a)).tolist() for a in range(3)]
    wrong = "does not read the LSTM's output"
    np.testing.assert_allclose(got, logp.T, atol=1e-5, err_msg=f"the policy {wrong}")
    got = agent.value(hidden[-1]).tolist()
    np.testing.assert_allclose(got, value, atol=1e-5, err_msg=f"the value function {wrong}")

    run = Run(ppo)
    assert run.weights["lstm.bias_ih_l0"].any(), "the bias is not learned"
    assert not run.weights["lstm.bias_hh_l0"].any(), "there are two biases that are learned"


def test_lstm_02_zero_state_at_first(ppo):
    """A state of zeros before the first step of all, and of every game of an evaluation; but not
    before the later rollouts, which go on with the state they find."""
    reads = Reads(ppo)
    with mistake("the rollout begins with a state that the update does not begin with"):
        Run(ppo, "Long-v0", iterations=3)
    acting = reads.acting(4, iterations=3)
    assert len(acting) == 3 * 16
    assert not acting[0][1].any(), "the first state of all is not 0"
    for before, after in itertools.pairwise(acting):
        wrong = "a rollout does not go on with the state that it finds"
        np.testing.assert_array_equal(before[2], after[1], err_msg=wrong)
    reads.calls.clear()
    ppo.main(["--env-id", "known_envs:Ends-v0", *ppo.adapter.sizes.split(),
              "--total-timesteps", "64", "--eval-episodes", "2"])  # fmt: skip
    games = reads.acting(1)
    assert len(games) == 2 * (5 + 7)
    for obs, state, _ in games:
        assert state.any() == (obs[0, 2] > 0), "a game does not begin with a state of zeros"


def test_lstm_03_state_reset_at_the_end_of_an_episode(ppo):
    """An episode begins with a state of zeros, and its last state is judged with its memory."""
    reads = Reads(ppo)
    hint = "the update must set the state back to 0 where the rollout did, after an end's own row"
    with mistake(hint):
        run = Run(ppo, "Apart-v0", iterations=2, num_envs=8, **BARE | {"vf_coef": 0.5})
    acting = reads.acting(8, iterations=2)
    for k, (obs, state, _) in enumerate(acting):
        started = obs[:, 2] == 0
        assert not state[:, started].any(), "an episode begins with memories of the one before"
        if k:
            wrong, before = "a state was lost in the middle of an episode", acting[k - 1][2]
            np.testing.assert_array_equal(state[:, ~started], before[:, ~started], err_msg=wrong)
    with mistake(hint):
        for i in range(2):
            check_update(run, {}, i)
    # By the count: the k-th observation of an episode is worth tanh(k / 10).
    begins_with(ppo, counting)
    run = Run(ppo, iterations=2, learning_rate=1e-12)
    for rollout in run.rollouts:
        t = np.rint(rollout.obs[..., 2] * 10)
        wrong, right = "values are not by the episode's memory", np.tanh((t + 1) / 10)
        np.testing.assert_allclose(rollout.gae["values"], right, atol=1e-5, err_msg=wrong)
        limits = rollout.dones & ~rollout.terminated
        got = rollout.gae["next_values"][limits]
        wrong = "a state that a time limit cut off is judged without its episode's memory"
        np.testing.assert_allclose(got, np.tanh(0.8), atol=1e-5, err_msg=wrong)
        assert limits.any()


def test_lstm_04_whole_sequences_as_minibatches(ppo):
    """A minibatch is all steps of some envs, in order; each env is in one minibatch an epoch."""
    for env in ("Long-v0", "Apart-v0"):  # the second is read in parts, from end to end
        with mistake("a minibatch must be all steps of some envs, in order"):
            run = Run(ppo, env, iterations=2, num_envs=8)
        for i, rollout in enumerate(run.rollouts):
            rows = [run.rows(i, step) for step in rollout.steps]
            assert {len(part) for part in rows} == {32}, "minibatches aren't equally large"
            for part in rows:
                t, envs = np.divmod(part.reshape(16, 2), 8)
                assert (envs == envs[0]).all(), "a minibatch has steps of an env but not all"
                assert (t == np.arange(16)[:, None]).all(), "the steps are not in their order"
            for epoch in range(4):
                envs = np.concatenate(rows[4 * epoch : 4 * epoch + 4]) % 8
                assert (np.bincount(envs) == 16).all(), "an epoch leaves out an env, or repeats it"
    with pytest.raises(SystemExit) as stop:  # 6 envs in 4 minibatches
        ppo.main([*run.flags, "--num-envs", "6"])
    assert stop.value.code == 2


def test_lstm_05_states_rebuilt_from_the_rollouts_start(ppo):
    """Sequences read again from the states that the rollout began with give the log-probabilities
    it stored, through ends and over the border of rollouts; and gradients go back in time."""
    begins_with(ppo, decided)
    wrong = "sequences are not read again from the state that the rollout began with"
    with mistake(wrong):
        run = Run(ppo, "Apart-v0", iterations=2, num_envs=8, learning_rate=1e-4)
    assert all(rollout.dones.any() for rollout in run.rollouts)
    errors = [value for _, value in run.scalars["debug/first_ratio_error"]]
    assert max(errors) < 1e-4, wrong
    for i in range(2):
        with mistake("gradients must go back through time, to the rollout's start and no further"):
            check_update(run, {}, i)
        logp = next(run.minibatches(i))["logp"]
        assert np.ptp(logp) > 0.3  # the same policy for all would hide what is wrong


def test_extra_08_hidden_entries_of_the_observation(ppo):
    """The agent gets the entries that --observe names, in that order; without it, all."""
    for entries in ((), (2, 0)):
        run = Run(ppo, observe=entries)
        shown = run.rollouts[0].obs[..., list(entries or (0, 1, 2))]
        acted = np.array(run.acted[:16])
        assert acted.shape == shown.shape, f"--observe {entries} shows {acted.shape[-1]} entries"
        np.testing.assert_allclose(acted, shown, atol=1e-6)
        assert run.weights["lstm.weight_ih_l0"].shape[1] == shown.shape[-1]
        known_envs.LOG.clear()
        assert len(ppo.main(["--evaluate", run.folder, "--eval-episodes", "1"])["greedy"]) == 1
    for entries in (("0", "2"), ("0", "1", "2")):  # the weights are those of 2 and 0
        with pytest.raises(SystemExit) as stop:
            ppo.main(["--evaluate", run.folder, "--observe", *entries])
        assert stop.value.code == 2
    for entries in ("3", "-4"):  # of three
        with pytest.raises(SystemExit) as stop:
            ppo.main([*run.flags, "--observe", entries])
        assert stop.value.code == 2
