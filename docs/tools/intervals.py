"""95% intervals, in the units of the scores."""

import numpy as np
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans


def of_mean(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of the mean over the first axis (seeds), 2,000 resamples."""
    if len(samples) == 1:  # nothing to resample
        return samples[0], samples[0]
    rng = np.random.default_rng(0)
    found = stats.bootstrap(
        (samples,), np.mean, axis=0, n_resamples=2000, method="percentile", rng=rng
    )
    return found.confidence_interval


def of_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """The mean of a less that of b, by Welch's t; None of single seeds, which can't say what
    chance does. A percentile bootstrap of five or ten seeds would be too narrow."""
    if min(len(a), len(b)) < 2:
        return None
    if a.std() == b.std() == 0:
        return a.mean() - b.mean(), a.mean() - b.mean()
    return CompareMeans.from_data(a, b).tconfint_diff(usevar="unequal")
