"""The details of ppo_atari.py, a test each, and real games beside the wrappers of libraries."""

import os
import signal
import subprocess
import sys
from functools import cache
from math import ceil
from pathlib import Path

import cv2
import gymnasium as gym
import known_envs
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from harness import ROOT, Run, load
from reference import adam
from stable_baselines3.common.atari_wrappers import AtariWrapper
from test_run import checkpoint, folder_of, scalars, start
from torch.nn.functional import conv2d
from torch.nn.modules.module import register_module_forward_hook

RAW = {"frameskip": 1, "repeat_action_probability": 0.0}
TINY = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "update_epochs": 1}


def console(ppo, name: str, noops: bool = False) -> gym.Env:
    """A scripted game as the agent sees it; without no-ops, so that frames can be counted."""
    if not noops:
        ppo.NoopReset = lambda env: env
    known_envs.LOG.clear()
    return ppo.make_env(ppo.Args(env_id=f"known_envs:{name}"))


def pressed() -> list[int]:
    """The actions of all raw frames since they were last asked for."""
    actions = [entry[4] for entry in known_envs.LOG if entry[0] == "step"]
    known_envs.LOG.clear()
    return actions


@cache
def seen_as(*times: int) -> np.ndarray:
    """What is seen of the maximum of these frames of a scripted game."""
    frame = np.zeros(210 * 160, np.uint8)
    frame[list(times)] = 255  # white stays white in grey
    return cv2.resize(frame.reshape(210, 160), (84, 84), interpolation=cv2.INTER_AREA)


def showing(picture: np.ndarray) -> str:
    """Which frames of a scripted game a picture shows, for messages."""
    for late in range(200):
        for early in (late, late - 1, late - 2, late - 3):
            if early >= 0 and np.array_equal(picture, seen_as(early, late)):
                return f"frames {early} and {late}" if early < late else f"frame {late}"
    return "the maximum of nothing" if not picture.any() else "something else"


def test_atari_01_no_op_reset(ppo):
    """A game begins with 1 to 30 raw frames of action 0, each number as likely."""
    env, counts = console(ppo, "Quiet-v0", noops=True), []
    for seed in range(400):
        obs, _ = env.reset(seed=seed)
        actions = pressed()
        assert set(actions) <= {0}, "something else than action 0 is pressed before the game"
        counts.append(len(actions))
        shown = showing(obs[3])
        assert shown == f"frame {len(actions)}", f"{shown} is shown after {len(actions)} no-ops"
    assert len(set(counts)) > 1, f"every game begins with {counts[0]} no-ops"
    assert min(counts) == 1 and max(counts) == 30, (
        f"{min(counts)} to {max(counts)} raw frames, not 1 to 30: no-ops come before frame skipping"
    )
    assert len(set(counts)) == 30 and np.bincount(counts).max() < 40
    env.reset(seed=7)
    assert pressed() == [0] * counts[7], "the number of no-ops does not depend on the game's seed"
    # A game of ten frames is begun anew in the middle of them, and the count goes on.
    env = console(ppo, "Short-v0", noops=True)
    for seed in range(50):
        env.reset(seed=seed)
        resets = sum(entry[0] == "reset" for entry in known_envs.LOG)
        assert pressed() == [0] * counts[seed]
        assert resets == 1 + counts[seed] // 10, "a game that ended in its no-ops is not reset"


