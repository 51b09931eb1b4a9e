"""Sheets of single cases: what is outlined, which pixels differ, and that an even map of attention looks even."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from PIL import Image

from fusionbench.report.overlays import dice, draw_sheet, draw_sheets

BLUE, YELLOW, GREEN = "#56B4E9", "#F0E442", "#009E73"


def case(**changes: Any) -> dict[str, Any]:
    """Return a case of 32 x 32 pixels whose predicted square lies two columns beside the true one."""
    true, predicted = np.zeros((2, 32, 32), bool)
    true[8:16, 8:16] = predicted[8:16, 10:18] = True
    peak = np.full((4, 4), 1 / 32, np.float32)
    peak[1, 2] = 1 - 15 / 32
    given = {
        "case": np.array("1a2b"),
        "true": np.array("acquired"),
        "decided": np.array("None"),
        "right": np.array(False),
        "picture": np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8),
        "predicted/vessels": predicted,
        "true/vessels": true,
        "known/vessels": np.array(True),
        "attention/18": peak,
        "attention/3": np.full((4, 4), 1 / 16, np.float32),
    }
    return {**given, **changes}


def panels(figure: Figure) -> dict[str, Any]:
    """Return the panels by title."""
    return {axes.get_title(): axes for axes in figure.findobj(Axes) if axes.get_title()}


def inks(axes: Any) -> list[tuple[float, ...]]:
    """Return the colours of the outlines in the order in which they are drawn."""
    return [tuple(c.get_edgecolor()[0][:3]) for c in axes.collections if isinstance(c, QuadContourSet)]


def test_a_file_for_each_case_and_no_more(tmp_path) -> None:
    cases = [case(case=np.array(name)) for name in ("1a2b", "3c4d")]
    np.savez(tmp_path / "maps.npz", **{key: np.stack([own[key] for own in cases]) for key in cases[0]})
    paths = draw_sheets(tmp_path / "maps.npz", tmp_path / "report" / "maps")
    assert [path.name for path in paths] == ["1a2b.png", "3c4d.png"]
    assert sorted((tmp_path / "report" / "maps").iterdir()) == paths
    with Image.open(paths[0]) as sheet:
        assert min(sheet.size) > 1000


def test_panels_stand_in_order_of_depth_and_the_title_says_who_and_what() -> None:
    figure = draw_sheet(case())
    assert list(panels(figure)) == [
        "Picture",
        "vessels, outlines",
        "vessels, pixels: Dice 0.75",
        "Attention at layer 3",
        "Attention at layer 18",
    ]
    title = figure.get_suptitle()
    assert "1a2b" in title
    assert "true: acquired, decided: None (wrong)" in title
    assert "(right)" in draw_sheet(case(right=np.array(True))).get_suptitle()


def test_outlines_of_both_masks_lie_on_the_picture() -> None:
    axes = panels(draw_sheet(case()))["vessels, outlines"]
    np.testing.assert_array_equal(axes.images[0].get_array(), case()["picture"])
    true, predicted = (c.get_paths()[0].get_extents() for c in axes.collections)
    assert inks(axes) == [to_rgb(BLUE), to_rgb(YELLOW)]
    assert (true.x0, true.x1, true.y0, true.y1) == (7.5, 15.5, 7.5, 15.5)
    assert (predicted.x0, predicted.x1) == (9.5, 17.5)


def test_pixels_say_what_is_missed_and_added() -> None:
    shown = panels(draw_sheet(case()))["vessels, pixels: Dice 0.75"].images[0].get_array()
    assert tuple(shown[12, 12]) == pytest.approx(to_rgb(GREEN))
    assert tuple(shown[12, 8]) == pytest.approx(to_rgb(BLUE))
    assert tuple(shown[12, 17]) == pytest.approx(to_rgb(YELLOW))
    assert tuple(shown[0, 0]) == pytest.approx([case()["picture"][0, 0].mean() / 510] * 3)


def test_without_a_true_mask_only_the_prediction_is_drawn() -> None:
    unknown = panels(draw_sheet(case(**{"known/vessels": np.array(False)})))
    assert [name for name in unknown if "vessels" in name] == ["vessels, outlines: no true mask"]
    assert inks(unknown["vessels, outlines: no true mask"]) == [to_rgb(YELLOW)]
    never = {key: value for key, value in case().items() if key not in ("true/vessels", "known/vessels")}
    assert list(panels(draw_sheet(never))) == list(unknown)


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_without_an_edge_has_no_outline(value) -> None:
    sheet = panels(draw_sheet(case(**{"predicted/vessels": np.full((32, 32), value)})))
    assert inks(sheet["vessels, outlines"]) == [to_rgb(BLUE)]


def test_an_even_map_leaves_the_picture_and_depths_share_a_scale() -> None:
    sheet = panels(draw_sheet(case()))
    even, peaked = (sheet[f"Attention at layer {i}"].images for i in (3, 18))
    np.testing.assert_allclose(even[0].get_array(), case()["picture"].mean(axis=-1) / 255)
    assert not even[1].get_array()[..., 3].any()
    heat = peaked[1].get_array()
    assert heat[1, 2, 3] == pytest.approx(0.8)
    assert np.count_nonzero(heat[..., 3]) == 1
    assert peaked[1].get_extent() == [-0.5, 31.5, 31.5, -0.5]
    share = np.full((4, 4), 1 / 16, np.float32)
    share[0, 0] = 2 / 16
    halfway = panels(draw_sheet(case(**{"attention/3": share})))["Attention at layer 3"].images[1].get_array()
    assert halfway[0, 0, 3] == pytest.approx(0.8 * math.log(2) / math.log(16 * (1 - 15 / 32)))


def test_a_nearly_even_map_looks_nearly_even() -> None:
    share = np.full((4, 4), 1 / 16, np.float32)
    share[0, 0] = 1.1 / 16
    alone = {key: value for key, value in case(**{"attention/3": share}).items() if key != "attention/18"}
    heat = panels(draw_sheet(alone))["Attention at layer 3"].images[1].get_array()
    assert heat[0, 0, 3] == pytest.approx(0.8 * math.log2(1.1), rel=1e-4)


@pytest.mark.parametrize("drop", ["attention/", "vessels"])
def test_either_masks_or_attention_alone(drop) -> None:
    figure = draw_sheet({key: value for key, value in case().items() if drop not in key})
    assert not any(drop.strip("/").lower() in name.lower() for name in panels(figure))
    figure.draw_without_rendering()


def test_dice() -> None:
    a, b = np.zeros((2, 4, 4), bool)
    assert dice(a, b) == 1
    a[0] = True
    assert dice(a, b) == 0
    b[:2] = True
    assert dice(a, b) == pytest.approx(2 * 4 / (4 + 8))
