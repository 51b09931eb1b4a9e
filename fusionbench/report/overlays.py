"""Sheets of single cases: picture, outlines of true and predicted masks, and where each depth looks.

Names carry shapes: H, W pixels, G places of attention to a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from fusionbench.files import write_bytes
from fusionbench.report.style import head, new_figure, plain

# Okabe and Ito's sky blue and yellow, both seen on a red fundus and on grey; darker green lets the errors stand out.
_TRUE, _PREDICTED, _BOTH = "#56B4E9", "#F0E442", "#009E73"
_HEAT, _OPAQUE = "plasma", 0.8
_UPPER, _LOWER = 5.2, 3.8  # inches
_ATTENTION = "attention/"

Arrays = Mapping[str, NDArray[Any]]


def draw_sheets(path: Path, folder: Path) -> list[Path]:
    """Draw each case that ``fusionbench.maps.write`` left in an .npz, a file a case, named by the hashed id.

    Args:
        path: The .npz.
        folder: Where the files go; made if need be.

    Returns:
        The files written.
    """
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    paths = []
    for index, name in enumerate(arrays["case"]):
        figure = draw_sheet({key: values[index] for key, values in arrays.items()})
        buffer = BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        paths.append(write_bytes(folder / f"{name}.png", buffer.getvalue()))
    return paths


def draw_sheet(case: Arrays) -> Figure:
    """Return the sheet of one case: above the picture and its masks, below what each depth attends to.

    Args:
        case: As ``fusionbench.maps.write`` describes, without the axis of cases.
    """
    masks = [name.removeprefix("predicted/") for name in case if name.startswith("predicted/")]
    depths = sorted((name for name in case if name.startswith(_ATTENTION)), key=_depth)
    drawings: list[Callable[[Axes, Arrays], None]] = [_draw_picture]
    for name in masks:
        drawings.append(partial(_draw_outlines, name=name))
        drawings += [partial(_draw_agreement, name=name)] if _is_known(case, name) else []
    figure = new_figure(12.6, _UPPER + _LOWER * bool(depths))
    grid = figure.add_gridspec(2, 1, height_ratios=[_UPPER, _LOWER]) if depths else figure.add_gridspec(1, 1)
    for axes, drawing in zip(_panels(figure.add_subfigure(grid[0]), len(drawings)), drawings, strict=True):
        drawing(axes, case)
    if depths:
        _draw_attention(figure.add_subfigure(grid[1]), case, depths)
    verdict = "right" if case["right"] else "wrong"
    words = f"true: {plain(str(case['true']))}, decided: {plain(str(case['decided']))} ({verdict})"
    head(figure, f"Case {case['case']}", words)
    return figure


def dice(predicted_HW: NDArray[np.bool_], true_HW: NDArray[np.bool_]) -> float:
    """Return the Dice score of two masks, 1 where both are empty."""
    return float(f1_score(true_HW.ravel(), predicted_HW.ravel(), zero_division=1.0))


def _is_known(case: Arrays, name: str) -> bool:
    """Say whether a case has the true mask."""
    return bool(case.get(f"known/{name}", False))


def _panels(part: SubFigure, count: int) -> list[Axes]:
    """Return panels in a row, without frames."""
    panels = list(part.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.set_axis_off()
    return panels


def _draw_picture(axes: Axes, case: Arrays) -> None:
    axes.imshow(case["picture"])
    axes.set_title("Picture", fontsize=11)


def _draw_outlines(axes: Axes, case: Arrays, name: str) -> None:
    """Draw the outlines of the predicted mask and, where there is one, of the true one, over the picture."""
    axes.imshow(case["picture"])
    drawn = {"true": (case[f"true/{name}"], _TRUE, 1.4)} if _is_known(case, name) else {}
    drawn["predicted"] = (case[f"predicted/{name}"], _PREDICTED, 0.7)
    for mask_HW, ink, width in drawn.values():
        if mask_HW.min() < mask_HW.max():  # else there is no outline, of which matplotlib would warn
            axes.contour(mask_HW, levels=[0.5], colors=[ink], linewidths=width)
    axes.set_title(f"{plain(name)}, outlines" + ("" if _is_known(case, name) else ": no true mask"), fontsize=11)
    _legend(axes, [Line2D([], [], color=ink, linewidth=2, label=label) for label, (_, ink, _) in drawn.items()])


def _draw_agreement(axes: Axes, case: Arrays, name: str) -> None:
    """Draw where both masks agree, what is missed and what is added, which outlines of thin vessels do not show."""
    predicted_HW, true_HW = case[f"predicted/{name}"], case[f"true/{name}"]
    shown_HW3 = np.repeat(_grey(case)[..., None] * 0.5, 3, axis=-1)
    kinds = {
        "in both": (true_HW & predicted_HW, _BOTH),
        "missed": (true_HW & ~predicted_HW, _TRUE),
        "added": (predicted_HW & ~true_HW, _PREDICTED),
    }
    for mask_HW, ink in kinds.values():
        shown_HW3[mask_HW] = to_rgb(ink)
    axes.imshow(shown_HW3, interpolation="nearest")
    axes.set_title(f"{plain(name)}, pixels: Dice {dice(predicted_HW, true_HW):.2f}", fontsize=11)
    _legend(axes, [Patch(color=ink, label=label) for label, (_, ink) in kinds.items()])


def _draw_attention(part: SubFigure, case: Arrays, depths: list[str]) -> None:
    """Draw each depth's map over the grey picture, coloured where a place counts more than its even share.

    All depths have one scale, so that an even map looks even, and logarithmic, since a share is a ratio.
    """
    shares = {name: case[name] * case[name].size for name in depths}
    most = max(2.0, *(float(share.max()) for share in shares.values()))
    scale = LogNorm(1, most, clip=True)
    grey_HW = _grey(case)
    high, wide = grey_HW.shape
    panels = _panels(part, len(depths))
    for axes, (name, share_GG) in zip(panels, shares.items(), strict=True):
        axes.imshow(grey_HW, cmap="gray", vmin=0, vmax=1)
        height_GG = np.asarray(scale(share_GG))
        inks = colormaps[_HEAT](height_GG)
        inks[..., 3] = _OPAQUE * height_GG  # what counts little leaves the picture to be seen
        axes.imshow(inks, extent=(-0.5, wide - 0.5, high - 0.5, -0.5))
        axes.set_title(f"Attention at layer {name.removeprefix(_ATTENTION)}", fontsize=11)
    bar = part.colorbar(ScalarMappable(scale, _HEAT), ax=panels, shrink=0.8)
    ticks = [2.0**power for power in range(math.floor(math.log2(most)) + 1)]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("Times a place's even share", fontsize=9)


def _grey(case: Arrays) -> NDArray[np.float64]:
    """Return the picture (H, W) in 0..1 without colour."""
    grey_HW: NDArray[np.float64] = case["picture"].mean(axis=-1) / 255
    return grey_HW


def _legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """Put the legend below the picture, where it hides nothing."""
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(handles), frameon=False, fontsize=9
    )


def _depth(name: str) -> tuple[float, str]:
    """Sort layers by their place, whatever else after them."""
    layer = name.removeprefix(_ATTENTION)
    return (float(layer) if layer.isdecimal() else math.inf, layer)
