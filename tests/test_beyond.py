"""The edits of docs/beyond.toml: each does what it says, and the script still trains."""

import sys
import types
from functools import wraps
from pathlib import Path

import apply
import gymnasium as gym
import numpy as np
import pytest
import torch
from harness import SCRIPTS, Run, load
from test_removals import find

ALL = apply.entries()
ENTRIES = {name: entry for name, entry in ALL.items() if name.startswith("beyond")}
BOX = gym.spaces.Box(-np.ones(3, np.float32), 1)


def cases(name: str) -> list[str]:
    return ENTRIES[name]["scripts"]


@pytest.mark.parametrize(
    ("script", "name"),
    [(s, name) for name, entry in ENTRIES.items() for s in entry["scripts"]],
    indirect=["script"],
)
def test_the_edited_script_trains(script, name):
    entry, flags = ENTRIES[name], SCRIPTS[script].sizes.split()
    module = load(script, None if "flags" in entry else name)
    if "flags" in entry:
        flags = [*entry["flags"].split(), "--num-minibatches", "4"]
    batch = module.Args(num_envs=int(flags[1]), num_steps=int(flags[3])).batch_size
    flags += ["--env-id", "known_envs:Ends-v0", "--total-timesteps", str(2 * batch)]
    scores = module.main([*flags, "--eval-episodes", "1"])
    assert np.isfinite([*scores["sampled"], *scores["greedy"]]).all()


def test_the_registry_is_whole():
    keys = {"id", "title", "scripts", "idea", "source", "claim", "cost", "test"}
    for entry in ENTRIES.values():
        assert set(entry) - {"edit", "flags", "when"} == keys
        assert ("edit" in entry) != ("flags" in entry)
        assert callable(find(entry["test"]))


def test_the_program_that_applies_them(capsys):
    """Two edits at once; an entry that does not fit, and one that is no edit, are told."""
    source = apply.apply("ppo_continuous.py", "beyond-01", "beyond-04")
    assert "-0.5))" in source and "betas=(0.99, 0.99)" in source
    with pytest.raises(ValueError, match=r"is for ppo_continuous\.py"):
        apply.apply("ppo.py", "beyond-01")
    with pytest.raises(ValueError, match=r"run ppo_continuous\.py --num-envs 16"):
        apply.apply("ppo_continuous.py", "beyond-10")
    with pytest.raises(ValueError, match="found 0 times"):
        apply.apply("ppo_continuous.py", "beyond-01", "beyond-02")


@pytest.mark.parametrize(("name", "log"), [("beyond-01", -0.5), ("beyond-02", -1.0)])
def test_beyond_01_and_02_initial_standard_deviation(name, log):
    agent = load("ppo_continuous.py", name).Agent(BOX, BOX)
    assert agent.log_std.tolist() == [log] * 3 and agent.log_std.requires_grad


@pytest.mark.parametrize("script", cases("beyond-03"), indirect=True)
def test_beyond_03_advantages_computed_anew(script):
    """GAE is computed once an epoch, from the value function at its beginning; these advantages
    and returns are what the update then uses: with zeros, nothing moves."""
    one = {"update_epochs": 2, "norm_adv": False, "ent_coef": 0.0, "clip_vloss": False}
    run = Run(load(script, "beyond-03"), **one)
    (first, _), (second, _) = run.gae
    agent = run.agent(run.steps[1][0].weights)
    obs = torch.as_tensor(np.stack(run.acted), dtype=torch.float32)  # (T, N, 3)
    values = run.adapter.value(agent, obs).detach().numpy()
    np.testing.assert_allclose(second["values"], values, rtol=1e-4, atol=1e-5)
    assert np.abs(first["values"] - values).max() > 1e-4
    np.testing.assert_array_equal(first["rewards"], second["rewards"])

    module = load(script, "beyond-03")
    estimate, calls = module.compute_gae, []

    @wraps(estimate)
    def zeros_later(*given):
        calls.append(1)
        return estimate(*given) * (len(calls) == 1)

    module.compute_gae = zeros_later
    run = Run(module, **one)
    moved = [max(np.abs(g).max() for g in step.grads.values()) for step in run.steps[0]]
    still = max(np.abs(g).max() for g in run.steps[1][0].grads.values())
    assert min(moved) > 1e-4 and still < 1e-6  # returns are the values themselves


