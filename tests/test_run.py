"""What happens when a script runs: output, checkpoint, resume, evaluation, bad input."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import known_envs
import mujoco
import numpy as np
import pytest
import torch
from harness import ROOT, SCRIPTS, Run, load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.optimizer import register_optimizer_step_pre_hook

ATARI, SEVERAL = "ppo_atari.py", "ppo_multidiscrete.py"
SIZES = "--num-envs 4 --num-steps 32 --num-minibatches 2 --update-epochs 2".split()
SMALL = "--num-envs 2 --num-steps 8 --num-minibatches 2 --update-epochs 1".split()
NO_GAMES = ["--eval-episodes", "0"]


def rows(script: str) -> int:
    """Of an iteration of a quick run."""
    return 16 if script == ATARI else 128


def quick(script: str, iterations: int, *flags: str) -> list[str]:
    """Flags of a short run in an environment that every user has."""
    game = "BreakoutNoFrameskip-v4" if script == ATARI else SCRIPTS[script].quick
    sizes = SMALL if script == ATARI else SIZES
    steps = ["--total-timesteps", str(iterations * rows(script))]
    return ["--env-id", game, *sizes, *steps, *flags]


def known(name: str, iterations: int, *flags: str) -> list[str]:
    return ["--env-id", f"known_envs:{name}-v0", *SIZES,
            "--total-timesteps", str(128 * iterations), *flags]  # fmt: skip


def start(*command) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-u", *map(str, command)], env=env, **pipes)


def folder_of(process) -> Path:
    """The run's folder, as soon as its first checkpoint is there."""
    for line in process.stdout:
        if "into runs/" in line:
            folder = Path(line.split("into ")[1].strip())
            while not (folder / "checkpoint.pt").exists():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            return folder
    raise AssertionError(process.stderr.read())


def checkpoint(folder) -> dict:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def same_weights(a, b) -> bool:
    a, b = checkpoint(a)["agent"], checkpoint(b)["agent"]
    return all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]}


def refused(ppo, flags, capsys, code=2) -> str:
    """The sentence with which a script ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        ppo.main(flags)
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert stop.value.code == code and len(errors) == 1, lines
    assert code == 1 or lines[-1] == errors[0]  # after it a bar may be drawn for the last time
    return errors[0]


def test_equal_seeds_give_equal_weights(ppo, script):
    flags = quick(script, 3, *NO_GAMES)
    a, b, c = (ppo.main([*flags, "--seed", seed])["folder"] for seed in "112")
    assert a != b and same_weights(a, b) and not same_weights(a, c)


def test_what_a_run_leaves_behind(capsys):
    scores = load("ppo.py").main(known("Ends", 3, "--eval-episodes", "2"))
    out, folder = capsys.readouterr().out, Path(scores["folder"])
    assert folder.name.startswith("known_envs-Ends-v0__ppo__1__")
    left = sorted(path.name.split(".")[0] for path in folder.iterdir())
    assert left == ["args", "checkpoint", "events"]
    settings = json.loads((folder / "args.json").read_text())
    assert settings["env_id"] == "known_envs:Ends-v0" and settings["resume"] is None
    assert "3 x 128 steps, into runs/known_envs-Ends-v0__ppo__1__" in out
    assert "python ppo.py --evaluate runs/" in out and "sampled: return" in out
    saved, logged = checkpoint(folder), scalars(folder)
    assert saved["step"] == 384 and 0 < len(saved["returns"]) <= 100
    assert [step for step, _ in logged["losses/value_loss"]] == [128, 256, 384]
    # Returns are the env's own: the sum of its rewards, first and later episodes alike.
    sums = {0: sum(np.sin(0.0 + t) for t in range(5)), 1: sum(np.sin(3.0 + t) for t in range(7))}
    returns = [value for _, value in logged["charts/episodic_return"]]
    lengths = {value for _, value in logged["charts/episodic_length"]}
    steps = [step for step, _ in logged["charts/episodic_return"]]
    assert steps == sorted(set(steps)) and 0 < steps[0] and steps[-1] <= 384
    for expected in sums.values():
        assert sum(abs(value - expected) < 1e-4 for value in returns) == 4
    assert lengths == {5, 7}


def test_kill_and_resume(ppo, script):
    """Killed at a random moment, a run goes on; no step is logged twice; two resumes are equal."""
    rng, n = random.Random(script), 1000
    for _ in range(3 if script == "ppo.py" else 1):
        process = start(ROOT / script, *quick(script, n, "--checkpoint-every", "0.01", *NO_GAMES))
        folder = folder_of(process)
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.communicate()
        step = checkpoint(folder)["step"]
        assert 0 < step < n * rows(script)
        time.sleep(1.1)  # event files are named by the second; a real restart takes longer
        twin = shutil.copytree(folder, f"{folder}-twin")
        end = step + 2 * rows(script)
        for run in (folder, twin):
            ppo.main(["--resume", str(run), "--total-timesteps", str(end), *NO_GAMES])
            assert checkpoint(run)["step"] == end
        assert same_weights(folder, twin)
        steps = [step for step, _ in scalars(folder)["losses/value_loss"]]
        assert steps == list(range(rows(script), end + 1, rows(script)))


def test_ctrl_c_says_how_to_go_on(script):
    process = start(ROOT / script, *quick(script, 10_000))
    folder = folder_of(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    name = script.removesuffix(".py")
    assert (
        err.splitlines()[-1]
        == f"error: stopped; if it was saved, go on: python {name}.py --resume {folder}"
    )


def test_resume_takes_new_settings(ppo, script, capsys):
    """They replace the run's, and are saved; a run at its end says what to give."""
    folder = ppo.main(quick(script, 2, *NO_GAMES))["folder"]
    assert "more --total-timesteps" in refused(ppo, ["--resume", folder], capsys)
    assert "--num-envs 0" in refused(ppo, ["--resume", folder, "--num-envs", "0"], capsys)
    more = ["--total-timesteps", str(3 * rows(script)), "--learning-rate", "0.5", "--no-anneal-lr"]
    ppo.main(["--resume", folder, *more])
    rates = scalars(folder)["charts/learning_rate"]
    assert rates[-1] == (3 * rows(script), 0.5) and rates[0][1] != 0.5
    settings = json.loads(Path(folder, "args.json").read_text())
    assert settings["learning_rate"] == checkpoint(folder)["args"]["learning_rate"] == 0.5


