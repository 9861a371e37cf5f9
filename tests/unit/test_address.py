"""An address changes exactly when the recipe does."""

import copy
import math

import pytest
from fusechat.address import PATTERN, address, canonical
from hypothesis import given
from hypothesis import strategies as st

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
RECIPES = st.dictionaries(st.text(max_size=8), VALUES, max_size=5)


def test_the_address_of_a_recipe_never_changes_between_versions_of_this_code():
    found = address(
        "extract", 1, {"topK": 10, "template": "llama-3", "x": [1.0, 0.5]}, {"model": "fetch/" + "0" * 64}
    )
    assert found == "extract/26fafe7dce89f45ae9020451e1f9dcc8966e75a32b570bd6525ce84b0c7faf58"


@given(RECIPES)
def test_the_order_of_keys_and_a_copy_do_not_matter(params):
    turned = dict(reversed(list(copy.deepcopy(params).items())))
    assert address("fuse", 1, params, {}) == address("fuse", 1, turned, {})
    assert PATTERN.match(address("fuse", 1, params, {}))


@given(RECIPES, RECIPES)
def test_recipes_that_differ_have_addresses_that_differ(a, b):
    same = canonical(a) == canonical(b)
    assert (address("fuse", 1, a, {}) == address("fuse", 1, b, {})) == same


@given(RECIPES, st.text(max_size=5), VALUES, VALUES)
def test_changing_one_value_changes_the_address(params, key, old, new):
    if canonical(old) != canonical(new):
        assert address("fuse", 1, {**params, key: old}, {}) != address("fuse", 1, {**params, key: new}, {})


def test_stage_version_inputs_and_roles_are_in_it():
    base = address("fuse", 1, {}, {"model": "fetch/a"})
    others = [
        address("merge", 1, {}, {"model": "fetch/a"}),
        address("fuse", 2, {}, {"model": "fetch/a"}),
        address("fuse", 1, {}, {"model": "fetch/b"}),
        address("fuse", 1, {}, {"pivot": "fetch/a"}),
    ]
    assert len({base, *others}) == 5


def test_a_whole_float_is_its_integer_and_other_types_stay_apart():
    assert canonical(1.0) == canonical(1)
    assert canonical(-0.0) == canonical(0)
    assert len({canonical(v) for v in (1, True, "1", [1], None)}) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_names_nothing(value):
    with pytest.raises(ValueError, match="name no artifact"):
        canonical({"x": [value]})


def test_what_json_does_not_have_names_nothing():
    with pytest.raises(TypeError):
        canonical({"x": {1, 2}})
    with pytest.raises(TypeError, match="must be a string"):
        canonical({1: 2})
