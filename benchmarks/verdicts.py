"""How long a verdict takes: the size of a table, 12 methods on 400 cases of 5 classes, 2,000 resamples of mAP."""

from __future__ import annotations

import time

import numpy as np
from sklearn.metrics import average_precision_score

from fusionbench.report.bootstrap import group_weights
from fusionbench.report.methods import Aligned
from fusionbench.report.resampling import resample

METHODS, CASES, CLASSES, RESAMPLES = 12, 400, 5, 2000
_LOOPED = 10


def bootstrap() -> tuple[float, float]:
    """Time all resamples of all methods against a loop over scikit-learn, of which ten resamples of one are run."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, CLASSES, CASES)
    tables = {f"m{i}": (generator.dirichlet(np.ones(CLASSES), CASES),) for i in range(METHODS)}
    groups = tuple(str(case // 2) for case in range(CASES))
    start = time.perf_counter()
    resample(Aligned(target, groups, tables, dict.fromkeys(tables, (0,))), "mAP", resamples=RESAMPLES, seed=0)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for weights_N in next(group_weights(groups, _LOOPED, 0)):
        for k in range(CLASSES):
            average_precision_score(target == k, tables["m0"][0][:, k], sample_weight=weights_N)
    return ours, (time.perf_counter() - start) * METHODS * RESAMPLES / _LOOPED


if __name__ == "__main__":
    print("2,000 resamples of 12 methods: {:.1f} s, a loop over scikit-learn {:.0f} s".format(*bootstrap()))
