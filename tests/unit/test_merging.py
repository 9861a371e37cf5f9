"""Merging in float32: what PyPI mergekit 0.1.5 made of the same numbers, and laws of every method."""

import numpy as np
import pytest
import torch
from fusechat_stages.numerics import merge_published, merge_study
from fusechat_stages.numerics.merge_settings import METHODS, Settings
from fusechat_stages.numerics.merge_tiles import Stream, Workspace
from fusechat_stages.numerics.merging import merge_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

TILE = 64
ELEMENTWISE = ("linear", "task_arithmetic", "varm")


def merge(base, targets, block=TILE, name="w", **params):
    """(merged in the base's dtype, facts) of flat tensors, in tiles of 64 elements."""
    arrays = [base, *targets]
    out = torch.empty_like(base)

    def write(tile, merged_N):
        out[tile.start : tile.start + tile.size] = merged_N

    labels = ["the pivot", *(f"target {j}" for j in range(len(targets)))]
    space = Workspace(len(targets), TILE)
    stream = Stream(name, labels, len(base), lambda a, z: [x[a:z] for x in arrays], space, block)
    facts = merge_tensor(stream, Settings.of(params, len(targets)), write)
    return out, facts


def random_models(seed, count, size=200, scale=1e-2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator).mul_(0.02).to(dtype)
    deltas = torch.randn(count, size, generator=generator).mul_(scale)
    return base, [(base.float() + delta).to(dtype) for delta in deltas]


# fmt: off
BASE = [-0.140625, 0.78125, 0.953125, -1.109375, 1.6875, -0.890625, -0.359375, 1.234375, 0.140625, -1.6875]
TARGETS = [
    [-0.015625, 0.828125, 1.015625, -1.015625, 2.25, -0.640625, 0.609375, 1.734375, 1.125, -0.875],
    [0.578125, 0.421875, 0.765625, -1.109375, 2.203125, -0.890625, 0.359375, 1.734375, 0.78125, -0.921875],
    [-0.3125, 0.75, 0.5625, -1.609375, 1.609375, -1.140625, -0.3125, 1.734375, 0.109375, -2.0625],
]
WEIGHTS = [0.5, 0.3, 0.4]
# Element 5: the deltas' signs tie. Element 7: the targets agree. Element 3: the second target has not moved.
PEERS = [
    (
        {"method": "linear", "weights": WEIGHTS},
        [0.0338542, 0.7005208, 0.8020833, -1.2369791, 2.0247395,
         -0.8697917, 0.2395833, 1.7343749, 0.7005208, -1.282552],
    ),
    (
        {"method": "linear", "weights": WEIGHTS, "normalize": False},
        [0.040625, 0.840625, 0.9625, -1.484375, 2.4296875, -1.04375, 0.2875, 2.08125, 0.840625, -1.5390625],
    ),
    (
        {"method": "task_arithmetic", "weights": WEIGHTS, "lambda": 0.7},
        [0.0059375, 0.7134375, 0.82625, -1.2165625, 1.9707813,
         -0.873125, 0.14375, 1.6543751, 0.6109375, -1.3473437],
    ),
    (
        {"method": "task_arithmetic", "weights": WEIGHTS, "normalize": True},
        [0.0338542, 0.7005208, 0.8020833, -1.2369791, 2.0247395,
         -0.8697917, 0.2395833, 1.734375, 0.7005208, -1.2825521],
    ),
    (
        {"method": "ties", "weights": WEIGHTS, "density": 0.5},
        [0.578125, 0.78125, 0.5625, -1.609375, 2.2324219,
         -1.140625, 0.515625, 1.734375, 0.9960938, -0.8925781],
    ),
    (
        {"method": "ties", "weights": WEIGHTS, "density": 0.7, "normalize": False, "lambda": 0.7},
        [0.0540625, 0.7057812, 0.84375, -1.249375, 1.9926562,
         -0.803125, 0.130625, 1.6543751, 0.6196875, -1.2423438],
    ),
    (
        {"method": "dare_linear", "weights": WEIGHTS, "density": 1.0},
        [0.06875, 0.684375, 0.771875, -1.2625, 2.0921874, -0.865625, 0.359375, 1.834375, 0.8125, -1.2015625],
    ),
    (
        {"method": "dare_ties", "weights": WEIGHTS, "density": 1.0, "normalize": True},
        [0.2070312, 0.609375, 0.6495536, -1.609375, 2.2324219,
         -0.640625, 0.2395833, 1.734375, 0.9960938, -0.8925781],
    ),
    (
        {"method": "sce", "variant": "mergekit", "selectTopK": 0.5},
        [0.2456313, 0.78125, 0.953125, -1.109375, 1.6875,
         -0.890625, 0.4699701, 1.234375, 0.9737463, -0.8956255],
    ),
    (
        {"method": "sce", "variant": "mergekit", "selectTopK": 1.0},
        [0.2553934, 0.503373, 0.7151738, -1.609375, 2.2286038,
         -0.640625, 0.3893923, 1.734375, 0.9680946, -0.8963962],
    ),
    (
        {"method": "slerp", "t": 0.3},
        [0.1640992, 0.7105609, 0.9466237, -1.0507344, 2.2506807,
         -0.7205778, 0.5376875, 1.7458432, 1.0283282, -0.8949826],
    ),
]
# fmt: on


