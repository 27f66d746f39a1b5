"""The experiments: what docs/tools/experiments.py can run, and what their figures show."""

import tomllib
from dataclasses import dataclass, field
from itertools import pairwise

import apply
from details import DOCS, registry, removal


@dataclass
class Experiment:
    """Runs of some variants, each with every seed."""

    variants: dict[str, str]  # name -> command line, without the seed
    seeds: range
    figures: dict[str, list[str]] = field(default_factory=dict)  # name -> variants in it
    published: dict[str, dict[str, str]] = field(default_factory=dict)  # variant -> who -> score
    edits: dict[str, list[list[str]]] = field(default_factory=dict)  # variant -> [find, replace]s
    # Detail -> pairs of variants, one with it and one without it.
    ablated: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    base: str = ""  # the experiment that has run the variants without, where they are its own
    logged: dict[str, str] = field(  # column -> TensorBoard tag, of which it is the mean
        default_factory=lambda: {
            "explained_variance": "losses/explained_variance",
            "value_loss": "losses/value_loss",
        }
    )
    since: float = 0.9  # over the run from here on
    may_stop: bool = False  # a run that stops by itself is a result, too
    bins: int = 100  # points of a curve; 0: no curve
    traced: dict[str, str] = field(default_factory=dict)  # more columns of it -> TensorBoard tag


TAXI = (
    "ppo_multidiscrete.py --env-id Taxi-v4 --total-timesteps 500000 --num-envs 16 --num-steps 128"
    " --num-minibatches 4 --update-epochs 4 --learning-rate 0.001 --ent-coef 0.01"
)
MUJOCO = "HalfCheetah-v4 Walker2d-v4 Hopper-v4 InvertedPendulum-v4 Pusher-v5 Humanoid-v4".split()
PENDULUM = "ppo_continuous.py --env-id Pendulum-v1 --total-timesteps 400000 --eval-episodes 100"
HIDDEN = "ppo.py --env-id hidden:CartPoleHidden-v1 --total-timesteps 1000000"
MEMORY = "ppo_lstm.py --observe 0 2 --total-timesteps 500000"
LSTM_PARTS = {  # what torch's own initialization is left to -> the line that goes
    "nothing": "",
    "the input matrix": "\n        nn.init.orthogonal_(self.lstm.weight_ih_l0)\n",
    "the recurrent matrix": "\n        nn.init.orthogonal_(self.lstm.weight_hh_l0)\n",
    "the biases": "\n        nn.init.zeros_(self.lstm.bias_ih_l0)\n",
}
LUNAR = "ppo.py --env-id LunarLander-v3 --total-timesteps 1000000"
AS_DEATHS = " --no-bootstrap-truncation"
ACROBOT = (
    "ppo.py --env-id Acrobot-v1 --total-timesteps 150016 --eval-episodes 0 --learning-rate 0.005"
)
BASELINES_V2 = "openai/baselines, on v2"
BREAKS = tomllib.loads((DOCS / "symptoms.toml").read_text())["break"]  # ways to break ppo.py
PLAYED = ["core-01"]  # without it long episodes are never whole: games after training are compared
# What CleanRL's scripts, written for Gymnasium 0.29, need for 1.4: its reset within the step that
# ends an episode, a mask for the ends, and the space that a wrapper leaves.
GYM_1_4 = [
    [
        "for i in range(args.num_envs)]",
        "for i in range(args.num_envs)], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP",
    ],
    [
        'for info in infos["final_info"]:',
        'ends = infos["final_info"]["episode"]\n'
        "                for i in np.flatnonzero(terminations | truncations):\n"
        '                    info = {"episode": {k: ends[k][i] for k in "rl"}}',
    ],
]
GYM_1_4_ATARI = [  # the games, names of wrappers, and lives that end without an episode
    ["import gymnasium as gym\n", "import ale_py\nimport gymnasium as gym\n"],
    ["GrayScaleObservation", "GrayscaleObservation"],
    ["FrameStack(", "FrameStackObservation("],
    ['if "final_info" in infos:', 'if "episode" in infos.get("final_info", {}):'],
]
GYM_1_4_CLIP = [["np.clip(obs, -10, 10))", "np.clip(obs, -10, 10), env.observation_space)"]]
RATES = ["", *(f", {times} times the rate" for times in (3, 4, 16))]  # of stress()
# Logged of the 64 features that the policy's head reads, over the rows of a batch: how many
# directions hold 99% of their variance, and how many pass (almost) no gradient on.
FEATURES = [
    """
        for tag, value in metrics.items():
""",
    """
        with torch.no_grad():
            features = agent.actor[:4](batch[0])  # (B, 64)
            held = torch.linalg.svdvals(features - features.mean(0)).square().cumsum(0)
        metrics["debug/feature_rank"] = int((held < 0.99 * held[-1]).sum()) + 1
        flat = (features <= 0) if features.min() == 0 else (features.abs() > 0.99)  # ReLU or tanh
        metrics["debug/flat"] = flat.float().mean().item()
        for tag, value in metrics.items():
""",
]
# How much of a rollout HalfCheetah lies on its back. Entry 1 of an observation is its pitch.
ON_ITS_BACK = [
    """
        for tag, value in metrics.items():
""",
    """
        pitch = obs[..., 1] * agent.obs_stats.std()[1] + agent.obs_stats.mean[1]  # in radians
        metrics["debug/on_its_back"] = (np.cos(pitch) < 0).mean()
        for tag, value in metrics.items():
""",
]
TANH = "nn.Tanh(),\n        layer_init(nn.Linear(64, 64)),\n        nn.Tanh()"
NETWORKS = {"": [], ", ReLU": [[TANH, TANH.replace("Tanh", "ReLU")]]}
EPOCHS = (
    "ppo.py --env-id Acrobot-v1 --total-timesteps 200192 --eval-episodes 0 --no-anneal-lr"
    " --learning-rate 0.0025 --update-epochs "
)
# core-12 only logs.
STRESSED = [name for name in registry() if name.startswith("core") and name != "core-12"]
COURSE = sorted((DOCS / "course").glob("*.py"))