def test_a_resumed_run_goes_on(ppo, script):
    """From the weights, Adam's averages and the place in the schedule that were saved."""
    folder, seen = ppo.main(quick(script, 2, *NO_GAMES))["folder"], []
    saved = checkpoint(folder)

    def look(optimizer, *_):
        (group,) = optimizer.param_groups
        weights = [p.detach().clone() for p in group["params"]]
        seen.append((group["lr"], weights, {int(s["step"]) for s in optimizer.state.values()}))

    hook = register_optimizer_step_pre_hook(look)
    try:
        ppo.main(["--resume", folder, "--total-timesteps", str(8 * rows(script)), *NO_GAMES])
    finally:
        hook.remove()
    rate, weights, steps = seen[0]
    settings = saved["args"]
    assert rate == pytest.approx(settings["learning_rate"] * 6 / 8)
    before = [x for x in saved["agent"].values() if torch.is_tensor(x)]
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert steps == {2 * settings["update_epochs"] * settings["num_minibatches"]}


def test_stages_and_games_share_no_seed(ppo, script):
    """The check, training's envs, a resumed run's and each game of an evaluation have their own;
    both evaluations play the same games. So has torch, which evaluates the two alike."""

    def given(flags):
        known_envs.LOG.clear()
        folder = ppo.main(flags)["folder"]
        return folder, [x[2] for x in known_envs.LOG if x[0] == "reset" and x[2] is not None]

    with patch.object(torch, "manual_seed", wraps=torch.manual_seed) as seeding:
        folder, seeds = given(known("Ends", 1, "--eval-episodes", "3"))
    assert len(seeds) == 4 + 4 + 3 + 3 and len(set(seeds)) == 4 + 4 + 3
    assert len({call.args[0] for call in seeding.call_args_list} - {1}) == 2
    _, more = given(["--resume", folder, "--total-timesteps", "256", *NO_GAMES])
    assert len(more) == 4 + 4 and not set(more[4:]) & set(seeds)