def test_atari_02_frame_skip_with_a_maximum_over_two_frames(ppo):
    """A step is four raw frames of one action; the picture is the maximum of the last two."""
    env = console(ppo, "Quiet-v0")
    env.reset(seed=1)
    pressed()
    for step in range(5):
        obs, *_ = env.step(2)
        actions, shown = pressed(), showing(obs[3])
        assert actions == [2] * 4, f"a step is {len(actions)} raw frames, not 4 of its action"
        right = f"frames {4 * step + 3} and {4 * step + 4}"
        assert shown == right, f"a step shows {shown}, not the maximum of {right}"
    assert env.get_wrapper_attr("episode_returns") == 60, "rewards are not the sum of all 4 frames"
    # A game that ends within a step, and the next: no frame of one game shows in another.
    skip = ppo.MaxAndSkip(gym.make("known_envs:Short-v0"))
    for _ in range(2):
        skip.reset(seed=1)
        rows = [skip.step(1) for _ in range(3)]
        assert [row[1] for row in rows] == [12, 12, 6], "frames are played after a game's end"
        assert [row[2] for row in rows] == [False, False, True]
    skip.reset()
    skip.unwrapped.lives = [0]
    assert not skip.step(1)[0].any(), "a frame of the game before is in the maximum"
    # ALE's own skipping and sticky actions are off, whatever the id.
    for name in ("ALE/Pong-v5", "Pong-v0", "PongNoFrameskip-v4"):
        env = ppo.make_env(ppo.Args(env_id=name))
        env.reset(seed=1)
        ale = env.unwrapped.ale
        before = ale.getFrameNumber()
        env.step(2)
        assert ale.getFrameNumber() - before == 4, f"a step of {name} isn't 4 frames: who skips?"
        assert ale.getFloat("repeat_action_probability") == 0, f"{name} has sticky actions"


def ends(lives: list[int]) -> list[bool]:
    """Whether each step of 4 frames terminates, in a game played to its end; lives by frame."""
    found, t, before = [], 0, lives[0]
    while t < len(lives):
        t += 4
        now = lives[t] if t < len(lives) else 0
        found.append(t >= len(lives) or 0 < now < before)
        before = now
        if found[-1] and t < len(lives):  # the no-op of the reset
            t += 4
            before = lives[t]
    return found


def test_atari_03_a_lost_life_ends_the_episode(ppo):
    """A lost life terminates, the last one with the game; only a game that is over is reset."""
    env, right = console(ppo, "Lives-v0"), ends(known_envs.LIVES)
    assert sum(right) == 4 and right[-1]  # three lives lost while there were more, and the end
    for seed in (1, None):
        env.reset(seed=seed)
        known_envs.LOG.clear()
        for number, end in enumerate(right):
            _, _, terminated, truncated, info = env.step(1)
            frame, last = known_envs.LOG[-1][3] + 1, number == len(right) - 1
            left = info["lives"]
            wrong = {
                (True, False): "a lost life doesn't end the episode",
                (False, True): "an episode ends where no life was lost, or with none left",
            }.get((end, terminated))
            assert not wrong, f"{wrong}: frame {frame}, {left} lives left"
            assert not truncated
            if terminated and not last:
                env.reset()
                kinds = [entry[0] for entry in known_envs.LOG]
                assert "reset" not in kinds, "the game is reset when a life is lost"
                assert pressed()[-4:] == [0] * 4, "the game goes on without a no-op of 4 frames"
                known_envs.LOG.append(("step", 0, 0, frame + 3, 0))
        assert info["episode"]["r"] == 3 * len(known_envs.LIVES), "the score isn't the whole game's"
    assert env.reset() and known_envs.LOG[-1][0] == "reset", "a game that is over is not reset"
    # A time limit truncates; where a game ends in the no-op of the reset, a new one is there.
    env = console(ppo, "Limited-v0")
    env.reset(seed=1)
    assert [env.step(1)[2:4] for _ in range(8)] == [(False, False)] * 7 + [(False, True)]
    known_envs.LOG.clear()
    env.reset()
    assert [entry[0] for entry in known_envs.LOG] == ["reset"], "a game cut off is played on"
    env = console(ppo, "Lives-v0")
    env.unwrapped.lives = [3, 3, 3, 3, 2, 2]
    env.reset(seed=1)
    assert env.step(1)[2]
    obs, _ = env.reset()
    assert showing(obs[3]) == "frame 0", "a game that ends in the no-op is played on"
    # The log and the evaluation have whole games, in the game's own points.
    sizes = {"num_envs": 2, "num_steps": 64, "num_minibatches": 4, "update_epochs": 1}
    run = Run(ppo, "Lives-v0", plain=False, **sizes)
    returns = {value for _, value in run.scalars["charts/episodic_return"]}
    lengths = {value for _, value in run.scalars["charts/episodic_length"]}
    assert returns == {3 * len(known_envs.LIVES)}, "logged are returns of lives, not of games"
    assert lengths == {ceil(len(known_envs.LIVES) / 4)}, "logged are lengths of lives, not of games"
    lost = run.gae[0][0]["dones"].sum()
    assert lost > 3 * len(run.scalars["charts/episodic_return"]), "GAE goes on over a lost life"
    scores = ppo.main(["--evaluate", str(run.folder), "--eval-episodes", "2"])
    assert scores["sampled"] == scores["greedy"] == [3 * len(known_envs.LIVES)] * 2
    calls, forward = [], ppo.Agent.forward
    ppo.Agent.forward = lambda agent, obs: calls.append(0) or forward(agent, obs)
    ppo.main(["--evaluate", str(run.folder), "--eval-episodes", "1"])
    assert len(calls) == 2 * len(right), "the evaluation plays on without the reset after a life"


