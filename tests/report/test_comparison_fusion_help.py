"""Did fusion help: said only against every modality, whichever scored best."""

from dataclasses import replace

import pytest
from contestants import contestants

from fusionbench.errors import UserError
from fusionbench.report.comparison import Entry, compare, did_fusion_help, held_against
from fusionbench.report.contrast import Contrast, contrast
from fusionbench.report.fusion_help import _Rule
from fusionbench.report.methods import align
from fusionbench.report.resampling import resample

ABC = ["a", "b", "c"]
RULE = _Rule("mAP", 0.02, 0.95)


def answer(*gains, error=0.01, rule=RULE):
    """Return the pair of one strategy whose differences to the unimodals are these."""
    found = {f"u{number}": Contrast(gain, error, 1e6) for number, gain in enumerate(gains)}
    return rule.against_best({"fusion": found})[0]


def test_better_needs_every_modality_beaten():
    assert answer(0.1, 0.2).verdict == "better"
    assert answer(0.1, 0.015).verdict == "too few cases"
    assert answer(0.1, 0.015).b == "u1"
    assert answer(0.1, 0.03).p == pytest.approx(Contrast(0.03, 0.01, 1e6).p)


def test_worse_needs_one_modality_that_wins_after_bonferroni():
    assert answer(0.1, -0.025).verdict == "worse"  # p = .0124, twice that is below .05
    assert answer(0.1, -0.021).verdict == "too few cases"  # p = .036
    assert answer(0.1, -0.021).p == pytest.approx(2 * Contrast(-0.021, 0.01, 1e6).p)


def test_tied_needs_both_sides():
    assert answer(0.001, 0.2, error=0.005).verdict == "tied"
    assert answer(0.0105, 0.2, error=0.0047).verdict == "better"  # surely above all, though by little
    assert answer(0.009, 0.009, error=0.005).verdict == "too few cases"  # upper bound at the stricter level
    assert answer(0.009, error=0.005).verdict == "tied"
    assert answer(-0.011, 0.0, error=0.005).verdict == "too few cases"


def test_lower_calibration_error_is_a_gain():
    rule = replace(RULE, metric="ECE")
    assert answer(-0.1, -0.2, rule=rule).verdict == "better"
    assert answer(-0.1, -0.2, rule=rule).b == "u0"
    assert answer(0.1, -0.2, rule=rule).verdict == "worse"


def test_strategies_share_the_error():
    found = {"u": Contrast(0.021, 0.01, 1e6)}
    pairs = RULE.against_best({"x": found, "y": found})
    assert [pair.p_holm for pair in pairs] == pytest.approx([2 * pairs[0].p] * 2)
    assert [pair.verdict for pair in pairs] == ["too few cases"] * 2


def test_each_modality_alone_is_met_on_the_cases_that_both_have():
    fusion, concat, oct_, cfp = contestants({"EI": 1.5, "concat": 0.6, "oct": 0.5, "cfp": 0.2}, cases=150, groups=75)
    seen = [replace(oct_, runs=(oct_.runs[0].iloc[30:],)), replace(cfp, runs=(cfp.runs[0].iloc[:120],))]
    (answer,) = did_fusion_help([fusion, concat, *seen], [Entry("EI", ("oct", "cfp"), "concat")], ABC, False)
    assert answer.fewer == ("oct on 120 of 150 cases", "cfp on 120 of 150 cases")
    assert answer.sentence.endswith("; compared with oct on 120 of 150 cases, cfp on 120 of 150 cases.")
    part = slice(30, None) if answer.unimodal.b == "oct" else slice(120)
    cut = [replace(m, runs=(m.runs[0].iloc[part],)) for m in (fusion, concat, oct_ if part.start else cfp)]
    direct = compare(cut, ABC, False, pairs=[("EI", answer.unimodal.b)]).pairs[0]
    assert (answer.unimodal.difference, answer.unimodal.low) == (direct.difference, direct.low)
    whole = compare([fusion, concat], ABC, False).pairs[0]
    assert answer.concat.difference == whole.difference


def test_modalities_that_have_nothing_in_common_are_refused():
    fusion, oct_ = contestants({"EI": 1.5, "oct": 0.5})
    halves = [replace(fusion, runs=(fusion.runs[0].iloc[:30],)), replace(oct_, runs=(oct_.runs[0].iloc[30:],))]
    with pytest.raises(UserError, match="have no test case in common"):
        did_fusion_help(halves, [Entry("EI", ("oct",), None)], ABC, False)


def test_one_modality_of_several_is_not_called_the_best():
    fusion, oct_ = contestants({"EI": 1.5, "oct": 0.5})
    (answer,) = did_fusion_help([fusion, oct_], [Entry("EI", ("oct",), None, whole=False)], ABC, False)
    assert "the only modality alone that is given (oct, mAP" in answer.sentence


def test_end_to_end():
    fusion, concat, oct_, cfp = contestants({"EI": 3.0, "concat": 0.6, "oct": 0.5, "cfp": 0.2}, cases=150, groups=75)
    alone = ("oct", "cfp")
    entries = [Entry("EI", alone, "concat"), Entry("concat", alone, None)]
    first, second = did_fusion_help([fusion, concat, oct_, cfp], entries, ABC, False)
    assert (first.strategy, first.unimodal.verdict, first.concat.verdict) == ("EI", "better", "better")
    assert second.concat is None
    direct = compare([fusion, concat, oct_, cfp], ABC, False, pairs=[("EI", first.unimodal.b)]).pairs[0]
    assert (first.unimodal.difference, first.unimodal.low) == (direct.difference, direct.low)
    against = f"(oct, mAP {direct.difference:+.3f} [{direct.low:+.3f}, {direct.high:+.3f}])"
    plain = f"(mAP {first.concat.difference:+.3f} [{first.concat.low:+.3f}, {first.concat.high:+.3f}])"
    assert first.sentence == f"EI: better than its best unimodal {against}; better than concat {plain}."
    assert "too few cases to tell from its best unimodal (oct" in second.sentence
    assert "could show 0." in second.sentence
    assert did_fusion_help([fusion, oct_], [Entry("EI", ("oct",), None)], ABC, False)[0].concat is None


def test_a_true_tie_with_the_best_of_several_is_not_called_better():
    called = 0
    for draw in range(60):
        methods = contestants(dict.fromkeys(["fusion", "x", "y", "z"], 1.0), cases=79, groups=60, draw=draw)
        draws = resample(align(methods, ABC, False), "accuracy", resamples=100, seed=draw)
        found = [contrast(draws, "fusion", name) for name in "xyz"]
        called += RULE._p(found) < 0.05 and min(one.difference for one in found) > 0
    assert called <= 3


def test_without_unimodals():
    with pytest.raises(UserError, match="add the unimodal rows"):
        did_fusion_help(contestants({"a": 1.0}), [Entry("a", (), None)], ABC, False)


def test_a_strategy_whose_baselines_have_no_result_is_told():
    unimodals = {"EI": ["oct", "cfp"], "tuned": ["oct tuned"], "lost": ["oct"], "bare": []}
    there = ["oct", "oct tuned", "EI", "tuned", "bare"]
    entries, reason = held_against(unimodals, {"tuned": "concat tuned", "EI": "concat"}, there)
    assert entries == [Entry("tuned", ("oct tuned",), None)]
    assert reason == (
        "Not answered for EI: cfp has no result. "
        "Not answered for bare: no row has one modality alone with its tuning and encoders."
    )
    assert held_against(unimodals, {}, ["oct"]) == ([], "Not answered: no strategy has a result.")
