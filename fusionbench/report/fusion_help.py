"""Did fusion help? Each strategy against the best modality alone and against plain concatenation, on the same cases.

Which modality is best is not known, only which scored highest here, and choosing by the test score would flatter the
fusion. So "better than its best unimodal" is said only of a strategy that is better than every unimodal (an
intersection-union test: Berger, 1982; no adjustment needed); "worse" needs one unimodal that is better after
Bonferroni's correction for their number; "tied" needs all lower bounds, and one upper bound so corrected, inside the
margin. The strategies' p-values are adjusted by Holm's method. A modality alone was not tested where it is missing: it
and a strategy are compared on the cases that both have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from fusionbench.errors import UserError
from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.report.contrast import Contrast, contrast, holm
from fusionbench.report.methods import Method
from fusionbench.report.shared_cases import SharedCases
from fusionbench.report.verdicts import Pair, check_options, judge


@dataclass(frozen=True)
class Entry:
    """A strategy and what it is held against.

    Attributes:
        strategy: Its name.
        unimodals: Names of its modalities alone, at least one.
        concat: Name of plain concatenation; None where there is none, or it is the strategy itself.
        whole: Whether the unimodals are all of the strategy's modalities.
    """

    strategy: str
    unimodals: tuple[str, ...]
    concat: str | None
    whole: bool = True


@dataclass(frozen=True)
class FusionHelp:
    """One strategy's answer.

    Attributes:
        strategy: Its name.
        metric: What is compared.
        unimodal: Against the unimodal that scored best, named in ``unimodal.b``, with the difference to that one; its
            p-values and its word are about the best unimodal, whichever that is.
        concat: Against plain concatenation; None where there is none, or it is the strategy itself.
        fewer: What was compared on fewer cases than there are, such as ``oct alone on 6 of 8 cases``.
        role: What the unimodal is.
    """

    strategy: str
    metric: str
    unimodal: Pair
    concat: Pair | None
    fewer: tuple[str, ...] = ()
    role: str = "its best unimodal"

    @property
    def sentence(self) -> str:
        """The answer in one line."""
        parts = [f"{self.strategy}: {_words(self.unimodal, self.role, self.metric)}"]
        parts += [_words(self.concat, "concat", self.metric)] if self.concat else []
        return "; ".join([*parts, *([f"compared with {', '.join(self.fewer)}"] if self.fewer else [])]) + "."


def held_against(
    unimodals: Mapping[str, Sequence[str]], concat: Mapping[str, str], there: Collection[str]
) -> tuple[list[Entry], str]:
    """Return the strategies that can be held against their modalities alone, and why others cannot, or an empty text.

    Args:
        unimodals: The names of each strategy's modalities alone; what is no key is no strategy.
        concat: The name of each strategy's plain concatenation, where it has one.
        there: The names of what has a result, in the order of the answers.
    """
    entries = []
    open_: dict[tuple[str, ...], list[str]] = {}
    strategies = [name for name in there if name in unimodals]
    for strategy in strategies:
        alone, plain = tuple(unimodals[strategy]), concat.get(strategy)
        lost = tuple(name for name in alone if name not in there)
        if lost or not alone:
            open_.setdefault(lost, []).append(strategy)
        else:
            entries.append(Entry(strategy, alone, plain if plain in there else None))
    if not strategies:
        return [], "Not answered: no strategy has a result."
    named = bool(entries) or len(open_) > 1
    return entries, " ".join(_open_question(lost, rows, named) for lost, rows in open_.items())


def _open_question(lost: Sequence[str], rows: Sequence[str], named: bool) -> str:
    """Return why strategies cannot be held against their modalities alone; names them where others can."""
    who = f"Not answered for {' and '.join(rows)}" if named else "Not answered"
    if not lost:
        return f"{who}: no row has one modality alone with {'their' if len(rows) > 1 else 'its'} tuning and encoders."
    return f"{who}: {' and '.join(lost)} {'has' if len(lost) == 1 else 'have'} no result."


def did_fusion_help(
    methods: Sequence[Method],
    entries: Sequence[Entry],
    classes: Sequence[str],
    multilabel: bool,
    *,
    metric: str = "mAP",
    margin: float = 0.02,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[FusionHelp]:
    """Compare each strategy with its own unimodals and its own concat.

    Args:
        methods: All that the entries name, and others, over which the variance between seeds is pooled too.
        entries: The strategies that may have helped, each with what it is held against.
        classes: K names in label order.
        multilabel: Whether a case can have several classes.
        metric: A headline metric.
        margin: Half-width of what counts as no difference.
        level: Coverage of the intervals.
        resamples: How many times groups and seeds are drawn.
        seed: Of the draws.

    Raises:
        UserError: A strategy has no unimodal, methods differ in cases or labels, or a name or number is impossible.
    """
    check_options(metric, margin, level, resamples)
    if not all(entry.unimodals for entry in entries):
        raise UserError("whether fusion helped needs each modality alone beside it; add the unimodal rows")
    shared = SharedCases(methods, classes, multilabel, (metric,), resamples=resamples, seed=seed)
    return fusion_help(shared, entries, metric, margin=margin, level=level)


def fusion_help(
    shared: SharedCases, entries: Sequence[Entry], metric: str, *, margin: float = 0.02, level: float = 0.95
) -> list[FusionHelp]:
    """Answer for each strategy against its own unimodals and its own concat, on the cases that each two share.

    Args:
        shared: The methods, resampled on the cases that they share.
        entries: The strategies; p-values are adjusted over all of them.
        metric: What was resampled.
        margin: Half-width of what counts as no difference.
        level: Coverage of the intervals.
    """

    def between(a: str, b: str) -> Contrast:
        return contrast(shared.draws(a, b)[metric], a, b)

    rule = _Rule(metric, margin, level)
    alone = {e.strategy: {name: between(e.strategy, name) for name in e.unimodals} for e in entries}
    plain = {e.strategy: (e.concat, between(e.strategy, e.concat)) for e in entries if e.concat}
    concat, best = rule.against_one(plain), rule.against_best(alone)
    return [
        FusionHelp(e.strategy, metric, pair, concat.get(e.strategy), _fewer(shared, e, metric), _role(e))
        for e, pair in zip(entries, best, strict=True)
    ]


def _fewer(shared: SharedCases, entry: Entry, metric: str) -> tuple[str, ...]:
    """Return with what a strategy is compared on fewer cases than there are."""
    others = [*entry.unimodals, *([entry.concat] if entry.concat else [])]
    counts = {name: shared.draws(entry.strategy, name)[metric].cases for name in others}
    most = len(shared.all_cases)
    return tuple(f"{name} on {count:,} of {most:,} cases" for name, count in counts.items() if count < most)


def _role(entry: Entry) -> str:
    return "its best unimodal" if entry.whole or len(entry.unimodals) > 1 else "the only modality alone that is given"


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
