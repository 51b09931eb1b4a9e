"""The arrays of a few test cases: which are chosen, and that they are what the strategy returned, in plain pixels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import make_fives
from PIL import Image
from tiny import pool
from torch import Tensor, nn

from fusionbench import maps
from fusionbench.data.fives import Fives
from fusionbench.data.module import FusionData
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.criterion import CrossEntropy
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.constant import constant
from fusionbench.task import FusionTask
from fusionbench.types import Output, Problem

SIZE = 48


class Mapping(Strategy):
    """Maps that can be told from the picture by hand: bright pixels, and the mean of each quarter."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.views = pool(problem, "frozen").views({"cfp": "cfp"})
        self.scale = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []
        self.drawing: list[bool] = []

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> Output:
        self.modes.append(self.training)
        self.drawing.append(self.draws)
        picture = inputs["cfp"][:, 0] * self.scale
        quarters = nn.functional.adaptive_avg_pool2d(picture.mean(dim=1), 2)
        shown = {"vessels": 0.02 * picture[:, :1], "drusen": -picture[:, :1], "attention/3": quarters}
        return Output(torch.zeros(len(picture), 4), maps=shown)


class Silent(Mapping):
    """Returns no maps."""

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> Output:
        return Output(torch.zeros(len(inputs["cfp"]), 4))


@pytest.fixture
def source(tmp_path) -> FusionData:
    root = make_fives(tmp_path)
    (root / "test" / "Groud truth" / "1_A.png").unlink()
    options = {"masks": ["vessels"], "allow": ["near_duplicates"], "transforms": {"normalize": "imagenet"}}
    return FusionData(Fives(str(root), size=SIZE), {}, 0, cache=str(tmp_path / "cache"), **options)


def trained(strategy: type[Mapping], source: FusionData) -> FusionTask:
    made = FusionTask(source.problem, lambda: strategy(source.problem), sgd, constant, CrossEntropy())
    made.configure_model()
    return made.train()


def predicted(source: FusionData) -> pd.DataFrame:
    """Return a table of the test cases in which every other is decided wrong."""
    test = source.table[source.table["split"] == "test"]
    decided = [int(k) if i % 2 else (int(k) + 1) % 4 for i, k in enumerate(test["label"])]
    scores = {f"prob.{name}": np.eye(4)[decided][:, k] for k, name in enumerate(source.problem.classes)}
    fixed = {"case": test["case_id"].to_numpy(), "target": test["label"].to_numpy(), "present.cfp": True}
    return pd.DataFrame(fixed | scores)


def many(count: int = 40) -> pd.DataFrame:
    """Return two classes, of which all but one of 'b' are decided right."""
    target = np.arange(count) % 2
    decided = np.where(np.arange(count) == 7, 0, target)
    ids = [f"c{i:02d}" for i in range(count)]
    return pd.DataFrame({"case": ids, "target": target, "prob.a": 1.0 - decided, "prob.b": decided * 1.0})


def test_arrays_are_what_the_strategy_returned_over_plain_pixels(tmp_path, source) -> None:
    task, table = trained(Mapping, source), predicted(source)
    path = maps.write(tmp_path / "run" / "maps.npz", task, source, table, lambda name: f"hash of {name}")
    assert path is not None
    assert task.strategy.training
    assert task.strategy.modes == [False] * 6
    assert task.strategy.drawing == [True] * 6
    assert not task.strategy.draws
    with np.load(path) as arrays:
        left = {f"hash of {case}": i for i, case in enumerate(source.data.case_id)}
        assert len(set(arrays["case"])) == 6
        for n, name in enumerate(arrays["case"]):
            row = left[name]
            file = source.data.cells["cfp"][row][0]
            with Image.open(file) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            np.testing.assert_array_equal(arrays["picture"][n], pixels)
            red = pixels[..., 0] / 255 > 0.485
            np.testing.assert_array_equal(arrays["predicted/vessels"][n], red)
            np.testing.assert_array_equal(arrays["predicted/drusen"][n], ~red)
            normal = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).mean(axis=-1)
            quarters = normal.reshape(2, SIZE // 2, 2, SIZE // 2).mean(axis=(1, 3))
            np.testing.assert_allclose(arrays["attention/3"][n], quarters, atol=1e-5)
            known = bool(source.data.masks["vessels"].items[row])
            assert arrays["known/vessels"][n] == known
            mask = np.zeros((SIZE, SIZE), bool)
            if known:
                with Image.open(file.replace("Original", "Groud truth")) as opened:
                    mask = np.asarray(opened.convert("L")) > 127
            np.testing.assert_array_equal(arrays["true/vessels"][n], mask)
            assert arrays["true"][n] == source.problem.classes[source.data.target[row]]
            assert arrays["right"][n] == (arrays["true"][n] == arrays["decided"][n])
        assert "true/drusen" not in arrays


def test_without_maps_nothing_is_written(tmp_path, source) -> None:
    assert maps.write(tmp_path / "maps.npz", trained(Silent, source), source, predicted(source), str) is None
    assert not (tmp_path / "maps.npz").exists()


def test_cases_without_the_picture_are_not_shown(tmp_path, source) -> None:
    absent = predicted(source).assign(**{"present.cfp": False})
    assert maps.write(tmp_path / "maps.npz", trained(Mapping, source), source, absent, str) is None


def test_each_class_right_and_wrong_is_chosen() -> None:
    chosen = maps.choose(many(), ("a", "b"), ())
    assert len(chosen) == 6
    assert set(zip(chosen["true"], chosen["decided"], strict=True)) == {("a", "a"), ("b", "b"), ("b", "a")}
    assert chosen["case"].tolist() == maps.choose(many(), ("a", "b"), ())["case"].tolist()
    assert chosen["case"].tolist() != maps.choose(many(), ("a", "b"), (), seed=1)["case"].tolist()


def test_many_classes_leave_room_for_wrong_ones() -> None:
    names = [f"n{k}" for k in range(12)]
    scores = pd.DataFrame(np.eye(12)[[*range(12), 0]], columns=[f"prob.{name}" for name in names])
    table = scores.assign(case=[str(i) for i in range(13)], target=[*range(12), 5])
    assert (~maps.choose(table, names, ())["right"]).sum() == 1


def test_preferred_cases_come_first() -> None:
    preferred = ["c20", "c22", "c24", "c21", "c23", "c25"]
    chosen = maps.choose(many(), ("a", "b"), preferred)
    assert set(chosen["case"]) - set(preferred) == {"c07"}


def test_answers_decide_where_there_are_any() -> None:
    chosen = maps.choose(many().assign(answer=-1), ("a", "b"), ())
    assert set(chosen["decided"]) == {"None"}
    assert not chosen["right"].any()


def test_several_classes_are_named_together() -> None:
    given = {"case": ["x", "y"], "target.a": [1, 0], "target.b": [1, 0], "prob.a": [0.9, 0.1], "prob.b": [0.4, 0.5]}
    chosen = maps.choose(pd.DataFrame(given), ("a", "b"), ()).set_index("case")
    assert chosen.loc["x"].tolist() == ["a, b", "a", False]
    assert chosen.loc["y"].tolist() == ["none", "none", True]
