"""Scripts as modules, edited or not, and what one of them did in a training run.

A run is watched from outside: known environments write down what was done to them, torch's own
hooks show each gradient step, and the agent's reading method shows which rows it read. How a script
comes from the one to the other is its own business.
"""

import copy
import inspect
import itertools
import os
import sys
import types
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs" / "tools"), str(ROOT / "tests")]

import apply  # noqa: E402
import details  # noqa: E402
import known_envs  # noqa: E402
import reference  # noqa: E402

COUNTER = itertools.count()


@dataclass
class Rollout:
    """T steps in N envs of Ends, by what the environments wrote down; rows are t * N + n."""

    obs: np.ndarray  # (T, N, 3): env, episode, t, each / 10
    next_obs: np.ndarray  # (T, N, 3), before a reset
    actions: np.ndarray  # (T, N, ...)
    terminated: np.ndarray  # (T, N)
    dones: np.ndarray  # (T, N)
    gae: inspect.BoundArguments  # what compute_gae was given
    advantages: np.ndarray  # (T, N), what it gave back
    steps: list["Step"] = field(default_factory=list)  # gradient steps on these rows


@dataclass
class Step:
    """A gradient step, before it changes anything; `seen`: (M, 3), as a rollout's obs."""

    lr: float
    seen: np.ndarray
    weights: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]


class Ppo:
    """What a test needs to know of a script; the children's own are below."""

    name = "ppo.py"
    actions = "discrete"  # what known_envs.py offers it
    misfit = "HalfCheetah-v4"  # an env that it refuses
    quick = "CartPole-v1"  # an env of its kind
    # A short run, with steps so large that ratios and values soon leave the clip range.
    sizes = "--num-envs 4 --num-steps 16 --num-minibatches 4 --update-epochs 4 --learning-rate 0.01"
    reads = ("Agent", "policy")  # the method that observations go through

    @property
    def parts(self) -> int:
        """Minibatches an epoch."""
        return int(self.sizes.split("--num-minibatches ")[1].split()[0])

    def plain(self, module) -> None:
        """Make the script leave observations and rewards as they are."""

    def spaces(self, observations: int, actions: int) -> tuple[gym.Space, gym.Space]:
        return gym.spaces.Box(-1, 1, (observations,)), gym.spaces.Discrete(actions)

    def encode(self, obs) -> torch.Tensor:
        """Known observations (..., 3) as the network reads them."""
        return torch.as_tensor(np.asarray(obs), dtype=torch.float32)

    def decode(self, read: torch.Tensor) -> np.ndarray:
        """The other way round: (M, 3)."""
        return read.flatten(0, -2).numpy()

    def policy(self, agent, obs):
        """The policy in the first steps of an episode, obs (n, D)."""
        return agent.policy(self.encode(obs))

    def value(self, agent, obs):
        return agent.value(self.encode(obs))

    def play(self, run: "Run", agent, i: int):
        """The policy and the values in all rows of rollout i."""
        obs = run.rollouts[i].obs.reshape(-1, 3)
        return self.policy(agent, obs), self.value(agent, obs)

    def follow(self, run: "Run", agent, i: int) -> torch.Tensor:
        """The values of what followed each row of rollout i, before a reset."""
        return self.value(agent, run.rollouts[i].next_obs.reshape(-1, 3))


class Continuous(Ppo):
    name, actions, misfit = "ppo_continuous.py", "box", "CartPole-v1"
    quick = "InvertedPendulum-v5"

    def plain(self, module):
        module.RunningMeanStd.update = lambda stats, x: None
        module.RunningMeanStd.std = lambda stats: np.ones(np.shape(stats.mean))

    def spaces(self, observations, actions):
        return gym.spaces.Box(-1, 1, (observations,)), gym.spaces.Box(-1, 1, (actions,))


