"""Licences: what sources publish becomes an id, and nothing becomes more permissive on the way."""

import pytest

from pipelines.licenses import HUB, card_license, matches, normalise, restrictions

PUBLISHED = {
    "": "",
    "CC0": "CC0-1.0",
    "Creative Commons 0": "CC0-1.0",
    "http://creativecommons.org/publicdomain/zero/1.0/": "CC0-1.0",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "Attribution": "CC-BY",
    "CC-BY": "CC-BY",
    "cc by 4.0": "CC-BY-4.0",
    "Attribution 3": "CC-BY-3.0",
    "https://creativecommons.org/licenses/by/3.0/deed.en": "CC-BY-3.0",
    "http://creativecommons.org/licenses/by/3.0/us/": "CC-BY-3.0",
    "https://creativecommons.org/licenses/by/4.0/?ref=chooser-v1": "CC-BY-4.0",
    "Attribution Noncommercial": "CC-BY-NC",
    "Attribution NonCommercial": "CC-BY-NC",
    "http://creativecommons.org/licenses/by-nc/3.0/": "CC-BY-NC-3.0",
    "Creative Commons Attribution-ShareAlike 3.0 Unported": "CC-BY-SA-3.0",
    "Attribution-NonCommercial-NoDerivatives 4.0 International (CC BY-NC-ND 4.0)": "CC-BY-NC-ND-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "Sampling+": "LicenseRef-Sampling-Plus-1.0",
    "CC-Sampling+": "LicenseRef-Sampling-Plus-1.0",
    "http://creativecommons.org/licenses/sampling+/1.0/": "LicenseRef-Sampling-Plus-1.0",
    "https://creativecommons.org/licenses/sampling%2B/1.0/": "LicenseRef-Sampling-Plus-1.0",
    "https://creativecommons.org/publicdomain/mark/1.0/": "CC-PDM-1.0",
    "Public Domain": "LicenseRef-Public-Domain",
    "MIT License": "MIT",
    "https://opensource.org/licenses/MIT": "MIT",
    "Apache License, Version 2.0": "Apache-2.0",
    "https://www.apache.org/licenses/LICENSE-2.0": "Apache-2.0",
}


@pytest.mark.parametrize("published", PUBLISHED)
def test_a_published_licence_becomes_its_id(published):
    assert normalise(published) == PUBLISHED[published]


@pytest.mark.parametrize("published", [*PUBLISHED, "CC", "Free for all (non-commercial)!", "x" * 200, "仅限个人"])
def test_an_id_stays_as_it_is_when_it_is_read_again(published):
    assert normalise(normalise(published)) == normalise(published)


@pytest.mark.parametrize("published", [
    "CC", "Attribution for personal use only", "CC BY 3.0 or 4.0", "CC BY 5.0", "CC BY 仅限个人使用", "NC", "CC0 BY",
    "CC-BY-4.0, commercial use prohibited", "evilcreativecommons.org/licenses/by/4.0", "CC BY-SA-ND 4.0",
    "CC0, no AI training", "CC0 4.0", "0", "v0", "version 0", "license 0", "zero", "1.0 zero",
])  # fmt: skip
def test_what_is_not_understood_word_for_word_is_unknown_and_keeps_its_text(published):
    assert normalise(published).startswith("LicenseRef-")
    assert restrictions(published) == {"unknown"}
    assert card_license({published: 1})["license"] == "other"


def test_of_a_name_and_an_address_that_differ_the_restrictions_of_both_hold():
    assert normalise("CC-BY http://creativecommons.org/licenses/by-nc/3.0/") == "CC-BY-NC-3.0"
    assert normalise("http://creativecommons.org/licenses/by/3.0/ (non-commercial)") == "CC-BY-NC-3.0"


def test_an_unknown_licence_is_a_short_reference_in_the_letters_of_spdx():
    assert normalise("Pixabay Content License <v2>") == "LicenseRef-Pixabay-Content-License-v2"
    assert len(normalise("very " * 100)) <= 60 + len("LicenseRef-")
    assert normalise("仅限个人") != normalise("保留所有权利") and normalise("仅限个人").isascii()


@pytest.mark.parametrize("license, wanted, yes", [
    ("CC-BY-3.0", "CC-BY", True), ("CC-BY", "CC-BY", True), ("CC-BY-3.0", "cc by 3.0", True), ("CC0-1.0", "CC0", True),
    ("Attribution", "CC-BY", True), ("LicenseRef-Pixabay", "pixabay", True),
    ("CC-BY-NC-3.0", "CC-BY", False), ("CC-BY-SA-4.0", "CC-BY", False), ("CC-BY", "CC-BY-3.0", False),
    ("CC-BY-4.0", "CC-BY-3.0", False), ("", "", False), ("", "CC0", False), ("LicenseRef-CC", "CC-BY", False),
])  # fmt: skip
def test_a_family_without_a_version_admits_all_its_versions_and_no_other_family(license, wanted, yes):
    assert matches(license, wanted) is yes


def test_restrictions_are_those_of_the_licence():
    assert restrictions("CC0-1.0") == frozenset()
    assert restrictions("CC-BY-4.0") == {"attribution"}
    assert restrictions("CC-BY-NC-SA-4.0") == {"attribution", "noncommercial", "sharealike"}
    assert restrictions("CC-BY-ND") == {"attribution", "noderivatives"}
    assert restrictions("Sampling+") == {"attribution", "noncommercial"}  # of whole copies
    assert restrictions("") == restrictions("not stated") == {"unknown"}


def test_one_shared_licence_is_named_by_the_hubs_id():
    assert card_license({"CC0-1.0": 5, "CC0": 2, "CC-BY-4.0": 0}) == {"license": "cc0-1.0"}
    assert card_license({"CC-BY-NC-4.0": 5}) == {"license": "cc-by-nc-4.0"}


def test_a_mixture_is_other_and_says_what_its_clips_ask_for():
    card = card_license({"CC0-1.0": 5, "CC-BY-NC-3.0": 1})
    assert card["license"] == "other" and card["license_name"] == "mixed-attribution-noncommercial"
    assert "noncommercial" in card["license_details"]
    assert card_license({"CC-BY": 1}) == {
        "license": "other", "license_name": "cc-by", "license_details": "Per clip, in ATTRIBUTION.csv: attribution",
    }  # fmt: skip
    assert card_license({"": 1})["license_name"] == "not-stated" and card_license({}) == {"license": "unknown"}


@pytest.mark.parametrize("odd", ["CC-BY-NC-4.0", "Sampling+", "", "all rights reserved", "CC-BY-NC"])
@pytest.mark.parametrize("free", ["CC0-1.0", "CC-BY-4.0", "MIT"])
def test_one_noncommercial_or_unknown_clip_among_many_never_gives_a_permissive_card(free, odd):
    card = card_license({free: 1_000_000, odd: 1})
    assert card["license"] == "other"
    assert {"noncommercial", "unknown"} & set(card["license_name"].split("-"))


def test_no_id_of_the_hub_that_is_used_hides_a_restriction():
    for id in HUB:
        assert "unknown" not in restrictions(id)
        assert ("noncommercial" in restrictions(id)) == ("-nc" in id)