def test_sampled_is_sampled_and_greedy_greedy(ppo, script):
    """A game of one step pays by the action: an agent that has not learned scores both 0 and 1."""
    scores = ppo.main(known("Probe-action", 1, "--learning-rate", "0", "--eval-episodes", "20"))
    assert set(scores["sampled"]) == {0, 1} and len(set(scores["greedy"])) == 1


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s != ATARI], indirect=True)
def test_time_limits_end_games(ppo):
    """In an evaluation; and in the log no return goes on over one."""
    scores = ppo.main(known("Limit", 1, "--eval-episodes", "2"))
    assert scores["sampled"] == scores["greedy"] == [3, 3]
    whole = [sum(np.sin(3.0 * e + t) for t in range(5 + 2 * (e % 2))) for e in range(10)]
    for _, value in Run(ppo, iterations=3).scalars["charts/episodic_return"]:
        assert np.isclose(value, whole, atol=1e-4).any()


def test_evaluation_repeats_itself(ppo, script, capsys):
    """The same games in training's end and in every --evaluate, and nothing is changed by them."""
    flags = quick(script, 2, "--eval-episodes", "1" if script == ATARI else "3")
    scores = ppo.main(flags)
    before = Path(scores["folder"], "checkpoint.pt").read_bytes()
    again = ppo.main(["--evaluate", scores["folder"]])
    assert again["sampled"] == scores["sampled"] and again["greedy"] == scores["greedy"]
    assert Path(scores["folder"], "checkpoint.pt").read_bytes() == before


