"""Scripts as modules, edited or not, and recorded training runs."""

import itertools
import sys
import types
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tests")]

import build  # noqa: E402
import known_envs  # noqa: E402

COUNTER = itertools.count()


def load(script: str, detail: str | None = None) -> types.ModuleType:
    """A script as a fresh module; with `detail` taken out, if one is given."""
    source = (ROOT / script).read_text()
    if detail:
        source = build.edited(source, build.removal(detail, script), detail)
    module = types.ModuleType(f"{Path(script).stem}_{next(COUNTER)}")
    module.__file__, module.source = str(ROOT / script), source
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, script, "exec"), module.__dict__)
    return module


@dataclass
class Record:
    """What went through a training run, in order; arrays are copies."""

    acted: list = field(default_factory=list)  # obs (N, D) the policy acted on
    valued: list = field(default_factory=list)  # obs and next_obs (T, N, D) of each rollout
    gae: list = field(default_factory=list)  # arguments and result of compute_gae
    learned: list = field(default_factory=list)  # a dict per minibatch
    losses: list = field(default_factory=list)  # what backward was called on
    steps: list = field(default_factory=list)  # lr and gradient (all parameters) per Adam step
    optimizers: list = field(default_factory=list)  # keyword arguments
    scalars: dict = field(default_factory=dict)  # tag -> [(step, value)]
    log: list = field(default_factory=list)  # known_envs.LOG
    result: dict | None = None


def unscaled(module: types.ModuleType) -> types.ModuleType:
    """A script that leaves observations and rewards as they are (but for the clipping at 10): what
    the others do, too, so that the details all share can be tested on it in the same way. Of
    pictures, the network sees the numbers that stand in the newest."""
    if hasattr(module, "RunningMeanStd"):
        module.RunningMeanStd.update = lambda self, x: None
        module.RunningMeanStd.std = lambda self: np.ones(self.mean.shape)
    if hasattr(module, "NatureCNN"):

        class Reader(torch.nn.Module):
            def __init__(self, frames):
                super().__init__()
                self.hidden = module.layer_init(torch.nn.Linear(3, 512))

            def forward(self, x):
                return self.hidden((x[:, 3, 0, :3].float() - 100) / 10).tanh()

        def make_env(args, video=None):
            env = module.gym.make(args.env_id, **module.GAME)
            env = module.gym.wrappers.RecordEpisodeStatistics(env)
            space = module.gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
            stack = lambda frame: np.stack([frame[:84, :84, 0]] * 4)  # noqa: E731
            return module.gym.wrappers.TransformObservation(env, stack, space)

        module.NatureCNN, module.make_env = Reader, make_env
    return module


