"""What happens when a script runs: output, checkpoint, resume, evaluation, bad input."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import QUICK, ROOT, ROWS, build, load, small, unscaled
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NO_GAMES = ["--eval-episodes", "0"]


def start(*command) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-u", *command], env=env, **pipes)


def wait_for_plan(process) -> Path:
    """The run's folder, as soon as the plan has been printed."""
    for line in process.stdout:
        if "into runs/" in line:
            return Path(line.split("into ")[1].strip())
    raise AssertionError(process.stderr.read())


def checkpoint(folder) -> dict:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def same_weights(a, b) -> bool:
    a, b = checkpoint(a)["agent"], checkpoint(b)["agent"]
    return all(torch.equal(a[key], b[key]) for key in a)


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]}


def test_equal_seeds_give_equal_weights(ppo, script):
    flags = [*QUICK[script], "--total-timesteps", str(4 * ROWS[script]), *NO_GAMES]
    a, b, c = (ppo.main([*flags, "--seed", seed])["folder"] for seed in "112")
    assert a != b and same_weights(a, b) and not same_weights(a, c)


def test_what_a_run_leaves_behind(ppo, script, capsys):
    if script == "ppo_atari.py":
        unscaled(ppo)  # its wrappers would play on while nobody looks
    scores = ppo.main(small("Ends-v0", "--eval-episodes", "2"))
    out = capsys.readouterr().out
    folder = Path(scores["folder"])
    name = script.removesuffix(".py")
    assert folder.name.startswith(f"known_envs-Ends-v0__{name}__1__")
    assert sorted(p.name.split(".")[0] for p in folder.iterdir()) == [
        "args",
        "checkpoint",
        "events",
    ]
    assert json.loads((folder / "args.json").read_text())["env_id"] == "known_envs:Ends-v0"
    assert "4 envs x 16 steps = 64 rows" in out and "4 minibatches x 4 epochs = 16" in out
    assert f"python {name}.py --evaluate {folder}" in out
    saved = checkpoint(folder)
    assert saved["iteration"] == 3 and 0 < len(saved["returns"]) <= 100
    logged = scalars(folder)
    assert [step for step, _ in logged["losses/value_loss"]] == [64, 128, 192]
    # Returns are the env's own: the sum of its rewards, first and later episodes alike.
    sums = {0: sum(np.sin(0.0 + t) for t in range(5)), 1: sum(np.sin(3.0 + t) for t in range(7))}
    returns = [value for _, value in logged["charts/episodic_return"]]
    lengths = [value for _, value in logged["charts/episodic_length"]]
    steps = [step for step, _ in logged["charts/episodic_return"]]
    assert steps == sorted(set(steps)) and 0 < steps[0] and steps[-1] <= 192
    assert sum(abs(r - sums[0]) < 1e-4 for r in returns) == 4
    assert sum(abs(r - sums[1]) < 1e-4 for r in returns) == 4
    assert lengths.count(5) >= 4 and lengths.count(7) >= 4 and set(lengths) == {5, 7}


def test_stop_and_resume(ppo, script, capsys):
    """SIGTERM lets the iteration finish; two resumes of one checkpoint are bit-equal."""
    rows = ROWS[script]
    n = 40 if script in ("ppo_atari.py", "ppo_lstm.py") else 80
    process = start(ROOT / script, *QUICK[script], "--total-timesteps", str(n * rows), *NO_GAMES)
    folder = wait_for_plan(process)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert f"--resume {folder}" in out
    stopped = checkpoint(folder)["iteration"]
    assert 0 < stopped < n
    twin = shutil.copytree(folder, "twin")
    for run in (folder, twin):
        ppo.main(["--resume", str(run), *NO_GAMES])
    assert "in flight are lost" in capsys.readouterr().out
    assert checkpoint(folder)["iteration"] == n and same_weights(folder, twin)
    steps = [step for step, _ in scalars(folder)["losses/value_loss"]]
    assert steps == [rows * (i + 1) for i in range(n)]
    with pytest.raises(SystemExit) as stop:
        ppo.main(["--resume", str(folder)])
    assert stop.value.code == 2 and "trained to its end" in capsys.readouterr().err