def details_of(group: str) -> list[str]:
    return [name for name in registry() if name.startswith(group)]


def cleanrl(envs: list[str], flags: str, seeds: range) -> Experiment:
    """CleanRL's own script with its defaults, which are ours."""
    script = "ppo_continuous_action.py" if "-v4" in envs[0] else "ppo.py"
    edits = GYM_1_4 + GYM_1_4_CLIP * ("-v4" in envs[0])
    return Experiment(
        variants={env: f"cleanrl/{script} --env-id {env} {flags}" for env in envs},
        seeds=seeds,
        edits=dict.fromkeys(envs, edits),
    )


def beyond(tasks: list[str], ids: list[str], more: str, base: str = "") -> Experiment:
    """ppo_continuous.py on each task with entries of docs/beyond.toml, five seeds; and as it is,
    unless `base` has run that."""
    found = Experiment({}, range(1, 6), may_stop=True, bins=50, base=base)
    for task in tasks:
        command = f"ppo_continuous.py --env-id {task}{more}"
        if not base or task not in EXPERIMENTS[base].variants:
            found.variants[task] = command
        for name in ids:
            entry, changed = apply.entries()[name], f"{task} with {name}"
            found.variants[changed] = f"{command} {entry.get('flags', '')}"
            found.edits[changed] = entry.get("edit", [])
            found.ablated.setdefault(name, []).append((changed, task))
    found.logged |= {"clipped": "debug/clipped_actions", "std": "debug/action_std"}
    return found


def stress(
    command: str, rates: list[float], envs: list[str], ids: list[str], seeds: range
) -> Experiment:
    """Each detail with and without, at several learning rates; the clip with more epochs, too."""
    usual, cases = rates[0], {}
    for env in envs:
        for rate in rates:
            more = f", {rate / usual:.0f} times the rate" * (rate > usual)
            cases[env + more] = f"{command} --env-id {env} --learning-rate {rate:g}"
    found = ablation(cases, ids, seeds)
    if "core-08" in ids:
        epochs = {f"{case}, 16 epochs": f"{c} --update-epochs 16" for case, c in cases.items()}
        clip = ablation(epochs, ["core-08"], seeds)
        found.variants |= clip.variants
        found.edits |= clip.edits
        found.ablated["core-08"] += clip.ablated["core-08"]
    found.logged |= {"clipfrac": "losses/clipfrac", "grad_norm": "losses/grad_norm"}
    found.since, found.bins = 0.0, 0
    return found


