"""What was measured, as the pages show it: runs, curves and tables from docs/results."""

import re

import intervals
import numpy as np
import pandas as pd
import tables
from experiment_list import BREAKS, EXPERIMENTS


def whole(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that are done."""
    return runs[runs["unfinished"].isna()] if "unfinished" in runs else runs


def runs(name: str, unfinished: bool = False) -> pd.DataFrame:
    """A row per run that is done (or all), in the order of the experiment's variants, then by
    seed."""
    found, names = with_base(name), list(EXPERIMENTS[name].variants)
    found = found if unfinished else whole(found)
    names += sorted(without(name) - set(names))
    found["variant"] = pd.Categorical(found["variant"], names)
    return found.dropna(subset="variant").sort_values(["variant", "seed"])


def without(name: str) -> set[str]:
    """The variants that lack a detail or an edit."""
    return {pair[1] for pairs in EXPERIMENTS[name].ablated.values() for pair in pairs}


def with_base(name: str, part: str = "") -> pd.DataFrame:
    """A table of an experiment and, below it, what its base has of the variants without."""
    found, base = tables.read(f"{name}{part}"), EXPERIMENTS[name].base
    if not base:
        return found
    more = tables.read(f"{base}{part}")
    more = more[more["variant"].isin(without(name) - set(EXPERIMENTS[name].variants))]
    return pd.concat([found, more], ignore_index=True) if len(found) else found


def curves(name: str, column: str = "return") -> dict[str, pd.DataFrame]:
    """Per variant the mean returns of its runs' parts: rows are steps, columns are seeds; or the
    means of another column of its curves."""
    lines = {}
    for variant, found in with_base(name, "-curves").groupby("variant"):
        line = found.pivot(index="step", columns="seed", values=column)
        lines[variant] = line.interpolate("index", limit_direction="both")
    return lines


def summary(name: str, *columns: str) -> str:
    """Scores of an experiment, every seed, and the means of more columns."""
    rows = []
    for variant, found in runs(name, unfinished=True).groupby("variant", observed=True):
        interval = intervals.of_mean(found["score"].to_numpy())
        done = len(whole(found)) == len(found)
        row = {
            "run": variant if done else f"{variant}, so far",
            "mean": f"{found['score'].mean():.2f}",
            "std": "one run" if len(found) == 1 else f"{found['score'].std(ddof=0):.2f}",
            "95% interval": "{:.1f} to {:.1f}".format(*interval) if interval else "",
            "every seed": ", ".join(f"{score:.1f}" for score in found["score"]),
        }
        for column in columns:  # small ones with two digits, whatever they are
            mean = found[column].mean()
            row[column] = f"{mean:.2f}" if abs(mean) >= 0.1 else f"{mean:.2g}"
        rows.append(row)
    return tables.markdown(rows)


def shares(name: str, column: str) -> str:
    """Every seed of an experiment: the score of its last tenth and, in percent, a column."""
    rows = []
    for variant, found in runs(name).groupby("variant", observed=True):
        cells = zip(found["seed"], found["window"], found[column])
        rows.append({"run": variant} | {f"seed {s}": f"{x:.0f} ({y:.0%})" for s, x, y in cells})
    return tables.markdown(rows)


def scores(name: str) -> str:
    """What was published beside ours."""
    scores, rows = runs(name).set_index("variant")["score"], []
    for variant, published in EXPERIMENTS[name].published.items():
        ours, as_deaths = (
            scores[scores.index == which] for which in (variant, f"{variant} limits as deaths")
        )
        if ours.empty:
            continue
        digits = 0 if ours.abs().mean() >= 1000 else 1
        row = {
            "environment": variant,
            "seeds": len(ours),
            "here, mean ± std": tables.spread(ours),
            "lowest and highest seed": f"{ours.min():.{digits}f} to {ours.max():.{digits}f}",
            "here, time limits as deaths": "",
        }
        if len(as_deaths):
            fewer = f" ({len(as_deaths)} seeds)" * (len(as_deaths) != len(ours))
            row["here, time limits as deaths"] = tables.spread(as_deaths) + fewer
        rows.append(row | published)
    return tables.markdown(rows)


def alike(name: str) -> str:
    """The script with time limits as deaths, and CleanRL's, which treats them so: both run here,
    the same settings, steps and packages."""
    ours, theirs, rows = runs(name), runs(f"cleanrl-{name}"), []
    for env, found in theirs.groupby("variant", observed=True):
        a = ours["score"][ours["variant"] == f"{env} limits as deaths"].to_numpy()
        b = found["score"].to_numpy()
        row = {"environment": env, "seeds": f"{len(a)} and {len(b)}"}
        row["here, time limits as deaths"] = tables.spread(pd.Series(a))
        row["CleanRL's script, run here"] = tables.spread(found["score"])
        interval = intervals.of_two(a, b)
        told = " ({:.1f} to {:.1f})".format(*interval) if interval else ""
        row["difference (95% interval)"] = f"{a.mean() - b.mean():.1f}{told}"
        rows.append(row)
    return tables.markdown(rows)


def headline() -> str:
    """Some scores beside published ones, without decimals."""
    shown = {"classic": ["CartPole-v1", "Acrobot-v1"]}
    shown |= {"mujoco": ["HalfCheetah-v4", "Walker2d-v4", "Hopper-v4", "InvertedPendulum-v4"]}
    rows = []
    for name, variants in shown.items():
        scores = runs(name).set_index("variant")["score"]
        for variant in variants:
            ours = scores[scores.index == variant]
            row = {"environment": variant, "seeds": len(ours)}
            row["here"] = f"{ours.mean():.0f} ± {ours.std(ddof=0):.0f}"
            for who, score in EXPERIMENTS[name].published[variant].items():
                column = who.split(",")[0]
                row[column] = re.sub(r"[\d.]+", lambda x: f"{float(x[0]):.0f}", score)
            rows.append(row)
    return tables.markdown(rows)


def milestones(name: str, variant: str, *shares: str) -> str:
    """Returns of a variant's episodes on the way, at some hundredths of its run, over seeds."""
    curve = curves(name)[variant].iloc[[int(share) - 1 for share in shares]]
    rows = []
    for label, of in (("lowest seed", "min"), ("mean", "mean"), ("highest seed", "max")):
        at = {f"{round(step, -3):,}": f"{x:.0f}" for step, x in curve.agg(of, axis=1).items()}
        rows.append({"steps": label, **at})
    return tables.markdown(rows)


def symptoms(group: str) -> str:
    """What was broken in ppo.py and what the log showed, means over seeds."""
    found, rows = runs("symptoms"), []
    for entry in (entry for entry in BREAKS if entry["group"] == group):
        seeds = found[found["variant"] == entry["name"]]
        row, stopped = (
            {"broken": entry["name"], "look at": entry["look"]},
            seeds["stopped"].dropna(),
        )
        if 0 < len(stopped) < len(seeds):
            raise ValueError(f"{entry['name']}: some seeds stopped, some did not")
        if len(stopped):
            row["each seed stopped, seed 1 saying"] = stopped.iloc[0]
        else:
            mean, low, high = (getattr(seeds["score"], of)() for of in ("mean", "min", "max"))
            row["return (lowest to highest seed)"] = f"{mean:.0f} ({low:.0f} to {high:.0f})"
            for column, mean in seeds[list(EXPERIMENTS["symptoms"].logged)].mean().items():
                row[column] = f"{mean:.2g}" if abs(mean) < 100 else f"{mean:,.0f}"
        rows.append(row)
    return tables.markdown(rows)


def log(name: str) -> str:
    """What the log of a healthy run shows on the way."""
    rows = []
    for _, found in tables.read(name).iterrows():
        row = {"until step": f"{found['step']:,.0f}", "return": f"{found['return']:.1f}"}
        columns = EXPERIMENTS["symptoms"].logged
        rows.append(row | {column: f"{found[column]:.2g}" for column in columns})
    return tables.markdown(rows)


def step(name: str) -> dict[str, str]:
    """What a step of the course reaches."""
    found = runs("course").query("variant == @name")
    mean, low, high = (getattr(found["score"], of)() for of in ("mean", "min", "max"))
    return {
        "ten seeds: mean return (lowest to highest)": f"{mean:.0f} ({low:.0f} to {high:.0f})",
        "fastest run": f"{found['seconds'].min():.0f} s",
    }


def rounds(script: str, kind: str) -> pd.DataFrame:
    """What bench.py has measured of a script: steps per second, rows are rounds. Columns are names,
    or else (name, number of environments or processes)."""
    rows = tables.read("speed").query("script == @script and kind == @kind")
    columns = "name" if kind == "speed" else ["name", "size"]
    return rows.pivot(index="round", columns=columns, values="value")


def times(ours: pd.Series, theirs: pd.Series) -> str:
    """How many times as fast: the geometric mean over the rounds, and its 95% interval."""
    mean, low, high = intervals.of_geometric_mean((ours / theirs).to_numpy())
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def speed() -> str:
    """Each script beside others, and beside what no script could save."""
    rows = []
    for (script, env), found in tables.read("speed").groupby(["script", "environment"], sort=False):
        speeds = rounds(script, "speed")
        for name in speeds.filter(regex=f"^{script}"):
            ours = np.exp(np.log(speeds[name]).mean())
            row = {"script": name, "environment": env, "steps per second": f"{ours:,.0f}"}
            for other in ("Stable-Baselines3", "CleanRL"):
                row[f"times {other}"] = (
                    times(speeds[name], speeds[other]) if other in speeds else ""
                )
            if name == script:  # the floor of a variant was not measured
                floor = found[found["kind"] == "floor"].set_index("name")["value"]
                row |= {f"alone: {kind}": f"{micros:,.0f} µs" for kind, micros in floor.items()}
                row["share of the time"] = f"{floor.sum() * ours / 1e6:.0%}"
            rows.append(row)
    return tables.markdown(rows)


def growth(script: str, kind: str) -> str:
    """Its speed with each number of environments or processes, beside that of others; alone,
    beside its own with the first number."""
    speeds, rows = rounds(script, kind), []
    names = sorted(speeds.columns.unique("name"), key=lambda name: name != script)
    first = min(speeds[script])
    for size in speeds[script]:
        row = {kind: f"{size:.0f}"}
        if len(names) == 1:
            ratio = times(speeds[script, size], speeds[script, first])
            row[f"times as fast as with {first:.0f}"] = ratio if size > first else "1"
        for name in names:
            row[f"{name}, steps per second"] = f"{np.exp(np.log(speeds[name, size]).mean()):,.0f}"
            if name != script:
                row["times as fast"] = times(speeds[script, size], speeds[name, size])
        rows.append(row)
    return tables.markdown(rows)
