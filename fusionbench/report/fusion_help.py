"""Did fusion help? Each strategy against the best modality alone and against plain concatenation, on the same cases.

Which modality is best is not known, only which scored highest here, and choosing by the test score would flatter the
fusion. So "better than its best unimodal" is said only of a strategy that is better than every unimodal (an
intersection-union test: Berger, 1982; no adjustment needed); "worse" needs one unimodal that is better after
Bonferroni's correction for their number; "tied" needs all lower bounds, and one upper bound so corrected, inside the
margin. The strategies' p-values are adjusted by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fusionbench.errors import UserError
from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.report.contrast import Contrast, contrast, holm
from fusionbench.report.methods import Method, align
from fusionbench.report.resampling import Draws, resample
from fusionbench.report.verdicts import Pair, check_options, judge


@dataclass(frozen=True)
class Entry:
    """A strategy and what it is held against.

    Attributes:
        strategy: Its name.
        unimodals: Names of its modalities alone, at least one.
        concat: Name of plain concatenation; None where there is none, or it is the strategy itself.
    """

    strategy: str
    unimodals: tuple[str, ...]
    concat: str | None


@dataclass(frozen=True)
class FusionHelp:
    """One strategy's answer.

    Attributes:
        strategy: Its name.
        metric: What is compared.
        unimodal: Against the unimodal that scored best, named in ``unimodal.b``, with the difference to that one; its
            p-values and its word are about the best unimodal, whichever that is.
        concat: Against plain concatenation; None where there is none, or it is the strategy itself.
    """

    strategy: str
    metric: str
    unimodal: Pair
    concat: Pair | None

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        text = f"{self.strategy}: {_words(self.unimodal, 'its best unimodal', self.metric)}"
        return f"{text}; {_words(self.concat, 'concat', self.metric)}." if self.concat else f"{text}."


def did_fusion_help(
    strategies: Sequence[Method],
    unimodals: Sequence[Method],
    concat: Method | None,
    classes: Sequence[str],
    multilabel: bool,
    *,
    metric: str = "mAP",
    margin: float = 0.02,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[FusionHelp]:
    """Compare each strategy with every unimodal and with concat.

    Args:
        strategies: What may have helped; concat may be among them.
        unimodals: Each modality alone, at least one.
        concat: Plain concatenation, if there is such a row.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.
        metric: A headline metric.
        margin: Half-width of what counts as no difference.
        level: Coverage of the intervals.
        resamples: How many times groups and seeds are drawn.
        seed: Of the draws.

    Raises:
        UserError: There is no unimodal, or methods differ in cases or labels, or a name or number is impossible.
    """
    check_options(metric, margin, level, resamples)
    if not unimodals:
        raise UserError("whether fusion helped needs each modality alone beside it; add the unimodal rows")
    methods = {method.name: method for method in (*strategies, *unimodals, *([concat] if concat else []))}
    draws = resample(align(list(methods.values()), classes, multilabel), metric, resamples=resamples, seed=seed)
    alone, plain = tuple(method.name for method in unimodals), concat.name if concat else None
    entries = [Entry(s.name, alone, None if s.name == plain else plain) for s in strategies]
    return fusion_help(draws, entries, metric, margin=margin, level=level)


def fusion_help(
    draws: Draws, entries: Sequence[Entry], metric: str, *, margin: float = 0.02, level: float = 0.95
) -> list[FusionHelp]:
    """Answer for methods that have been resampled, each strategy against its own unimodals and its own concat.

    Args:
        draws: Every method in every resample.
        entries: The strategies; p-values are adjusted over all of them.
        metric: What was resampled.
        margin: Half-width of what counts as no difference.
        level: Coverage of the intervals.
    """
    rule = _Rule(metric, margin, level)
    alone = {e.strategy: {name: contrast(draws, e.strategy, name) for name in e.unimodals} for e in entries}
    plain = {e.strategy: (e.concat, contrast(draws, e.strategy, e.concat)) for e in entries if e.concat}
    against_concat = rule.against_one(plain)
    return [FusionHelp(pair.a, metric, pair, against_concat.get(pair.a)) for pair in rule.against_best(alone)]


@dataclass(frozen=True)
class _Rule:
    """How contrasts become words, ``found`` being a strategy's contrast with each unimodal."""

    metric: str
    margin: float
    level: float

    def against_one(self, found: Mapping[str, tuple[str, Contrast]]) -> dict[str, Pair]:
        """Return each strategy against one other method, given with its name."""
        adjusted = holm([c.p for _, c in found.values()])
        return {
            name: self._judge(name, other, c, p, len(found))
            for (name, (other, c)), p in zip(found.items(), adjusted, strict=True)
        }

    def against_best(self, strategies: Mapping[str, Mapping[str, Contrast]]) -> list[Pair]:
        """Return each strategy against the unimodal that scored best, judged against whichever is best."""
        own = [self._p(list(found.values())) for found in strategies.values()]
        pairs = []
        for (strategy, found), p, adjusted in zip(strategies.items(), own, holm(own), strict=True):
            strongest = min(found, key=lambda name: self._gain(found[name]))
            pair = self._judge(strategy, strongest, found[strongest], adjusted, len(strategies))
            unsure = pair.verdict == "tied" and not self._tied(list(found.values()))
            pairs.append(replace(pair, p=p, verdict="too few cases" if unsure else pair.verdict))
        return pairs

    def _judge(self, a: str, b: str, found: Contrast, p: float, family: int) -> Pair:
        return judge(a, b, found, p, metric=self.metric, margin=self.margin, level=self.level, family=family)

    def _gain(self, found: Contrast) -> float:
        """Return the difference, positive when the strategy is better."""
        return -found.difference if self.metric in LOWER_IS_BETTER else found.difference

    def _p(self, found: Sequence[Contrast]) -> float:
        """Return the p-value against all: the largest where all are beaten, else Bonferroni's of those that are not."""
        unbeaten = [c.p for c in found if not self._gain(c) > 0]
        return min(1.0, len(found) * min(unbeaten)) if unbeaten else max(c.p for c in found)

    def _tied(self, found: Sequence[Contrast]) -> bool:
        """Say whether the gain over the best of these lies inside the margin on both sides."""
        strict = 1 - (1 - self.level) / len(found)
        lowest = min(self._gain(c) - c.half_width(self.level) for c in found)
        return lowest >= -self.margin and min(self._gain(c) + c.half_width(strict) for c in found) <= self.margin


def _words(pair: Pair, role: str, metric: str) -> str:
    """Return one comparison, e.g. ``better than its best unimodal (oct, mAP +0.052 [+0.011, +0.093])``."""
    text = {
        "better": f"better than {role}",
        "worse": f"worse than {role}",
        "tied": f"tied with {role}",
        "too few cases": f"too few cases to tell from {role}",
    }[pair.verdict]
    least = f", could show {pair.could_show}" if pair.verdict == "too few cases" else ""
    name = "" if pair.b == role else f"{pair.b}, "
    return f"{text} ({name}{metric} {pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]{least})"
