"""What each detail adds: runs of a script with it, and of the same seeds without it."""

import re
from dataclasses import dataclass, field
from functools import cache

import intervals
import numpy as np
import pandas as pd
import results
import tables
from details import registry
from experiment_list import EXPERIMENTS, PLAYED, RATES
from scipy import stats
from statsmodels.stats.multitest import multipletests

ALL = [name for name, experiment in EXPERIMENTS.items() if experiment.ablated]
# A detail that hardly acts in the runs with it can't matter there: what says so, and below what.
ACTS = {"core-08": ("clipfrac", 0.001)}
SIDES = "with", "without"
VERDICT = "[verdict](ablations.md#verdicts)"
# Where the usual rate was measured, if not in the experiment itself.
USUAL = {"stress-continuous": "ablation-continuous"}


@dataclass
class Effect:
    """What a case scores with a detail and without it, seed by seed.

    A run's score is the mean return of the episodes of its last tenth of steps (of older runs: of
    its last 100 episodes). For details in PLAYED it is the mean of games played after training.
    """

    detail: str
    case: str
    with_it: np.ndarray  # a score per seed
    without: np.ndarray  # in both a run that stopped counts with what is scored at the start
    start: float  # mean return of the first episodes: what nothing learned is worth
    gain: float  # what there is to learn: the mean score with all details, less the start
    acts: bool = True
    stopped: tuple[int, int] = (0, 0)  # runs with it and without that stopped by themselves
    p: float = field(default=np.nan)  # of no difference, corrected for the whole table

    @property
    def interval(self) -> tuple[float, float] | None:
        return intervals.of_difference(self.with_it, self.without)

    @property
    def adds(self) -> float:
        return self.with_it.mean() - self.without.mean()

    @property
    def share(self) -> float:
        """What the detail adds, as a share of all that there is to learn."""
        return self.adds / self.gain

    @property
    def verdict(self) -> str:
        if (self.with_it == self.without).all():
            said = "identical"
        elif not self.acts:
            said = "does not act here"
        elif self.interval is None or not self.p < 0.05:
            said = "can't be told"
        else:
            said = "helps" if self.adds > 0 else "hurts"
        for side, scores, stopped in zip(SIDES, (self.with_it, self.without), self.stopped):
            learned = scores - self.start > 0.1 * self.gain
            if not learned.all() and not said.startswith("identical"):
                said += f"; {(~learned).sum()} of {len(learned)} seeds learn nothing {side} it"
            if stopped:
                said += f" ({stopped} of {len(scores)} runs {side} it stopped by themselves)"
        return said


def scores_of(runs: pd.DataFrame, variant: str, detail: str, start: float) -> pd.Series:
    """Scores of a variant by seed; `start` where a run stopped by itself."""
    found = runs[runs["variant"] == variant].set_index("seed")
    column = "sampled" if detail in PLAYED else "window" if "window" in found else "score"
    return found[column].where(found["stopped"].isna(), start)


@cache
def effects(name: str) -> list[Effect]:
    """All that an experiment measured; while some runs are missing, only equal seeds compare."""
    runs, found = results.runs(name), []
    if runs.empty:
        return []
    for detail, cases in EXPERIMENTS[name].ablated.items():
        for case, without in cases:
            plain = without if "beyond" in detail else case  # what is neither added nor taken out
            first = plain.split(",")[0]  # at the usual rate
            start = first_returns(name, first if first in set(runs["variant"]) else plain)
            a, b, usual = (scores_of(runs, v, detail, start) for v in (case, without, plain))
            if len(seeds := a.index.intersection(b.index)):
                pair = [x.loc[seeds].to_numpy() for x in (a, b)]
                if np.isnan(pair).any():
                    raise ValueError(f"{without}: a run that did not stop has no score")
                one = Effect(detail, case, *pair, start, usual.mean() - start)
                same = runs[runs["seed"].isin(seeds)].groupby("variant", observed=False)["stopped"]
                one.stopped = tuple(same.count()[[case, without]])
                column, least = ACTS.get(detail, (None, 0))
                if column in runs:
                    one.acts = runs[column][runs["variant"] == case].mean() >= least
                found.append(one)
    told = [e for e in found if e.acts and e.interval and (e.with_it != e.without).any()]
    if told:
        p = [stats.ttest_rel(e.with_it, e.without).pvalue for e in told]
        for e, corrected in zip(told, multipletests(p, method="holm")[1]):
            e.p = corrected
    return found


