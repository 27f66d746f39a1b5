"""The programs that measure: what they keep, and what they say of it."""

import bench
import experiments
import gymnasium as gym
import intervals
import numpy as np
import pytest
import tables
from effects import Effect, combined, effects, first_returns, section, table
from experiment_list import EXPERIMENTS, Experiment
from experiments import measure
from results import curves, growth, runs, speed, summary
from scipy.stats import t, trim_mean, ttest_rel

ORIGIN = ["seconds", "commit", "versions", "processor"]


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    caches = (effects, combined, first_returns)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    "without, adds, verdict",
    [
        ([1, 1, 1, 1, 2], 6.8, "helps"),
        ([20, 20, 20, 20, 21], -12.2, "hurts"),
        ([4, 12, 8, 4, 12], 0.0, "can't be told"),
        ([8, 8, 8, 8, 8], 0.0, "identical"),
        ([-199, -180, -200, -180, -190], 197.8, "helps; 5 of 5 seeds learn nothing without it"),
        ([-190, 8, 8, 8, 8], 39.6, "can't be told; 1 of 5 seeds learn nothing without it"),
        ([-190, -190, -190], 198.0, "can't be told; 3 of 3 seeds learn nothing without it"),
    ],
)
def test_what_an_ablation_says(without, adds, verdict):
    """Difference, interval and verdict of made-up scores, where -200 is what is not learned. The
    interval is Student's t of the differences: m +- 2.776 s / sqrt(5). Three seeds have none."""
    with_it, without = np.full(len(without), 8.0), np.array(without, float)
    effect = Effect("aux-04", "Taxi-v4", with_it, without, start=-200, gain=208)
    effect.p = ttest_rel(with_it, without).pvalue
    assert effect.adds == pytest.approx(adds)
    assert effect.verdict == verdict
    if len(without) > 3:
        half = 2.776445 * without.std(ddof=1) / 5**0.5
        assert effect.interval == pytest.approx((adds - half, adds + half), abs=1e-3)
    else:
        assert effect.interval is None
    effect.acts = False
    assert effect.verdict.split(";")[0] in ("does not act here", "identical")


def rows_of(name: str, scores: dict[str, list]) -> None:
    """Rows of an experiment; None: a run that stopped by itself."""
    for variant, seeds in scores.items():
        rows = [{"variant": variant, "seed": i, "window": x} for i, x in enumerate(seeds, 1)]
        clipped = 0.3 if "without" in variant else 0.0001
        more = {"first": -200.0, "clipfrac": clipped, "sampled": None}
        said = {True: "it stopped", False: None}
        tables.append(name, [r | more | {"stopped": said[r["window"] is None]} for r in rows])


def test_a_run_that_stopped_counts_as_one_that_learned_nothing():
    rows_of("ablation-masks", {"Taxi-v4": [8] * 5, "Taxi-v4 without aux-04": [None, 8, 8, 8, 9]})
    verdict = "can't be told; 1 of 5 seeds learn nothing without it (1 of 5 runs without it"
    verdict += " stopped by themselves)"
    (effect,) = effects("ablation-masks")
    assert effect.verdict == verdict and effect.adds == pytest.approx(41.4)
    row = "| Taxi-v4 ([old script](results.md#the-lean-scripts)) | 500,000 | 5 "
    row += "| 8.0 ± 0.0 | -33.4 ± 83.3 | 41.4 ("
    assert row.replace(" ± ", "\u00a0±\u00a0") in section("aux-04")
    assert f"| {verdict} |" in table("ablation-masks")