class Lstm(Ppo):
    name, reads = "ppo_lstm.py", ("Agent", "read")

    def remember(self, agent, obs) -> torch.Tensor:
        """What the LSTM puts out for the first steps of an episode."""
        return agent.read(self.encode(obs)[:, None], torch.zeros(2, 1, 128))[0][:, 0]

    def policy(self, agent, obs):
        return agent.policy(self.remember(agent, obs))

    def value(self, agent, obs):
        return agent.value(self.remember(agent, obs))

    def outputs(self, run, agent, i: int):
        """What the LSTM puts out in each step of rollout i, (1, N, H), and its state after it."""
        state = torch.zeros(2, run.args.num_envs, 128)
        for j, rollout in enumerate(run.rollouts[: i + 1]):
            reader = agent if j == i else run.agent(rollout.steps[0].weights)
            with torch.set_grad_enabled(j == i and torch.is_grad_enabled()):
                for obs, dones in zip(rollout.obs, rollout.dones, strict=True):
                    hidden, state = reader.read(self.encode(obs[None]), state)
                    if j == i:
                        yield hidden, state
                    state = state * torch.as_tensor(~dones[:, None])

    def play(self, run, agent, i):
        hidden = torch.cat([hidden for hidden, _ in self.outputs(run, agent, i)]).flatten(0, 1)
        return agent.policy(hidden), agent.value(hidden)

    def follow(self, run, agent, i):
        pairs = zip(run.rollouts[i].next_obs, self.outputs(run, agent, i), strict=True)
        after = [agent.read(self.encode(obs[None]), state)[0] for obs, (_, state) in pairs]
        return agent.value(torch.cat(after).flatten(0, 1))


class Several(Ppo):
    name, actions, misfit = "ppo_multidiscrete.py", "several", "known_envs:Tuples-v0"

    def spaces(self, observations, actions):
        return gym.spaces.Box(-1, 1, (observations,)), gym.spaces.MultiDiscrete([actions])

    def policy(self, agent, obs):
        choices = agent.actor[-1].out_features
        exists = torch.ones(1, choices, dtype=bool)
        if choices == 6:  # known_envs.py: one of 3 and one of 2
            exists = torch.tensor([[True, True, True], [True, True, False]])
        return agent.policy(self.encode(obs), exists.expand(*np.shape(obs)[:-1], *exists.shape))


class Atari(Ppo):
    name, actions, misfit = "ppo_atari.py", "atari", "CartPole-v1"
    quick = "BreakoutNoFrameskip-v4"
    sizes = (
        "--num-envs 4 --num-steps 16 --num-minibatches 2 --update-epochs 2 --learning-rate 0.003"
    )
    reads = ("Agent", "forward")

    def plain(self, module):
        module.make_env = lambda args, video=None: known_envs.Seen(gym.make(args.env_id))

    def spaces(self, observations, actions):
        return known_envs.Seen.observation_space, gym.spaces.Discrete(actions)

    def encode(self, obs):
        return torch.as_tensor(known_envs.pictures(np.asarray(obs)))

    def decode(self, read):
        return known_envs.numbers(read.numpy())

    def policy(self, agent, obs):
        return agent(self.encode(obs))[0]

    def value(self, agent, obs):
        return agent(self.encode(obs))[1]

    def play(self, run, agent, i):
        return agent(self.encode(run.rollouts[i].obs.reshape(-1, 3)))


SCRIPTS = {cls.name: cls() for cls in (Ppo, Continuous, Lstm, Several, Atari)}


def load(script: str, detail: str | None = None) -> types.ModuleType:
    """A script as a fresh module, or the file that the variable GRADED names in its place; with
    `detail` taken out, or an entry of docs/beyond.toml put in, if one is given."""
    source = Path(os.environ.get("GRADED") or ROOT / script).read_text()
    if detail and detail in apply.entries():
        source = apply.apply(script, detail)
    elif detail:
        source = details.edited(source, details.removal(detail, script), detail)
    module = types.ModuleType(f"{Path(script).stem}_{next(COUNTER)}")
    module.__file__, module.source = str(ROOT / script), source
    module.adapter = SCRIPTS[script]
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, script, "exec"), module.__dict__)
    return module


