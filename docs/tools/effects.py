"""What each detail adds: a script with it beside the same without it, over seeds."""

import re
from dataclasses import dataclass
from functools import cache

import intervals
import numpy as np
import results
import tables
from details import registry
from experiment_list import EXPERIMENTS, PLAYED

NAMES = [name for name, experiment in EXPERIMENTS.items() if experiment.ablated]


@dataclass
class Effect:
    """What a case scores with a detail and without it.

    The score is that of the last 100 training episodes; for details in PLAYED it is the mean of
    games played after training.
    """

    detail: str
    case: str
    with_it: np.ndarray  # a score per seed
    without: np.ndarray  # a run that stopped by itself counts with what it scored at the start
    start: float  # mean return of the first episodes: what nothing learned is worth
    stopped: int = 0  # runs without it that stopped by themselves

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of what the detail adds; None of single seeds."""
        return intervals.of_difference(self.with_it, self.without)

    @property
    def adds(self) -> float:
        return self.with_it.mean() - self.without.mean()

    @property
    def gain(self) -> float:
        """What there is to learn: the score with all details, above the start."""
        return self.with_it.mean() - self.start

    @property
    def share(self) -> float:
        """What the detail adds, as a share of all that is learned with it."""
        return self.adds / self.gain

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


@cache
def effects(name: str) -> list[Effect]:
    """All that an experiment measured; while some runs are missing, only equal seeds compare."""
    runs, curves, found = results.runs(name), results.curves(name), []
    for detail, cases in EXPERIMENTS[name].ablated.items():
        column = "sampled" if detail in PLAYED else "score"
        for case, without in cases:
            a, b = (runs[runs["variant"] == v].set_index("seed") for v in (case, without))
            if len(both := a.index.intersection(b.index)):
                start, stopped = curves[case].iloc[0].mean(), b.loc[both, "stopped"].count()
                scores = [one.loc[both, column].fillna(start).to_numpy() for one in (a, b)]
                found.append(Effect(detail, case, *scores, start, stopped))
    return found


def added(effect: Effect, label: str = "") -> str:
    chance = label + "{:.1f} to {:.1f}".format(*effect.interval) if effect.interval else "one seed"
    return f"{effect.adds:.1f} ({chance})"


def table(name: str) -> str:
    """An experiment's effects, those that matter most first."""
    rows = []
    for e in sorted(effects(f"ablation-{name}"), key=lambda e: -e.share):
        row = {
            "detail": f"[{e.detail}](#{e.detail}) {registry()[e.detail]['title']}",
            "environment": e.case,
            "verdict": e.verdict,
            "it adds (95% interval)": added(e),
        }
        for column, runs in (("with it", e.with_it), ("without it", e.without)):
            row[column] = f"{runs.mean():.1f}" + f" ± {runs.std():.1f}" * (len(runs) > 1)
        rows.append(row)
    return tables.markdown(rows)


def section(detail: str) -> str:
    """What a detail was measured to add, in words, and its figures; "" if it was not measured."""
    said, figures = [], []
    for name in (name for name in NAMES if detail in EXPERIMENTS[name].ablated):
        for e in (e for e in effects(name) if e.detail == detail):
            command, n = EXPERIMENTS[name].variants[e.case], len(e.without)
            steps = int(re.search(r"--total-timesteps (\d+)", command)[1])
            said.append(
                f"- {e.case}, {steps:,} steps, {n} seed{'s' * (n > 1)}: {e.with_it.mean():.1f} with"
                f" it, {e.without.mean():.1f} without. It adds {added(e, '95% interval ')}:"
                f" {e.verdict}."
            )
            figure = f"![Scores with and without {detail}](figures/{name}-{detail}.svg)"
            figures += [figure] * (figure not in figures)
    return "\n".join([*said, "", *figures]) if said else ""