def test_verdicts_are_corrected_for_their_table():
    """Holm: the smaller of two p-values doubles, the larger (0.03) stays, so both are told;
    Bonferroni would double both. A third, also at 0.03, leaves only the first. Rows that are
    identical, or whose mechanism never acts, are not counted."""
    plain = np.array([0, 10, 20, 30, 40])
    small, large = np.array([5, 6, 7, 8, 9]), np.array([7, 8, 0, 12, 5])
    scores = {
        "CartPole-v1": [*plain],
        "CartPole-v1 without core-02": [*(plain - small)],
        "CartPole-v1 without core-03": [*plain],
        "CartPole-v1 without core-08": [*(plain - large)],
        "Acrobot-v1": [*plain],
        "Acrobot-v1 without core-02": [*(plain + large)],
    }
    rows_of("stress-core", scores)
    found = {(e.detail, e.case): e for e in effects("stress-core")}
    p, q = (ttest_rel(x, x * 0).pvalue for x in (small, large))
    assert 0.025 < q < 0.05
    one, two = found["core-02", "CartPole-v1"], found["core-02", "Acrobot-v1"]
    assert one.p == pytest.approx(2 * p) and two.p == pytest.approx(q)
    assert one.verdict == "helps" and two.verdict == "hurts"
    assert found["core-03", "CartPole-v1"].verdict == "identical"
    assert found["core-08", "CartPole-v1"].verdict == "does not act here"

    effects.cache_clear()
    rows_of("stress-core", {"Acrobot-v1 without core-04": [*(plain - large)]})
    again = {(e.detail, e.case): e for e in effects("stress-core")}
    assert again["core-02", "CartPole-v1"].verdict == "helps"
    assert again["core-02", "Acrobot-v1"].p == pytest.approx(2 * q)
    assert again["core-02", "Acrobot-v1"].verdict == "can't be told"


def test_runs_are_paired_by_seed():
    """Only seeds that both have are compared, and no unfinished run."""
    rows = [("Taxi-v4", seed, 10.0 * seed) for seed in (1, 2, 3, 4, 5)]
    rows += [("Taxi-v4 without aux-04", seed, 10.0 * seed - seed) for seed in (6, 5, 4, 3, 2)]
    more = {"first": -200.0, "stopped": None, "unfinished": None}
    rows = [{"variant": v, "seed": seed, "window": x} | more for v, seed, x in rows]
    rows.append({"variant": "Taxi-v4 without aux-04", "seed": 1, "window": 9e9} | more)
    tables.append("ablation-masks", [*rows[:-1], rows[-1] | {"unfinished": "yes"}])
    (effect,) = effects("ablation-masks")
    assert (effect.with_it - effect.without).tolist() == [2, 3, 4, 5]
    assert effect.gain == 30 - -200


def test_a_run_without_a_score_is_an_error():
    rows_of("ablation-masks", {"Taxi-v4": [8] * 5, "Taxi-v4 without aux-04": [8] * 5})
    table = tables.read("ablation-masks")
    table.loc[3, "window"] = np.nan
    tables.write("ablation-masks", table)
    with pytest.raises(ValueError, match="Taxi-v4 without aux-04: a run that did not stop"):
        effects("ablation-masks")


def test_interquartile_means_are_of_pairs_drawn_within_tasks():
    """A shift by 1 is 1 in each draw only if both sides draw the same seeds; two tasks of equal
    scores are the same in each draw only if each keeps its share of it."""
    scores = np.random.default_rng(1).normal(size=(2, 5)) * 10
    assert intervals.of_iqm(scores, scores - 1) == pytest.approx((1, 1, 1))
    tasks = np.array([[0.0] * 5, [10.0] * 5])
    assert intervals.of_iqm(tasks, tasks * 0) == pytest.approx((5, 5, 5))
    rng = np.random.default_rng(2)
    # Two equal tasks: one draw for both would spread more.
    scores = np.tile(rng.normal(size=10), (2, 1))
    means = [trim_mean(np.append(*(rng.choice(x, 10) for x in scores)), 0.25) for _ in range(4000)]
    interval = intervals.of_iqm(scores, scores * 0)[1:]
    assert interval == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.04)


def test_intervals_of_two_groups_and_of_a_geometric_mean():
    """Welch's, with unequal spreads, by its formula; t on logarithms."""
    a, b = np.array([0.0, 10, 20, 30]), np.array([3.0, 4, 4, 5, 4, 4])
    v, w = a.var(ddof=1) / 4, b.var(ddof=1) / 6
    half = t.ppf(0.975, (v + w) ** 2 / (v**2 / 3 + w**2 / 5)) * (v + w) ** 0.5
    assert intervals.of_two(a, b) == pytest.approx((11 - half, 11 + half))
    assert intervals.of_two(a[:3], b) is None
    mean, low, high = intervals.of_geometric_mean(np.array([1.0, 2, 4, 8, 16]))
    half = t.ppf(0.975, 4) * (2.5 / 5) ** 0.5
    assert np.log2([mean, low, high]) == pytest.approx([2, 2 - half, 2 + half])


