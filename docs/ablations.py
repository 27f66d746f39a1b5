"""What each detail buys: tables, verdicts and figures of docs/ablations.md, from the raw results.

`python docs/experiments.py ablation-NAME` trains the runs and calls draw(). A run without a detail
is the script with the edit of docs/details.toml, the same that the tests use.
"""

import re
from dataclasses import dataclass

import build
import experiments
import numpy as np
from experiments import COLORS, EXPERIMENTS, PLAYED, plt
from scipy import stats

NAMES = [name for name in EXPERIMENTS if name.startswith("ablation")]


@dataclass
class Effect:
    """What a case scores with a detail and without it, over seeds.

    The score is that of the last 100 training episodes; for details in PLAYED it is the mean of
    games played after training.
    """

    detail: str
    case: str
    with_it: np.ndarray
    without: np.ndarray  # a run that stopped by itself counts with what it scored at the start
    start: float  # mean return of the first episodes: what nothing learned is worth
    stopped: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of what the detail adds, the difference of two means (Welch's t).

        A percentile bootstrap of five or ten seeds would be too narrow. None of single seeds: they
        can't say what chance does.
        """
        n = np.array([len(self.with_it), len(self.without)])
        if n.min() < 2:
            return None
        errors = np.array([self.with_it.var(ddof=1), self.without.var(ddof=1)]) / n
        if not errors.any():
            return self.adds, self.adds
        freedom = errors.sum() ** 2 / (errors**2 / (n - 1)).sum()
        half = stats.t.ppf(0.975, freedom) * errors.sum() ** 0.5
        return self.adds - half, self.adds + half

    @property
    def adds(self) -> float:
        return self.with_it.mean() - self.without.mean()

    @property
    def gain(self) -> float:
        """What there is to learn: the score with all details, above the start."""
        return self.with_it.mean() - self.start

    @property
    def added(self) -> str:
        chance = "one seed"
        if self.interval is not None:
            chance = "95% interval {:.1f} to {:.1f}".format(*self.interval)
        return f"{self.adds:.1f} ({chance})"

    @property
    def verdict(self) -> str:
        learned = self.without - self.start > 0.1 * self.gain
        if self.without.mean() - self.start < 0.1 * self.gain:
            said = "does not learn without it"
        elif self.interval is None:
            said = "learns without it"
        else:
            low, high = self.interval
            said = "helps" if low > 0 else "hurts" if high < 0 else "no difference seen"
            if not learned.all():
                said += f", {(~learned).sum()} of {len(learned)} seeds learn nothing without it"
        stopped = f"{self.stopped} of {len(self.without)} runs without it stopped by themselves"
        return f"{said} ({stopped})" if self.stopped else said


def effects(name: str) -> list[Effect]:
    runs, curves, found = experiments.table(name), experiments.curves_of(name), []
    for detail, variants in EXPERIMENTS[name].figures.items():
        for case, without in zip(variants[::2], variants[1::2], strict=True):
            both = [{run["seed"] for run in runs.get(variant, [])} for variant in (case, without)]
            if seeds := both[0] & both[1]:  # while some are missing, only the same are compared
                start = np.mean([run[min(run)] for run in curves[case].values()])
                column = "sampled" if detail in PLAYED else "score"
                with_it, scores = (
                    np.array(
                        [float(r[column] or start) for r in runs[variant] if r["seed"] in seeds]
                    )
                    for variant in (case, without)
                )
                stopped = sum(bool(r["stopped"]) for r in runs[without] if r["seed"] in seeds)
                found.append(Effect(detail, case, with_it, scores, start, stopped))
    return found


def table(name: str) -> str:
    """An experiment's effects as a Markdown table, those that matter most first."""
    head = ["detail", "environment", "verdict", "it adds (95% interval)", "with it", "without it"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for e in sorted(effects(name), key=lambda e: -e.adds / e.gain):
        scores = [
            f"{runs.mean():.1f}" + f" ± {runs.std():.1f}" * (len(runs) > 1)
            for runs in (e.with_it, e.without)
        ]
        title = f"[{e.detail}](#{e.detail}) {build.registry()[e.detail]['title']}"
        added = e.added.replace("95% interval ", "")  # as the column's head says
        cells = [title, e.case, e.verdict, added, *scores]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(detail: str) -> str:
    """What a detail was measured to add, in words, and its figures; "" if it was not measured."""
    said, figures = [], []
    for name in NAMES:
        for e in (e for e in effects(name) if e.detail == detail):
            command, n = EXPERIMENTS[name].variants[e.case], len(e.without)
            steps = int(re.search(r"--total-timesteps (\d+)", command)[1])
            said.append(
                f"- {e.case}, {steps:,} steps, {n} seed{'s' * (n > 1)}: {e.with_it.mean():.1f} with"
                f" it, {e.without.mean():.1f} without. It adds {e.added}: {e.verdict}."
            )
            figure = f"![Scores with and without {detail}](figures/{name}-{detail}.svg)"
            figures += [figure] * (figure not in figures)
    return "\n".join([*said, "", *figures]) if said else ""


def draw(name: str) -> None:
    """A figure for each detail, and one that ranks them all."""
    experiments.style()
    curves, runs = experiments.curves_of(name), experiments.table(name)
    for detail, variants in EXPERIMENTS[name].figures.items():
        cases = list(zip(variants[::2], variants[1::2], strict=True))
        cases = [(case, without) for case, without in cases if {case, without} <= set(curves)]
        if not cases:
            continue
        fig, panels = plt.subplots(1, len(cases), figsize=(4 * len(cases), 2.6), squeeze=False)
        for axes, (case, without) in zip(panels[0], cases, strict=True):
            axes.set_title(case, color="#808080", fontsize=11)
            labels = [f"with {detail}", f"without {detail}"]
            for variant, color, label in zip((case, without), COLORS, labels, strict=False):
                if detail in PLAYED:  # no curve: its long episodes are never whole
                    scores = [float(run["sampled"]) for run in runs[variant]]
                    place = labels.index(label)
                    axes.plot([place] * len(scores), scores, "o", color=color, alpha=0.5)
                    axes.plot([place - 0.2, place + 0.2], [np.mean(scores)] * 2, color=color)
                    continue
                steps, lines = experiments.lines_of(curves[variant])
                low, high = experiments.interval(lines)
                axes.plot(steps, lines.T, color=color, alpha=0.25, linewidth=0.6)
                axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
                axes.plot(steps, lines.mean(0), color=color, linewidth=2, label=label)
            if detail in PLAYED:
                axes.set_xticks([0, 1], labels)
                axes.set_xlim(-0.5, 1.5)
            else:
                axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        if detail not in PLAYED:
            panels[0][0].legend(frameon=False, labelcolor="#808080")
        experiments.save(fig, f"{name}-{detail}")
    rank()


def rank() -> None:
    """What every detail adds, as a share of what there is to learn."""
    found = [effect for name in NAMES for effect in effects(name)]
    found.sort(key=lambda e: e.adds / e.gain)
    fig, axes = plt.subplots(figsize=(9, 0.22 * len(found) + 0.8))
    for place, e in enumerate(found):
        low, high = e.interval or (e.adds, e.adds)
        shares = np.array([low, high, e.adds]) / e.gain
        shown = shares.clip(-0.5, 1.5)
        grey = e.interval is None or low <= 0 <= high
        color = "#808080" if grey else COLORS[0 if low > 0 else 1]
        marker = "o" if shown[2] == shares[2] else "<>"[int(shares[2] > 0)]  # > and <: further out
        axes.plot(shown[:2], [place, place], color=color, linewidth=2)
        fill = "none" if e.interval is None else color
        axes.plot(shown[2], place, marker, color=color, markerfacecolor=fill)
    titles = {name: detail["title"] for name, detail in build.registry().items()}
    labels = [f"{titles[e.detail]} ({e.detail}), {e.case}" for e in found]
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.set_ylim(-1, len(found))
    axes.axvline(0, color="#808080", linestyle="--", linewidth=1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("what the detail adds, as a share of all that is learned with it", loc="right")
    experiments.save(fig, "ablations")
