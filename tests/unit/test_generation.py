"""Greedy decoding gives each prompt the answer it would get alone, by the plainest loop there is."""

import random

import pytest
import torch
from fusechat_stages.generation import batches, greedy
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **IDS)),
    "mistral, a window of 4": lambda: MistralForCausalLM(
        MistralConfig(**SIZES, **HEADS, **IDS, sliding_window=4)
    ),
    "gpt2, learned positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64, **IDS)
    ),
    "gemma2, both windows, soft caps": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, **HEADS, **IDS, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
    ),
}
STOP = {3, 9, 13, 17, 18, 22}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(4)
    made = MODELS[request.param]().eval()
    for name, parameter in made.named_parameters():  # wide weights: answers differ from prompt to prompt
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1 if "embed" in name else 0.7)
    return made


def plain(model, prompt, limit):
    """No batch, no cache, no mask: the whole text through the model for every token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(limit):
            token = int(
                model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)))
                .logits[0, -1]
                .argmax()
            )
            if token in STOP:
                break
            ids.append(token)
    return ids[len(prompt) :]


def prompts(count, longest=12, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(40) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def test_a_batch_answers_as_the_plain_loop_does(model):
    asked = prompts(24)
    found = greedy(model, asked, stop_ids=STOP, max_new_tokens=10, tokens_per_batch=10_000)
    want = [plain(model, prompt, 10) for prompt in asked]
    assert [answer.ids for answer in found] == want
    assert [answer.truncated for answer in found] == [len(ids) == 10 for ids in want]
    assert len({len(ids) for ids in want}) > 2  # answers end at different steps: rows left the batch


@pytest.mark.parametrize("budget", [1, 40, 100])
def test_the_answer_does_not_depend_on_the_batch(model, budget):
    asked = prompts(16, seed=1)
    settings_ = {"stop_ids": STOP, "max_new_tokens": 6}
    whole = greedy(model, asked, **settings_, tokens_per_batch=10_000)
    assert greedy(model, asked, **settings_, tokens_per_batch=budget) == whole
    assert greedy(model, asked[::-1], **settings_, tokens_per_batch=budget) == whole[::-1]


def test_ids_that_no_token_stands_for_are_never_chosen(model):
    found = greedy(model, prompts(12), stop_ids=(), max_new_tokens=8, tokens_per_batch=500, vocabulary=20)
    assert all(token < 20 for answer in found for token in answer.ids)
    assert all(answer.truncated and len(answer.ids) == 8 for answer in found)


def test_a_model_without_positions_is_asked_in_batches_of_one_length():
    class Recurrent(torch.nn.Module):
        """Next id = sum of all ids so far; its state has no way to drop rows."""

        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=True):
            assert attention_mask.all()
            state = input_ids.sum(1) + (0 if past_key_values is None else past_key_values)
            logits = torch.nn.functional.one_hot(state % 40, 40).float()[:, None]
            return type("Out", (), {"logits": logits, "past_key_values": state})

    found = greedy(Recurrent(), [[1, 1], [2], [5, 5]], stop_ids={20}, max_new_tokens=4, tokens_per_batch=100)
    assert [answer.ids for answer in found] == [[2, 4, 8, 16], [2, 4, 8, 16], [10]]
    assert [answer.truncated for answer in found] == [True, True, False]


def test_an_answer_ends_with_the_context(model):
    asked = [[5] * 3, [6] * 61, [7] * 64, [8] * 70]
    told = {"stop_ids": (), "max_new_tokens": 8, "context": 64}
    found = greedy(model, asked, **told, tokens_per_batch=10_000)
    assert [len(answer.ids) for answer in found] == [8, 3, 0, 0]
    assert all(answer.truncated for answer in found)
    assert found == greedy(model, asked, **told, tokens_per_batch=1)


def test_every_batch_is_reported():
    torch.manual_seed(0)
    seen = []
    greedy(MODELS["llama"](), prompts(5), stop_ids=(), max_new_tokens=1, tokens_per_batch=1, each=seen.append)
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("asked", "limit", "word"), [([[]], 1, "no token"), ([[1]], 0, "maxNewTokens")])
def test_what_cannot_be_answered_is_refused(asked, limit, word):
    with pytest.raises(ValueError, match=word):
        greedy(MODELS["llama"](), asked, stop_ids=(), max_new_tokens=limit, tokens_per_batch=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 10), st.integers(1, 300), st.booleans())
def test_batches_hold_every_prompt_once_within_the_budget(lengths, new, budget, padded):
    found = list(batches(lengths, new, budget, padded=padded))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * (longest + new) <= budget
        assert padded or {lengths[i] for i in batch} == {longest}