@pytest.mark.parametrize(("params", "want"), PEERS, ids=lambda value: str(value)[11:60])
@pytest.mark.parametrize("profile", ["Corrected", "Published"])
def test_a_method_gives_what_mergekit_gives(profile, params, want):
    base, targets = torch.tensor(BASE), [torch.tensor(target) for target in TARGETS]
    if params["method"] == "slerp":
        targets = targets[:2]
    if profile == "Corrected":
        merged, _ = merge(base, targets, **params)
    else:
        checked = Settings.of({**params, "profile": profile}, len(targets))
        merged, _ = merge_published.merge_tensor("w", base, targets, checked)
    np.testing.assert_allclose(merged, want, atol=4e-7)


@pytest.mark.parametrize("profile", ["Corrected", "Published"])
def test_the_papers_sce_adds_the_selected_and_agreeing_shares_undivided(profile):
    """Algorithm 1 by hand: two of four elements selected (variance .25 and 1, not .0225 and 0)."""
    base, targets = torch.zeros(4), [torch.tensor([1.0, 2.0, 0.3, 4.0]), torch.tensor([2.0, 0.0, 0.6, 4.0])]
    params = {"method": "sce", "variant": "paper", "selectTopK": 0.5}
    if profile == "Corrected":
        merged, facts = merge(base, targets, **params)
    else:
        checked = Settings.of({**params, "profile": profile}, 2)
        merged, facts = merge_published.merge_tensor("w", base, targets, checked)
    assert facts.coefficients == pytest.approx((5 / 9, 4 / 9))
    assert merged.tolist() == pytest.approx([1 * 5 / 9 + 2 * 4 / 9, 2 * 5 / 9, 0, 0])


def test_fuseai_selects_for_the_coefficients_only():
    base, targets = torch.zeros(4), [torch.tensor([1.0, 2.0, 0.3, 4.0]), torch.tensor([2.0, 0.0, 0.6, 4.0])]
    merged, facts = merge(base, targets, method="sce", selectTopK=0.7)  # int(.7 * 3 that vary) = 2
    assert facts.selected == 2
    assert facts.coefficients == pytest.approx((5 / 9, 4 / 9))
    assert merged.tolist() == pytest.approx([1 * 5 / 9 + 2 * 4 / 9, 2, 0.3 * 5 / 9 + 0.6 * 4 / 9, 4])