class Run:
    """A training run and what was seen of it."""

    def __init__(self, module, env: str = "Ends-v0", iterations: int = 1, plain=True, **settings):
        """Train on a known environment; settings are Args' fields, True and False as flags."""
        self.adapter = module.adapter
        if plain:
            self.adapter.plain(module)
        self.agents, self.scalars = [], {}
        self.acted = []  # (N, 3) a step: what the policy read in a rollout
        self.gae, self.steps = [], []  # one entry an iteration
        seen, compute_gae, make_envs = [], module.compute_gae, module.make_envs
        sizes = self.adapter.sizes.split()
        names = dict(zip(sizes[::2], sizes[1::2]))
        names |= {f"--{k.replace('_', '-')}": v for k, v in settings.items()}
        rows = int(names["--num-envs"]) * int(names["--num-steps"])
        names |= {"--env-id": f"known_envs:{env}", "--eval-episodes": 0}
        self.flags = ["--total-timesteps", str(rows * iterations)]
        for flag, value in names.items():
            if isinstance(value, bool):
                self.flags.append(flag if value else flag.replace("--", "--no-", 1))
            elif isinstance(value, tuple):
                self.flags += [flag, *map(str, value)] if value else []
            else:
                self.flags += [flag, str(value)]

        def fresh(*args, **kwargs):  # of envs that were made before only to be looked at
            known_envs.LOG.clear()
            known_envs.COUNT[0] = 0
            return make_envs(*args, **kwargs)

        def made(agent, *args):
            init(agent, *args)
            self.agents.append(agent)

        def read(agent, obs, *rest):
            rows = seen if torch.is_grad_enabled() else self.acted
            rows.append(self.adapter.decode(obs.detach().clone()))
            return reads(agent, obs, *rest)

        def estimate(*args, **kwargs):
            bound = inspect.signature(compute_gae).bind(*args, **kwargs)
            bound = {k: np.copy(v) for k, v in bound.arguments.items()}
            result = compute_gae(*args, **kwargs)
            self.gae.append((bound, np.copy(result)))
            self.steps.append([])
            return result

        def before_step(optimizer, *_):
            group = optimizer.param_groups[0]
            parameters = dict(self.agents[0].named_parameters())
            weights = {k: p.detach().numpy().copy() for k, p in parameters.items()}
            grads = {k: np.zeros(p.shape) if p.grad is None else p.grad.numpy().copy()
                     for k, p in parameters.items()}  # fmt: skip
            self.steps[-1].append(Step(group["lr"], np.concatenate(seen), weights, grads))
            seen.clear()

        def add_scalar(writer, tag, value, step):
            self.scalars.setdefault(tag, []).append((step, float(value)))

        def failing(message, code=2):
            failed.append(message)
            fail(message, code)

        failed, fail = [], module.fail
        cls = getattr(module, self.adapter.reads[0])
        init, reads = module.Agent.__init__, getattr(cls, self.adapter.reads[1])
        hook = register_optimizer_step_pre_hook(before_step)
        with ExitStack() as stack:
            stack.callback(hook.remove)
            for target, name, spy in [
                (module.Agent, "__init__", made),
                (cls, self.adapter.reads[1], read),
                (module, "make_envs", fresh),
                (module, "compute_gae", estimate),
                (SummaryWriter, "add_scalar", add_scalar),
                (module, "fail", failing),
            ]:
                stack.enter_context(patch.object(target, name, spy))
            try:
                self.folder = module.main(self.flags)["folder"]
            except SystemExit as stop:  # without a code: one of several processes, done
                if stop.code is not None:
                    raise AssertionError(f"the script ended by itself: {failed[-1:]}") from stop
        self.args = tyro.cli(module.Args, args=self.flags)
        self.log = list(known_envs.LOG)
        parameters = self.agents[0].named_parameters()
        self.weights = {k: p.detach().numpy().copy() for k, p in parameters}  # at the end

    @cached_property
    def taken(self) -> list[list[tuple]]:
        """Of each env its steps (episode, t, action, reward, terminated, truncated), in order."""
        envs = sorted({entry[1] for entry in self.log})
        steps = [entry for entry in self.log if entry[0] == "step"]
        return [[entry[2:] for entry in steps if entry[1] == env] for env in envs]

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """What the environments saw, a rollout for each call of compute_gae."""
        found, T = [], self.args.num_steps
        for i, (gae, advantages) in enumerate(self.gae):
            rows = [steps[i * T : i * T + T] for steps in self.taken]
            shape = (T, len(rows))
            assert {len(row) for row in rows} == {T}, "an env was not stepped T times a rollout"
            number, episode, t = np.zeros((3, *shape), int)
            ends, actions = np.zeros((2, *shape), bool), [[None] * len(rows) for _ in range(T)]
            for n, steps in enumerate(rows):
                for k, (e, s, action, _, *over) in enumerate(steps):
                    number[k, n], episode[k, n], t[k, n], ends[:, k, n] = n, e, s, over
                    actions[k][n] = action
            obs, after = (np.stack([number, episode, x], -1) / 10 for x in (t, t + 1))
            ends = (ends[0], ends[0] | ends[1])
            found.append(
                Rollout(obs, after, np.array(actions), *ends, gae, advantages, self.steps[i])
            )
        return found

    def agent(self, weights: dict[str, np.ndarray]):
        """A copy of the agent with these weights."""
        twin = copy.deepcopy(self.agents[0])
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                parameter.copy_(torch.as_tensor(weights[name]))
        return twin

    def rows(self, i: int, step: Step) -> np.ndarray:
        """Which rows of rollout i a gradient step read."""
        states = np.rint(self.rollouts[i].obs.reshape(-1, 3) * 10).astype(int)
        index = {tuple(state): row for row, state in enumerate(states.tolist())}
        seen = [tuple(state) for state in np.rint(step.seen * 10).astype(int).tolist()]
        assert set(seen) <= set(index), "a row was learned from that no step was taken from"
        return np.array([index[state] for state in seen])

    def minibatches(self, i: int, epsilon: float | None = None, **mistakes):
        """Of each gradient step of iteration i: what it should be, by reference.objective, with
        its gradients `grads` before any clipping."""
        rollout, args = self.rollouts[i], self.args
        epsilon = args.clip_coef if epsilon is None else epsilon
        actions = torch.as_tensor(rollout.actions.reshape(-1, *rollout.actions.shape[2:]))
        with torch.no_grad():
            dist, _ = self.adapter.play(self, self.agent(rollout.steps[0].weights), i)
            old = dist.log_prob(actions).double()
        given = mistakes.get("gae", {})
        advantages = reference.advantages(
            *(rollout.gae | given).values(), **mistakes.get("sum", {})
        )
        advantages = torch.as_tensor(advantages).flatten()
        values = torch.as_tensor(rollout.gae["values"]).double().flatten()
        for step in rollout.steps:
            agent, rows = self.agent(step.weights), self.rows(i, step)
            dist, new = self.adapter.play(self, agent, i)
            entropy = dist.entropy().expand(len(actions))
            row = {"logp": dist.log_prob(actions), "old_logp": old, "entropy": entropy}
            row |= {"value": new, "old_value": values}
            row |= {"advantage": advantages, "target": advantages + values}
            row = {key: x[rows].double() for key, x in row.items()}
            expected = reference.objective(row, advantages, args, epsilon, **mistakes)
            agent.zero_grad()
            expected["loss"].backward()
            grads = {name: np.zeros(p.shape) if p.grad is None else p.grad.double().numpy()
                     for name, p in agent.named_parameters()}  # fmt: skip
            yield {k: v.detach().numpy() for k, v in (row | expected).items()} | {"grads": grads}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], rtol=1e-3) -> bool:
    """Whether gradients are equal, to a thousandth of the largest number in them."""
    size = max(np.abs(x).max() for x in b.values())
    return all(np.abs(a[key] - b[key]).max() <= rtol * size + 1e-9 for key in b)


def check_update(
    run: Run, hints: dict[str, dict], i: int = 0, epsilon=None, limit="global"
) -> None:
    """The gradients of iteration i, as Adam gets them, are those of the formulas. If not, say which
    of the mistakes in `hints` would explain them."""

    def explains(epsilon=epsilon, limit=limit, **mistakes) -> list[bool]:
        found = run.minibatches(i, epsilon, **mistakes)
        limits = (reference.clipped(x["grads"], run.args.max_grad_norm, limit) for x in found)
        return [same(step.grads, grads) for step, grads in zip(run.rollouts[i].steps, limits)]

    if all(right := explains()):
        return
    first = f"gradient step {right.index(False) + 1} of iteration {i + 1}"
    for hint, mistakes in hints.items():
        if all(explains(**mistakes)):
            raise AssertionError(f"{first} is wrong in a way that fits this: {hint}")
    raise AssertionError(f"{first} is not what the detail's formula gives, nor a known mistake")
