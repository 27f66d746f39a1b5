"""What each detail buys: the tables and figures of docs/ablations.md, from the raw results.

`python docs/experiments.py ablation-NAME` trains the runs and calls draw(). A run without a detail
is the script with the edit of docs/details.toml, the same that the tests use.
"""

from dataclasses import dataclass

import experiments
import numpy as np
from experiments import EXPERIMENTS, plt

NAMES = [name for name in EXPERIMENTS if name.startswith("ablation")]


@dataclass
class Effect:
    """What a case scores with a detail and without it, over seeds."""

    detail: str
    case: str
    with_it: np.ndarray
    without: np.ndarray  # a run that stopped by itself counts with what it scored at the start
    start: float  # mean return of the first episodes: what nothing learned is worth
    stopped: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% bootstrap interval of what the detail adds, the difference of two means."""
        rng = np.random.default_rng(0)
        means = [
            runs[rng.integers(len(runs), size=(2000, len(runs)))].mean(1)
            for runs in (self.with_it, self.without)
        ]
        low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
        return low, high

    @property
    def gain(self) -> float:
        """What there is to learn: the score with all details, above the start."""
        return self.with_it.mean() - self.start

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if self.without.mean() - self.start < 0.1 * self.gain:
            return "does not learn without it"
        if low > 0:
            return "helps"
        return "hurts" if high < 0 else "no difference seen"


def effects(name: str) -> list[Effect]:
    runs, curves, found = experiments.table(name), experiments.curves_of(name), []
    for detail, variants in EXPERIMENTS[name].figures.items():
        for case, without in zip(variants[::2], variants[1::2], strict=True):
            if case in runs and without in runs:
                start = np.mean([run[min(run)] for run in curves[case].values()])
                scores = [float(run["score"] or start) for run in runs[without]]
                stopped = sum(bool(run["stopped"]) for run in runs[without])
                with_it = np.array([float(run["score"] or start) for run in runs[case]])
                found.append(Effect(detail, case, with_it, np.array(scores), start, stopped))
    return found


def table(name: str) -> str:
    """An experiment's effects as a Markdown table, those that matter most first."""
    head = ["detail", "environment", "with it", "without it", "what it adds, 95% interval", ""]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for e in sorted(effects(name), key=lambda e: -(e.with_it.mean() - e.without.mean()) / e.gain):
        low, high = e.interval
        scores = [f"{runs.mean():.1f} ± {runs.std():.1f}" for runs in (e.with_it, e.without)]
        added = f"{e.with_it.mean() - e.without.mean():.1f} ({low:.1f} to {high:.1f})"
        stopped = f" ({e.stopped} of {len(e.without)} runs stopped by themselves)"
        verdict = e.verdict + (stopped if e.stopped else "")
        lines.append("| " + " | ".join([e.detail, e.case, *scores, added, verdict]) + " |")
    return "\n".join(lines)


def draw(name: str) -> None:
    """A figure for each detail, and one that ranks them all."""
    experiments.style()
    curves = experiments.curves_of(name)
    for detail, variants in EXPERIMENTS[name].figures.items():
        cases = list(zip(variants[::2], variants[1::2], strict=True))
        cases = [(case, without) for case, without in cases if {case, without} <= set(curves)]
        if not cases:
            continue
        fig, panels = plt.subplots(1, len(cases), figsize=(4 * len(cases), 2.6), squeeze=False)
        for axes, (case, without) in zip(panels[0], cases, strict=True):
            for variant, color, label in (
                (case, experiments.COLORS[0], "as it is"),
                (without, experiments.COLORS[1], f"without {detail}"),
            ):
                steps, lines = experiments.lines_of(curves[variant])
                low, high = experiments.interval(lines)
                axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
                axes.plot(steps, lines.mean(0), color=color, linewidth=2, label=label)
            axes.set_title(case, color="#808080", fontsize=11)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        panels[0][0].legend(frameon=False, labelcolor="#808080")
        experiments.save(fig, f"{name}-{detail}")
    rank()


def rank() -> None:
    """What every detail adds, as a share of what there is to learn."""
    found = [effect for name in NAMES for effect in effects(name)]
    found.sort(key=lambda e: (e.with_it.mean() - e.without.mean()) / e.gain)
    fig, axes = plt.subplots(figsize=(7, 0.22 * len(found) + 0.8))
    for place, e in enumerate(found):
        low, high = (bound / e.gain for bound in e.interval)
        color = "#808080" if low <= 0 <= high else experiments.COLORS[0 if low > 0 else 1]
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot((e.with_it.mean() - e.without.mean()) / e.gain, place, "o", color=color)
    axes.set_yticks(range(len(found)), [f"{e.detail}, {e.case}" for e in found], fontsize=8)
    axes.axvline(0, color="#808080", linestyle="--", linewidth=1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set(xlabel="what the detail adds, as a share of all that is learned with it")
    experiments.save(fig, "ablations")
