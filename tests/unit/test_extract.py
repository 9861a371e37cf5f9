"""extract, whole: its rows are the model's own, whatever the batch; what cannot be used is counted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fusechat_stages import chat, extract, models, shards
from fusechat_stages.artifacts import Stopped
from fusechat_stages.entry import run_local
from fusechat_stages.scorer import batches
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tests import tokenizers

PARAMS = {
    "profile": "Corrected", "template": "yi", "topK": 10, "maxLength": 64, "dtype": "float32",
    "scores": "logprobs",
}  # fmt: skip
ANSWERS = ("I am fine.", "", "  two\n", "你好 👍🏽", "a much longer answer " * 9, "Hello there", "7")


def conversations(count: int = 9) -> list[dict]:
    made = []
    for n in range(count):
        texts = [
            f"Question {n}?",
            ANSWERS[n % 7],
            *(["And then?", ANSWERS[(n + 3) % 7]] if n % 3 == 0 else []),
        ]
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        made.append({"id": f"c{n}", "messages": turns})
    return made


def write_dataset(folder: Path, records: list[dict]) -> Path:
    folder.mkdir()
    blocks = range(0, max(1, len(records)), shards.BLOCK_SAMPLES)
    for block, first in enumerate(blocks):
        lines = [json.dumps(record) + "\n" for record in records[first : first + shards.BLOCK_SAMPLES]]
        (folder / shards.block_name(block, "jsonl")).write_text("".join(lines))
    (folder / "metrics.json").write_text(json.dumps({"samples": len(records), "blocks": len(blocks)}))
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.byte_level(400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def extracted(model_folder: Path, tmp_path: Path, records: list[dict], runtime=None, **params):
    dataset = write_dataset(tmp_path / "data", records)
    inputs = {"model": model_folder, "dataset": dataset}
    metrics = run_local("extract", {**PARAMS, **params}, inputs, tmp_path / "out", runtime)
    return shards.read_rows(tmp_path / "out" / "block-00000.arrow"), metrics


def test_rows_are_the_models_own_distributions(model_folder, tmp_path):
    rows, _ = extracted(model_folder, tmp_path, conversations())
    model = models.load_model(model_folder, "float32")
    at = 0
    for s in range(rows.samples):
        ids = torch.tensor(rows.sample_ids(s).astype(np.int64))
        with torch.inference_mode():
            logprobs_TV = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        count = int(rows.row_offsets[s + 1] - rows.row_offsets[s])
        for r in range(at, at + count):
            t = int(rows.positions()[r])
            wanted = logprobs_TV[t]
            assert rows.topk_ids[r].tolist() == wanted.topk(10).indices.tolist()
            np.testing.assert_allclose(rows.scores[r], wanted.topk(10).values, atol=4e-3)
            np.testing.assert_allclose(rows.ce[r], -wanted[ids[t + 1]], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(rows.tail[r], 1 - wanted.topk(10).values.exp().sum(), atol=1e-5)
        at += count
    assert at == len(rows.ce) > 100


def test_samples_keep_the_datasets_order_ids_turns_and_end_bytes(model_folder, tmp_path):
    records = conversations()
    rows, metrics = extracted(model_folder, tmp_path, records)
    tokenizer = models.load_tokenizer(model_folder)
    told = [chat.render(tokenizer, "yi", record["messages"], 64) for record in records]
    assert rows.ids == [record["id"] for record in records]
    assert rows.index.tolist() == list(range(len(records)))
    assert [rows.sample_ids(s).tolist() for s in range(rows.samples)] == [c.input_ids for c in told]
    assert rows.end_byte.tolist() == [end for c in told for end in c.end_bytes]
    assert rows.turn_bytes.tolist() == [turn.answer_bytes for c in told for turn in c.turns]
    assert rows.meta["scores"] == "logprobs"
    assert int(rows.meta["vocab"]) == len(tokenizer) + 3
    assert metrics["samples"] == len(records)
    assert metrics["rows"] == len(rows.ce)
    assert metrics["tokens"] == len(rows.input_ids)
    assert metrics["cePerToken"] == pytest.approx(rows.ce.mean(dtype=np.float64))


@pytest.mark.parametrize("tokens_per_batch", [1, 70, 200, 2000])
def test_values_do_not_depend_on_what_a_sample_is_batched_with(model_folder, tmp_path, tokens_per_batch):
    (tmp_path / "a").mkdir()
    alone, _ = extracted(model_folder, tmp_path / "a", conversations(), {"tokensPerBatch": 1})
    rows, _ = extracted(model_folder, tmp_path, conversations(), {"tokensPerBatch": tokens_per_batch})
    np.testing.assert_allclose(rows.ce, alone.ce, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows.tail, alone.tail, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(rows.scores, alone.scores, atol=4e-3)


def test_the_same_recipe_gives_the_same_bytes(model_folder, tmp_path):
    digests = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        extracted(model_folder, tmp_path / name, conversations())
        file = tmp_path / name / "out" / "block-00000.arrow"
        digests.add(hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_published_keeps_logits_and_losses_in_half_precision(model_folder, tmp_path):
    params = {"profile": "Published", "scores": "logits", "dtype": "bfloat16"}
    rows, _ = extracted(model_folder, tmp_path, conversations(), **params)
    model = models.load_model(model_folder, "bfloat16")
    ids = torch.tensor(rows.sample_ids(0).astype(np.int64))
    with torch.inference_mode():
        logits_TV = model(input_ids=ids[None]).logits[0].float()
    first = int(rows.positions()[0])
    values, _ = logits_TV[first].topk(10)
    np.testing.assert_allclose(rows.scores[0].astype(np.float32), values, atol=0.05)
    assert (rows.scores == torch.tensor(rows.scores.copy()).bfloat16().half().numpy()).all()
    assert (rows.ce == rows.ce.astype(np.float16)).all()
    assert rows.meta["scores"] == "logits"
    assert rows.meta["profile"] == "Published"


def test_what_has_no_supervised_token_is_dropped_before_the_forward_and_counted(model_folder, tmp_path):
    records = conversations(4)
    records[1]["messages"][0]["content"] = "long " * 200
    records[2]["messages"][1]["content"] = "ends <|im_end|> early"
    rows, metrics = extracted(model_folder, tmp_path, records)
    assert rows.ids == ["c0", "c3"]
    assert rows.index.tolist() == [0, 3]
    assert metrics["dropped"] == {"beyondMaxLength": 1, "controlTokenInAnswer": 1}


def test_a_dataset_of_which_nothing_can_be_used_is_refused_with_the_reasons(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"no conversation .* 3 beyondMaxLength .the prompt alone reaches"):
        extracted(model_folder, tmp_path, conversations(3), maxLength=2)


def test_a_conversation_beyond_the_models_positions_is_refused(model_folder, tmp_path):
    records = conversations(2)
    records[0]["messages"][1]["content"] = "much longer " * 100
    with pytest.raises(
        ValueError, match=r"the model reads at most 128; set extract\.maxLength to 128 or less"
    ):
        extracted(model_folder, tmp_path, records, maxLength=2048)


def test_blocks_are_numbered_through_the_dataset(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_SAMPLES", 4)
    _, metrics = extracted(model_folder, tmp_path, conversations(9))
    blocks = [shards.read_rows(tmp_path / "out" / shards.block_name(b)) for b in range(3)]
    assert [block.index.tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert metrics["samples"] == 9


def test_sigterm_stops_within_a_block(model_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fusechat_stages.artifacts.Output.stopping", property(lambda self: asked.append(1) or len(asked) > 2)
    )
    with pytest.raises(Stopped, match="stopped within block 0"):
        extracted(model_folder, tmp_path, conversations(), {"tokensPerBatch": 1})
    assert not (tmp_path / "out" / "block-00000.arrow").exists()


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(1, 200))
def test_batches_hold_every_sample_once_within_the_budget(lengths, budget):
    groups = batches(lengths, budget)
    assert sorted(n for group in groups for n in group) == list(range(len(lengths)))
    for group in groups:
        assert lengths[group[0]] == max(lengths[n] for n in group)
        assert len(group) == 1 or len(group) * lengths[group[0]] <= budget


def test_a_row_takes_at_most_80_bytes_and_an_id_4(model_folder, tmp_path):
    rows, _ = extracted(model_folder, tmp_path, conversations() * 40)
    size = (tmp_path / "out" / "block-00000.arrow").stat().st_size
    per_sample = 2048 + 120 * rows.samples  # the schema, and per sample its id, spans and offsets
    assert size <= 80 * len(rows.ce) + 4 * len(rows.input_ids) + per_sample


def test_progress_counts_the_samples_of_this_shard_from_where_this_attempt_began():
    class Out:
        shard, stopping = (1, 2), False

        def progress(self, done, total, unit, **facts):
            told.append((done, total, unit, facts["from"]))

    told: list = []
    progress = extract.Progress(Out(), 3 * 2048 + 100)
    progress.start(3)
    progress(50, 1000)
    assert told == [(2048 + 50, 2048 + 100, "samples", 2048)]
