"""Open-I's reports: from an archive of XML files to the text of each picture."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from fusionbench.data.prepare.archives import stream_archive
from fusionbench.errors import UserError

SECTIONS = ("FINDINGS", "IMPRESSION")


def read_reports(archive: Path) -> dict[str, str]:
    """Return the report of each picture that a report names, by the picture's name without extension.

    A report is ``FINDINGS : ... IMPRESSION : ...``, as TransCheX has it; what a section lacks is left empty.

    Raises:
        UserError: The archive or a report in it cannot be read, or it holds no report.
    """
    reports: dict[str, str] = {}
    for name, content in stream_archive(archive, lambda name: name.endswith(".xml")):
        reports.update(parse_report(content, f"'{name}' in '{archive}'"))
    if not reports:
        raise UserError(f"the archive '{archive}' holds no report (.xml) of any picture: is it NLMCXR_reports.tgz?")
    return reports


def parse_report(content: bytes, source: str) -> dict[str, str]:
    """Return the text of one report for each picture that it names.

    Args:
        content: An XML document.
        source: What an error calls it.

    Raises:
        UserError: It is no sound XML, it declares entities, or its encoding is unknown.
    """
    try:
        _refuse_entities(content)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"the report {source} is no sound XML: {error}") from error
    texts = {section: _section(root, section) for section in SECTIONS}
    report = " ".join(f"{section} : {text}" for section, text in texts.items())
    return {picture: report for image in root.iter("parentImage") if (picture := image.get("id"))}


def _section(root: ElementTree.Element, section: str) -> str:
    """Return the words of all parts with a label, such as FINDINGS, with single spaces between them."""
    parts = (part for part in root.iter("AbstractText") if part.get("Label") == section)
    return " ".join(word for part in parts for text in part.itertext() for word in text.split())


def _refuse_entities(content: bytes) -> None:
    """Stop at the declaration of an entity, by which a small document can grow to fill the memory."""
    parser = expat.ParserCreate()
    parser.EntityDeclHandler = _entity
    parser.Parse(content, True)


def _entity(name: str, *_: object) -> NoReturn:
    raise ValueError(f"it declares the entity '{name}', which reports do not")
