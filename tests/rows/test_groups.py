"""ToxiGen's spellings of its groups come down to thirteen names, and nothing else passes."""

import pytest

from spunge.errors import DataError
from spunge.rows.groups import TOXIGEN_GROUPS, toxigen_group, toxigen_groups

SPELLINGS = {
    "asian": ["asian", "asian folks"],
    "black": ["black", "black/african-american folks", "African Americans", "black folks / african-americans"],
    "chinese": ["chinese", "chinese folks", "asian (chinese)"],
    "jewish": ["jewish", "jewish folks", "Jews"],
    "latino": ["latino", "latino/hispanic folks"],
    "lgbtq": ["lgbtq", "lgbtq+ folks"],
    "mental_disability": ["mental dis", "mental_dis", "folks with mental disabilities"],
    "mexican": ["mexican", "mexican folks"],
    "middle_eastern": ["middle-eastern", "middle_east", "middle eastern folks"],
    "muslim": ["muslim", "muslim folks"],
    "native_american": ["native-american", "native_american", "native american folks"],
    "physical_disability": ["physical_dis", "folks with physical disabilities"],
    "women": ["women", "woman"],
}


def test_every_spelling_means_its_group():
    assert set(SPELLINGS) == set(TOXIGEN_GROUPS)
    for group, spellings in SPELLINGS.items():
        for spelling in [group, *spellings]:
            assert toxigen_group(spelling) == group
            assert toxigen_group(spelling.upper()) == group


@pytest.mark.parametrize("name", ["caucasian", "men", "", "muslim women", "black or mexican"])
def test_what_is_no_single_group_fails_loudly(name):
    with pytest.raises(DataError, match="of ToxiGen's; they are asian"):
        toxigen_group(name)


def test_cells_may_hold_several_or_none():
    assert toxigen_groups(["physical_dis", "women"]) == ["physical_disability", "women"]
    assert toxigen_groups(None) is None
    assert toxigen_groups("mexican folks") == "mexican"