def test_atari_04_fire_after_a_reset(ppo):
    """After every reset, of a game or after a lost life, FIRE and the next action come first."""
    env = console(ppo, "Fire-v0")
    env.reset(seed=1)
    actions = pressed()
    assert actions == [1] * 4 + [2] * 4, f"a game begins with {actions}, not with FIRE and 2"
    while not env.step(0)[2]:
        pass
    pressed()
    env.reset()
    actions = pressed()
    assert actions[:4] == [0] * 4  # the no-op that goes on with the game
    assert actions[4:] == [1] * 4 + [2] * 4, "FIRE is not pressed after a lost life"
    console(ppo, "Lives-v0").reset(seed=1)
    assert pressed() == [], "something is pressed in a game whose action 1 is not FIRE"
    # Where FIRE itself costs a life, the life after it is begun as any other.
    fatal = console(ppo, "Fatal-v0")
    obs, _ = fatal.reset(seed=1)
    assert pressed() == [1] * 4 + [0] * 4 + [2] * 4
    assert not fatal.step(0)[2], "the life that FIRE lost ends the episode after it"
    assert showing(obs[3]) == "frames 11 and 12"


def area(length: int, parts: int = 84) -> np.ndarray:
    """Weights (parts, length): each part's mean over the stretch that it covers."""
    edges = np.arange(length + 1) * parts / length
    k = np.arange(parts)[:, None]
    return np.clip(np.minimum(edges[1:], k + 1) - np.maximum(edges[:-1], k), 0, None)


