"""examples/tiny: the questions can be trusted, the parts are disjoint, and making it twice costs nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fusechat.spec import load
from fusechat.spec_types import Base

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = EXAMPLES / "tiny"


@pytest.fixture
def tiny(monkeypatch):
    """The example's modules, importable by the names they use among themselves."""
    monkeypatch.syspath_prepend(str(TINY))
    import facts
    import make_tiny
    import recipes
    import tasks

    class Modules:
        pass

    Modules.facts, Modules.make_tiny, Modules.recipes, Modules.tasks = facts, make_tiny, recipes, tasks
    return Modules


def test_a_question_has_the_answer_that_anyone_would_give(tiny):
    right = {
        "french": ("bread moon apple", "pain lune pomme"),
        "opposite": ("cold old up", "hot young down"),
        "capital": ("Peru France Japan", "Lima Paris Tokyo"),
        "sort": ("moon bread apple", "apple bread moon"),
        "reverse": ("moon bread apple", "apple bread moon"),
    }
    assert right.keys() == tiny.tasks.SKILLS.keys()
    for skill, (words, answer) in right.items():
        assert " ".join(tiny.tasks.SKILLS[skill].answer(words.split())) == answer


def test_no_fact_has_two_answers(tiny):
    for table in (tiny.facts.FRENCH, tiny.facts.CAPITALS, tiny.facts.OPPOSITES):
        assert len(set(table.values())) == len(table)
        assert all(" " not in word for word in [*table, *table.values()])


def test_no_set_of_words_is_in_two_parts(tiny):
    asked = {
        where: {
            frozenset(x.question.split(": ")[1].split())
            for seed in ("1", "2")
            for x in tiny.tasks.mixture(dict.fromkeys(tiny.tasks.SKILLS, 100), where, seed)
        }
        for where in ("train", "dev", "test")
    }
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["dev"]
    assert not asked["dev"] & asked["test"]


def test_questions_are_different_and_as_many_as_asked_for(tiny):
    drawn = tiny.tasks.draw("sort", 300, "train", "1")
    assert len({x.question for x in drawn}) == 300
    with pytest.raises(ValueError, match="capital: only 6 different questions of part test"):
        tiny.tasks.draw("capital", 100, "test", "1", words=["Peru", "Japan", "France", "Kenya"])


def test_the_share_of_wrong_answers_is_as_asked_for(tiny):
    def wrong(errors):
        drawn = tiny.tasks.mixture(dict.fromkeys(tiny.tasks.SKILLS, 200), "train", "1", errors=errors)
        return sum(not _is_right(tiny, x) for x in drawn) / len(drawn)

    assert wrong(0.0) == 0
    assert wrong(0.4) == pytest.approx(0.4, abs=0.04)
    assert wrong(1.0) == 1


def test_an_error_is_one_word_or_one_swap(tiny):
    for x in tiny.tasks.draw("french", 100, "train", "1", errors=1.0):
        right = _right(tiny, x)
        given = x.answer.split()
        differ = sum(a != b for a, b in zip(given, right, strict=True))
        assert differ == 1 or (differ == 2 and sorted(given) == sorted(right))


def _right(tiny, x) -> list[str]:
    return list(tiny.tasks.SKILLS[x.skill].answer(x.question.split(": ")[1].split()))


def _is_right(tiny, x) -> bool:
    return x.answer.split() == _right(tiny, x)


def test_each_model_has_met_its_own_words(tiny):
    tasks = tiny.tasks
    half = tasks.known("french", 0.5, "1 pivot")
    assert len(half) == round(0.5 * len(tasks.SKILLS["french"].words))
    assert set(half) < set(tasks.SKILLS["french"].words)
    assert half != tasks.known("french", 0.5, "1 clerk")
    learned = tasks.draw("french", 50, "train", "1", words=half)
    assert {word for x in learned for word in x.question.split(": ")[1].split()} <= set(half)


def test_each_source_has_met_what_the_pivot_has_not(tiny):
    pivot, *sources = tiny.recipes.MODELS
    for source in sources:
        assert any(pivot.met.get(skill, 1) < source.met.get(skill, 1) == 1 for skill in pivot.lessons)
    assert len({recipe.model_type for recipe in tiny.recipes.MODELS}) == 3
    assert {bool(recipe.control) for recipe in tiny.recipes.MODELS} == {True, False}
    assert all(recipe.vocabulary <= 4000 for recipe in tiny.recipes.MODELS)


def test_the_data_are_what_the_stages_read(tiny, tmp_path):
    from fusechat_stages.conversations import read_conversations, read_questions

    tiny.make_tiny.write_data(tmp_path, seed=1)
    gold = read_conversations([tmp_path / "conversations.jsonl"])
    held_out = read_questions([tmp_path / "questions.jsonl"])
    dev = read_questions([tmp_path / "dev.jsonl"])
    assert len(gold) == tiny.make_tiny.GOLD_PER_SKILL * 5
    assert len(held_out) >= 4000
    assert {q["category"] for q in held_out} == set(tiny.tasks.SKILLS)
    told = {c["messages"][0]["content"] for c in gold}
    asked = {q["messages"][0]["content"] for q in held_out}
    assert len(asked) == len(held_out)
    assert not told & asked
    assert not asked & {q["messages"][0]["content"] for q in dev}


def test_the_same_seed_draws_the_same_questions_and_another_seed_others(tiny):
    def drawn(seed):
        return tiny.tasks.mixture(dict.fromkeys(tiny.tasks.SKILLS, 50), "train", seed, errors=0.4)

    assert drawn("1") == drawn("1")
    assert drawn("1") != drawn("2")


def test_made_twice_it_does_nothing_and_needs_no_torch(tiny, tmp_path):
    out = tmp_path / "build"
    out.mkdir()
    (out / "stamp.json").write_text(json.dumps(tiny.make_tiny.recipe_stamp(3)))
    told = [str(TINY / "make_tiny.py"), "--seed", "3", "--out", str(out)]
    again = subprocess.run(
        [sys.executable, "-X", "importtime", *told], capture_output=True, text=True, check=True
    )
    assert "are there already" in again.stdout
    assert "torch" not in {line.split("|")[-1].strip().split(".")[0] for line in again.stderr.splitlines()}
    assert tiny.make_tiny.read_stamp(out) != tiny.make_tiny.recipe_stamp(4)


def test_what_stopped_half_way_leaves_the_old_build_and_no_rubbish(tiny, tmp_path, monkeypatch):
    out = tmp_path / "build"
    out.mkdir()
    (out / "old").write_text("kept")
    monkeypatch.setattr(tiny.make_tiny, "train_models", lambda folder, seed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.make_tiny.build(out, 1, {})
    assert [path.name for path in tmp_path.iterdir()] == ["build"]
    assert (out / "old").read_text() == "kept"


@pytest.mark.parametrize("name", ["tiny.yaml", "smollm2.yaml"])
def test_an_example_is_a_valid_run_of_at_most_25_lines(name):
    run = load(EXAMPLES / name)
    assert isinstance(run, Base)
    lines = [line for line in (EXAMPLES / name).read_text().splitlines() if not line.startswith("#")]
    assert len(lines) <= 25
    assert run.spec.controls == ("SFT",)
    built = EXAMPLES / name.removesuffix(".yaml") / "build"
    uris = [model.uri for model in (run.spec.pivot, *run.spec.sources)] + [run.spec.dataset.uri]
    assert {Path(uri.removeprefix("file://")).parent for uri in uris} == {built}