@pytest.mark.parametrize("script", cases("beyond-04"), indirect=True)
def test_beyond_04_equal_betas(script):
    folder = Run(load(script, "beyond-04")).folder
    checkpoint = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    (group,) = checkpoint["optimizer"]["param_groups"]
    assert group["betas"] == (0.99, 0.99) and group["eps"] == 1e-5


@pytest.mark.parametrize("script", cases("beyond-05"), indirect=True)
def test_beyond_05_adams_clock(script):
    """After three iterations the clock has counted one; the moments have not begun anew."""
    run = Run(load(script, "beyond-05"), iterations=3)
    optimizer = torch.load(f"{run.folder}/checkpoint.pt", weights_only=True)["optimizer"]
    steps = run.args.update_epochs * run.args.num_minibatches
    assert {int(state["step"]) for state in optimizer["state"].values()} == {steps}
    whole = load(script, "beyond-05")
    assert 'moments["step"].zero_()' in whole.source and "exp_avg" not in whole.source


@pytest.mark.parametrize("script", cases("beyond-06"), indirect=True)
def test_beyond_06_layer_normalization(script):
    """What reaches a tanh has mean 0 and variance 1, however large the observations are."""
    network = load(script, "beyond-06").mlp(4, 2, 1.0)
    seen = []
    for layer in network:
        if isinstance(layer, torch.nn.Tanh):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert network(1000 * torch.randn(5, 4)).shape == (5, 2)
    for x in seen:
        torch.testing.assert_close(x.mean(-1), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.var(-1, correction=0), torch.ones(5), atol=1e-2, rtol=0)
    assert len(seen) == 2


@pytest.mark.parametrize("script", cases("beyond-07"), indirect=True)
def test_beyond_07_noise_on_the_mean(script):
    """The first ratio, 1 without it, lies where a shift of half a unit can bring it; the rollout
    has no noise: its log-probabilities are those of the policy."""
    run = Run(load(script, "beyond-07"), learning_rate=0.0)
    (error,) = (value for _, value in run.scalars["debug/first_ratio_error"])
    assert 0.01 < error < 100
    kl = [value for _, value in run.scalars["losses/approx_kl"]]
    assert 0.001 < kl[0] < 0.2  # of a normal distribution whose mean moves by up to 0.5: 0.04


class Recorder(gym.Env):
    """Writes down what it is told to do; bounds -2 and 3."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-2, 3, (2,), np.float32)
    done_so_far = []  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.done_so_far.append(action.copy())
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == 9, False, {}


@pytest.mark.parametrize("name", ["beyond-08", "beyond-13"])
def test_beyond_08_and_13_actions_within_bounds(name):
    """Actions cover the bounds and none is cut off at one; the ratio still begins at 1, or the
    run would have ended by itself."""
    gym.register("Recorder-v0", Recorder)
    Recorder.done_so_far.clear()
    flags = ["--env-id", "Recorder-v0", "--num-steps", "512", "--total-timesteps", "1024"]
    load("ppo_continuous.py", name).main([*flags, "--eval-episodes", "2"])
    actions = np.array(Recorder.done_so_far)
    assert (actions > -2).all() and (actions < 3).all()
    assert actions.min() < -1.5 and actions.max() > 2.5 and len(actions) > 1024
    del gym.registry["Recorder-v0"]


@pytest.mark.parametrize("script", cases("beyond-09"), indirect=True)
def test_beyond_09_two_lambdas(script):
    """The update's value targets are of the first lambda, its advantages of the second."""
    module = load(script, "beyond-09")
    run = Run(module)
    assert [float(bound["gae_lambda"]) for bound, _ in run.gae] == [0.95, 0.8]
    estimate = module.compute_gae
    module = load(script, "beyond-09")
    module.compute_gae = wraps(estimate)(lambda *given: estimate(*given) * (given[-1] == 0.95))
    run = Run(module, norm_adv=False, ent_coef=0.0)
    grads = run.steps[1][0].grads
    assert max(np.abs(g).max() for k, g in grads.items() if "critic" in k) > 1e-4
    assert max(np.abs(g).max() for k, g in grads.items() if "actor" in k) == 0


def test_beyond_10_the_same_batch():
    ppo = load("ppo_continuous.py")
    sizes = ENTRIES["beyond-10"]["flags"].split()
    many = ppo.Args(num_envs=int(sizes[1]), num_steps=int(sizes[3]))
    assert many.batch_size == ppo.Args().batch_size and many.num_envs > 1


