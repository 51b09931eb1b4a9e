"""What ``fusionbench prepare`` is made of: pictures, archives, plain pickles and reports, one at a time."""

import pickle
import tarfile

import numpy as np
import pytest
from openi_raw import openi_xml, png, tgz
from PIL import Image

from fusionbench.data.prepare import archives, openi_reports, pictures
from fusionbench.data.prepare.openi_reports import parse_report
from fusionbench.data.prepare.plain_pickle import read_plain_npy
from fusionbench.errors import UserError


def test_pictures_are_grey_squares_shrunk_by_area(tmp_path):
    """Each pixel is the mean of the block that it stands for."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    names = {f"CXR{number}_a" for number in range(40)}  # more than are read ahead
    archive = tgz(tmp_path / "a.tgz", {f"x/{name}.png": png(image) for name in names})
    assert pictures.convert_pictures(archive, names | {"CXR99_a"}, tmp_path / "images", 32) == {"CXR99_a"}
    assert {path.stem for path in (tmp_path / "images").iterdir()} == names
    with Image.open(tmp_path / "images/CXR7_a.png") as stored:
        assert (stored.mode, stored.size) == ("L", (32, 32))
        blocks = image.reshape(32, 2, 32, 3).mean((1, 3))
        assert np.abs(np.asarray(stored) - blocks).max() <= 0.5 + 1e-6


def test_plain_tars_links_and_tricky_names_are_harmless(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("CXR1_a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in ("../../CXR2_a.png", "/CXR3_a.png", "._CXR4_a.png"):
            content = png(np.zeros((4, 4), np.uint8))
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            with (tmp_path / "content").open("w+b") as file:
                file.write(content)
                file.seek(0)
                archive.addfile(entry, file)
    folder = tmp_path / "deep" / "images"
    missing = pictures.convert_pictures(path, {"CXR1_a", "CXR2_a", "CXR3_a", "._CXR4_a"}, folder, 8)
    assert missing == {"CXR1_a", "._CXR4_a"}
    assert sorted(file.name for file in tmp_path.rglob("*.png")) == ["CXR2_a.png", "CXR3_a.png"]
    assert {file.parent for file in tmp_path.rglob("*.png")} == {folder}


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 10)
    archive = tgz(tmp_path / "a.tgz", {"x/1.xml": b"01234567890"})
    with pytest.raises(UserError, match=r"'x/1\.xml' in .* has 11 bytes, too many"):
        openi_reports.read_reports(archive)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_too_long_is_not_read(tmp_path, monkeypatch, kind):
    """tarfile would read a header of any length at once, whatever its archive's other limits are."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=kind) as archive:
        archive.addfile(tarfile.TarInfo(f"{'x' * 300}/1.txt"))
    assert list(archives.stream_archive(path, lambda name: True)) == [("1.txt", b"")]
    monkeypatch.setattr(archives, "_LARGEST_HEADER", 200)
    with pytest.raises(UserError, match=r"is damaged or cut off \(it has a header of 3\d\d bytes\)"):
        list(archives.stream_archive(path, lambda name: True))


@pytest.mark.parametrize("protocol", range(5))
def test_plain_data_of_every_protocol_are_read(tmp_path, protocol):
    """All that ``numpy.save`` has used, also as numpy 1 wrote them, whose modules had other names."""
    content = {"a": np.array(["x", "y"]), "b": np.eye(2), "c": [1, None, np.float64(2)], "d": np.array(["z"], object)}
    np.save(tmp_path / "new.npy", content, allow_pickle=True)
    header = (tmp_path / "new.npy").read_bytes()[:128]
    dumped = pickle.dumps(np.array(content, object), protocol)
    if protocol < 4:
        dumped = dumped.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "old.npy").write_bytes(header + dumped)
    read = read_plain_npy(tmp_path / "old.npy")
    assert read.keys() == content.keys()
    assert read["a"].tolist() == ["x", "y"]
    assert np.array_equal(read["b"], np.eye(2))
    assert read["c"] == [1, None, 2]
    assert read["d"].tolist() == ["z"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no npy at all", b"\x93NUMPY\x09\x00v\x00"])
def test_what_is_no_npy_is_told(tmp_path, content):
    path = tmp_path / "train.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read '.*train\.npy' as plain data"):
        read_plain_npy(path)
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match="no object"):
        read_plain_npy(path)


def test_deeper_pictures_are_refused(tmp_path):
    archive = tgz(tmp_path / "a.tgz", {"CXR1_a.png": png(np.full((4, 4), 4000, np.uint16))})
    with pytest.raises(UserError, match=r"'CXR1_a' in the archive \(it has more than 8 bits a pixel"):
        pictures.convert_pictures(archive, {"CXR1_a"}, tmp_path / "images", 8)


def test_sections_of_a_report_are_joined_and_their_white_space_is_one_space():
    content = openi_xml(["CXR1_a", "CXR1_b"], "The heart\n is &lt; 10 <b>cm</b>.", "Normal &amp; clear.")
    report = "FINDINGS : The heart is < 10 cm . IMPRESSION : Normal & clear."
    assert parse_report(content, "x") == {"CXR1_a": report, "CXR1_b": report}
    assert parse_report(b'<e><parentImage id="CXR2_a"/></e>', "x") == {"CXR2_a": "FINDINGS :  IMPRESSION : "}
    assert parse_report(openi_xml([], "Clear.", ""), "x") == {}


@pytest.mark.parametrize("encoding", ["foo", "hex", "utf-7", "us-ascii"])
def test_a_report_in_an_unknown_encoding_is_told(encoding):
    content = f'<?xml version="1.0" encoding="{encoding}"?><e>\N{LATIN SMALL LETTER E WITH ACUTE}</e>'.encode()
    with pytest.raises(UserError, match="the report x is no sound XML: "):
        parse_report(content, "x")


BOMB = '<!DOCTYPE e [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><e>&b;</e>'
EXTERNAL = '<!DOCTYPE e [<!ENTITY a SYSTEM "file:///etc/passwd">]><e>&a;</e>'


@pytest.mark.parametrize("document", [BOMB, EXTERNAL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_not_expanded(document, encoding):
    with pytest.raises(UserError, match="report x is no sound XML: it declares the entity 'a'"):
        parse_report(document.encode(encoding), "x")
