"""The figures of docs/figures, from docs/results: readable on white and on black, and the same
bytes whenever they are drawn."""

import re

import apply
import effects
import intervals
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import results
from details import DOCS, registry
from experiment_list import EXPERIMENTS, NETWORKS, PLAYED

GREY = "#808080"
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]  # Okabe and Ito's, for all eyes
BLUE, RED, GREEN, PINK, YELLOW = COLORS
plt.switch_backend("svg")
plt.rcParams |= {"svg.hashsalt": "ppo", "font.size": 11, "text.color": GREY}
plt.rcParams |= {key: GREY for key in ("axes.labelcolor", "xtick.color", "ytick.color")}


def save(fig: plt.Figure, name: str) -> None:
    for axes in fig.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
    if fig.get_layout_engine() is None:
        fig.tight_layout()
    fig.savefig(DOCS / "figures" / f"{name}.svg", transparent=True, metadata={"Date": None})
    plt.close(fig)


def plot(axes: plt.Axes, curve: pd.DataFrame, color: str, label: str) -> None:
    """Every seed thin, their mean thick, its 95% interval shaded, over environment steps."""
    axes.plot(curve.index, curve, color=color, alpha=0.25, linewidth=0.6)
    if interval := intervals.of_mean(curve.to_numpy().T):
        axes.fill_between(curve.index, *interval, color=color, alpha=0.25, linewidth=0)
    axes.plot(curve.index, curve.mean(axis=1), color=color, linewidth=2, label=label)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")


def legend(fig: plt.Figure, axes: plt.Axes, place: str, **options) -> None:
    """What the lines of a panel are, beside the panels."""
    lines, labels = axes.get_legend_handles_labels()
    fig.legend(lines, labels, loc=place, frameon=False, labelcolor=GREY, **options)


def draw(name: str) -> None:
    """All figures of an experiment."""
    curves, experiment = results.curves(name), EXPERIMENTS[name]
    for figure, variants in experiment.figures.items():
        fig, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
        for variant, color in zip(variants, COLORS):
            if variant in curves:  # else not run so far
                plot(axes, curves[variant], color, variant)
        for source, score in experiment.published.get(variants[0], {}).items():
            dash = "--" if source == "CleanRL" else ":"
            level, label = float(score.split()[0]), f"{source}, published: {score}"
            axes.axhline(level, color=GREY, linestyle=dash, linewidth=1, label=label)
        axes.set(xlabel="environment steps", ylabel="return of an episode")
        legend(fig, axes, "outside lower center", ncols=2, fontsize=9, columnspacing=1)
        save(fig, f"{name}-{figure}")
    for detail, cases in experiment.ablated.items():
        if name.startswith("stress"):
            stress(name, detail)
        elif cases := [case for case in cases if set(case) <= set(curves)]:
            ablation(name, detail, cases, curves)
    if "beyond" in name:
        rank("beyond", ["beyond-std", "beyond"], apply.entries())
    elif experiment.ablated:
        names = [x for x in effects.ALL if "beyond" not in x and "control" not in x]
        rank("ablations", names, registry())
    if name == "course":
        staircase(curves)
    if name == "epochs":
        epochs()


def staircase(curves: dict) -> None:
    """A panel for each step of the course, beside the step before."""
    fig, panels = plt.subplots(2, 5, figsize=(11, 4.4), sharey=True)
    steps = list(EXPERIMENTS["course"].variants)
    for axes, new, old in zip(panels.flat, steps, [None, *steps]):
        axes.set_title(new, color=GREY, fontsize=10)
        if old:
            plot(axes, curves[old], COLORS[1], old)
        plot(axes, curves[new], COLORS[0], new)
    panels[0][0].set_ylabel("return of an episode")
    panels[1][0].set_ylabel("return of an episode")
    save(fig, "course-staircase")


def epochs() -> None:
    """Return and rank with few epochs and with many: a column for each network."""
    fig, panels = plt.subplots(
        2, 2, figsize=(9, 4.4), sharex=True, sharey="row", layout="constrained"
    )
    for row, (column, label) in zip(
        panels, {"return": "return", "rank": "rank of features"}.items()
    ):
        curves = results.curves("epochs", column)
        for axes, network in zip(row, NETWORKS):
            for n, color in ((4, BLUE), (32, RED)):
                plot(axes, curves[f"{n} epochs{network}"], color, f"{n} epochs")
        row[0].set_ylabel(label)
    for axes, title in zip(panels[0], ("tanh", "ReLU")):
        axes.set_title(title, color=GREY, fontsize=11)
    legend(fig, panels[0][0], "outside right")
    save(fig, "epochs")