def ablation(cases: dict[str, str], ids: list[str], seeds: range) -> Experiment:
    """Each case as it is, and without each detail, by the edits of docs/details.toml."""
    found = Experiment({}, seeds, may_stop=True, bins=25)
    for case, command in cases.items():
        found.variants[case] = f"{command} --eval-episodes {20 * any(n in PLAYED for n in ids)}"
        for name in ids:
            without = f"{case} without {name}"
            found.variants[without] = f"{command} --eval-episodes {20 * (name in PLAYED)}"
            found.edits[without] = removal(name, command.split()[0])
            found.ablated.setdefault(name, []).append((case, without))
    return found


EXPERIMENTS = {
    # Classic control with the defaults, and with time limits treated as deaths.
    "classic": Experiment(
        variants={
            "CartPole-v1": "ppo.py --env-id CartPole-v1",
            "CartPole-v1 limits as deaths": "ppo.py --env-id CartPole-v1 --no-bootstrap-truncation",
            "Acrobot-v1": "ppo.py --env-id Acrobot-v1",
            "Acrobot-v1 limits as deaths": "ppo.py --env-id Acrobot-v1 --no-bootstrap-truncation",
            "MountainCar-v0": "ppo.py --env-id MountainCar-v0",
        },
        seeds=range(1, 11),
        figures={
            "CartPole-v1": ["CartPole-v1", "CartPole-v1 limits as deaths"],
            "Acrobot-v1": ["Acrobot-v1", "Acrobot-v1 limits as deaths"],
            "MountainCar-v0": ["MountainCar-v0"],
        },
        # 500,000 steps, 3 seeds: docs/benchmark/ppo.md and docs/rl-algorithms/ppo.md of CleanRL.
        published={
            "CartPole-v1": {"CleanRL": "490.04 ± 6.12", "openai/baselines": "497.54 ± 4.02"},
            "Acrobot-v1": {"CleanRL": "-86.36 ± 1.32", "openai/baselines": "-81.82 ± 5.58"},
            "MountainCar-v0": {"CleanRL": "-200.00 ± 0.00", "openai/baselines": "-200.00 ± 0.00"},
        },
    ),
    # MuJoCo with the defaults, and with time limits treated as deaths. Pusher-v4 needs mujoco < 3.
    "mujoco": Experiment(
        variants={
            **{env: f"ppo_continuous.py --env-id {env}" for env in MUJOCO},
            **{
                f"{env} limits as deaths": f"ppo_continuous.py --env-id {env}{AS_DEATHS}"
                for env in MUJOCO
            },
        },
        seeds=range(1, 6),
        figures={env: [env, f"{env} limits as deaths"] for env in MUJOCO},
        # 1,000,000 steps, 3 seeds: docs/benchmark/ppo_continuous_action.md of CleanRL; the blog
        # post's table of the official code, on v2 of the environments.
        published={
            "HalfCheetah-v4": {"CleanRL": "1442.64 ± 46.03", BASELINES_V2: "2148.77 ± 1166.02"},
            "Walker2d-v4": {"CleanRL": "2287.95 ± 571.78", BASELINES_V2: "3142.24 ± 982.25"},
            "Hopper-v4": {"CleanRL": "2382.86 ± 271.74", BASELINES_V2: "2448.73 ± 596.13"},
            "InvertedPendulum-v4": {"CleanRL": "963.09 ± 22.20"},
            "Pusher-v5": {"CleanRL": "-40.38 ± 7.15 (v4)"},
            "Humanoid-v4": {"CleanRL": "716.11 ± 49.08"},
        },
    ),
    # Pendulum with settings made for it, with the defaults, and as if its time limit were a death.
    "pendulum": Experiment(
        variants={
            "Pendulum-v1": f"{PENDULUM} --num-envs 4 --num-steps 512 --gamma 0.95"
            " --learning-rate 0.001",
            "Pendulum-v1, defaults": PENDULUM,
            "Pendulum-v1, defaults, limits as deaths": f"{PENDULUM} --no-bootstrap-truncation",
        },
        seeds=range(11, 21),
        figures={
            "Pendulum-v1": ["Pendulum-v1, defaults", "Pendulum-v1, defaults, limits as deaths"]
        },
    ),
    # CartPole without its velocities: what memory is for. The settings were chosen on seeds 1 to 3.
    "memory": Experiment(
        variants={
            "ppo_lstm.py": "ppo_lstm.py --observe 0 2",
            "ppo.py": HIDDEN,
            "ppo.py, settings of ppo_lstm.py": f"{HIDDEN} --num-envs 32"
            " --num-steps 64 --learning-rate 0.005 --gamma 0.98 --vf-coef 0.1",
        },
        seeds=range(11, 21),
        figures={"CartPole-v1": ["ppo_lstm.py", "ppo.py", "ppo.py, settings of ppo_lstm.py"]},
    ),
    # The same two joints, as two choices of one torque in eleven and as two real numbers.
    "reacher": Experiment(
        variants={
            "11 bins": "ppo_multidiscrete.py --env-id Reacher-v5",
            "Gaussian": "ppo_continuous.py --env-id Reacher-v5",
        },
        seeds=range(11, 16),
        figures={"Reacher-v5": ["11 bins", "Gaussian"]},
    ),
    "masks": Experiment(
        variants={"masks": TAXI, "no masks": f"{TAXI} --no-masks"},
        seeds=range(1, 11),
        figures={"Taxi-v4": ["masks", "no masks"]},
    ),
    # The schedule is that of ten million steps. What was adopted may have been stopped before.
    "atari": Experiment(
        variants={
            "PongNoFrameskip-v4": "ppo_atari.py --env-id PongNoFrameskip-v4 --bf16",
            "PongNoFrameskip-v4, two processes": "torchrun --nproc-per-node 2"
            " ppo_atari.py --env-id PongNoFrameskip-v4 --num-envs 4",
        },
        seeds=range(1, 2),
        figures={"PongNoFrameskip-v4": ["PongNoFrameskip-v4", "PongNoFrameskip-v4, two processes"]},
    ),
    # What each detail buys: effects.py reads these. Larger steps show what a detail is worth where
    # PPO is hard pressed.
    "stress-core": stress(
        "ppo.py --total-timesteps 200000",
        rates=[0.00025, 0.001, 0.004],
        envs=["CartPole-v1", "Acrobot-v1"],
        ids=[*STRESSED, "extra-01"],
        seeds=range(1, 11),
    ),
    # The control: an edit that changes only what is logged, so no score may differ.
    "ablation-control": ablation(
        {
            "CartPole-v1": "ppo.py --env-id CartPole-v1 --total-timesteps 200000",
            "Acrobot-v1": "ppo.py --env-id Acrobot-v1 --total-timesteps 200000",
        },
        ids=["core-12"],
        seeds=range(1, 11),
    ),
    "ablation-continuous": ablation(
        {
            "HalfCheetah-v4": "ppo_continuous.py --env-id HalfCheetah-v4 --total-timesteps 300000",
            "Hopper-v4": "ppo_continuous.py --env-id Hopper-v4 --total-timesteps 300000",
        },
        ids=[*details_of("continuous"), "extra-01"],
        seeds=range(1, 6),
    ),
    "ablation-lstm": ablation(
        {"CartPole-v1 without velocities": MEMORY},
        ids=details_of("lstm"),
        seeds=range(1, 11),
    ),
    # Which part of lstm-01 it is: torch's own initialization of one part, with seeds of their own.
    "lstm-parts": Experiment(
        variants=dict.fromkeys(LSTM_PARTS, MEMORY + " --eval-episodes 0"),
        seeds=range(11, 21),
        edits={part: [[line, "\n"]] for part, line in LSTM_PARTS.items() if line},
        bins=0,
    ),
    "ablation-multidiscrete": ablation(
        {"Reacher-v5": "ppo_multidiscrete.py --env-id Reacher-v5 --total-timesteps 300000"},
        ids=["multidiscrete-01"],
        seeds=range(1, 11),
    ),
    "ablation-masks": ablation({"Taxi-v4": TAXI}, ids=["aux-04"], seeds=range(1, 6)),
    "ablation-atari": ablation(  # a seed: two hours
        {"BreakoutNoFrameskip-v4": "ppo_atari.py --total-timesteps 500000 --bf16"},
        ids=details_of("atari"),
        seeds=range(1, 4),
    ),
    "stress-continuous": stress(
        "ppo_continuous.py --total-timesteps 300000",
        rates=[0.0003, 0.0009],
        envs=["HalfCheetah-v4", "Hopper-v4"],
        ids=[*details_of("continuous"), "extra-01"],
        seeds=range(1, 6),
    ),
    # CleanRL's own scripts, from a checkout: --cleanrl PATH.
    "cleanrl-classic": cleanrl(["CartPole-v1", "Acrobot-v1"], "", range(1, 11)),
    "cleanrl-lunar": cleanrl(["LunarLander-v3"], "--total-timesteps 1000000", range(1, 11)),
    "cleanrl-mujoco": cleanrl(["HalfCheetah-v4", "Walker2d-v4", "Hopper-v4"], "", range(1, 6)),
    # A task whose episodes can be drawn out until the time limit.
    "lunar": Experiment(
        variants={"LunarLander-v3": LUNAR, "LunarLander-v3 limits as deaths": LUNAR + AS_DEATHS},
        seeds=range(1, 11),
        figures={"LunarLander-v3": ["LunarLander-v3", "LunarLander-v3 limits as deaths"]},
        logged={"length": "charts/episodic_length"},
        traced={"length": "charts/episodic_length"},
    ),
    # The steps of the course. The last trains the weights of ppo.py bit for bit, says a test.
    "course": Experiment(
        variants={step.stem: f"docs/course/{step.name}" for step in COURSE[:-1]}
        | {COURSE[-1].stem: "ppo.py --eval-episodes 0"},
        seeds=range(1, 11),
        figures={new.stem: [new.stem, old.stem] for old, new in pairwise(COURSE)},
        logged={},
        bins=50,
    ),
    # Many epochs on the same rows, at a constant rate, and what they do to the features.
    "epochs": Experiment(
        variants={f"{n} epochs{network}": EPOCHS + str(n) for network in NETWORKS for n in (4, 32)},
        seeds=range(1, 6),
        edits={
            f"{n} epochs{x}": [FEATURES, *edits] for x, edits in NETWORKS.items() for n in (4, 32)
        },
        logged={
            "KL": "losses/approx_kl",
            "rank": "debug/feature_rank",
            "flat": "debug/flat",
        },
        traced={"rank": "debug/feature_rank"},
        may_stop=True,
        bins=50,
    ),
    # ppo.py, broken in each of the ways of docs/symptoms.toml.
    "symptoms": Experiment(
        variants={entry["name"]: f"{ACROBOT} {entry.get('flags', '')}" for entry in BREAKS},
        seeds=range(1, 4),
        edits={entry["name"]: entry.get("edit", []) for entry in BREAKS},
        logged={
            "KL": "losses/approx_kl",
            "clip fraction": "losses/clipfrac",
            "entropy": "losses/entropy",
            "explained variance": "losses/explained_variance",
            "value loss": "losses/value_loss",
            "gradient norm": "losses/grad_norm",
        },
        since=0.5,
        may_stop=True,
        bins=0,
    ),
}

