"""Masks: read once, moved with their pictures, refused where they do not fit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import save, vessels
from PIL import ExifTags, Image

from fusionbench.data import images
from fusionbench.data.base import Dataset
from fusionbench.data.check import check
from fusionbench.data.masks import MaskSource, nearest_neighbours
from fusionbench.data.module import FusionData
from fusionbench.data.transforms import ImageTransform
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

SIZE = 24


class Drawn(Dataset):
    """Pictures that are their own masks: 6 a split, the last one without."""

    classes = ("left", "right")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modalities = {"photo": ModalitySpec("image", size=SIZE), "other": ModalitySpec("image", size=SIZE)}
        self.masks = {"vessels": "photo"}
        self.table = pd.DataFrame([self._row(i) for i in range(18)])
        save(folder / "other.png", np.zeros((9, 9, 3), np.uint8))

    def _row(self, i: int) -> dict:
        save(self.folder / f"{i}.png", np.repeat(vessels(i + 1)[..., None], 3, -1))
        save(self.folder / f"{i}.tif", vessels(i + 1))
        path = (str(self.folder / f"{i}.tif"),) if i % 6 < 5 else ()
        fixed = {"case_id": f"c{i:02d}", "group_id": f"c{i:02d}", "split": ("train", "val", "test")[i // 6]}
        other = (str(self.folder / "other.png"),) if i == 5 else ()
        return {**fixed, "label": i % 2, "photo": (str(self.folder / f"{i}.png"),), "other": other, "vessels": path}

    def cases(self) -> pd.DataFrame:
        return self.table.copy()

    def set(self, column: str, *items: str) -> None:
        self.table.at[0, column] = items


@pytest.fixture
def drawn(tmp_path):
    return Drawn(tmp_path / "drawn")


@pytest.fixture
def read(drawn, tmp_path):
    """Read the drawn data with options of the DataModule."""

    def make(**options):
        default = {
            "modalities": ["photo"],
            "cache": str(tmp_path / "cache"),
            "batch_size": 6,
            "allow": ["near_duplicates"],
        }
        return FusionData(
            drawn, {}, 0, **{**default, "masks": ["vessels"], "transforms": {"normalize": "none"}, **options}
        )

    return make


def first(data, split="train"):
    return next(iter(data.eval_dataloader(split)))


def test_a_batch_holds_masks_and_says_who_has_one(read):
    batch = first(read())
    mask = batch.extras["vessels"]
    assert mask.shape == (6, 1, SIZE, SIZE)
    assert mask.dtype == torch.float32
    assert batch.extras["vessels/present"].tolist() == [True] * 5 + [False]
    assert not mask[5].any()
    for row in range(5):
        expected = vessels(row + 1)[1::2, 1::2] / 255  # the exact nearest neighbours of a half as large picture
        np.testing.assert_array_equal(mask[row, 0].numpy(), expected)


def test_a_mask_turns_with_its_picture_in_training(read, drawn, monkeypatch):
    """Blocks, whose edges alone can differ, since pictures are interpolated and masks are not."""
    blocks = np.zeros((SIZE, SIZE), np.uint8)
    blocks[3:12, 4:20] = 255
    monkeypatch.setattr(Drawn, "read_image", lambda self, item: np.repeat(blocks[..., None], 3, -1))
    data = read(transforms={"normalize": "none", "contrast": None, "brightness": None, "saturation": None})
    batch = next(iter(data.train_dataloader()))
    there = batch.extras["vessels/present"]
    mask, picture = batch.extras["vessels"][there], batch.inputs["photo"][there][:, 0, :1]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert ((picture > 0.5) != (mask > 0)).float().mean() < 0.02
    assert len({m.numpy().tobytes() for m in mask}) > 1


@pytest.mark.parametrize("train", [True, False])
def test_masks_change_no_picture(train):
    image = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    transform = ImageTransform(SIZE, train)
    for seed in range(5):
        with_mask, masks = transform.with_masks(image, [vessels(3, SIZE) // 255] * 2, seed)
        assert torch.equal(with_mask, transform(image, seed))
        assert torch.equal(*masks)


def test_no_mask_in_a_batch_is_zeros(read, drawn):
    drawn.table["vessels"] = [()] * 18
    batch = first(read())
    assert not batch.extras["vessels"].any()
    assert batch.extras["vessels/present"].tolist() == [False] * 6


def test_masks_are_read_where_their_pictures_are_used_and_they_are_asked_for(read):
    assert set(first(read()).extras) == {"vessels", "vessels/present"}
    assert first(read(masks=[])).extras == first(read(masks=None)).extras == {}
    assert first(read(modalities=["photo", "other"], masks=["vessels"])).extras["vessels/present"].sum() == 5
    with pytest.raises(UserError, match="no mask 'vesels'; did you mean 'vessels'"):
        read(masks=["vesels"])
    with pytest.raises(UserError, match=r"'vessels' is drawn on 'photo', which data\.modalities leaves out"):
        read(modalities=["other"], masks=["vessels"])


def test_a_mask_of_another_size_with_the_same_aspect_is_resized(read, drawn):
    large = np.repeat(np.repeat(vessels(1), 2, 0), 2, 1)
    Image.fromarray(large).save(drawn.folder / "0.tif")
    assert torch.equal(first(read()).extras["vessels"][0, 0], torch.from_numpy(vessels(1)[1::2, 1::2] / 255).float())


def test_a_mask_of_another_aspect_is_refused(read, drawn):
    Image.fromarray(vessels(1)[:40]).save(drawn.folder / "0.tif")
    with pytest.raises(
        UserError, match=r"1 of 15 masks 'vessels' .*0\.tif' has 48 x 40 pixels and its picture .* 48 x 48"
    ):
        read()
    data = read(on_unreadable="missing")
    assert "1 of 15 masks 'vessels' are missing or unusable" in data.notes
    assert first(data).extras["vessels/present"].tolist() == [False, True, True, True, True, False]


def test_another_picture_is_held_against_the_mask_again(read, drawn):
    read()
    save(drawn.folder / "0.png", np.zeros((48, 24, 3), np.uint8))
    with pytest.raises(UserError, match=r"0\.tif' has 48 x 48 pixels and its picture .* 24 x 48"):
        read()


def test_the_picture_is_not_decoded_for_its_shape(drawn, monkeypatch):
    turned = Image.fromarray(np.zeros((24, 48, 3), np.uint8))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    turned.save(drawn.folder / "turned.jpg", exif=turned.getexif())
    save(drawn.folder / "high.tif", np.zeros((40, 20), np.uint8))
    picture, mask = str(drawn.folder / "turned.jpg"), str(drawn.folder / "high.tif")
    assert drawn.picture_shape(picture) == drawn.read_image(picture).shape[:2] == (48, 24)
    decoded = []
    plain = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path: decoded.append(str(path)) or plain(path))
    assert MaskSource(drawn, {mask: picture}).read_image(mask).shape == (40, 20, 1)
    assert decoded == [mask]


def test_a_picture_whose_header_tells_another_shape_in_other_versions_is_decoded(drawn):
    turned = Image.fromarray(np.zeros((24, 48, 3), np.uint8))
    turned.save(drawn.folder / "turned.tif", tiffinfo={ExifTags.Base.Orientation: 6})
    picture = str(drawn.folder / "turned.tif")
    assert drawn.picture_shape(picture) == drawn.read_image(picture).shape[:2]


def test_a_damaged_picture_is_told_of_by_what_reads_it(drawn):
    (drawn.folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the image '.*0\.png' \(it is no picture\)"):
        drawn.picture_shape(str(drawn.folder / "0.png"))


def test_a_lost_mask_is_no_mask(read, drawn):
    (drawn.folder / "0.tif").unlink()
    assert first(read()).extras["vessels/present"].tolist() == [False, True, True, True, True, False]


def test_a_mask_belongs_to_one_picture(read, drawn):
    drawn.set("photo", str(drawn.folder / "0.png"), str(drawn.folder / "1.png"))
    with pytest.raises(UserError, match="case 'c00' has 2 pictures 'photo' and a mask 'vessels'"):
        read()
    drawn.set("vessels", "a", "b")
    with pytest.raises(UserError, match="case 'c00' has 2 masks 'vessels'"):
        read()


def test_masks_are_part_of_the_fingerprint_where_they_are_read(read, drawn):
    before, without = read().fingerprint, read(masks=[]).fingerprint
    assert read().fingerprint == before
    Image.fromarray(vessels(2)).save(drawn.folder / "0.tif")
    assert read().fingerprint != before
    assert read(masks=[]).fingerprint == without != before


@pytest.mark.parametrize("ink", [1, 255])
def test_the_brighter_half_is_foreground(drawn, ink):
    picture, mask = str(drawn.folder / "0.png"), str(drawn.folder / "0.tif")
    Image.fromarray(vessels(1) // 255 * ink).save(mask)
    foreground = MaskSource(drawn, {mask: picture}).read_image(mask)
    np.testing.assert_array_equal(foreground[..., 0], vessels(1) // 255)
    assert set(np.unique(nearest_neighbours(foreground, 19))) == {0, 1}


def test_check_counts_masks_and_names_a_wrong_one(drawn, tmp_path):
    report = check(drawn, ["photo"], ["near_duplicates"], tmp_path / "cache")
    assert report.presence.loc["vessels (mask)"].tolist() == [5, 5, 5]
    assert report.ok
    Image.fromarray(vessels(1)[:40]).save(drawn.folder / "0.tif")
    told = check(drawn, ["photo"], ["near_duplicates"], tmp_path / "cache")
    assert [finding.severity for finding in told.findings if "0.tif" in finding.message] == ["error"]
    assert check(drawn, ["photo"], ["near_duplicates"], tmp_path / "cache", masks=[]).ok
