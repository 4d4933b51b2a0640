"""Licences as SPDX-like ids: what a source published, made comparable, and what a dataset of such clips may claim.

Nothing is read into a text: a name is understood only if every word of it is, and where a name and an address differ
the restrictions of both hold. What is not understood becomes "LicenseRef-<what was published>" and is never permissive.
The ported licences of a country (".../by/3.0/de/") are not told apart from the unported ones.
"""

import hashlib
import re
from functools import lru_cache
from urllib.parse import unquote

from pipelines.text import clean

CREATIVE_COMMONS = re.compile(
    r"(?<![\w.-])(?:https?://)?(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/([a-z+-]+)(?:/(\d\.\d))?"
    r"(?:/[a-z]{2,3}(?![\w-]))?(?:/(?:deed|legalcode)[\w.-]*)?/?(?:[?#]\S*)?"
)
PHRASES = (  # (as published, the one word for it)
    (re.compile(r"\bnon[ -]commercial\b"), "noncommercial"),
    (re.compile(r"\bshare[ -]alike\b"), "sharealike"),
    (re.compile(r"\bno[ -]?deriv(?:ative)?s?(?: works?)?\b"), "noderivatives"),
    (re.compile(r"\bpublic[ -]domain\b"), "publicdomain"),
    (re.compile(r"https?://opensource\.org/licenses?/"), ""),
    (re.compile(r"https?://(?:www\.)?apache\.org/licenses/license"), "apache"),
)
WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)*|\+")
FILLER = {"creative", "commons", "cc", "license", "licence", "licensed", "under", "a", "the", "version", "v",
          "international", "unported", "generic", "universal", "dedication"}  # fmt: skip
ELEMENTS = {"by": "BY", "attribution": "BY", "nc": "NC", "noncommercial": "NC", "sa": "SA", "sharealike": "SA",
            "nd": "ND", "noderivatives": "ND"}  # fmt: skip
OTHERS = {"mit": "MIT", "apache 2.0": "Apache-2.0", "publicdomain": "LicenseRef-Public-Domain",
          "publicdomain mark 1.0": "CC-PDM-1.0", "publicdomain mark": "CC-PDM-1.0"}  # fmt: skip
FAMILIES = ("CC-BY", "CC-BY-SA", "CC-BY-ND", "CC-BY-NC", "CC-BY-NC-SA", "CC-BY-NC-ND")
VERSIONS = {"1.0", "2.0", "2.1", "2.5", "3.0", "4.0"}
SLUG = 60  # characters

RESTRICTIONS = {"NC": "noncommercial", "SA": "sharealike", "ND": "noderivatives"}
KNOWN = {
    "CC0-1.0": frozenset[str](), "CC-PDM-1.0": frozenset[str](), "LicenseRef-Public-Domain": frozenset[str](),
    "MIT": frozenset({"attribution"}), "Apache-2.0": frozenset({"attribution"}),
    # whole copies, and that is what a dataset holds, may be shared non-commercially only
    "LicenseRef-Sampling-Plus-1.0": frozenset({"attribution", "noncommercial"}),
    "LicenseRef-NC-Sampling-Plus-1.0": frozenset({"attribution", "noncommercial"}),
}  # fmt: skip

# what the Hub knows of these (huggingface.co/docs/hub/repositories-licenses)
HUB = {"apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
       "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
       "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"}  # fmt: skip


@lru_cache(maxsize=4096)
def normalise(published: str) -> str:
    """The SPDX-like id of a licence as published (a name, an address, an id); "" stays "".

    "CC-BY" without a version stays without one. What is not understood becomes LicenseRef- and its text.
    """
    text = clean(published)
    if not text or text in KNOWN or re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", text):
        return text
    return understood(words_of(text)) or reference(text)


def words_of(text: str) -> list[str]:
    """The words of a licence's name, an address as the name that it stands for; none if a sign is in the way."""
    text = CREATIVE_COMMONS.sub(spoken, unquote(text).casefold())
    for pattern, word in PHRASES:
        text = pattern.sub(word, text)
    return [] if any(map(str.isalnum, WORD.sub("", text))) else WORD.findall(text)


