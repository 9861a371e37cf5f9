"""Which distribution a sample learns, and that compiling keeps exactly the rows that are to be learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
from fusechat.errors import BadData
from fusechat_stages import shards
from fusechat_stages.entry import FolderInput
from fusechat_stages.training.examples import Examples, compile_examples, min_ce, open_examples, ranges
from fusechat_stages.training.recipe import Means, Recipe

from tests.fuse_case import RECIPE, Case, make_case

NAN = float("nan")


@pytest.mark.parametrize(
    ("given", "pivot", "sources", "published", "with_pivot", "want"),
    [
        ("the lower wins", [1.0], [0.9], False, True, 1),
        ("a tie goes to the pivot", [1.0], [1.0], False, True, 0),
        ("a tie in bfloat16 goes to the pivot", [1.5], [1.4990], True, True, 0),
        ("which float32 sees", [1.5], [1.4990], False, True, 1),
        ("without the pivot the source always", [1.0], [2.0], False, False, 1),
        ("the best of two", [1.0, 1.0], [0.8, 0.7], False, True, 2),
        ("the first of two equal ones", [1.0, 1.0], [0.7, 0.7], False, True, 1),
        ("by the gain over the bytes of the pair", [1.0, 2.0], [0.9, 1.1], False, True, 2),
        ("Published by its own tokens", [1.0, 1.0], [0.9, 1.1], True, True, 1),
        ("NaN never wins", [1.0, 1.0], [NAN, 1.1], False, True, 0),
        ("nor does it without the pivot", [1.0, 1.0], [NAN, 9.0], False, False, 2),
        ("a pivot of NaN loses", [NAN], [5.0], True, True, 1),
    ],
)
def test_min_ce(given: str, pivot: list, sources: list, published: bool, with_pivot: bool, want: int):
    chosen = min_ce(np.array([pivot]), np.array([sources]), published=published, with_pivot=with_pivot)
    assert chosen.tolist() == [want], given


def test_ranges_are_the_concatenated_aranges():
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


def compiled(case: Case, folder: Path, sources: int, **changes) -> Examples:
    recipe = Recipe.read({**RECIPE, **changes}, {})
    inputs = {role: FolderInput(path) for role, path in case.inputs().items()}
    aligned = [inputs[f"aligned.{n}"] for n in range(sources)]
    selections = [inputs[f"selection.{n}"] for n in range(sources)]
    return compile_examples(recipe, inputs["pivot"], aligned, selections, folder)


def expected(case: Case, sources: int, *, published: bool) -> list[tuple]:
    """(tokens, positions, ids, chosen) of every sample kept, straight from the blocks."""
    found = []
    for path in sorted((case.root / "pivot").iterdir()):
        rows = shards.read_rows(path)
        others = [shards.read_aligned(case.root / f"aligned{n}" / path.name) for n in range(sources)]
        keep = [json.loads((case.root / f"selection{n}" / path.name).with_suffix(".json").read_text())["kept"]
                for n in range(sources)]  # fmt: skip
        for s in range(rows.samples):
            if not all(s in kept for kept in keep):
                continue
            gains = [0.0] + [float(o.ce_source[s]) - float(o.ce_pivot[s]) for o in others]
            if published:
                gains = [0.0, *(g if abs(g) > 0.01 else 0.0 for g in gains[1:])]
            best = int(np.argmin(gains))
            first, last = rows.row_offsets[s], rows.row_offsets[s + 1]
            ids = (rows if best == 0 else others[best - 1]).topk_ids[first:last].copy()
            if published:
                empty = (ids < 0).all(1)
                ids[empty] = rows.topk_ids[first:last][empty]
            found.append(
                (rows.sample_ids(s).tolist(), rows.positions()[first:last].tolist(), ids.tolist(), best)
            )
    return found


@pytest.mark.parametrize(("profile", "sources"), [("Corrected", 1), ("Corrected", 2), ("Published", 1)])
def test_compiled_examples_are_the_chosen_rows_of_the_kept_samples(
    tmp_path: Path, profile: str, sources: int
):
    case = make_case(tmp_path, sources=2)
    strategy = "Pairwise" if sources == 1 else "MultiTeacher"
    examples = compiled(case, tmp_path / "examples", sources, profile=profile, strategy=strategy)
    want = expected(case, sources, published=profile == "Published")
    assert len(examples) == len(want) < 24
    for s, (tokens, positions, ids, best) in enumerate(want):
        rows = slice(examples.row_offsets[s], examples.row_offsets[s + 1])
        assert examples.tokens[examples.token_offsets[s] : examples.token_offsets[s + 1]].tolist() == tokens
        assert examples.position[rows].tolist() == positions
        assert examples.topk_ids[rows].tolist() == ids
        assert examples.chosen[s] == best
        assert examples.distilled[s] == (examples.topk_ids[rows] >= 0).any(1).sum()
    assert set(examples.chosen) == set(range(sources + 1))


def test_mass_of_a_corrected_row_is_one_with_the_unmapped(tmp_path: Path):
    examples = compiled(make_case(tmp_path), tmp_path / "examples", 1)
    used = (examples.topk_ids >= 0).any(1)
    mass = np.exp(examples.scores[used].astype(np.float32)).sum(1) + examples.tail[used]
    assert np.allclose(mass, 1, atol=2e-3)


def test_a_maximum_length_cuts_rows_and_drops_samples_that_keep_none(tmp_path: Path):
    case = make_case(tmp_path)
    whole = compiled(case, tmp_path / "a", 1)
    cut = compiled(case, tmp_path / "b", 1, maxLength=9)
    assert cut.inputs.max() == 8
    assert len(cut) == len(whole)
    assert cut.rows.sum() < whole.rows.sum()
    with pytest.raises(BadData, match="no sample is left"):
        compiled(case, tmp_path / "c", 1, maxLength=4)


def test_a_control_has_tokens_and_no_distribution(tmp_path: Path):
    examples = compiled(make_case(tmp_path), tmp_path / "examples", 0, strategy="SFT")
    assert len(examples) == 24
    assert examples.topk_ids.shape == (len(examples.position), 0)
    assert not examples.distilled.any()


def test_examples_are_mapped_not_read(tmp_path: Path):
    compiled(make_case(tmp_path), tmp_path / "examples", 1)
    again = open_examples(tmp_path / "examples")
    assert all(isinstance(again.__dict__[n].base, np.memmap) for n in ("topk_ids", "scores"))
    assert isinstance(again.tokens, np.memmap)


def test_corrected_refuses_logits(tmp_path: Path):
    with pytest.raises(BadData, match="needs 'logprobs'"):
        compiled(make_case(tmp_path, scores="logits"), tmp_path / "examples", 1)


def test_blocks_of_another_extract_are_refused(tmp_path: Path):
    case, other = make_case(tmp_path / "a"), make_case(tmp_path / "b", seed=3)
    name = shards.block_name(0)
    (case.root / "aligned0" / name).write_bytes((other.root / "aligned0" / name).read_bytes())
    with pytest.raises(BadData, match="aligned to another extract"):
        compiled(case, tmp_path / "examples", 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"loss": "mse"}, "loss must be one of ce, kl, got 'mse'"),
        ({"strategy": "Triple"}, "strategy must be one of Pairwise, MultiTeacher, SFT"),
        ({"lmWeight": 1.5}, "lmWeight must be between 0 and 1, got 1.5"),
        ({"temperature": 0}, "temperature must be between 0.001"),
        ({"epochs": 0}, "epochs must be between 1"),
        ({"epochs": 1.5}, "epochs must be of type int, got 1.5"),
        ({"withPivot": 1}, "withPivot must be of type bool"),
        ({"learningRat": 1.0}, "unknown parameter 'learningRat'"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(given: dict, says: str):
    with pytest.raises(ValueError, match=r"^fuse: ") as raised:
        Recipe.read({**RECIPE, **given}, {})
    assert says in str(raised.value)


def test_published_takes_its_micro_batch_from_what_is_hashed():
    given = {**RECIPE, "profile": "Published", "microBatch": 2, "worldSize": 8}
    assert Recipe.read(given, {"microBatch": 4}).microBatch == 2
    assert Recipe.read(RECIPE, {"microBatch": 3}).microBatch == 3


def test_runtime_is_read_leniently_and_bounds_a_batch_in_tokens():
    means = Means.read({"microBatch": 2, "somethingOfExtract": 1, "attention": "sdpa"})
    assert means.tokens(Recipe(maxLength=100)) == 200
    assert Means.read({"tokensPerBatch": 512}).tokens(Recipe()) == 512
    with pytest.raises(ValueError, match="processes must be between 1"):
        Means.read({"processes": 0})