def ablation(name: str, detail: str, cases: list[tuple[str, str]], curves: dict) -> None:
    """A panel for each case, with the detail and without it."""
    runs = results.runs(name)
    size = (4 * len(cases) + 1.5, 2.6)
    fig, panels = plt.subplots(1, len(cases), figsize=size, squeeze=False, layout="constrained")
    for axes, pair in zip(panels[0], cases):
        axes.set_title(pair[0].split(" with ")[0], color=GREY, fontsize=11)
        labels = [f"with {detail}", f"without {detail}"]
        for place, (variant, color, label) in enumerate(zip(pair, COLORS, labels)):
            if detail not in PLAYED:
                plot(axes, curves[variant], color, label)
                continue
            scores = runs["sampled"][runs["variant"] == variant]
            axes.plot([place] * len(scores), scores, "o", color=color, alpha=0.5)
            axes.plot([place - 0.2, place + 0.2], [scores.mean()] * 2, color=color)
            axes.set_xticks([0, 1], labels)
            axes.set_xlim(-0.5, 1.5)
    if detail not in PLAYED:
        legend(fig, panels[0][0], "outside right")
    save(fig, f"{name}-{detail}")


def stress(name: str, detail: str) -> None:
    """The score over the learning rate, with the detail and without it: a panel for each task."""
    found = [e for e in effects.at_all_rates(name) if e.detail == detail]
    panels = {}  # what stands above a panel -> its effects, by rate
    for e in found:
        task, *more = e.case.split(", ")
        times = [x for x in more if "rate" in x]
        title = ", ".join([task, *(x for x in more if x not in times)])
        panels.setdefault(title, []).append((times[0].split()[0] if times else "1", e))
    size = (3.5 * len(panels) + 1.2, 2.6)
    fig, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (title, points) in zip(grid[0], panels.items()):
        axes.set_title(title, color=GREY, fontsize=11)
        lines = (("with_it", BLUE, -0.05, "with it"), ("without", RED, 0.05, "without it"))
        for side, color, shift, label in lines:
            rows, places = [getattr(e, side) for _, e in points], np.arange(len(points)) + shift
            means = [scores.mean() for scores in rows]
            axes.plot(places, means, "o-", color=color, linewidth=2, label=label)
            for place, scores in zip(places, rows):
                if interval := intervals.of_mean(scores):
                    axes.vlines(place, *interval, color=color, alpha=0.4, linewidth=3)
                beside = place + np.linspace(0, 3 * shift, len(scores))  # seed by seed
                axes.plot(beside, scores, ".", color=color, alpha=0.4, markersize=4)
        axes.set_xticks(range(len(points)), [f"x {times}" for times, _ in points])
        axes.set_xlim(-0.5, len(points) - 0.5)
        axes.set_xlabel("learning rate")
    grid[0][0].set_ylabel("return of an episode")
    legend(fig, grid[0][0], "outside right")
    save(fig, f"{name}-{detail}")


def rank(figure: str, names: list[str], titles: dict[str, dict]) -> None:
    """What every detail adds, as a share of what there is to learn: a panel for each script."""
    panels = {}
    for name in names:
        command = next(iter(EXPERIMENTS[name].variants.values()))
        steps = re.search(r"--total-timesteps (\d+)|$", command)[1] or 10**6
        title = command.split()[0] + f", {int(steps):,} steps" * (figure == "beyond")
        panels[title] = [*panels.get(title, []), *effects.as_usual(name)]
    panels = {
        title: sorted(found, key=lambda e: e.share) for title, found in panels.items() if found
    }
    limits = (-1, 3) if figure == "beyond" else (-0.5, 1.5)
    sizes = [len(found) + 2 for found in panels.values()]
    shape = {"figsize": (9, 0.22 * sum(sizes) + 0.4), "height_ratios": sizes, "sharex": True}
    shape["layout"] = "constrained"
    fig, grid = plt.subplots(len(panels), 1, squeeze=False, **shape)
    for axes, (title, found) in zip(grid[:, 0], panels.items()):
        axes.set_title(title, color=GREY, fontsize=10, loc="left")
        for place, e in enumerate(found):
            low, high = e.interval or (e.adds, e.adds)
            shares = np.array([low, high, e.adds]) / e.gain
            shown = shares.clip(*limits)
            told = e.verdict.split(";")[0].split(" (")[0]
            color = {"helps": BLUE, "hurts": RED}.get(told, GREY)
            marker = "o" if shown[2] == shares[2] else "<>"[int(shares[2] > 0)]  # further out
            axes.plot(shown[:2], [place, place], color=color, linewidth=2)
            fill = "none" if e.interval is None else color
            axes.plot(shown[2], place, marker, color=color, markerfacecolor=fill)
        tasks = [e.case.split(" with ")[0] for e in found]
        labels = [f"{titles[e.detail]['title']} ({e.detail}), {x}" for e, x in zip(found, tasks)]
        axes.set_yticks(range(len(found)), labels, fontsize=8)
        axes.set_ylim(-1, len(found))
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    grid[-1, 0].xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    grid[-1, 0].set_xlabel("what it adds, as a share of what is learned", loc="right")
    save(fig, figure)