def test_a_second_trainer_is_refused(capsys):
    ppo = load("ppo.py")
    folder = ppo.main(quick("ppo.py", 2, *NO_GAMES))["folder"]
    resume = ["--resume", folder, "--total-timesteps", "512", *NO_GAMES]
    with open(Path(folder, "args.json"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is being trained by another process" in refused(ppo, resume, capsys)
        ppo.main(["--evaluate", folder, "--eval-episodes", "1"])
    ppo.main(resume)
    assert checkpoint(folder)["step"] == 512


@pytest.mark.parametrize("kind", ["reward", "obs"])
def test_nan_stops_the_run(ppo, script, kind, capsys):
    """And keeps the last checkpoint, from before."""
    if script == ATARI:  # a picture holds no NaN, and a game takes 20 frames in its first steps
        flags = known("Broken-reward", 3, *NO_GAMES)
        assert "not finite in iteration 1" in refused(ppo, flags, capsys, code=1)
        return
    flags = known(f"Broken-{kind}", 3, "--num-steps", "8", "--checkpoint-every", "0", *NO_GAMES)
    error = refused(ppo, flags, capsys, code=1)
    assert "not finite in iteration 3; the last checkpoint is kept" in error
    (folder,) = Path("runs").iterdir()
    agent = checkpoint(folder)["agent"]
    assert checkpoint(folder)["step"] == 64
    assert all(torch.isfinite(x).all() for x in agent.values() if torch.is_tensor(x))


@pytest.mark.parametrize("env", ["Infos", "Bare", "Lookup", "Shapes", "Scarce"])
def test_environments_as_users_write_them(script, ppo, env):
    """Infos of changing kind, no render_mode, actions as keys of a dict, n-dimensional spaces, and
    no more copies at a time than there are envs."""
    if script == ATARI or (env == "Shapes" and SCRIPTS[script].actions == "discrete"):
        pytest.skip("not for pictures; Discrete spaces that do not count from 0 are refused")
    if env == "Lookup" and SCRIPTS[script].actions != "discrete":
        pytest.skip("its actions are Discrete")
    scores = ppo.main(known(env, 2, "--eval-episodes", "1"))
    assert len(scores["sampled"]) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_environments_may_have_processes_of_their_own(script, monkeypatch):
    """As docs/research.md says of slow ones: AsyncVectorEnv in make_envs, and a change in check."""
    source = (ROOT / script).read_text()
    assert source.count("gym.vector.SyncVectorEnv(") == 1
    assert source.count("envs.envs[0]") == (script != ATARI)
    source = source.replace("envs.envs[0]", "make_env(args)")
    Path("graded.py").write_text(source.replace("gym.vector.Sync", "gym.vector.Async"))
    monkeypatch.setenv("GRADED", "graded.py")
    scores = load(script).main(quick(script, 2, "--eval-episodes", "1"))
    assert len(scores["sampled"]) == 1


def test_an_environment_may_change_the_directory():
    scores = load("ppo.py").main(known("Moving", 2, "--eval-episodes", "1"))
    assert not Path(scores["folder"]).is_absolute() and checkpoint(scores["folder"])["step"] == 256


def test_endless_games_are_cut(capsys):
    load("ppo.py").main(known("Forever", 1, "--eval-episodes", "1"))
    assert "in 1 games, 1 cut at 27,000 steps" in capsys.readouterr().out


def test_films(ppo, script):
    flags = quick(script, 1, "--eval-episodes", "1", "--capture-video")
    if script == ATARI:
        pytest.skip("a game of Breakout takes too long")
    if SCRIPTS[script].actions == "box":
        flags[1] = "Pendulum-v1"
    folder = Path(ppo.main(flags)["folder"])
    assert len(list(folder.glob("videos/*/*.mp4"))) == 2


@pytest.mark.parametrize("script", ["ppo_continuous.py", SEVERAL])
@pytest.mark.parametrize("robot", ["HalfCheetah", "Hopper", "Ant", "Reacher"])
def test_the_camera_goes_along(script, robot, tmp_path):
    """Where a model has a camera that follows it; Reacher's stays, and the camera, too."""
    args = load(script).Args(env_id=f"{robot}-v5", capture_video=True)
    world = load(script).make_env(args, tmp_path).unwrapped
    camera = world.mujoco_renderer.camera_id
    if robot == "Reacher":
        assert camera == -1 and world.model.ncam == 0
    else:
        modes = mujoco.mjtCamLight.mjCAMLIGHT_TRACK, mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
        assert camera >= 0 and world.model.cam_mode[camera] in [int(mode) for mode in modes]


# What is typed, and what the answer says. ROWS are those of an iteration. ATALL names the script
# that fits; where none fits, it says that the environment can't be made.
BAD = {
    "--num-envs 0": "--num-envs 0 must lie between 1 and",
    "--update-epochs -1": "--update-epochs -1 must lie between 1 and",
    "--num-minibatches 3": "--num-minibatches must",
    "--num-minibatches ROWS": "--num-minibatches must",
    "--total-timesteps 15": "--total-timesteps must be at least one rollout",
    "--seed -1": "--seed -1 must lie between 0 and",
    "--learning-rate nan": "--learning-rate nan must lie between",
    "--ent-coef inf": "--ent-coef inf must lie between",
    "--gamma 1.1": "--gamma 1.1 must lie between 0 and 1",
    "--eval-episodes 1000000000000": "--eval-episodes 1000000000000 must lie between 0 and 10000",
    "--env-id Nowhere-v0": "can't be made and played (Atari: ppo_atari.py): NameNotFound",
    "--env-id no_such_module:Own-v0": "No module named 'no_such_module'",
    "--env-id MISFIT": "ATALL",
    "--env-id known_envs:Old-v0": "can't be made and played",
    "--env-id known_envs:Bare-v0 --capture-video": "unexpected keyword argument 'render_mode'",
    "--env-id known_envs:Picture-v0": "ATALL",
    "--resume nowhere": "holds no checkpoint that this file can read",
    "--evaluate=": "holds no checkpoint that this file can read",
    "--evaluate cut": "holds no checkpoint that this file can read",
    "--resume list": "holds no checkpoint that this file can read",
    "--evaluate keyless": "holds no checkpoint that this file can read",
    "--evaluate foreign": "is a run of other.py",
}


@pytest.fixture(scope="module")
def bad_runs(tmp_path_factory):
    """Folders with checkpoints that no script can use."""
    home = tmp_path_factory.mktemp("runs")
    contents = {"list": [1, 2], "foreign": {"script": "other"}, "keyless": {"script": "ppo"}}
    for name, content in contents.items():
        (home / name).mkdir()
        torch.save(content, home / name / "checkpoint.pt")
    (home / "cut").mkdir()
    (home / "cut/checkpoint.pt").write_bytes((home / "list/checkpoint.pt").read_bytes()[:-99])
    return home


@pytest.mark.parametrize("flags", BAD)
def test_bad_input(ppo, script, bad_runs, tmp_path, monkeypatch, capsys, flags):
    """Exit code 2, one sentence on the last line of stderr, and nothing written."""
    monkeypatch.chdir(shutil.copytree(bad_runs, tmp_path / "home"))
    before = sorted(Path().rglob("*"))
    said = BAD[flags].replace("ATALL", "can't be made" if script == SEVERAL else "use")
    if "Picture" in flags and script in (ATARI, SEVERAL):
        said = "get_action_meanings" if script == ATARI else "use"
    if "Bare" in flags and script == ATARI:
        said = "no Atari game"
    misfit = "CartPole-v1" if script == ATARI else SCRIPTS[script].misfit
    given = flags.replace("MISFIT", misfit).replace("ROWS", str(rows(script))).split()
    if "foreign" in flags or "keyless" in flags:
        torch.save({"script": "other" if "foreign" in flags else ppo.SCRIPT},
                   Path(given[1], "checkpoint.pt"))  # fmt: skip
    new_run = not flags.startswith(("--resume", "--evaluate"))
    error = refused(ppo, [*quick(script, 1), *given] if new_run else given, capsys)
    written = [path for path in Path().rglob("*") if path.name != "MUJOCO_LOG.TXT"]  # MuJoCo's
    assert said in error and sorted(written) == before


def test_a_run_of_another_network(ppo, script, capsys):
    """Where the weights don't fit the environment, nothing is written."""
    folder = Path(ppo.main(quick(script, 2, *NO_GAMES))["folder"])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = {ATARI: "PongNoFrameskip-v4", "ppo_continuous.py": "Hopper-v5"}
    for flag in ("--resume", "--evaluate"):
        flags = [flag, str(folder), "--env-id", other.get(script, "Acrobot-v1")]
        assert "size mismatch" in refused(ppo, flags, capsys)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_bad_input_in_a_process(script):
    process = start(ROOT / script, "--env-id", "Nowhere-v0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: --env-id Nowhere-v0")
    assert not list(Path().iterdir())


def test_alone_in_an_empty_folder(script):
    """One file is enough: no module of ours is imported."""
    shutil.copy(ROOT / script, script)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    flags = quick(script, 2, "--eval-episodes", "1")
    done = subprocess.run([sys.executable, script, *flags], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "greedy: return" in done.stdout


class TestCopiers:
    """What people do to a copy does what torch's users expect."""

    @pytest.fixture
    def agent(self):
        self.ppo = load("ppo.py")
        box = self.ppo.gym.spaces.Box(-1, 1, (4,))
        return self.ppo.Agent(box, self.ppo.gym.spaces.Discrete(2))

    def test_a_layer_is_replaced(self, agent):
        agent.actor[4] = torch.nn.Linear(64, 7)
        assert agent.policy(torch.ones(3, 4)).logp.shape == (3, 7)
        agent.actor.append(torch.nn.Tanh())
        assert agent.actor(100 * torch.ones(3, 4)).abs().max() <= 1

    def test_a_step_by_hand(self, agent):
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.1)
        before = [p.clone() for p in agent.parameters()]
        for _ in range(2):
            agent.zero_grad()
            agent.value(torch.ones(3, 4)).sum().backward()
            optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, agent.parameters())]
        assert moved == ["critic" in name for name, _ in agent.named_parameters()]

    def test_moved_and_copied(self, agent):
        twin = self.ppo.Agent(*(self.ppo.gym.spaces.Box(-1, 1, (4,)),
                                self.ppo.gym.spaces.Discrete(2)))  # fmt: skip
        twin.load_state_dict(agent.state_dict())
        obs = torch.ones(3, 4)
        assert torch.equal(twin.to("cpu").policy(obs).logp, agent.policy(obs).logp)
        assert twin.double().policy(obs.double()).logp.dtype == torch.float64

    def test_statistics_go_with_the_state_dict(self):
        ppo = load("ppo_continuous.py")
        spaces = ppo.gym.spaces.Box(-1, 1, (3,)), ppo.gym.spaces.Box(-1, 1, (2,))
        agent, twin = ppo.Agent(*spaces), ppo.Agent(*spaces)
        rng = np.random.default_rng(0)
        for _ in range(5):
            agent.obs_stats.update(rng.normal(3, 2, (4, 3)))
        raw = rng.normal(3, 2, (6, 3))
        expected = agent.normalize(raw)
        twin.load_state_dict(agent.half().float().state_dict())
        np.testing.assert_array_equal(twin.normalize(raw), expected)
        twin.obs_stats.update(raw)
        np.testing.assert_array_equal(agent.normalize(raw), expected)