@pytest.mark.parametrize("script", cases("beyond-11"), indirect=True)
def test_beyond_11_kl_penalty(script):
    """A policy that does not move halves the coefficient, one that moves far doubles it."""
    still = Run(load(script, "beyond-11"), iterations=3, learning_rate=0.0)
    assert [v for _, v in still.scalars["debug/kl_coef"]] == [0.5, 0.25, 0.125]
    far = Run(load(script, "beyond-11"), learning_rate=0.05)
    assert [v for _, v in far.scalars["debug/kl_coef"]] == [2.0]


def test_beyond_12_coloured_noise():
    """Variance 1 at each step; power falls as f ** -0.5; neighbours resemble each other."""
    torch.manual_seed(1)
    noise = load("ppo_continuous.py", "beyond-12").coloured(1024, 50, 4)
    assert noise.shape == (1024, 50, 4)
    assert noise.var().item() == pytest.approx(1, abs=0.03)
    assert noise[7].var().item() == pytest.approx(1, abs=0.25)
    power = torch.fft.rfft(noise, dim=0).abs().square().mean((1, 2))[1:-1].log()
    frequency = torch.fft.rfftfreq(1024)[1:-1].log()
    slope = np.polyfit(frequency, power, 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.05)
    assert (noise[1:] * noise[:-1]).mean() > 0.2


# ---------------------------------------- Recipes ----------------------------------------

QUICK = ["--total-timesteps", "1024", "--eval-episodes", "1"]


def test_recipes_are_whole():
    for name in set(ALL) - set(ENTRIES):
        assert set(ALL[name]) - {"edit", "file", "flags"} == {"id", "title", "scripts", "idea"}
        assert f"def test_{name.replace('-', '_')}" in Path(__file__).read_text()


def test_recipe_01_memory_with_continuous_actions():
    """Trains, evaluates, and is resumed; the first ratio is 1, or it would have ended by itself."""
    module = load("ppo_lstm.py", "recipe-01")
    flags = ["--num-envs", "4", "--env-id", "Pendulum-v1", "--observe", "0", "1"]
    scores = module.main([*flags, *QUICK])
    assert scores["greedy"][0] < 0
    module.main(["--resume", scores["folder"], "--total-timesteps", "1536"])
    agent = torch.load(f"{scores['folder']}/checkpoint.pt", weights_only=True)["agent"]
    assert agent["log_std"].shape == (1,) and agent["log_std"] != 0