def record(module: types.ModuleType, *flags: str, scaled: bool = False) -> Record:
    """Run a script's main with these flags and write down what happens; `scaled`: with running
    statistics, in a script that has them."""
    if not scaled:
        unscaled(module)
    # The call that gives the distribution: alone, or with the value where they share a trunk.
    shared = "forward" in vars(module.Agent)
    act = "forward" if shared else "policy"
    rec, policy, value = Record(), getattr(module.Agent, act), module.Agent.value
    scoring, read = [], []  # `read`: what an LSTM has seen since its output was last asked for

    def plain(agent, obs):
        """The environment's numbers, a row each."""
        if hasattr(agent, "lstm"):
            obs = torch.cat(read).flatten(0, 1) if read else obs
            read.clear()
        obs = known_envs.numbers(obs.numpy()) if shared else obs.detach().numpy().copy()
        return obs[..., : agent.sizes[0]] if hasattr(agent, "sizes") else obs  # the mask follows

    def rows(x):
        """Of a minibatch, as (M, ...): an LSTM's is (T, n, ...)."""
        x = x.detach()
        return (x.flatten(0, 1) if hasattr(module, "LSTM") and x.ndim > 1 else x).numpy().copy()

    def grads(optimizer):
        return [p.grad for p in optimizer.param_groups[0]["params"]]

    make_envs = module.make_envs

    def fresh(*arguments):
        known_envs.LOG.clear()  # of what was done to environments while the arguments were checked
        return make_envs(*arguments)

    pg, vf, gae = module.policy_loss, module.value_loss, module.compute_gae
    backward, adam = torch.Tensor.backward, torch.optim.Adam

    class Adam(adam):
        def __init__(self, *args, **kwargs):
            rec.optimizers.append(kwargs)
            super().__init__(*args, **kwargs)

        def step(self, *args):
            flat = torch.cat([g.flatten().double() for g in grads(self)])
            rec.steps.append({"lr": self.param_groups[0]["lr"], "grad": flat.numpy().copy()})
            return super().step(*args)

    class Writer:
        def __init__(self, *args, **kwargs):
            pass

        def add_scalar(self, tag, scalar, step):
            rec.scalars.setdefault(tag, []).append((step, float(scalar)))

        def flush(self):
            pass

        close = flush

    def spy_policy(self, obs):
        result = policy(self, obs)
        dist = result[0] if shared else result
        if torch.is_grad_enabled():
            numbers = {k: rows(v) for k, v in vars(dist).items() if k != "parts"}
            numbers["parts"] = [rows(part.logp) for part in getattr(dist, "parts", [])]
            rec.learned.append({"obs": plain(self, obs), "dist": numbers})
            dist.log_prob = partial(spy_log_prob, dist.log_prob)
        elif not scoring:
            rec.acted.append(plain(self, obs))
        return result

    def spy_lstm(self, x, state):
        read.append(x)
        return lstm(self, x, state)

    def spy_log_prob(log_prob, actions):
        rec.learned[-1]["actions"] = rows(actions)
        return log_prob(actions)

    def spy_value(self, obs):
        if not torch.is_grad_enabled():
            rec.valued.append(plain(self, obs))
        scoring.append(True)
        result = value(self, obs)
        scoring.pop()
        return result

    def spy_pg(advantages, ratio, clip_coef):
        loss = pg(advantages, ratio, clip_coef)
        row = {"advantages": advantages, "ratio": ratio, "pg_loss": loss}
        rec.learned[-1] |= {k: rows(v) for k, v in row.items()} | {"clip": clip_coef}
        return loss

    def spy_vf(new_values, old_values, returns, clip_coef):
        loss = vf(new_values, old_values, returns, clip_coef)
        row = {
            "new_values": new_values,
            "old_values": old_values,
            "returns": returns,
            "v_loss": loss,
        }
        rec.learned[-1] |= {k: rows(v) for k, v in row.items()}
        return loss

    def spy_gae(*arguments):
        result = gae(*arguments)
        rec.gae.append([np.copy(a) for a in arguments] + [result.copy()])
        return result

    def spy_backward(self, *args, **kwargs):
        rec.losses.append(self.item())
        return backward(self, *args, **kwargs)

    known_envs.LOG.clear()
    known_envs.COUNT[0] = 0
    with ExitStack() as stack:
        if hasattr(module, "LSTM"):
            lstm = module.LSTM.forward
            stack.enter_context(patch.object(module.LSTM, "forward", spy_lstm))
        for target, name, spy in [
            (module.Agent, act, spy_policy),
            (module.Agent, "value", spy_value),
            (module, "make_envs", fresh),
            (module, "policy_loss", spy_pg),
            (module, "value_loss", spy_vf),
            (module, "compute_gae", spy_gae),
            (module, "SummaryWriter", Writer),
            (torch.Tensor, "backward", spy_backward),
            (torch.optim, "Adam", Adam),
        ]:
            stack.enter_context(patch.object(target, name, spy))
        rec.result = module.main([*flags, "--eval-episodes", "0"])
    rec.log = list(known_envs.LOG)
    return rec


# ppo.py's defaults for all, so that one test can be run on every script.
SIZES = "--num-envs 4 --num-steps 128 --num-minibatches 4 --update-epochs 4".split()
SAME = "--learning-rate 2.5e-4 --gamma 0.99 --ent-coef 0.01 --vf-coef 0.5 --clip-coef 0.2".split()
SAME = [*SIZES, *SAME]

# A run of each script whose iterations are short, and how many rows such an iteration has.
FEW = "--num-envs 4 --num-steps 8 --num-minibatches 2 --update-epochs 1".split()
QUICK = {
    "ppo.py": ["--env-id", "CartPole-v1", *SIZES],
    "ppo_atari.py": ["--env-id", "BreakoutNoFrameskip-v4", *FEW],
    "ppo_continuous.py": ["--env-id", "InvertedPendulum-v5", *SIZES],
    "ppo_lstm.py": ["--env-id", "CartPole-v1", *SIZES],
    "ppo_multidiscrete.py": ["--env-id", "CartPole-v1", *SIZES],
}
ROWS = dict.fromkeys(QUICK, 512) | {"ppo_atari.py": 32}


def small(env: str = "Ends-v0", *flags: str, iterations: int = 3) -> list[str]:
    """Flags of a run of 4 envs x 16 steps, 4 minibatches, on a known environment."""
    sizes = ["--num-steps", "16", "--total-timesteps", str(64 * iterations)]
    return ["--env-id", f"known_envs:{env}", *SAME, *sizes, *flags]
