"""What difference a test split can show, before anything is trained.

The variance of an AUC is Hanley and McNeil's (1982), of an accuracy the binomial one; two methods on the same cases
share part of it, by the correlation of their scores (Hanley and McNeil, 1983); groups of several cases are worth less
than as many patients, by Kish's design effect 1 + (m - 1) · icc, m being the mean over cases of their group's size. The
AUCs of K classes are supposed to correlate by 1 / (K - 1): exact for two, and on the safe side for more (simulated
in ``tests/report/test_power.py``). That choice is ours. All of it holds for two trained models: how much training again
changes them is not known beforehand and comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

from fusionbench.errors import UserError, check_number


@dataclass(frozen=True)
class Split:
    """A test split, counted.

    Attributes:
        group_sizes: Cases of each group; they may be fractions where only totals are known.
        members: Cases of each class, by name.
    """

    group_sizes: Sequence[float]
    members: Mapping[str, float]

    @property
    def cases(self) -> float:
        """Number of cases."""
        return sum(self.group_sizes)

    def design_effect(self, icc: float) -> float:
        """Return by how much clustering inflates a variance.

        Args:
            icc: Correlation within a group of what two methods differ by, case by case.
        """
        size = sum(size**2 for size in self.group_sizes) / self.cases
        return 1 + (max(size, 1) - 1) * icc


@dataclass(frozen=True)
class Assumptions:
    """What is supposed of two methods.

    Attributes:
        score: AUC and accuracy of both, above 0.5 and below 1 for an AUC to have a variance.
        correlation: Between their scores over repeated test splits.
        icc: Correlation within a group of where two methods differ; at 1 a patient's cases count as one.
        methods: How many are to be compared with each other, which Holm's method pays for.
        level: 1 - level is the error kept over all pairs.
        power: Chance to find a difference that is there.
    """

    score: float = 0.8
    correlation: float = 0.5
    icc: float = 0.1
    methods: int = 2
    level: float = 0.95
    power: float = 0.8

    def __post_init__(self) -> None:
        """Refuse what gives no variance."""
        check_number("score", self.score, least=0.5, below=1)
        check_number("correlation", self.correlation, least=0, below=1)
        check_number("icc", self.icc, least=0, below=1 + 1e-9)
        check_number("methods", self.methods, least=2)
        check_number("level", self.level, above=0, below=1)

    def quantiles(self, groups: int) -> float:
        """Return how many standard errors a difference must have, at the level of Holm's first step.

        Args:
            groups: In the test split; Student's t has one degree of freedom less, as in ``contrast``.
        """
        alpha = (1 - self.level) / math.comb(self.methods, 2)
        return float(t.ppf(1 - alpha / 2, groups - 1) + t.ppf(self.power, groups - 1))

    def quantiles_of_a_tie(self, groups: int) -> float:
        """Return how many standard errors must fit into the margin for equal methods to be called tied.

        Args:
            groups: In the test split.
        """
        return float(t.ppf((1 + self.level) / 2, groups - 1))


@dataclass(frozen=True)
class Detectable:
    """One metric's answer.

    Attributes:
        metric: ``mAUC``, ``accuracy`` or ``AUC/<class>``.
        error: Standard error of the difference of two methods; nan where a class has no case, or all.
        difference: Smallest difference that is found with the power assumed; nan with one group too.
    """

    metric: str
    error: float
    difference: float


def plan(split: Split, assumed: Assumptions) -> list[Detectable]:
    """Return the smallest difference that a test split can show in mean AUC, accuracy and each class's AUC.

    Raises:
        UserError: The split has no case.
    """
    if not split.cases:
        raise UserError("the test split has no case; nothing can be compared on it")
    inflate = math.sqrt(2 * (1 - assumed.correlation) * split.design_effect(assumed.icc))
    by_class = {name: hanley_mcneil(assumed.score, n, split.cases - n) for name, n in split.members.items()}
    errors = {"mAUC": _error_of_mean([error for error in by_class.values() if not math.isnan(error)])}
    errors["accuracy"] = math.sqrt(assumed.score * (1 - assumed.score) / split.cases)
    errors |= {f"AUC/{name}": error for name, error in by_class.items()}
    quantiles = assumed.quantiles(len(split.group_sizes))
    return [Detectable(name, e * inflate, e * inflate * quantiles) for name, e in errors.items()]


def _error_of_mean(errors: Sequence[float]) -> float:
    """Return the standard error of the mean of K values that correlate by 1 / (K - 1); nan of none."""
    if len(errors) < 2:
        return errors[0] if errors else math.nan
    squares = sum(error**2 for error in errors)
    products = sum(errors) ** 2 - squares
    return math.sqrt(squares + products / (len(errors) - 1)) / len(errors)


def hanley_mcneil(auc: float, positives: float, negatives: float) -> float:
    """Return the standard error of an AUC, nan where it is undefined (Hanley and McNeil, 1982, equation 1).

    Args:
        auc: True area.
        positives: Cases of the class.
        negatives: Cases of the others.
    """
    if positives <= 0 or negatives <= 0:
        return math.nan
    two_positives, two_negatives = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc)
    spread += (positives - 1) * (two_positives - auc**2) + (negatives - 1) * (two_negatives - auc**2)
    return math.sqrt(spread / (positives * negatives))