@cache
def first_returns(name: str, variant: str) -> float:
    """Mean return of a variant's first episodes, in the first 25th of its steps."""
    runs = results.runs(name)
    if "first" in runs:
        return runs["first"][runs["variant"] == variant].mean()
    return results.curves(name)[variant].iloc[0].mean()


@dataclass
class Combined:
    """What a detail adds over all tasks of an experiment at one rate, as a share of what there is
    to learn: the difference of interquartile means, and its interval; and the two means."""

    detail: str
    rate: str
    adds: tuple[float, float, float]
    with_it: float
    without: float


@cache
def combined(name: str) -> list[Combined]:
    found = []
    for detail in EXPERIMENTS[name].ablated:
        for rate in RATES:
            ones = [
                e for e in at_all_rates(name) if e.detail == detail and e.case in at(rate, e.case)
            ]
            seeds = min((len(e.with_it) for e in ones), default=0)
            if seeds:
                a, b = (
                    np.array([(getattr(e, side)[:seeds] - e.start) / e.gain for e in ones])
                    for side in ("with_it", "without")
                )
                means = (stats.trim_mean(x.ravel(), 0.25) for x in (a, b))
                found.append(Combined(detail, rate, intervals.of_iqm(a, b), *means))
    return found


def at(rate: str, case: str) -> list[str]:
    """The case of a task at a rate, as a list of one, to look it up in."""
    return [case.split(",")[0] + rate]


def at_all_rates(name: str) -> list[Effect]:
    """The effects of an experiment, before them those at the usual rate that it has not itself."""
    have = {(e.detail, e.case) for e in effects(name)}
    usual = as_usual(USUAL[name]) if name in USUAL else []
    return [e for e in usual if (e.detail, e.case) not in have] + effects(name)


def as_usual(name: str) -> list[Effect]:
    """The effects of an experiment with the settings of the defaults."""
    return [e for e in effects(name) if "," not in e.case]


def added(effect: Effect) -> str:
    if effect.interval is None:
        return f"{effect.adds:.1f}"
    return f"{effect.adds:.1f} ({effect.interval[0]:.1f} to {effect.interval[1]:.1f})"


def row(e: Effect) -> dict[str, str]:
    cells = {"with it": e.with_it, "without it": e.without}
    spread = {k: f"{x.mean():.1f}" + f" ± {x.std():.1f}" * (len(x) > 1) for k, x in cells.items()}
    return spread | {"it adds (95% interval)": added(e), VERDICT: e.verdict}


def table(name: str) -> str:
    """An experiment's effects at the usual rate, a table for each task, the largest first."""
    titles = {id_: f"[{id_}](#{id_}) {detail['title']}" for id_, detail in registry().items()}
    by_task = {}
    for e in sorted(as_usual(name), key=lambda e: -e.share):
        by_task.setdefault(e.case, []).append({"detail": titles[e.detail]} | row(e))
    parts = [f"**{task}**\n\n{tables.markdown(rows)}" for task, rows in sorted(by_task.items())]
    return "\n\n".join(parts)


def stress(name: str) -> str:
    """What each detail adds over both tasks, at each rate, in percent of what there is to learn."""
    rows = {}
    for one in combined(name):
        cells = rows.setdefault(one.detail, {"detail": f"[{one.detail}](#{one.detail})"})
        rate = one.rate.removeprefix(", ") or "the usual rate"
        adds, low, high = (f"{x:+.0%}" if abs(x) >= 0.005 else "0%" for x in one.adds)
        cells[rate] = f"{adds} ({low} to {high})"
    return tables.markdown(rows.values())


def section(detail: str) -> str:
    """What a detail was measured to add, as a table, and its figures; "" if it was not measured."""
    rows, figures = [], []
    for name in (name for name in ALL if detail in EXPERIMENTS[name].ablated):
        for e in (e for e in effects(name) if e.detail == detail):
            command = EXPERIMENTS[name].variants[e.case]
            steps = re.search(r"--total-timesteps (\d+)|$", command)[1] or "1000000"
            old = "commit" not in results.runs(name)  # rows from before the scripts were shortened
            task = e.case.split(" with ")[0] + " ([old script](results.md#the-lean-scripts))" * old
            what = {"task": task, "steps": f"{int(steps):,}", "seeds": str(len(e.without))}
            rows.append(what | row(e))
            figure = f"![Scores with and without {detail}](figures/{name}-{detail}.svg)"
            figures += [figure] * (figure not in figures)
    return "\n".join([tables.markdown(rows), "", *figures]) if rows else ""
