"""Every control that a recipe may name has a role, and no two look alike."""

from typing import get_args

from spunge.variants import MERGED, RIVALS, ROLES, Control, label_of, phrase_of


def test_every_control_is_a_rival_with_looks_of_its_own():
    assert set(get_args(Control)) == set(RIVALS) < set(ROLES)
    for look in ("label", "colour", "dark", "marker", "css"):
        assert len({getattr(role, look) for role in ROLES.values()}) == len(ROLES)
    assert not MERGED.rival


def test_names_as_a_reader_says_them():
    assert label_of("joint_equal_steps") == "joint, equal steps"
    assert label_of("subset:a b") == "only a b"
    assert label_of("random_12") == "random split, part 12"
    assert (phrase_of("random_split"), phrase_of("another run")) == ("a random split", "another run")