def spoken(address: re.Match[str]) -> str:
    """The name behind an address of Creative Commons."""
    code = {"zero": "0", "mark": "publicdomain mark"}.get(address[1], address[1])
    return f" cc {code} {address[2] or ''} "


def understood(words: list[str]) -> str:
    """The id that the words stand for; "" if one of them is not known or they contradict each other."""
    said = list(dict.fromkeys(word for word in words if word not in FILLER))
    if other := OTHERS.get(" ".join(said)):
        return other
    versions = {f"{word}.0" if "." not in word else word for word in said if word[0].isdigit() and word != "0"}
    rest = {word for word in said if not word[0].isdigit() or word == "0"}
    if "sampling" in rest:
        return sampling(rest, versions)
    if rest & {"0", "zero"}:  # a number alone is what a column of numbers holds, not a dedication
        named = bool({"cc", "creative", "commons", "publicdomain"} & set(words))
        return "CC0-1.0" if named and rest <= {"0", "zero", "publicdomain"} and versions <= {"1.0"} else ""
    elements = {ELEMENTS.get(word, "") for word in rest}
    family = "-".join(["CC", *(each for each in ("BY", "NC", "SA", "ND") if each in elements)])
    if "" in elements or family not in FAMILIES or len(versions) > 1 or not versions <= VERSIONS:
        return ""
    return "-".join([family, *versions])


def sampling(words: set[str], versions: set[str]) -> str:
    """The id of Creative Commons' Sampling Plus, of which there was one version; "" for what it is not."""
    plus = words - {"nc", "noncommercial"}
    if plus not in ({"sampling", "+"}, {"sampling", "plus"}) or not versions <= {"1.0"}:
        return ""
    return f"LicenseRef-{'NC-' if plus != words else ''}Sampling-Plus-1.0"


def reference(text: str) -> str:
    """ "LicenseRef-" and what is left of a text in the letters that SPDX allows, or a hash of it if nothing is."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", text)[:SLUG].strip("-.")
    return f"LicenseRef-{slug or hashlib.sha256(text.encode()).hexdigest()[:12]}"


@lru_cache(maxsize=4096)
def matches(license: str, wanted: str) -> bool:
    """Whether a licence is the wanted one; "CC-BY" wants all its versions, but not CC-BY-NC."""
    license, wanted = normalise(license), normalise(wanted)
    return bool(license) and wanted.casefold() in (license.casefold(), family_of(license).casefold())


def family_of(license: str) -> str:
    """A Creative Commons id without its version; any other id as it is."""
    name, _, version = license.rpartition("-")
    return name if name in FAMILIES and version in VERSIONS else license


def restrictions(license: str) -> frozenset[str]:
    """What a licence asks for: attribution, noncommercial, sharealike, noderivatives; or "unknown"."""
    license = normalise(license)
    if license in KNOWN:
        return KNOWN[license]
    family = family_of(license)
    if family not in FAMILIES:
        return frozenset({"unknown"})
    return frozenset({"attribution", *(RESTRICTIONS[each] for each in family.split("-")[2:])})


def card_license(counts: dict[str, int]) -> dict[str, str]:
    """The licence fields of a dataset's card on the Hub, from {licence: clips}.

    One licence that the Hub knows is named by its id there. Anything else is "other", under a name that lists what
    the clips ask for: only a dataset of which every clip has one permissive licence can have a permissive card.
    """
    ids = sorted({normalise(license) for license, clips in counts.items() if clips})
    if not ids:
        return {"license": "unknown"}
    if len(ids) == 1 and ids[0].lower() in HUB:
        return {"license": ids[0].lower()}
    asked = sorted(frozenset[str]().union(*map(restrictions, ids)))
    mixed = "-".join(["mixed", *asked])
    return {
        "license": "other",
        "license_name": mixed if len(ids) > 1 else ids[0].lower() or "not-stated",
        "license_details": f"Per clip, in ATTRIBUTION.csv: {', '.join(asked) or 'no restriction'}",
    }
