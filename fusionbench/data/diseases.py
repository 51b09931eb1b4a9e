"""Which retinal diseases are acquired and which are inherited, each with the source that says so.

MDF-MLLM (arXiv 2509.21358) tells acquired from inherited diseases and prints no list, so this one is ours. A disease
that is not here has to bring its type with it; a type that data give counts more than this table.
"""

from __future__ import annotations

import re

ACQUIRED, INHERITED, NORMAL = "acquired", "inherited", "normal"
TYPES = (ACQUIRED, INHERITED)

_MDF = "arXiv 2509.21358: FIVES and HRF are its acquired part, by our reading"
_MACULAR = "PMC4405533, inherited diseases that may be mistaken for age-related macular degeneration"
_IMAGING = "Georgiou, Fujinami, Michaelides: Retinal imaging in inherited retinal diseases, doi 10.21037/aes-20-81"
_GENOMIC = "Nash et al.: Retinal dystrophies, genomic applications, PMID 26835369, as listed by SNPedia"
_GUIDELINE = "GuíaSalud, clinical practice guideline on hereditary retinal dystrophies, definition and classification"
_X_LINKED = "Gunton, Ansari, Nelson: X-linked ophthalmic disorders, Duane's Ophthalmology, volume 9, chapter 57"
_OMMBID = "OMMBID, chapter on the inherited macular dystrophies whose genes are known"

# disease in lower case: (type, source)
DISEASES: dict[str, tuple[str, str]] = {
    "age-related macular degeneration": (ACQUIRED, _MDF),
    "diabetic retinopathy": (ACQUIRED, _MDF),
    "glaucoma": (ACQUIRED, _MDF),
    "adult vitelliform dystrophy": (INHERITED, _MACULAR),
    "doyne honeycomb dystrophy": (INHERITED, _MACULAR),
    "north carolina macular dystrophy": (INHERITED, _MACULAR),
    "sorsby macular dystrophy": (INHERITED, _MACULAR),
    "achromatopsia": (INHERITED, _IMAGING),
    "autosomal dominant drusen": (INHERITED, _IMAGING),
    "best disease": (INHERITED, _IMAGING),
    "bietti crystalline corneoretinal dystrophy": (INHERITED, _IMAGING),
    "blue-cone monochromatism": (INHERITED, _IMAGING),
    "bornholm eye disease": (INHERITED, _IMAGING),
    "bradyopsia": (INHERITED, _IMAGING),
    "choroideremia": (INHERITED, _IMAGING),
    "cone dystrophy": (INHERITED, _IMAGING),
    "cone-rod dystrophy": (INHERITED, _IMAGING),
    "congenital stationary night blindness": (INHERITED, _IMAGING),
    "enhanced s-cone syndrome": (INHERITED, _IMAGING),
    "fundus albipunctatus": (INHERITED, _IMAGING),
    "gyrate atrophy": (INHERITED, _IMAGING),
    "leber congenital amaurosis": (INHERITED, _IMAGING),
    "oguchi disease": (INHERITED, _IMAGING),
    "oligocone trichromacy": (INHERITED, _IMAGING),
    "pattern dystrophy": (INHERITED, _IMAGING),
    "retinitis pigmentosa": (INHERITED, _IMAGING),
    "rod-cone dystrophy": (INHERITED, _IMAGING),
    "sorsby fundus dystrophy": (INHERITED, _IMAGING),
    "stargardt disease": (INHERITED, _IMAGING),
    "x-linked retinoschisis": (INHERITED, _IMAGING),
    "alstrom syndrome": (INHERITED, _GENOMIC),
    "bardet-biedl syndrome": (INHERITED, _GENOMIC),
    "cohen syndrome": (INHERITED, _GENOMIC),
    "joubert syndrome": (INHERITED, _GENOMIC),
    "senior-loken syndrome": (INHERITED, _GENOMIC),
    "usher syndrome": (INHERITED, _GENOMIC),
    "best vitelliform macular dystrophy": (INHERITED, _GUIDELINE),
    "central areolar choroidal dystrophy": (INHERITED, _GUIDELINE),
    "familial exudative vitreoretinopathy": (INHERITED, _GUIDELINE),
    "fundus flavimaculatus": (INHERITED, _GUIDELINE),
    "stickler syndrome": (INHERITED, _GUIDELINE),
    "wagner syndrome": (INHERITED, _GUIDELINE),
    "norrie disease": (INHERITED, _X_LINKED),
    "ocular albinism": (INHERITED, _X_LINKED),
    "malattia leventinese": (INHERITED, _OMMBID),
}
# A name that states its mode of inheritance, such as the paper's "AR Retinitis Pigmentosa".
_MODE = re.compile(
    r"(?:(?P<short>ar|ad|xl)|x-linked|autosomal[ -](?:recessive|dominant)|mitochondrial)[ -]+(?P<disease>\S.*)"
)
# How modes of inheritance are written; the words tell an inherited disease, also without its name.
MODES = (
    *("autosomal recessive", "autosomal dominant", "x-linked", "mitochondrial", "hereditary", "familial"),
    *("AR", "AD", "XL"),
)
# Sorts of disease before whose name AR, AD and XL can only be modes of inheritance. This list is ours.
_SORT = re.compile(
    r"\b(?:dystroph(?:y|ies)|(?:vitreo)?retinopathy|maculopathy|retinoschisis|choroideremia|retinitis pigmentosa|"
    r"amaurosis|night blindness|(?:optic|chorioretinal) atrophy)\b"
)


def type_of(disease: str) -> str | None:
    """Return ``acquired`` or ``inherited``, or None for a disease that is not in the table.

    Upper and lower case and spaces do not matter. A mode of inheritance in front ("autosomal recessive ...") is itself
    the answer. Its abbreviations AR, AD and XL have other meanings, too, so they count only before a disease that is
    inherited in the table or is named as a dystrophy, a retinopathy or the like. Before an acquired disease a mode
    contradicts the table, and the type is unknown.
    """
    name = " ".join(disease.lower().split())
    if name in DISEASES:
        return DISEASES[name][0]
    stated = _MODE.fullmatch(name)
    if stated is None:
        return None
    known = DISEASES.get(stated["disease"], (None,))[0]
    if known is None and (not stated["short"] or _SORT.search(stated["disease"])):
        return INHERITED
    return INHERITED if known == INHERITED else None
