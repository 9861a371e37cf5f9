"""examples/tiny: its tokenizers are of both real kinds, and what it trains is a chat model like any other."""

import dataclasses
import json
from pathlib import Path

import pytest
from fusechat_stages import chat, models

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
ANSWERS = ["pain lune pomme", "forêt œuf île", "naïve 你好 🙂", "two\nlines", ""]


@pytest.fixture
def train(monkeypatch):
    monkeypatch.syspath_prepend(str(TINY))
    import train

    return train


@pytest.fixture
def recipes(train):
    import recipes

    return recipes


@pytest.mark.parametrize("name", ["pivot", "linguist", "clerk"])
def test_a_tokenizer_writes_any_answer_under_its_template(train, recipes, name):
    recipe = {recipe.name: recipe for recipe in recipes.MODELS}[name]
    tokenizer = train._tokenizer(recipe, seed=1)
    assert len(tokenizer) <= recipe.vocabulary
    kinds = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
    assert ("ByteLevel" in kinds) == bool(recipe.control)
    assert ("ByteFallback" in kinds) != bool(recipe.control)
    bytes_V = chat.token_bytes(tokenizer)
    for answer in ANSWERS:
        said = [{"role": "user", "content": "French: bread"}, {"role": "assistant", "content": answer}]
        told = chat.render(tokenizer, recipe.template, said, 200)
        assert told.reason is None
        (turn,) = told.turns
        read = b"".join(bytes_V[i] for i in told.input_ids[turn.start : turn.end])
        assert read.decode().removeprefix(" ") == answer
        prompt = chat.prompt_ids(tokenizer, recipe.template, said[:1])
        assert told.input_ids[: turn.start] == prompt


def test_the_words_of_the_facts_are_fewer_tokens_in_the_sources(train, recipes):
    pivot, linguist = (train._tokenizer(recipe, seed=1) for recipe in (recipes.PIVOT, recipes.LINGUIST))
    text = "forêt Montevideo shallow"
    assert len(linguist.tokenize(text)) < len(pivot.tokenize(text))


@pytest.mark.parametrize("name", ["pivot", "clerk"])
def test_a_trained_model_is_loaded_as_any_chat_model_and_has_learned(train, recipes, tmp_path, name):
    recipe = {recipe.name: recipe for recipe in recipes.MODELS}[name]
    short = dataclasses.replace(recipe, steps=6, lessons={"reverse": 40}, met={}, batch=8)
    line = train.make(short, tmp_path / "six", seed=1)
    assert recipe.model_type in line
    train.make(dataclasses.replace(short, steps=1, learning_rate=0.0), tmp_path / "none", seed=1)
    tokenizer = models.load_tokenizer(tmp_path / "six")
    assert tokenizer.chat_template == recipe.chat_template
    assert sorted(p.suffix for p in (tmp_path / "six").iterdir()).count(".safetensors") == 1
    losses = [_loss(train, tokenizer, recipe, tmp_path / folder) for folder in ("none", "six")]
    assert losses[1] < losses[0] - 0.2


def _loss(train, tokenizer, recipe, folder) -> float:
    import tasks

    model = models.load_model(folder, "float32")
    lessons = [(x.question, x.answer) for x in tasks.draw("reverse", 16, "dev", "1")]
    encoded = train.encode(tokenizer, recipe, lessons)
    return float(train._loss(model, *train._pad(encoded)).detach())


def test_the_same_seed_trains_the_same_bytes(train, recipes, tmp_path):
    short = dataclasses.replace(recipes.PIVOT, steps=2, lessons={"reverse": 20}, met={}, batch=8)
    for folder in ("one", "two"):
        train.make(short, tmp_path / folder, seed=5)
    one, two = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("one", "two"))
    assert one == two


def test_a_question_that_its_template_cannot_write_is_refused(train, recipes):
    tokenizer = train._tokenizer(recipes.CLERK, seed=1)
    with pytest.raises(ValueError, match="cannot be written in template phi-3"):
        train.encode(tokenizer, recipes.CLERK, [("French: bread", "pain<|end|>")])