def test_of_equal_variances_the_lowest_index_is_selected():
    base = torch.zeros(200)
    first, second = torch.zeros(200), torch.zeros(200)
    first[[10, 150]] = 3.0  # the same variance as
    second[[40, 199]] = 3.0
    _, facts = merge(base, [first, second], method="sce", selectTopK=0.5)
    assert facts.selected == 2  # elements 10 and 40
    assert facts.coefficients == pytest.approx((0.5, 0.5))
    _, facts = merge(base, [first, second], method="sce", selectTopK=0.25)
    assert facts.coefficients == pytest.approx((1.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in bfloat16 many variances are equal
def test_a_pass_more_for_what_is_not_held_changes_nothing(monkeypatch, dtype):
    base, targets = random_models(11, 3, size=5000, scale=1e-3, dtype=dtype)
    one, held = merge(base, targets, method="sce", selectTopK=0.3)
    monkeypatch.setattr(merge_study, "HELD", 0)
    other, passed = merge(base, targets, method="sce", selectTopK=0.3)
    assert held.thresholds == passed.thresholds
    assert held.coefficients == pytest.approx(passed.coefficients, rel=1e-6)
    assert torch.equal(one, other)


def test_of_equal_magnitudes_ties_keeps_the_lowest_index():
    base, target = torch.zeros(200), torch.ones(200)
    merged, _ = merge(base, [target], method="ties", density=0.35)
    assert merged.tolist() == [1.0] * 70 + [0.0] * 130


def test_where_nothing_varies_the_coefficients_are_uniform():
    base, (target,) = random_models(3, 1)
    merged, facts = merge(base, [target, target, target], method="sce")
    assert facts.coefficients == pytest.approx((1 / 3,) * 3)
    np.testing.assert_allclose(merged, target, rtol=2e-6, atol=1e-8)


def test_varm_weighs_by_the_squared_change():
    base = torch.zeros(3)
    merged, facts = merge(base, [torch.ones(3), torch.full((3,), 3.0)], method="varm")
    assert facts.coefficients == pytest.approx((0.1, 0.9))
    assert merged.tolist() == pytest.approx([0.1 * 1 + 0.9 * 3] * 3)
    checked = Settings.of({"method": "varm", "profile": "Published"}, 2)
    published, _ = merge_published.merge_tensor("w", base, [torch.ones(3), torch.full((3,), 3.0)], checked)
    np.testing.assert_allclose(published, merged, rtol=1e-6)


def test_published_computes_in_the_bases_dtype():
    """bf16 keeps 8 bits: 1 + 2**-9 is 1 there, so a target rounded first has not moved."""
    base, target = torch.ones(4, dtype=torch.bfloat16), torch.full((4,), 1 + 2**-9)
    checked = Settings.of({"method": "sce", "profile": "Published", "selectTopK": 1.0}, 2)
    merged, _ = merge_published.merge_tensor("w", base, [target, 1.5 * torch.ones(4)], checked)
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [1.5] * 4


def test_dare_keeps_a_share_and_scales_it():
    base, target = torch.zeros(4000), torch.ones(4000)
    merged, _ = merge(base, [target], method="dare_linear", density=0.25)
    assert set(merged.tolist()) == {0.0, 4.0}
    assert merged.mean().item() == pytest.approx(1.0, abs=0.1)


def test_dares_choice_depends_on_seed_tensor_and_target_only():
    base, (target, _) = random_models(5, 2)
    kept = {}
    for seed, name in [(1, "a"), (2, "a"), (1, "b")]:
        merged, _ = merge(base, [target, target], name=name, method="dare_linear", seed=seed)
        again, _ = merge(base, [target, target], name=name, method="dare_linear", seed=seed, block=4 * TILE)
        assert torch.equal(merged, again)
        kept[seed, name] = merged
    assert not torch.equal(kept[1, "a"], kept[2, "a"])
    assert not torch.equal(kept[1, "a"], kept[1, "b"])


models = st.tuples(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from([1, 63, 64, 200]))
methods = st.sampled_from([m for m in METHODS if m != "slerp"])


@settings(max_examples=25, deadline=None)
@given(models, methods, st.sampled_from(["fuseai", "paper", "mergekit"]), st.sampled_from([0.1, 0.5, 1.0]))
def test_targets_that_have_not_moved_give_the_base(drawn, method, variant, share):
    seed, count, size = drawn
    base, _ = random_models(seed, 1, size, dtype=torch.bfloat16)
    weights = [1 / count] * count if method == "linear" else None
    params = {"variant": variant, "selectTopK": share, "density": share, "weights": weights}
    merged, _ = merge(base, [base] * count, method=method, **params)
    assert torch.equal(merged, base)


@settings(max_examples=25, deadline=None)
@given(models, st.sampled_from(["linear", "varm", "sce", "ties", "slerp"]))
def test_equal_targets_give_the_target(drawn, method):
    seed, count, size = drawn
    base, (target,) = random_models(seed, 1, size)
    copies = [target] * (2 if method == "slerp" else count)
    merged, _ = merge(base, copies, method=method, density=1.0)
    np.testing.assert_allclose(merged, target, rtol=2e-6, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(models, st.randoms(use_true_random=False), st.sampled_from(["sce", "varm", "ties"]))
def test_the_targets_order_does_not_matter(drawn, random, method):
    seed, count, size = drawn
    base, targets = random_models(seed, count, size)
    order = list(range(count))
    random.shuffle(order)
    merged, facts = merge(base, targets, method=method)
    shuffled, again = merge(base, [targets[j] for j in order], method=method)
    np.testing.assert_allclose(shuffled, merged, rtol=1e-5, atol=1e-7)
    assert again.coefficients == pytest.approx([facts.coefficients[j] for j in order], rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(models, methods, st.sampled_from(["fuseai", "paper", "mergekit"]), st.integers(2, 5))
def test_how_much_is_read_at_a_time_does_not_change_a_bit(drawn, method, variant, tiles):
    seed, count, size = drawn
    base, targets = random_models(seed, count, size, dtype=torch.bfloat16)
    one, _ = merge(base, targets, method=method, variant=variant)
    other, _ = merge(base, targets, method=method, variant=variant, block=tiles * TILE)
    assert torch.equal(one, other)


@settings(max_examples=15, deadline=None)
@given(models, st.sampled_from([0.05, 0.3, 1.0]), st.sampled_from(["fuseai", "paper", "mergekit"]))
def test_both_profiles_agree_in_float32(drawn, share, variant):
    seed, count, size = drawn
    base, targets = random_models(seed, count, size)
    params = {"method": "sce", "variant": variant, "selectTopK": share}
    ours, _ = merge(base, targets, **params)
    checked = Settings.of({**params, "profile": "Published"}, count)
    published, _ = merge_published.merge_tensor("w", base, targets, checked)
    np.testing.assert_allclose(ours, published, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(method, value):
    base, targets = random_models(1, 2)
    targets[1][130] = value
    with pytest.raises(
        ValueError, match=r"tensor layer\.weight of target 1 holds -?(nan|inf) at element 130"
    ):
        merge(base, targets, name="layer.weight", method=method)
    checked = Settings.of({"method": method, "profile": "Published"}, 2)
    with pytest.raises(ValueError, match=r"layer\.weight .* not finite"):
        merge_published.merge_tensor("layer.weight", base, targets, checked)


@pytest.mark.parametrize("variant", ["fuseai", "paper", "mergekit"])
def test_a_nan_in_the_pivot_is_refused_also_where_nothing_is_selected(variant):
    base, targets = random_models(1, 2)
    base[7] = float("nan")
    with pytest.raises(ValueError, match="tensor w of the pivot holds nan at element 7"):
        merge(base, targets, method="sce", variant=variant, selectTopK=0.01)


WRONG = [
    ({"method": "mean"}, 2, "method is 'mean', expected one of sce, linear"),
    ({"method": "sce", "variant": "v2"}, 2, "variant is 'v2'"),
    ({"profile": "Exact"}, 2, "profile is 'Exact'"),
    ({"selectTopK": 1.5}, 2, "selectTopK is 1.5, expected 0 to 1"),
    ({"selectTopK": float("nan")}, 2, "selectTopK is nan"),
    ({"method": "ties", "density": -0.1}, 2, "density is -0.1"),
    ({"method": "dare_ties", "density": 0.0}, 2, "density 0 keeps nothing"),
    ({"method": "slerp"}, 3, "slerp lies between exactly two targets, got 3"),
    ({"method": "linear", "weights": [1.0]}, 2, "1 weights for 2 targets"),
    ({"method": "linear", "weights": [1.0, -1.0]}, 2, "sum to 0 and cannot be normalised"),
    ({"method": "linear", "weights": [1.0, float("inf")]}, 2, "weights must be finite"),
    ({}, 0, "needs at least one target"),
]


@pytest.mark.parametrize(("params", "targets", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_parameters_are_refused_in_one_sentence(params, targets, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings.of(params, targets)


def test_a_block_holds_whole_tiles():
    with pytest.raises(ValueError, match="whole tiles of 64"):
        merge(*random_models(1, 2), block=TILE + 1)