def test_atari_05_grey_frames_of_84_x_84(ppo):
    """Grey by the luminance weights, shrunk by averaging what falls into each pixel."""
    warp = ppo.WarpFrame(gym.make("known_envs:Quiet-v0"))
    for colour, grey in (((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)):
        frame = np.broadcast_to(np.array(colour, np.uint8), (210, 160, 3)).copy()
        got = set(warp.observation(frame).ravel().tolist())
        wrong = f"RGB {colour} is seen as {got}: is it BGR to you, or are the weights others?"
        assert got == {grey}, wrong
    rng = np.random.default_rng(0)
    for _ in range(5):
        frame = rng.integers(0, 256, (210, 160, 3), dtype=np.uint8)
        by_hand = area(210) @ np.rint(frame @ [0.299, 0.587, 0.114]) @ area(160).T
        got = warp.observation(frame)
        assert got.shape == (84, 84) and got.dtype == np.uint8
        far = np.abs(got - by_hand).max()
        assert far < 1.1, f"{far:.0f} levels from the mean of what a pixel covers: INTER_AREA"
    assert warp.observation_space.contains(got)


def test_atari_06_reward_clipping_to_the_sign(ppo):
    """Of four frames of 3 points each the agent gets 1, the log 12; of -0.1 it gets -1."""
    for name, sign, points in (("Quiet-v0", 1, 36), ("Loss-v0", -1, -1.2)):
        env = console(ppo, name)
        env.reset(seed=1)
        got = [env.step(1)[1] for _ in range(3)]
        frames = {12: "not clipped", 3: "not clipped", 4: "clipped a frame and then summed"}
        hint = frames.get(got[0], "clamped, not the sign" if abs(got[0]) < 1 else "not the sign")
        assert got == [sign] * 3, f"the rewards {got} are {hint}"
        score = env.get_wrapper_attr("episode_returns")
        assert score == pytest.approx(points), f"the score is {score}: that of clipped rewards?"
    env.unwrapped.pay = 0.0
    assert env.step(1)[1] == 0


def test_atari_07_frame_stack(ppo):
    """Four frames, oldest first; black before the reset and before a lost life."""
    env = console(ppo, "Lives-v0")
    first, _ = env.reset(seed=1)
    assert first.shape == (4, 84, 84) and first.dtype == np.uint8
    assert env.observation_space.contains(first)
    stacks = [first, env.step(1)[0]]
    obs, _, terminated, *_ = env.step(1)
    stacks += [obs, env.reset()[0]]
    assert terminated
    black = "the maximum of nothing"
    later = ["frame 0", "frames 3 and 4", "frames 7 and 8"]
    for stack, right in zip(
        stacks,
        [
            [black] * 3 + later[:1],
            [black] * 2 + later[:2],
            [black] + later,
            [black] * 3 + ["frames 11 and 12"],  # after the no-op that follows a lost life
        ],
        strict=True,
    ):
        shown = [showing(picture) for picture in stack]
        hints = {
            shown[::-1] == right: "the newest frame is first, not last",
            len(set(shown)) == 1: "one frame four times, where black belongs",
            stack is stacks[-1]: "frames of the lost life are still there",
        }
        hint = hints.get(True, "what was given out before must not change")
        assert shown == right, f"{shown} where {right} belong: {hint}"


def by_hand(agent, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and values of pictures by the published network, in float64."""
    parameters = {name: p.detach().double() for name, p in agent.named_parameters()}

    def layer(*shape):
        found = [name for name, p in parameters.items() if p.shape == shape]
        assert len(found) == 1, f"{len(found)} weights of shape {shape}, not one for both heads"
        return parameters[found[0]], parameters[found[0].replace("weight", "bias")]

    x = obs.double() / 255
    for shape, stride in (((32, 4, 8, 8), 4), ((64, 32, 4, 4), 2), ((64, 64, 3, 3), 1)):
        x = conv2d(x, *layer(*shape), stride).relu()
    weight, bias = layer(512, 64 * 7 * 7)
    x = (x.flatten(1) @ weight.T + bias).relu()
    (actor, bias), (critic, offset) = layer(4, 512), layer(1, 512)
    return (x @ actor.T + bias).log_softmax(-1), (x @ critic.T + offset)[:, 0]


def any_agent(ppo):
    """An agent with 4 actions and weights that all count, and a few pictures for it."""
    agent = ppo.Agent(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(4))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return agent, torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)


def log_probs(dist, n: int) -> torch.Tensor:
    """Of each of 4 actions, (n, 4)."""
    return torch.stack([dist.log_prob(torch.full((n,), a)) for a in range(4)], 1)


def test_atari_08_shared_nature_cnn(ppo):
    """The published sizes, one trunk for both heads, and values that came with the actions."""
    agent, obs = any_agent(ppo)
    count = sum(p.numel() for p in agent.parameters())
    assert count == 1_686_693, f"{count} parameters, not 1,686,693: is there a trunk for each head?"
    logp, values = by_hand(agent, obs)
    dist, value = agent(obs)
    assert value.shape == (5,), "values (M, 1) would broadcast to (M, M) in the loss"
    wrong = "not the published network: kernels, strides, ReLUs, or one too many"
    np.testing.assert_allclose(log_probs(dist, 5).detach(), logp, atol=1e-4, err_msg=wrong)
    np.testing.assert_allclose(value.detach(), values, atol=1e-3, err_msg=wrong)
    for name, loss in (("value", value.sum()), ("policy", log_probs(dist, 5)[:, 0].sum())):
        agent.zero_grad()
        loss.backward(retain_graph=True)
        seeing = [p for p in agent.parameters() if p.ndim == 4]
        assert all(p.grad is not None and p.grad.any() for p in seeing), (
            f"the {name} does not teach the convolutions anything"
        )
    run = Run(ppo, iterations=2, update_epochs=1)
    reads, T = len(run.acted), run.args.num_steps
    assert reads == 2 * (T + 1), (
        f"the network read {reads} times in two rollouts of {T}: values come with the actions, and "
        "once more for what nobody acted on"
    )
    gae, inside = run.gae[1][0], ~run.gae[1][0]["dones"][:-1]
    wrong = "inside an episode, the value of a row's next state is that of the next row"
    after, values = gae["next_values"][:-1], gae["values"][1:]
    np.testing.assert_array_equal(after[inside], values[inside], err_msg=wrong)


def test_atari_09_scaling_of_images(ppo):
    """Rollouts hold bytes; what enters the first convolution is a 255th of them."""
    kept, entered, forward = [], [], ppo.Agent.forward

    def spy(agent, obs):
        kept.append(obs.clone())
        return forward(agent, obs)

    def hook(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 4:
            entered.append(inputs[0].float().clone())

    ppo.Agent.forward, watch = spy, register_module_forward_hook(hook)
    try:
        flags = [word for k, v in TINY.items() for word in (f"--{k.replace('_', '-')}", str(v))]
        steps = ["--total-timesteps", "16", "--eval-episodes", "0"]
        ppo.main(["--env-id", "PongNoFrameskip-v4", *flags, *steps])
    finally:
        watch.remove()
    assert len(kept) == len(entered) == 8 + 1 + 2  # acting, the last values, learning
    for x, y in zip(kept, entered, strict=True):
        assert x.dtype == torch.uint8, f"rows are kept as {x.dtype}, not as bytes"
        assert x.max() > 200 and y.max() <= 1, f"pixels up to {y.max():.0f} enter the network"
        wrong = "divided twice?" if y.max() < 0.01 else "a pixel is not a 255th of its byte"
        np.testing.assert_allclose(y.numpy(), x.numpy() / 255, atol=1e-6, err_msg=wrong)


def torchrun(*command) -> list[str]:
    """What starts two processes, without a fixed port."""
    rest = ["--standalone", "--nproc-per-node", "2", *map(str, command)]
    return ["-m", "torch.distributed.run", *rest]


# What each of two processes does: trains on rewards of its own, and writes down each gradient step.
TWO = """
import os

import known_envs
import numpy as np
import torch
from harness import Run, load
from reference import norm

rank, ppo = int(os.environ["RANK"]), load("ppo_atari.py")
step = known_envs.Ends.step


def paid(env, action):
    obs, reward, *rest = step(env, action)
    return obs, reward - rank, *rest


known_envs.Ends.step = paid
sizes = {"num_envs": 2, "num_minibatches": 2, "update_epochs": 4, "learning_rate": 1e-4}
run = Run(ppo, iterations=4, max_grad_norm=LIMIT, target_kl=TARGET, **sizes)
few = [name for name, weights in run.weights.items() if weights.size < 10_000]
flat = lambda x: np.concatenate([x[name].ravel() for name in few])
seen = []
for i, rollout in enumerate(run.rollouts):
    for row, s in zip(run.minibatches(i), rollout.steps, strict=True):
        ratio = row["ratio"]
        seen.append({"iteration": i, "lr": s.lr, "kl": (ratio - 1 - np.log(ratio)).mean(),
                     "weights": flat(s.weights), "grads": flat(s.grads), "norm": norm(s.grads),
                     "own": flat(row["grads"])})
seeds = [entry[2] for entry in run.log if entry[0] == "reset" and entry[2] is not None]
logged = [step for step, _ in run.scalars["losses/value_loss"]]
torch.save({"steps": seen, "end": flat(run.weights), "names": few, "seeds": seeds,
            "logged": logged}, f"seen/{rank}.pt")
"""
LIMIT, TARGET = 5.0, 7e-5


def test_aux_02_parallel_gradient_update(ppo):
    """Each gradient step of two processes is by the mean of what each computes from its rows."""
    Path("seen").mkdir()
    Path("graded.py").write_text(ppo.source)
    Path("two.py").write_text(TWO.replace("LIMIT", str(LIMIT)).replace("TARGET", str(TARGET)))
    env = os.environ | {
        "PYTHONPATH": str(ROOT / "tests"),
        "GRADED": str(Path("graded.py").resolve()),
    }
    command = [sys.executable, *torchrun("two.py")]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as late:
        hint = "one waits for the other: each must average as often, and stop after the same epoch"
        raise AssertionError(hint) from late
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (torch.load(f"seen/{rank}.pt", weights_only=False) for rank in (0, 1))
    assert len({*a["seeds"], *b["seeds"]}) == 4, "two processes play the same games"
    assert len(a["steps"]) == len(b["steps"])
    clipped = []
    for number, (x, y) in enumerate(zip(a["steps"], b["steps"], strict=True), 1):
        where = f"at gradient step {number}"
        assert (x["weights"] == y["weights"]).all(), (
            "the processes don't begin with the same weights: rank 0 sends its own"
            if number == 1
            else f"the processes have different weights {where}"
        )
        assert (x["grads"] == y["grads"]).all(), f"gradients are not averaged {where}"
        mean = (x["own"] + y["own"]) / 2
        scale = (x["grads"] @ mean) / (mean @ mean)
        # One number explains all: 1, or what clips the mean to the limit.
        error = np.abs(x["grads"] - scale * mean).max() / np.abs(x["grads"]).max()
        assert error < 1e-2, f"not the mean of both, or clipped before it was taken, {where}"
        assert scale < 1.01, f"{scale:.2g} times the mean of both {where}: a sum is not a mean"
        clipped.append(scale < 0.99)
        if clipped[-1]:
            assert x["norm"] == pytest.approx(LIMIT, rel=1e-3), f"clipped before the mean {where}"
        assert x["norm"] < LIMIT * 1.001
    assert 0 < sum(clipped) < len(clipped)
    # The weights at the end are those of one Adam, by the mean gradients.
    steps = a["steps"]
    moved = adam([x["grads"] for x in steps], [x["lr"] for x in steps], 1e-5)
    right = steps[0]["weights"] + moved
    np.testing.assert_allclose(a["end"], right, atol=2e-6, err_msg="not what one Adam step gives")
    assert (a["end"] == b["end"]).all(), "the processes end with different weights"
    # Epochs stop by the mean KL of both.
    torn = 0
    for i in range(2):
        kls = [[s["kl"] for s in rank["steps"] if s["iteration"] == i][1::2] for rank in (a, b)]
        for epoch, pair in enumerate(zip(*kls, strict=True), 1):
            over, last = np.mean(pair) > TARGET, epoch == len(kls[0])
            wrong = f"KLs {pair} after epoch {epoch} of iteration {i + 1}, target {TARGET}"
            assert over == last or (epoch == 4 and not over), f"{wrong}: not stopped by their mean"
            torn += (pair[0] > TARGET) != (pair[1] > TARGET)
    assert torn > 0  # in at least one, each alone would have decided otherwise
    # One writes, in steps of both.
    folder, *others = Path("runs").iterdir()
    assert not others, "each process writes a run of its own: rank 0 alone should"
    left = sorted(path.name.split(".")[0] for path in folder.iterdir())
    assert left == ["args", "checkpoint", "events"], f"rank 1 writes into the run: {left}"
    assert done.stdout.count("2 x 64 steps") == 1, "rank 1 prints, too"
    assert a["logged"] == [64, 128], "steps are those of both processes together"
    saved = checkpoint(folder)
    assert saved["step"] == 128
    end = np.concatenate([saved["agent"][name].numpy().ravel() for name in a["names"]])
    assert (end == a["end"]).all()


def test_extra_07_the_network_in_bfloat16(ppo):
    """With --bf16 the trunk computes in bfloat16 while it trains; evaluation, heads, weights and
    what is learned stay in float32; and the check of the first ratio allows for it."""
    ppo.adapter.plain(ppo)
    outputs = {"conv": set(), "head": set()}

    def hook(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            outputs["conv"].add(output.dtype)
        elif isinstance(module, torch.nn.Linear) and module.out_features < 10:
            outputs["head"].add(output.dtype)

    flags = [word for k, v in TINY.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    flags += ["--env-id", "known_envs:Ends-v0", "--total-timesteps", "16", "--eval-episodes"]
    for flag, dtype in (("--bf16", torch.bfloat16), ("--no-bf16", torch.float32)):
        for episodes, expected in (("0", {dtype}), ("1", {dtype, torch.float32})):
            outputs["conv"], outputs["head"] = set(), set()
            watch = register_module_forward_hook(hook)
            try:
                folder = ppo.main([*flags, episodes, flag])["folder"]
            finally:
                watch.remove()
            computed = f"with {flag} convolutions compute in {outputs['conv']}"
            assert outputs["conv"] == expected, f"{computed}; {episodes} episodes of evaluation"
        assert outputs["head"] == {torch.float32}, "the heads compute in bfloat16, too"
        saved = checkpoint(folder)["agent"].values()
        assert {x.dtype for x in saved} == {torch.float32}, "weights are kept in bfloat16"
        agent, obs = any_agent(ppo)
        agent.bf16 = flag == "--bf16"
        dist, value = agent(obs)
        _, values = by_hand(agent, obs)
        assert dist.log_prob(torch.zeros(5, dtype=int)).dtype == value.dtype == torch.float32
        far = (value - values).abs().max() / values.abs().max()
        assert (1e-4 < far < 0.05) if flag == "--bf16" else far < 1e-4
    forward = ppo.Agent.forward

    def biased(agent, obs):  # all ratios are off by 0.05 at first
        dist, value = forward(agent, obs)
        log_prob = dist.log_prob
        dist.log_prob = lambda actions: log_prob(actions) + 0.05 * torch.is_grad_enabled()
        return dist, value

    ppo.Agent.forward = biased
    try:
        ppo.main([*flags, "0", "--bf16"])
    except SystemExit as stop:
        raise AssertionError("the self-check is too strict for bfloat16") from stop
    with pytest.raises(SystemExit):
        ppo.main([*flags, "0", "--no-bf16"])


@pytest.mark.parametrize(
    ("env_id", "same"),
    [
        ("BreakoutNoFrameskip-v4", "BreakoutNoFrameskip-v4"),
        ("ALE/Breakout-v5", "BreakoutNoFrameskip-v4"),
        ("PongNoFrameskip-v4", "PongNoFrameskip-v4"),
        ("BeamRiderNoFrameskip-v4", "BeamRiderNoFrameskip-v4"),
    ],
)
def test_real_games_beside_stable_baselines3(env_id, same):
    """Whole games of random actions, number by number; its frames are stacked by Gymnasium."""
    ppo = load("ppo_atari.py")
    env = ppo.make_env(ppo.Args(env_id=env_id))
    other = AtariWrapper(gym.make(same, **RAW))
    other = gym.wrappers.FrameStackObservation(other, 4, padding_type="zero")
    rng, earned, lives, games = np.random.default_rng(0), 0.0, 0, 0
    np.testing.assert_array_equal(env.reset(seed=5)[0], other.reset(seed=5)[0][..., 0])
    while games < 1 or earned == 0:
        action = int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, info = env.step(action)
        theirs, *rest, _ = other.step(action)
        np.testing.assert_array_equal(obs, theirs[..., 0])
        assert [reward, terminated, truncated] == rest
        earned += abs(reward)
        if terminated or truncated:
            lives, games = lives + 1, games + ("episode" in info)
            np.testing.assert_array_equal(env.reset()[0], other.reset()[0][..., 0])
    assert (lives > games) == ("Pong" not in env_id)  # which has no lives


def test_what_libraries_do_today():
    """The differences that docs/ppo_atari.md tells of, in the installed versions."""
    blue = np.zeros((210, 160, 3), np.uint8)
    blue[..., 2] = 255

    class Still(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)
        action_space = gym.spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            return blue, {}

    assert gym.wrappers.GrayscaleObservation(Still()).reset()[0].max() == 18  # OpenCV: 29
    stack = gym.wrappers.FrameStackObservation(Still(), 4).reset()[0]
    assert (stack == blue).all()  # the first frame four times, not zeros

    env = gym.make("BreakoutNoFrameskip-v4")
    env = gym.wrappers.AtariPreprocessing(env, terminal_on_life_loss=True)
    env.reset(seed=1)
    for step in range(1000):
        _, _, terminated, _, info = env.step(step % 20 == 0)
        if terminated:
            break
    assert terminated and info["lives"] == 4
    assert env.reset()[1]["lives"] == 5  # a new game, where the official code plays on

    envs = AtariVectorEnv("breakout", num_envs=1, episodic_life=True)
    envs.reset(seed=1)
    for step in range(1000):
        _, _, terminated, _, info = envs.step(np.array([int(step % 20 == 0)]))
        if terminated[0]:
            break
    assert info["lives"][0] == 4
    assert envs.step(np.array([0]))[-1]["lives"][0] == 5

    pong, differ = gym.make("PongNoFrameskip-v4"), 0
    pong.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(120):
        action = int(rng.integers(6))
        last = [pong.step(action)[0] for _ in range(4)][2:]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in last]
        differ += (cv2.cvtColor(np.maximum(*last), cv2.COLOR_RGB2GRAY) != np.maximum(*grey)).any()
    assert differ > 60  # the maximum of greys is not the grey of the maximum

    assert gym.spec("ALE/Pong-v5").kwargs["frameskip"] == 4
    assert gym.spec("ALE/Pong-v5").kwargs["repeat_action_probability"] == 0.25


def ranks_of(process) -> dict[int, int]:
    """Process ids of the ranks that a torchrun has started."""
    found = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = dict(
            entry.partition("=")[::2]
            for entry in Path(f"/proc/{pid}/environ").read_text().split("\0")
        )
        if "RANK" in variables:
            found[int(variables["RANK"])] = int(pid)
    return found


def test_a_dead_rank_ends_the_job_and_two_more_go_on():
    flags = [word for k, v in TINY.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    flags += ["--env-id", "BreakoutNoFrameskip-v4", "--checkpoint-every", "0"]
    flags += ["--eval-episodes", "0"]
    process = start(*torchrun(ROOT / "ppo_atari.py", *flags))
    folder = folder_of(process)
    ranks = ranks_of(process)
    assert set(ranks) == {0, 1}
    os.kill(ranks[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not Path(f"/proc/{ranks[0]}").exists()
    step = checkpoint(folder)["step"]
    assert step > 0 and step % 32 == 0
    more = ["--resume", folder, "--total-timesteps", step + 64]
    process = start(*torchrun(ROOT / "ppo_atari.py", *more))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    assert checkpoint(folder)["step"] == step + 64
    assert [s for s, _ in scalars(folder)["losses/value_loss"]] == list(range(32, step + 65, 32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_computes_what_the_cpu_does():
    agent, obs = any_agent(load("ppo_atari.py"))
    logp, values = by_hand(agent, obs)
    dist, value = agent.cuda()(obs.cuda())
    actions = [torch.full((5,), a, device="cuda") for a in range(4)]
    there = torch.stack([dist.log_prob(action) for action in actions], 1)
    np.testing.assert_allclose(there.detach().cpu(), logp, atol=1e-4)
    np.testing.assert_allclose(value.detach().cpu(), values, atol=1e-3)


def test_minibatches_are_cut_from_the_rows_of_one_process(monkeypatch, capsys):
    """Two processes of 4 rows have 8 together, but parts of one row each."""
    ppo = load("ppo_atari.py")
    monkeypatch.setattr(ppo, "PROCESSES", 2)
    flags = "--num-envs 1 --num-steps 4 --num-minibatches 4 --total-timesteps 8 --no-cuda"
    with pytest.raises(SystemExit):
        ppo.main(flags.split())
    assert "the 4 rows of each process" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_fire_only_where_it_is_action_1():
    """Backgammon has it first, and no no-op: action 1 would be another one there."""
    ppo = load("ppo_atari.py")
    for game, presses in (("Breakout", True), ("Backgammon", False)):
        env, found = ppo.make_env(ppo.Args(env_id=f"ALE/{game}-v5")), False
        while env is not env.unwrapped:
            found |= isinstance(env, ppo.FireReset)
            env = env.env
        assert found == presses
