"""95% intervals, in the units of the scores. Three seeds have none: it would be their range."""

import numpy as np
from scipy import stats

FEWEST = 4  # seeds


def of_mean(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Of the mean over the first axis (seeds), by Student's t."""
    if len(samples) < FEWEST:
        return None
    mean, half = samples.mean(0), stats.sem(samples) * stats.t.ppf(0.975, len(samples) - 1)
    return mean - half, mean + half


def of_geometric_mean(samples: np.ndarray) -> np.ndarray:
    """The geometric mean over the first axis (rounds), and its interval: (3, ...)."""
    logs = np.log(samples)
    return np.exp([logs.mean(0), *(of_mean(logs) or [logs.mean(0) * np.nan] * 2)])


def of_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """Of the mean of a less that of b, which are pairs: the same seeds."""
    return of_mean(np.asarray(a) - np.asarray(b))


def of_two(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """Of the mean of a less that of b, which have nothing to do with each other (Welch)."""
    if min(len(a), len(b)) < FEWEST or a.std() == b.std() == 0:
        return None
    return tuple(stats.ttest_ind(a, b, equal_var=False).confidence_interval())


def of_iqm(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """The interquartile mean of a less that of b, both (tasks, seeds), and its interval: a
    bootstrap of seeds within each task, 2,000 times, after rliable (Agarwal et al. 2021). But pairs
    are kept, and the scale of the scores is taken as known."""

    def differences(seeds: np.ndarray) -> np.ndarray:  # of each row of (draws, tasks, seeds)
        drawn = (np.take_along_axis(x[None], seeds, 2).reshape(len(seeds), -1) for x in (a, b))
        return np.subtract(*(stats.trim_mean(x, 0.25, axis=1) for x in drawn))

    seeds = np.random.default_rng(0).choice(a.shape[1], (2000, *a.shape))
    all_once = np.broadcast_to(np.arange(a.shape[1]), (1, *a.shape))
    return differences(all_once)[0], *np.quantile(differences(seeds), (0.025, 0.975))