@pytest.mark.parametrize("script", ALL["recipe-02"]["scripts"], indirect=True)
def test_recipe_02_weights_and_biases(script, monkeypatch):
    """Told once, with the settings and a name that a resume gives again; told when it is over."""
    told = []
    wandb = types.SimpleNamespace(
        init=lambda **given: told.append(given), finish=lambda: told.append("over")
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = Run(load(script, "recipe-02"))
    begun, over = told
    assert over == "over" and begun["sync_tensorboard"] is True and begun["resume"] == "allow"
    assert begun["config"]["num_envs"] == run.args.num_envs
    assert Path(run.folder).name == begun["name"] and ":" not in begun["id"]


def test_recipe_03_many_environments():
    """As many gradient steps a row, on minibatches as large, as with the defaults."""
    ppo = load("ppo.py")
    flags = ALL["recipe-03"]["flags"].split()
    many = ppo.Args(num_envs=int(flags[1]), num_steps=int(flags[3]), num_minibatches=int(flags[5]))
    size = [args.batch_size // args.num_minibatches for args in (many, ppo.Args())]
    assert size[0] == size[1] == 128 and many.update_epochs == ppo.Args().update_epochs
    ppo.main([*flags, "--total-timesteps", "4096", "--eval-episodes", "0"])


class Parts(gym.Env):
    """A Dict of three parts."""

    observation_space = gym.spaces.Dict(
        {
            "b": gym.spaces.Box(-1, 1, (2, 3), np.float32),
            "a": gym.spaces.Discrete(4),
            "c": gym.spaces.Box(-1, 1, (5,), np.float32),
        }
    )
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 9, False, {}


def test_recipe_04_a_network_for_dict_observations():
    """Each part has a layer as wide as itself, in the order in which the parts are flattened."""
    gym.register("Parts-v0", Parts)
    module = load("ppo.py", "recipe-04")
    module.main(["--env-id", "Parts-v0", *QUICK])
    env = module.make_env(module.Args(env_id="Parts-v0"))
    agent = module.Agent(env.observation_space, env.action_space)
    sizes = [gym.spaces.flatdim(part) for part in Parts.observation_space.values()]
    assert [layer.in_features for layer in agent.actor[0].layers] == sizes and sum(sizes) == 15
    assert agent.value(torch.zeros(7, 15)).shape == (7,)
    del gym.registry["Parts-v0"]


def test_recipe_05_torch_compile(monkeypatch):
    """Both networks are compiled; names of weights stay, so that the evaluation loads them."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f.__name__) or f)
    folder = load("ppo.py", "recipe-05").main(QUICK)["folder"]
    assert compiled == ["policy", "value"]
    names = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["agent"]
    env = gym.make("CartPole-v1")
    plain = load("ppo.py").Agent(env.observation_space, env.action_space)
    assert set(names) == set(plain.state_dict())


class Game:
    """A parallel game, as PettingZoo has them, of two agents who see and earn different things."""

    possible_agents = ("left", "right")
    early = 9  # the step in which the left one ends

    def observation_space(self, agent):
        step = gym.spaces.Box(0, 9, (1,), np.float32)
        return gym.spaces.Dict({"side": gym.spaces.Discrete(2), "step": step})

    def action_space(self, agent):
        return gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.steps = 0
        return self.seen(), {}

    def seen(self):
        step = np.array([self.steps], np.float32)
        return {who: {"side": i, "step": step} for i, who in enumerate(self.possible_agents)}

    def step(self, actions):
        self.steps += 1
        rewards = {"left": float(actions["left"] == 0), "right": float(actions["right"] == 1)}
        over = {"left": self.steps == self.early, "right": self.steps == 9}
        return self.seen(), rewards, over, dict.fromkeys(self.possible_agents, False), {}


def test_recipe_06_several_agents_of_one_game(monkeypatch):
    """One policy learns what each of the two agents should do, which it tells by what they see,
    flattened as elsewhere. Where one agent ends first, the run stops."""
    games = types.ModuleType("games")
    games.make = Game
    monkeypatch.setitem(sys.modules, "games", games)
    module = load("ppo.py", "recipe-06")
    flags = ["--env-id", "games:make", "--num-envs", "2", "--num-steps", "64"]
    flags += ["--learning-rate", "0.01", "--total-timesteps", "6400", "--eval-episodes", "0"]
    folder = module.main(flags)["folder"]
    checkpoint = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    assert np.mean(checkpoint["returns"][-10:]) > 8.5  # of 9
    with pytest.raises(SystemExit):
        module.main([*flags, "--num-envs", "4"])
    obs, _ = module.make_envs(module.Args(env_id="games:make", num_envs=2)).reset()
    assert obs.tolist() == [[1, 0, 0], [0, 1, 0]]
    monkeypatch.setattr(Game, "early", 5)
    with pytest.raises(ValueError, match="in the same step"):
        module.main(flags)


def test_recipe_07_memory_with_atari():
    """Reading a rollout again gives what acting gave, step by step; nothing is remembered across
    an episode's end, and up to there everything. A run in which lives are lost goes on: the first
    ratio of each update is 1."""
    module = load("ppo_atari.py", "recipe-07")
    agent = module.Agent(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Discrete(6))
    obs = torch.randint(0, 256, (5, 2, 4, 84, 84), dtype=torch.uint8)
    dones = torch.zeros(5, 2, dtype=torch.bool)
    dones[2, 0] = True
    begin = torch.randn(2, 2, 128)
    _, whole, last = agent(obs, begin, dones)
    state = begin
    for t in range(5):
        _, value, state = agent(obs[t : t + 1], state)
        torch.testing.assert_close(value[0], whole[t], atol=1e-5, rtol=1e-4)
        state[:, dones[t]] = 0
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-4)
    _, otherwise, _ = agent(torch.cat([255 - obs[:1], obs[1:]]), begin, dones)
    changed = (otherwise - whole).abs() > 1e-6
    assert changed.T.tolist() == [[True] * 3 + [False] * 2, [True] * 5]

    sizes = ["--num-envs", "2", "--num-steps", "32", "--total-timesteps", "256"]
    flags = ["--update-epochs", "1", "--learning-rate", "0.01", "--eval-episodes", "0"]
    module.main([*sizes, *flags, "--num-minibatches", "2"])
    with pytest.raises(SystemExit):
        module.main([*sizes, "--num-minibatches", "4"])


def follows(obs: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Whether each stack of frames goes on with that before."""
    return (obs[:, :3] == before[:, 1:]).all((1, 2, 3))


def test_recipe_08_ales_vector_environment():
    """A lost life ends an episode and goes on with the game; a finished game shows its last
    picture first, and the next game's after the reset. Returns are of whole games."""
    module = load("ppo_atari.py", "recipe-08")
    envs = module.make_envs(module.Args(num_envs=2))
    obs, _ = envs.reset(seed=module.spawn_seeds(1, "train from 0", 2))
    generator, sums = np.random.default_rng(1), np.zeros(2)
    lives, games = 0, 0
    while games < 3:
        before = obs.copy()
        obs, rewards, terminated, _, _ = envs.step(generator.integers(0, 4, 2))
        over = envs.get_attr("game_over")
        assert follows(obs, before).all() and np.isin(rewards, [-1, 0, 1]).all()
        assert not (over & ~terminated).any()
        sums += rewards  # no brick of the lowest rows is worth more than 1
        np.testing.assert_array_equal(envs.get_attr("episode_returns")[over], sums[over])
        sums[over] = 0
        lives, games = lives + int((terminated & ~over).sum()), games + int(over.sum())
        if terminated.any():
            last, (obs, _) = obs.copy(), envs.reset(options={"reset_mask": terminated})
            assert ((obs == last).all((1, 2, 3)) == ~over).all()
            assert not obs[over, :3].any()  # black but for the newest
    assert lives >= 4 * games  # of five lives the fifth ends the game
    module.main(["--num-envs", "4", "--num-steps", "8", *QUICK[:1], "64", "--eval-episodes", "0"])


class Pool:
    """Stands in for EnvPool, which is too large for a test: two games of three lives of two steps
    each. What has ended is reset by its next step; a step may be of some games only."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(4)

    def picture(self, ids):
        obs = np.zeros((len(ids), 4, 84, 84), np.uint8)
        obs[:, :, 0, 0] = 10 * self.t[ids, None] + np.arange(4)
        return obs

    def reset(self):
        self.t = np.arange(2)  # steps of the game; the second is one ahead
        self.ended = np.zeros(2, bool)
        return self.picture(np.arange(2)), {"env_id": np.arange(2)}

    def step(self, actions, env_id=None):
        ids = np.arange(2) if env_id is None else env_id
        assert len(actions) == len(ids) and actions.dtype == np.int32
        begin = self.ended[ids]
        self.t[ids] = np.where(begin, self.t[ids] % 6, self.t[ids] + 1)
        self.ended[ids] = ~begin & (self.t[ids] % 2 == 0)
        infos = {"env_id": ids, "terminated": (self.ended[ids] & (self.t[ids] == 6)).astype(int)}
        never = np.zeros(len(ids), bool)
        return self.picture(ids), 5.0 * ~begin, self.ended[ids].copy(), never, infos


def test_recipe_09_envpool(monkeypatch):
    """Every row has an action: the step that resets is taken at once, for what has ended only."""
    made = []
    pool = types.SimpleNamespace(make=lambda *given, **how: made.append((given, how)) or Pool())
    monkeypatch.setitem(sys.modules, "envpool", pool)
    module = load("ppo_atari.py", "recipe-09")
    envs = module.make_envs(module.Args(num_envs=2))
    envs.reset(seed=module.spawn_seeds(1, "train from 0", 2))
    (given, how) = made[-1]
    assert given == ("Breakout-v5", "gymnasium") and how["episodic_life"] and how["seed"] < 2**31
    told = []
    for _ in range(12):
        _, rewards, terminated, _, _ = envs.step(np.zeros(2, int))
        assert rewards.tolist() == [1, 1]
        over = envs.get_attr("game_over")
        told.append((bool(terminated[0]), bool(over[0]), envs.get_attr("episode_returns")[0]))
        assert terminated[0] != terminated[1]
        if terminated.any():
            obs, _ = envs.reset(options={"reset_mask": terminated})
            assert obs[:, 0, 0, 0].tolist() == [10 * (len(told) % 6), 10 * ((len(told) + 1) % 6)]
    life = [(False, False), (True, False)]
    assert [x[:2] for x in told] == ([*life, *life, (False, False), (True, True)] * 2)
    assert [x[2] for x in told] == [5.0 * i for i in range(1, 7)] * 2
    flags = ["--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2"]
    module.main([*flags, "--total-timesteps", "32", "--eval-episodes", "0"])