def test_second_signal_ends_at_once(script):
    steps = "10000" if script in ("ppo_atari.py", "ppo_lstm.py") else "100000"
    process = start(ROOT / script, "--env-id", "known_envs:Long-v0", "--num-steps", steps,
                    "--num-envs", "4", "--total-timesteps", "4000000")  # fmt: skip
    wait_for_plan(process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the iteration takes most of a minute
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130


def test_killed_runs_resume(ppo, script):
    """Ten runs (four of each child), killed at random moments after the plan was printed: each can
    be gone on with, here for two iterations."""
    rng, rows = random.Random(0), ROWS[script]
    flags = ["--total-timesteps", str(1000 * rows), "--checkpoint-every", "0", *NO_GAMES]
    flags = [*QUICK[script], "--env-id", "known_envs:Ends-v0", *flags]
    for _ in range(5 if script == "ppo.py" else 2):
        pair = [start(ROOT / script, *flags) for _ in range(2)]
        folders = []
        for process in pair:
            folders.append(wait_for_plan(process))
            time.sleep(rng.random() * 0.5)
            process.kill()
            process.communicate()
        time.sleep(
            1.1
        )  # event files are named, and read, by the second; starting anew takes longer
        for folder in folders:
            saved = checkpoint(folder)
            assert saved["iteration"] < 1000  # it was killed in mid-run
            iterations = saved["iteration"] + 2
            saved["args"]["total_timesteps"] = iterations * rows
            torch.save(saved, folder / "checkpoint.pt")
            ppo.main(["--resume", str(folder), "--checkpoint-every", "60", *NO_GAMES])
            assert checkpoint(folder)["iteration"] == iterations
            steps = [step for step, _ in scalars(folder)["losses/value_loss"]]
            assert steps == [rows * (i + 1) for i in range(iterations)]


def test_evaluation(ppo, script, capsys):
    """--evaluate repeats the evaluation after training, on its own seeds, and changes nothing."""
    flags = [*QUICK[script], "--total-timesteps", str(4 * ROWS[script])]
    scores = ppo.main([*flags, "--eval-episodes", "3"])
    before = Path(scores["folder"], "checkpoint.pt").read_bytes()
    again = ppo.main(["--evaluate", scores["folder"], "--eval-episodes", "3"])
    assert again == scores and len(scores["sampled"]) == len(scores["greedy"]) == 3
    assert Path(scores["folder"], "checkpoint.pt").read_bytes() == before
    assert [len(list(Path("runs").iterdir()))] == [1]


@pytest.mark.parametrize("script", ["ppo.py", "ppo_atari.py"], indirect=True)
def test_endless_games_are_cut(ppo, script, capsys):
    """Here, or by the console, whose own limit is as many frames."""
    name = "Limited-v0" if script == "ppo_atari.py" else "Forever-v0"
    ppo.main(small(name, "--eval-episodes", "1", iterations=1))
    assert "in 1 games, 1 of them cut at 27,000 steps" in capsys.readouterr().out


FILMED = {
    "ppo.py": "CartPole-v1",
    "ppo_atari.py": "ALE/Breakout-v5",
    "ppo_continuous.py": "Pendulum-v1",
    "ppo_lstm.py": "CartPole-v1",
    "ppo_multidiscrete.py": "Pendulum-v1",
}


def test_video(ppo, script):
    flags = [*QUICK[script], "--env-id", FILMED[script], "--total-timesteps", str(ROWS[script])]
    folder = Path(ppo.main([*flags, "--eval-episodes", "2", "--capture-video"])["folder"])
    films = {path.parent.name: path.stat().st_size for path in folder.glob("videos/*/*.mp4")}
    assert set(films) == {"sampled", "greedy"} and min(films.values()) > 1000


FLAT = [script for script in build.scripts() if script != "ppo_atari.py"]


@pytest.mark.parametrize("script", FLAT, indirect=True)
def test_observations_of_any_shape(ppo):
    """Dict and n-d parts are flattened, Discrete is one-hot; Shapes itself checks its actions,
    which count from 5 or are a matrix."""
    first = "lstm.weight_ih_l0" if hasattr(ppo, "LSTM") else "actor.hidden1.weight"
    folder = ppo.main(small("Shapes-v0", "--eval-episodes", "1"))["folder"]
    assert checkpoint(folder)["agent"][first].shape[1] == 6 + 4
    folder = ppo.main([*small("Ends-v0", "--observe", "2", "0"), *NO_GAMES])["folder"]
    assert checkpoint(folder)["agent"][first].shape[1] == 2


PLAYABLE = {
    "ppo.py": "Acrobot-v1 MountainCar-v0 Taxi-v4 LunarLander-v3",
    "ppo_atari.py": "ALE/Breakout-v5 SpaceInvaders-v4",
    "ppo_continuous.py": "Pendulum-v1 MountainCarContinuous-v0 BipedalWalker-v3 HalfCheetah-v4"
    " HalfCheetah-v5 Hopper-v5 InvertedPendulum-v4 Humanoid-v5",
    "ppo_lstm.py": "Acrobot-v1 Taxi-v4",
    "ppo_multidiscrete.py": "Acrobot-v1 Taxi-v4 BipedalWalker-v3 Reacher-v5",
}


@pytest.mark.parametrize(
    ("script", "env"),
    [(script, env) for script in build.scripts() for env in PLAYABLE[script].split()],
    indirect=["script"],
)
def test_environments(ppo, script, env):
    flags = [*QUICK[script], "--env-id", env, "--total-timesteps", str(2 * ROWS[script])]
    flags += ["--eval-episodes", "1"]
    assert np.isfinite(ppo.main(flags)["sampled"]).all()
    assert [path.name for path in Path().iterdir()] == [
        "runs"
    ]  # no library leaves a log of its own


@pytest.mark.parametrize(("kind", "quantity"), [("reward", "rewards"), ("obs", "observations")])
@pytest.mark.parametrize("script", build.scripts(), indirect=True)
def test_nan_stops_the_run(ppo, script, capsys, kind, quantity):
    """Exit code 1, naming quantity, iteration and the last good checkpoint, which is good."""
    if script == "ppo_atari.py":
        if kind == "obs":
            pytest.skip("a picture of bytes holds no NaN")
        unscaled(ppo)
    with pytest.raises(SystemExit) as stop:
        ppo.main([*small(f"Broken-{kind}-v0", "--checkpoint-every", "0"), *NO_GAMES])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 1
    assert error.startswith(f"error: {quantity} not finite in iteration 2")
    path = next(Path("runs").glob("*/checkpoint.pt"))
    assert [step for step, _ in scalars(path.parent)["losses/value_loss"]] == [64]
    assert f"the last good checkpoint is {path}" in error
    assert checkpoint(path.parent)["iteration"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint(path.parent)["agent"].values())


def test_diverging_training_is_stopped(ppo, capsys):
    ppo.value_loss = lambda *_: torch.tensor(torch.inf, requires_grad=True)
    with pytest.raises(SystemExit) as stop:
        ppo.main([*small(), *NO_GAMES])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 1 and "losses/value_loss not finite in iteration 1" in error


@pytest.mark.parametrize("script", ["ppo_multidiscrete.py"], indirect=True)
def test_nothing_valid_stops_the_run(ppo, capsys):
    """Before anything invalid is played, in training and in an evaluation."""
    command = small("Masked-stuck-v0")
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            ppo.main([*command, "--eval-episodes", "1"])
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 1
        assert error.startswith("error: action_mask leaves nothing valid")
        command = ["--evaluate", str(next(Path("runs").iterdir()))]


# What only one script can be asked for wrongly.
OWN_BAD = {
    ("ppo_lstm.py", "--num-envs 6 --num-minibatches 4"): "--num-minibatches must divide the 6 envs",
    ("ppo_multidiscrete.py", "--bins 0"): "--bins 0 is out of range",
    ("ppo_multidiscrete.py", "--bins 1"): "give a number from 2 to 1000",
    ("ppo_multidiscrete.py", "--env-id known_envs:Unbounded-v0"): "can't be cut into bins",
    ("ppo_multidiscrete.py", "--env-id known_envs:Masked-short-v0"): "has 4 flags",
}


@pytest.mark.parametrize(("script", "flags"), OWN_BAD, indirect=["script"])
def test_own_bad_input(ppo, script, capsys, flags):
    with pytest.raises(SystemExit) as stop:
        ppo.main(flags.split())
    assert stop.value.code == 2 and not Path("runs").exists()
    assert OWN_BAD[script, flags] in capsys.readouterr().err.strip().splitlines()[-1]


BAD = {
    "--num-envs 0": "--num-envs 0 is out of range",
    "--num-envs -4": "--num-envs -4 is out of range",
    "--num-steps 0": "--num-steps 0 is out of range",
    "--num-minibatches 0": "--num-minibatches 0 is out of range",
    "--num-minibatches 3": "--num-minibatches must cut ROWS rows",
    "--num-minibatches ROWS": "--num-minibatches must cut ROWS rows",
    "--update-epochs 0": "--update-epochs 0 is out of range",
    "--total-timesteps 0": "--total-timesteps 0 is out of range",
    "--total-timesteps 31": "--total-timesteps must be at least one rollout",
    "--seed -1": "--seed -1 is out of range",
    "--seed 4294967296": "--seed 4294967296 is out of range",
    "--learning-rate 0": "--learning-rate 0.0 is out of range",
    "--learning-rate nan": "--learning-rate nan is out of range",
    "--learning-rate inf": "--learning-rate inf is out of range",
    "--gamma 1.1": "--gamma 1.1 is out of range",
    "--gamma -0.1": "--gamma -0.1 is out of range",
    "--gae-lambda nan": "--gae-lambda nan is out of range",
    "--clip-coef 0": "--clip-coef 0.0 is out of range",
    "--ent-coef -1": "--ent-coef -1.0 is out of range",
    "--vf-coef inf": "--vf-coef inf is out of range",
    "--max-grad-norm 0": "--max-grad-norm 0.0 is out of range",
    "--target-kl -1": "--target-kl -1.0 is out of range",
    "--eval-episodes -1": "--eval-episodes -1 is out of range",
    "--checkpoint-every nan": "--checkpoint-every nan is out of range",
    "--env-id Nowhere-v0": "check its name",
    "--env-id CartPole-v99": "check its name",
    "--env-id a:b:c": "check its name",
    "--env-id no_such_module:Own-v0": "No module named 'no_such_module'",
    "--env-id phys2d/CartPole-v1": "No module named 'jax'",
    "--env-id MISFIT": "use the script that fits",
    "--env-id known_envs:Sized-v0": "shows no",
    "--env-id known_envs:Picture-v0": "shows no",
    "--observe 4": "0 to 3",
    "--observe -1": "0 to 3",
    "--env-id known_envs:Ends-v0 --capture-video": "leave out --capture-video",
    "--num-envs 1000000": "--num-envs 1000000 is out of range",
    "--resume nowhere": "is missing or damaged",
    "--evaluate nowhere": "is missing or damaged",
    "--resume=": "is missing or damaged",
    "--resume here --seed 2": "--seed can't change",
    "--resume here --learning-rate 0.1": "--learning-rate can't change",
    "--evaluate here --observe 0": "--observe can't change",
    "--resume here --evaluate here": "give one of the two",
    "--resume cut": "is missing or damaged",
    "--evaluate empty": "is missing or damaged",
    "--evaluate list": "is missing or damaged",
    "--evaluate old": "is missing or damaged",
    "--evaluate foreign": "is from other.py",
    "--resume changed": "whose spaces have changed",
    "--evaluate changed": "whose spaces have changed",
}


MISFIT = {
    "ppo.py": "HalfCheetah-v4",
    "ppo_atari.py": "CartPole-v1",
    "ppo_continuous.py": "CartPole-v1",
    "ppo_lstm.py": "HalfCheetah-v4",
    "ppo_multidiscrete.py": "known_envs:Tuples-v0",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders with a good checkpoint and with bad ones, per script."""
    made = {}

    def make(script: str) -> Path:
        if script not in made:
            made[script] = home = tmp_path_factory.mktemp("runs")
            os.chdir(home)
            flags = [*QUICK[script], "--total-timesteps", str(ROWS[script]), *NO_GAMES]
            here = Path(load(script).main(flags)["folder"])
            whole = (here / "checkpoint.pt").read_bytes()
            good = torch.load(here / "checkpoint.pt", weights_only=True)
            foreign, changed = good | {"script": "other"}, good | {"iteration": 0}
            other = {"observe": (0, 2)} if script in FLAT else {"env_id": "PongNoFrameskip-v4"}
            changed["args"] = good["args"] | other
            old = good | {"args": good["args"] | {"a_setting_that_is_gone": 1}}
            shutil.copytree(here, home / "here")
            for name, content in (("cut", whole[:-999]), ("empty", b"")):
                (home / name).mkdir()
                (home / name / "checkpoint.pt").write_bytes(content)
            for name, content in (
                ("list", [1, 2]),
                ("foreign", foreign),
                ("changed", changed),
                ("old", old),
            ):
                (home / name).mkdir()
                torch.save(content, home / name / "checkpoint.pt")
        return made[script]

    return make


@pytest.mark.parametrize(
    ("script", "flags"),
    [(s, flags) for s in build.scripts() for flags in BAD if s in FLAT or "observe" not in flags],
    indirect=["script"],
)
def test_bad_input(ppo, script, runs, tmp_path, monkeypatch, capsys, flags):
    """Exit code 2, one sentence on the last line of stderr, and nothing written."""
    monkeypatch.chdir(shutil.copytree(runs(script), tmp_path / "home"))
    before = sorted(Path().rglob("*"))
    rows = str(ROWS[script])
    given = flags.replace("MISFIT", MISFIT[script]).replace("ROWS", rows).split()
    new_run = not {"--resume", "--resume=", "--evaluate"} & set(given)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        ppo.main([*QUICK[script], *given] if new_run else given)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ") and BAD[flags].replace("ROWS", rows) in error
    assert sorted(Path().rglob("*")) == before


def test_bad_input_in_a_process(script):
    process = start(ROOT / script, "--env-id", "Nowhere-v0")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2 and out == ""
    assert err.splitlines()[-1].startswith("error: --env-id Nowhere-v0") and "Traceback" not in err
    assert not list(Path().iterdir())


def test_alone_in_an_empty_folder(script):
    """One file is enough: no module of ours is imported, and stderr holds only the progress."""
    shutil.copy(ROOT / script, script)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    flags = [*QUICK[script], "--total-timesteps", str(2 * ROWS[script]), "--eval-episodes", "1"]
    done = subprocess.run([sys.executable, script, *flags], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(" steps, " in line for line in done.stderr.split("\n") if line.strip()), done.stderr
