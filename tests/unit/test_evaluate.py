"""Evaluate scores what the model really answers, and says how sure one can be of it."""

import json
import math

import pytest
import torch
from fusechat.errors import BadData
from fusechat.intervals import ratio, wilson
from fusechat_stages import chat
from fusechat_stages.artifacts import FolderOutput, Stopped
from fusechat_stages.entry import run_local
from fusechat_stages.evaluate import answer_text, exact_match_metrics, normalised, perplexity_metrics
from fusechat_stages.generation import Answer
from fusechat_stages.models import load_model, load_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = "qwen"
EXACT = {"benchmark": "exactMatch", "template": TEMPLATE, "dtype": "float32", "maxNewTokens": 6}
PERPLEXITY = {"benchmark": "perplexity", "template": TEMPLATE, "dtype": "float32", "maxLength": 400}
TEXTS = ["What is two and two?", "Say it\nagain: é 猫 🙂", " a", "why", "Who are you? Who am I?", "z" * 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny random Llama and a byte-level tokenizer of 300 ids."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0])
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=400, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.7)
    made.save_pretrained(folder)
    return folder


def user(text):
    return [{"role": "user", "content": text}]


def write(folder, records, name="block-00000.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def answer_alone(model, text):
    """The model's greedy answer by the plainest loop."""
    tokenizer, loaded = load_tokenizer(model), load_model(model, "float32")
    ids = chat.prompt_ids(tokenizer, TEMPLATE, user(text))
    start, stop = len(ids), chat.stop_ids(tokenizer, TEMPLATE)
    with torch.inference_mode():
        while len(ids) < start + 6:
            token = int(loaded(input_ids=torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax())
            if token in stop:
                break
            ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_the_score_is_the_share_of_questions_that_the_model_answers_so(model, tmp_path):
    wanted = [answer_alone(model, text) for text in TEXTS]
    questions = [
        {"id": f"q{i}", "messages": user(t), "answer": w if i % 3 else w + "!", "category": "ab"[i % 2]}
        for i, (t, w) in enumerate(zip(TEXTS, wanted, strict=True))
    ]
    write(tmp_path / "data", questions[:4])
    write(tmp_path / "data", questions[4:], "block-00001.jsonl")
    metrics = run_local("evaluate", EXACT, {"model": model, "questions": tmp_path / "data"}, tmp_path / "out")
    answers = read(tmp_path / "out/answers.jsonl")
    assert [a["id"] for a in answers] == [f"q{i}" for i in range(6)]
    assert [a["output"] for a in answers] == wanted
    assert [a["correct"] for a in answers] == [False, True, True, False, True, True]
    limits = wilson(4, 6)
    assert (metrics["score"], metrics["n"], metrics["ci95"]) == (4 / 6, 6, [limits.low, limits.high])
    assert {c: v["score"] for c, v in metrics["byCategory"].items()} == {"a": 2 / 3, "b": 2 / 3}
    assert metrics["benchmark"] == "exactMatch"
    assert metrics["tooLong"] == 0


def test_the_answers_do_not_depend_on_the_batch(model, tmp_path):
    records = [{"id": str(i), "messages": user(t), "answer": "x"} for i, t in enumerate(TEXTS * 3)]
    inputs = {"model": model, "questions": write(tmp_path / "data", records)}
    found = []
    for budget in (1, 200, 100_000):
        out = tmp_path / f"out{budget}"
        run_local("evaluate", EXACT, inputs, out, {"tokensPerBatch": budget})
        found.append((out / "answers.jsonl").read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("benchmark", ["mtBench", "alpacaEval"])
def test_benchmarks_with_a_judge_are_refused_in_one_sentence(benchmark, tmp_path):
    with pytest.raises(BadData, match=f"{benchmark}.*not in this version.*take {benchmark} out"):
        run_local("evaluate", {**EXACT, "benchmark": benchmark}, {}, tmp_path)


def test_what_cannot_be_evaluated_is_refused(model, tmp_path):
    nothing = write(tmp_path / "nothing", [])
    long = write(tmp_path / "long", [{"id": "1", "messages": user("word " * 400), "answer": "x"}])
    table = [
        ({**EXACT, "benchmark": "exact"}, nothing, "unknown benchmark 'exact'"),
        (EXACT, nothing, "no question"),
        (EXACT, long, "the model 400 positions"),
        (PERPLEXITY, nothing, "no conversation"),
        (PERPLEXITY, long, "none of the 1 conversations"),
    ]
    for params, data, words in table:
        with pytest.raises(BadData, match=words):
            run_local(
                "evaluate", params, {"model": model, "questions": data, "dataset": data}, tmp_path / "o"
            )
        assert not (tmp_path / "o/answers.jsonl").exists()


def test_a_stopped_evaluation_publishes_nothing(model, tmp_path):
    from fusechat_stages import evaluate
    from fusechat_stages.artifacts import FolderInput

    data = write(tmp_path / "data", [{"id": "1", "messages": user("a"), "answer": "x"}])
    out = FolderOutput(tmp_path / "out")
    out._stop.set()
    with pytest.raises(Stopped):
        evaluate.run(EXACT, {"model": FolderInput(model), "questions": FolderInput(data)}, out)
    assert not (tmp_path / "out/answers.jsonl").exists()


def conversations():
    """Two turns, one, a long and an empty answer."""
    turns = [[("hello", "a cat 猫"), ("and", " then\n")], [("why", "é")], [("x", "y" * 40)], [("q", "")]]
    found = []
    for i, pairs in enumerate(turns):
        messages = [m for u, a in pairs for m in (*user(u), {"role": "assistant", "content": a})]
        found.append({"id": f"c{i}", "messages": messages})
    return found


def nats_alone(model, record, longest=400):
    """(nats, tokens, bytes) of one conversation from the model's whole output."""
    tokenizer, loaded = load_tokenizer(model), load_model(model, "float32")
    found = chat.render(tokenizer, TEMPLATE, record["messages"], longest)
    with torch.inference_mode():
        logprobs = loaded(input_ids=torch.tensor([found.input_ids])).logits[0].double().log_softmax(-1)
    places = [t for turn in found.turns for t in range(turn.start, turn.end)]
    nats = -sum(float(logprobs[t - 1, found.input_ids[t]]) for t in places)
    size = sum(len(m["content"].encode()) + 1 for m in record["messages"] if m["role"] == "assistant")
    return nats, len(places), size


def test_perplexity_is_that_of_the_answers_tokens(model, tmp_path):
    data = write(tmp_path / "data", conversations())
    inputs = {"model": model, "dataset": data}
    metrics = run_local("evaluate", PERPLEXITY, inputs, tmp_path / "out", {"tokensPerBatch": 150})
    want = [nats_alone(model, record) for record in conversations()]
    nats, tokens, size = (sum(column) for column in zip(*want, strict=True))
    assert (metrics["tokens"], metrics["bytes"], metrics["samples"]) == (tokens, size, 4)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert metrics["bitsPerByte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    limits = ratio([(n / math.log(2), b) for n, _, b in want])
    assert metrics["ci95"] == pytest.approx([limits.low, limits.high], rel=1e-4)
    samples = read(tmp_path / "out/samples.jsonl")
    assert [s["bits"] * math.log(2) for s in samples] == pytest.approx([n for n, _, _ in want], rel=1e-4)
    assert (metrics["dropped"], metrics["truncated"]) == ({}, 0)


def test_cut_and_unusable_conversations_are_counted(model, tmp_path):
    refused = {"id": "n", "messages": [*user("a"), *user("b"), {"role": "assistant", "content": "c"}]}
    data = write(tmp_path / "data", [*conversations(), refused])
    tokenizer = load_tokenizer(model)
    cut = chat.render(tokenizer, TEMPLATE, conversations()[2]["messages"], 400).turns[0].end - 3
    params = {**PERPLEXITY, "maxLength": cut}
    metrics = run_local("evaluate", params, {"model": model, "dataset": data}, tmp_path / "out")
    assert metrics["dropped"] == {"rolesDoNotAlternate": 1}
    assert metrics["truncated"] >= 1
    assert metrics["samples"] == 4
    sizes = [sample["bytes"] for sample in read(tmp_path / "out/samples.jsonl")]
    assert sizes[2] < 41


ANSWERS = [
    (" Paris\n", "Paris", False, True),
    ("paris", "Paris", False, False),
    ("paris", "Paris", True, True),
    ("e\u0301", "\u00e9", False, True),
    ("Pa ris", "Paris", False, False),
    ("Paris.", "Paris", False, False),
    ("", " ", False, True),
]


@pytest.mark.parametrize(("output", "answer", "fold", "equal"), ANSWERS)
def test_white_space_around_and_unicode_form_do_not_count(output, answer, fold, equal):
    assert (normalised(output, fold) == normalised(answer, fold)) is equal


@given(st.text(max_size=20), st.booleans())
def test_normalising_twice_changes_nothing(text, fold):
    once = normalised(text, fold)
    assert normalised(once) == once


def test_metrics_count_empty_and_cut_answers_and_leave_no_question_out():
    judged = [
        {"output": "a", "correct": True, "category": "x", "truncated": False},
        {"output": " ", "correct": False, "category": "x", "truncated": False},
        {"output": "b" * 9, "correct": False, "category": None, "truncated": True},
    ]
    found = exact_match_metrics(judged)
    assert (found["n"], found["empty"], found["truncated"]) == (3, 1, 1)
    assert found["score"] == 1 / 3
    assert list(found["byCategory"]) == ["x"]
    assert found["byCategory"]["x"]["n"] == 2


def test_bits_per_byte_do_not_depend_on_how_many_tokens_the_text_is_cut_into():
    coarse = [{"bits": 8.0, "tokens": 2, "bytes": 8}, {"bits": 4.0, "tokens": 1, "bytes": 4}]
    fine = [{**s, "tokens": s["tokens"] * 3} for s in coarse]
    assert perplexity_metrics(coarse)["bitsPerByte"] == perplexity_metrics(fine)["bitsPerByte"] == 1.0
    assert perplexity_metrics(coarse)["perplexity"] == pytest.approx(2**4)
    assert perplexity_metrics(coarse[:1])["ci95"] == [None, None]


def test_an_end_of_turn_that_is_no_single_token_ends_the_answer_all_the_same(model):
    tokenizer = load_tokenizer(model)
    ids = tokenizer("yes<|end_of_turn|>and more")["input_ids"]
    assert answer_text(tokenizer, Answer(ids, truncated=True), "<|end_of_turn|>") == ("yes", False)
    assert answer_text(tokenizer, Answer(ids[:1], truncated=True), "<|end_of_turn|>")[1]
