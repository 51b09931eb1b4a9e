"""What of MDF is trained, its masks and maps, depths, several pictures, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mdf_networks import CLOSE, MADE, PRESENT, cases_of, mdf
from tiny import batch, criterion, encoder_node, pool_for, step, trained

from fusionbench.encoders.unet import UNet
from fusionbench.encoders.vision_language import VisionLanguage
from fusionbench.errors import UserError
from fusionbench.fusion.mdf import MDF
from fusionbench.types import ModalitySpec, Problem


def test_the_mask_is_learned_and_scored_where_there_is_picture_and_mask() -> None:
    network, cases = mdf(mask="vessels", seg_weight=0.5), cases_of()
    output, losses = step(network, cases)
    assert output.maps["vessels"].shape == (4, 1, 32, 32)
    torch.testing.assert_close(losses["answer"], -output.logits[torch.arange(4), cases.target].mean())
    predicted, true = output.maps["vessels"][0], cases.extras["vessels"][0]  # of the last, the picture is absent
    p = predicted.sigmoid()
    dice = 1 - 2 * (p * true).sum() / (p + true).sum()
    entropy = torch.nn.functional.binary_cross_entropy(p, true)
    torch.testing.assert_close(losses["segmentation"], 0.5 * (dice + entropy))
    score = network.scores(output, cases)["dice"]
    hard = (predicted > 0).float()
    torch.testing.assert_close(score[0], 2 * (hard * true).sum() / (hard + true).sum())
    assert score[1:].isnan().all()


def test_data_without_the_mask_are_predicted_without_its_score() -> None:
    network, cases = mdf(mask="vessels"), cases_of()._replace(extras={})
    output = network(cases.inputs, cases.present)
    assert output.logits.isfinite().all()
    assert network.scores(output, cases) == {}


def test_a_batch_without_any_mask_has_no_loss_of_masks_but_gradients() -> None:
    network, cases = mdf(mask="vessels"), cases_of()
    none = cases._replace(extras={**cases.extras, "vessels/present": torch.zeros(4, dtype=torch.bool)})
    _, losses = step(network, none)
    assert losses["segmentation"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in trained(network))


def test_a_single_depth_takes_the_deepest_skip() -> None:
    language = mdf().views.encoder("report")
    assert isinstance(language, VisionLanguage)
    network = mdf(mask="vessels", layers=[language.cross_layers[0]])
    channels = network.unet().skip_channels[-1]
    assert [block.skip.project.in_features for block in network.blocks.values()] == [channels]
    assert [film.project.out_features for film in network.films.values()] == [2 * channels]
    sum(step(network, cases_of())[1].values()).backward()


@pytest.mark.parametrize("freeze", [(), ("unet",), ("language_model",), ("unet", "language_model")])
@pytest.mark.parametrize("encoder", ["llama_vision", "mllama"])
def test_parts_are_all_that_is_trained_each_once(encoder: str, freeze: tuple[str, ...]) -> None:
    network = mdf(encoder, "full", mask="vessels", freeze=freeze).train()
    parts = network.parts()
    assert list(parts) == ["unet", "language_model", "fusion"]
    ids = [id(p) for own in parts.values() for p in own]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {id(p) for _, p in trained(network)}
    unet = network.unet()
    assert {id(p) for p in unet.decoder.parameters()} <= {id(p) for p in parts["unet"]}
    assert any(p.requires_grad for p in unet.net.parameters()) == unet.net.training == ("unet" not in freeze)
    assert unet.decoder.training
    assert unet.head.training
    assert not any(module.training for module in network.eval().modules())
    left = sum(p.numel() for p in parts["language_model"])
    language = network.views.encoder("report")
    fresh = sum(p.numel() for n, p in language.named_parameters() if n.startswith("sight."))
    assert left == (fresh if "language_model" in freeze else sum(p.numel() for p in language.parameters()))
    assert network.part_metrics.keys() <= parts.keys()


def test_several_pictures_of_a_case_are_read_side_by_side() -> None:
    made = Problem({**MADE.modalities, "picture": ModalitySpec("slices", size=32, instances=2)}, MADE.classes)
    one, two = mdf(), mdf(made=made)
    two.load_state_dict(one.state_dict())
    cases = batch(MADE, present=PRESENT)
    inputs = {**cases.inputs, "picture": cases.inputs["picture"].expand(-1, 2, -1, -1, -1)}
    wanted, found = one(cases.inputs, PRESENT), two(inputs, PRESENT)
    torch.testing.assert_close(found.logits, wanted.logits, **CLOSE)
    for name, value in wanted.maps.items():
        torch.testing.assert_close(found.maps[name], value, **CLOSE)


def test_attention_maps_are_made_where_they_are_drawn() -> None:
    network, cases = mdf(grid=3), cases_of()
    maps = network(cases.inputs, cases.present).maps
    assert {value.shape for value in maps.values()} == {(4, 3, 3)}
    torch.testing.assert_close(sum(maps.values()).sum(dim=(1, 2)), torch.full((4,), 4.0))
    assert not MDF.draws
    network.draws = False
    assert not network(cases.inputs, cases.present).maps


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"freeze": ("u_net",)}, "'fusion.freeze' cannot name 'u_net'; did you mean 'unet'"),
        ({"layers": [1]}, r"'fusion.layers' names layer 1, but pictures are read by layers \[0, 2"),
        ({"cross": False}, "the U-Net has no part in anything"),
        ({"mask": None}, "the U-Net has a mask decoder, but fusion.mask names no mask"),
        ({"seg_weight": -1.0}, "'fusion.seg_weight' must be at least 0"),
        ({"heads": 5}, "heads"),
        ({"query": "uent"}, "did you mean 'unet'"),
        ({"query": "vision", "gate": 0.1}, r"'fusion\.gate' is 0\.1, but .* no tokens .*: set fusion\.gate=null"),
        (
            {"cross": False, "film": True, "gate": 0.5},
            r"'fusion\.gate' is 0\.5, but with fusion\.cross=false nothing is gated",
        ),
        ({"alpha": 0.0, "learn_alpha": False}, r"'fusion\.alpha' is 0 and not learned, .* fusion\.learn_alpha=true"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        mdf(**options)


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="has no mask decoder; give its encoder segment=true"):
        MDF(MADE, pool_for("mdf", MADE), mask="vessels")
    several = Problem({**MADE.modalities, "picture": ModalitySpec("slices", size=32, instances=2)}, MADE.classes)
    with pytest.raises(UserError, match="needs one picture to a case, not 2"):
        mdf(made=several, mask="vessels")
    network, cases = mdf(mask="vessel"), cases_of()
    output = network(cases.inputs, cases.present)
    with pytest.raises(UserError, match=r"the data have no mask 'vessel', .* did you mean 'vessels'"):
        network.losses(output, cases, criterion(MADE))
    small = cases._replace(extras={"vessel": torch.zeros(4, 1, 16, 16), "vessel/present": PRESENT[:, 0]})
    with pytest.raises(UserError, match=r"a mask is 1 x 16 x 16 .* but its prediction 1 x 32 x 32"):
        network.scores(output, small)


def test_pictures_with_another_encoder_are_refused() -> None:
    source = pool_for("mdf", MADE)
    source.nodes = {**source.nodes, "picture": encoder_node("timm_cnn")}
    with pytest.raises(UserError, match="modality 'picture' needs encoder unet"):
        MDF(MADE, source)
    assert isinstance(mdf().unet(), UNet)


def test_absent_pictures_have_no_part_in_batch_statistics() -> None:
    some, cases = mdf(mask="vessels").train(), cases_of()
    only = mdf(mask="vessels").train()
    only.load_state_dict(some.state_dict())
    rows = PRESENT[:, 0]
    found = some({**cases.inputs, "picture": cases.inputs["picture"] + 9 * ~rows[:, None, None, None, None]}, PRESENT)
    wanted = only({name: value[rows] for name, value in cases.inputs.items()}, PRESENT[rows])
    torch.testing.assert_close(found.logits[rows], wanted.logits, **CLOSE)
    torch.testing.assert_close(found.maps["vessels"][rows], wanted.maps["vessels"], **CLOSE)
    assert not found.maps["vessels"][~rows].any()
    torch.testing.assert_close(some.unet().state_dict(), only.unet().state_dict())
    before = {name: value.clone() for name, value in some.unet().state_dict().items()}
    none = cases._replace(present=torch.tensor([[False, True]]).expand(4, -1))
    sum(step(some, none)[1].values()).backward()
    torch.testing.assert_close(some.unet().state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is not None and not p.grad.any() for p in some.unet().parameters())


@pytest.mark.parametrize("decode", ["likelihood", "generate"])
@torch.no_grad()
def test_it_runs_wholly_in_bfloat16(decode: str) -> None:
    network, cases = mdf(mask="vessels", decode=decode), cases_of()
    wanted = network(cases.inputs, cases.present)
    half = {"picture": cases.inputs["picture"].bfloat16(), "report": cases.inputs["report"]}
    found = network.bfloat16()(half, cases.present)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0.05, atol=0.1)
    assert found.logits.dtype == torch.float32
    assert found.maps["vessels"].isfinite().all()