def test_tasks_are_combined():
    """Interquartile means by hand. A detail whose mechanism never acts is not told of."""
    cases, scores = ["CartPole-v1", "Acrobot-v1"], {}
    for case in cases:
        scores[case] = [0, 10, 20, 30, 40]
        scores[f"{case} without core-02"] = [-7, 2, 20, 18, 41]
        scores[f"{case} without core-08"] = [1, 10, 20, 30, 40]
    rows_of("stress-core", scores)
    found = {(e.detail, e.case): e for e in effects("stress-core")}
    assert len(found) == 4
    for case in cases:
        assert found["core-08", case].verdict == "does not act here"
    one, _ = combined("stress-core")
    # (score - start) / gain, with start -200 and gain 220; the middle half of ten is six scores
    assert one.with_it == pytest.approx((2 * 210 + 2 * 220 + 2 * 230) / 6 / 220)
    assert one.without == pytest.approx((2 * 202 + 2 * 218 + 2 * 220) / 6 / 220)
    assert one.adds[0] == pytest.approx(one.with_it - one.without)
    assert one.adds[1] < one.adds[0] < one.adds[2]


def test_curves_that_have_no_episode_in_a_part_are_straight_there(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "x", Experiment({"a": ""}, range(1, 3)))
    points = [(1, 10, 1.0), (1, 30, 3.0), (2, 20, 5.0), (2, 30, 6.0)]
    keys = ("seed", "step", "return")
    tables.append("x-curves", [{"variant": "a"} | dict(zip(keys, point)) for point in points])
    assert curves("x")["a"].to_numpy().T.tolist() == [[1, 2, 3], [5, 5, 6]]


def test_what_another_experiment_ran_is_compared_with(monkeypatch):
    """An edit's runs stand against the unedited runs of the base, seed by seed, and no others."""
    base = Experiment({"task": "", "other": ""}, range(1, 4))
    edited = Experiment({"task with x": ""}, range(1, 4), base="old")
    edited.ablated = {"x": [("task with x", "task")]}
    monkeypatch.setitem(EXPERIMENTS, "old", base)
    monkeypatch.setitem(EXPERIMENTS, "new", edited)
    for name, variant, score in (
        ("old", "task", 10.0),
        ("old", "other", 99.0),
        ("new", "task with x", 15.0),
    ):
        rows = [{"seed": seed, "score": score + seed} for seed in (1, 2, 3)]
        tables.append(name, [{"variant": variant, "first": 1.0, "stopped": None} | x for x in rows])
    assert effects.__wrapped__("new")[0].adds == pytest.approx(5)
    assert set(runs("new")["variant"]) == {"task", "task with x"}