# What docs/beyond.toml adds. What the first standard deviation has to do with how HalfCheetah runs.
STDS = {"std 1": [], "std 0.6": apply.entries()["beyond-01"]["edit"]}
STDS["std 0.37"] = apply.entries()["beyond-02"]["edit"]
EXPERIMENTS["back"] = Experiment(
    variants=dict.fromkeys(
        STDS, "ppo_continuous.py --env-id HalfCheetah-v4 --total-timesteps 300000 --eval-episodes 0"
    ),
    seeds=range(1, 6),
    edits={std: [*edits, ON_ITS_BACK] for std, edits in STDS.items()},
    logged={
        "back": "debug/on_its_back",
        "std": "debug/action_std",
        "clipped": "debug/clipped_actions",
    },
    bins=50,
)
EXPERIMENTS["beyond-std"] = beyond(
    ["HalfCheetah-v4", "Walker2d-v4", "Hopper-v4", "Ant-v4"],
    ["beyond-01", "beyond-02"],
    " --eval-episodes 0",
    base="mujoco",
)
EXPERIMENTS["beyond"] = beyond(
    ["HalfCheetah-v4", "Hopper-v4"],
    [name for name in apply.entries() if "beyond-03" <= name < "recipe"],
    " --total-timesteps 300000 --eval-episodes 0",
)
