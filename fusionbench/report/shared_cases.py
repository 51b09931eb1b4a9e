"""Methods that were not all tested on the same cases, as one modality alone is not where its modality is missing.

Methods with the most cases are compared with each other; one that saw only some of these stands in no such pair, but
two methods can be compared on the cases that both have. Runs whose cases differ in any other way are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusionbench.errors import UserError
from fusionbench.report.methods import Method, align
from fusionbench.report.predictions import select_split
from fusionbench.report.resampling import Draws, resample_each

Cases = frozenset[str]


class SharedCases:
    """Methods with their cases, resampled at most once for each set of cases that is asked for.

    Args:
        methods: All of them.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.
        metrics: Headline metrics.
        resamples: How many times groups and seeds are drawn.
        seed: Of the draws.

    Attributes:
        all_cases: The test cases of the method that has the most.
        full: Methods that were tested on all cases, or on others, which ``draws`` refuses.
        fewer: Methods that were tested on some of them only, each with its number of cases.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        classes: Sequence[str],
        multilabel: bool,
        metrics: Sequence[str],
        *,
        resamples: int,
        seed: int,
    ) -> None:
        self._methods, self._labels = methods, (classes, multilabel)
        self._metrics, self._resamples, self._seed = metrics, resamples, seed
        self._cases = {method.name: tested_on(method) for method in methods}
        self.all_cases = max(self._cases.values(), key=len, default=Cases())
        self.full, self.fewer = by_cases(methods)
        self._drawn: dict[Cases, dict[str, Draws]] = {}

    def draws(self, *names: str) -> dict[str, Draws]:
        """Return the draws by metric on the cases that these methods share, or on all cases.

        Raises:
            UserError: They share none, or methods differ in labels, groups, or otherwise in cases.
        """
        cases = Cases.intersection(*(self._cases[name] for name in names)) if names else self.all_cases
        if names and not cases:
            raise UserError(f"{' and '.join(map(repr, names))} have no test case in common; compare runs of one split")
        if cases not in self._drawn:
            some = [on(method, cases) for method in self._methods if self._cases[method.name] >= cases]
            aligned = align(self.full if cases == self.all_cases else some, *self._labels)
            self._drawn[cases] = resample_each(aligned, self._metrics, resamples=self._resamples, seed=self._seed)
        return self._drawn[cases]

    def notes(self, metric: str, level: float) -> tuple[str, ...]:
        """Return one sentence for each method that stands in no pair, with its score."""
        notes = []
        for name, count in self.fewer.items():
            score, low, high = self.draws(name)[metric].score(name, level)
            notes.append(
                f"{name} ({metric} {score:.3f} [{low:.3f}, {high:.3f}]) saw {count:,} of the {len(self.all_cases):,} "
                "cases: it stands in no pair, and whether fusion helped is answered on those."
            )
        return tuple(notes)


def by_cases(methods: Sequence[Method]) -> tuple[list[Method], dict[str, int]]:
    """Part methods from those that were tested on only some of the cases of the one with the most.

    Returns:
        The former, and the number of cases of each of the latter.
    """
    cases = {method.name: tested_on(method) for method in methods}
    most = max(cases.values(), key=len, default=Cases())
    full = [method for method in methods if not cases[method.name] < most]
    return full, {name: len(own) for name, own in cases.items() if own < most}


def tested_on(method: Method) -> Cases:
    """Return the test cases of a method's first run; ``align`` refuses seeds that differ."""
    return Cases(select_split(method.runs[0], "test")["case"].astype(str)) if method.runs else Cases()


def on(method: Method, cases: Cases) -> Method:
    """Return a method with only the predictions of these cases."""
    return replace(method, runs=tuple(run[run["case"].astype(str).isin(cases)] for run in method.runs))