def test_what_is_measured_is_kept(tmp_path, monkeypatch):
    """Runs that train and one that stops; what an older table lacks stays empty, a curve without
    its row is measured again, all else is not."""
    monkeypatch.setattr(experiments, "UNDERWAY", tmp_path / "underway")
    tiny = "ppo.py --env-id hidden:CartPoleHidden-v1 --total-timesteps 1024 --eval-episodes 1"
    stop = [["def main(", "sys.exit('error: all is lost; what to do')\n\n\ndef main("]]
    variants = {"a, b": tiny, "stops": tiny}
    experiment = Experiment(variants, range(1, 2), edits={"stops": stop}, may_stop=True)
    experiment.traced = {"kl": "losses/approx_kl"}
    monkeypatch.setitem(EXPERIMENTS, "tiny", experiment)
    row = {"variant": "stops", "seed": 1, "score": 7.0, "sampled": 0.5}
    tables.append("tiny", [row])
    tables.append("tiny-curves", [{"variant": "a, b", "seed": 1, "step": 51, "return": 99.0}])
    measure("tiny", jobs=1)
    old, new = (found for _, found in tables.read("tiny").iterrows())
    assert old["score"] == 7 and old[ORIGIN].isna().all()
    assert 1 < new["score"] < 100 and new["sampled"] > 1 and new[ORIGIN].notna().all()
    points = tables.read("tiny-curves")
    assert len(points) > 10 and 99 not in set(points["return"]) and points["kl"].min() > 0
    assert points["step"].dtype == int and 900 < points["step"].max() <= 1024
    kept = (tmp_path / "tiny.csv").read_text()
    measure("tiny", jobs=1)
    assert (tmp_path / "tiny.csv").read_text() == kept
    assert summary("tiny", "sampled").splitlines()[-1] == (
        "| stops | 7.00 | one run |  | 7.0 | 0.50 |"
    )
    assert not list((tmp_path / "underway").iterdir())
    (tmp_path / "tiny.csv").unlink()
    experiment.variants.pop("a, b")
    measure("tiny", jobs=1)
    assert tables.read("tiny")["stopped"].tolist() == ["all is lost; what to do"]


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Stopped by Ctrl-C in training, it is taken as it stands; then it is resumed, its log is
    whole, and its row replaces the unfinished one. Stopped in its evaluation, only that is done."""
    monkeypatch.setattr(experiments, "UNDERWAY", tmp_path / "underway")
    tiny = "ppo.py --total-timesteps 4096 --checkpoint-every 0 --eval-episodes 1"
    monkeypatch.setitem(EXPERIMENTS, "tiny", Experiment({"a": tiny}, range(1, 2)))
    halt = [["for iteration in bar:", "for iteration in bar:\n        if iteration == 5: 1 / 0"]]
    EXPERIMENTS["tiny"].edits["a"] = halt
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        measure("tiny", jobs=1)
    experiments.so_far("tiny")
    (row,) = tables.read("tiny").to_dict("records")
    assert row["steps"] == 4 * 512 and row["unfinished"] == "yes" and row["sittings"] == 1
    assert tables.read("tiny-curves")["step"].max() <= 4 * 512

    EXPERIMENTS["tiny"].edits["a"] = [["def evaluate(", "def evaluate(*_): 1 / 0\n\n\ndef _("]]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        measure("tiny", jobs=1)
    EXPERIMENTS["tiny"].edits.clear()
    measure("tiny", jobs=1)
    (row,) = tables.read("tiny").to_dict("records")
    assert row["steps"] == 4096 and row["unfinished"] != "yes" and row["sittings"] == 3
    assert row["sampled"] > 0 and 0 < row["first"] < row["window"] and row["seconds"] > 1
    steps = tables.read("tiny-curves")["step"]
    assert steps.is_unique and 4000 < steps.max() <= 4096


def test_cartpole_without_its_velocities():
    env, whole = gym.make("hidden:CartPoleHidden-v1"), gym.make("CartPole-v1")
    seen, obs = env.reset(seed=3)[0], whole.reset(seed=3)[0]
    for action in (0, 1, 1, 0):
        assert seen.tolist() == obs[[0, 2]].tolist() and env.observation_space.contains(seen)
        seen, obs = env.step(action)[0], whole.step(action)[0]


def test_what_bench_keeps_and_says_of_speed():
    """Ratios of made-up rounds in which the machine's own speed changes; rows of the same kind are
    replaced, others stay. A ratio's interval is Student's t of its logarithm: 3.182 s / 2."""

    def record(kind: str, sizes: list, ours: list, theirs: list) -> None:
        rows = [
            {"name": name, "size": size, "round": i, "value": f"{value}"}
            for name, values in (("ppo.py", ours), ("Stable-Baselines3", theirs))
            for size in sizes
            for i, value in enumerate(values, 1)
        ]
        bench.record("ppo.py", "CartPole-v1", kind, rows)

    record("speed", [""], [1, 1, 1, 1], [9, 9, 9, 9])
    record("envs", [1, 64], [200, 400, 200, 400], [100, 200, 100, 200])
    record("speed", [""], [200, 800, 200, 800], [100, 200, 100, 200])
    bench.record("ppo.py", "CartPole-v1", "floor", [{"name": "environment", "value": "500"}])
    mean, half = 8**0.5, np.exp(3.182446 * np.log(2) / 3**0.5 / 2)
    ratio = f"{mean:.2f} ({mean / half:.2f}\u00a0to\u00a0{mean * half:.2f})"
    assert speed().splitlines()[2] == (
        f"| ppo.py | CartPole-v1 | 400 | {ratio} |  | 500 µs | 20% |"
    )
    assert growth("ppo.py", "envs").splitlines()[3] == (
        "| 64 | 283 | 141 | 2.00 (2.00\u00a0to\u00a02.00) |"
    )
