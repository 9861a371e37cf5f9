"""The chunked head is the model's own: same logits, same loss, same gradients, family by family."""

import pytest
import torch
import transformers
from fusechat_stages import models
from fusechat_stages.numerics.losses import corrected_teacher
from fusechat_stages.training.batches import Batch
from fusechat_stages.training.head import Fusion

V, H = 61, 16
SMALL = {
    "vocab_size": V, "hidden_size": H, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "attention_dropout": 0.0,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {"tie_word_embeddings": True},
    "Gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    "Phi3": {"tie_word_embeddings": False},
    "Cohere": {"logit_scale": 0.0625},
    "Granite": {"logits_scaling": 4.0},
    "Mixtral": {"num_local_experts": 2},
}  # fmt: skip


def model_of(family: str) -> torch.nn.Module:
    config = getattr(transformers, f"{family}Config")(**SMALL, **FAMILIES[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)  # so that soft-caps and scales matter
    return model.eval()


def batch_of(rows: int = 9) -> Batch:
    g = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, V, (2, 8), generator=g)
    scores_RV = torch.log_softmax(2 * torch.randn(rows, V, generator=g), -1)
    scores_RK, ids_RK = scores_RV.topk(4)
    teacher = corrected_teacher(ids_RK, scores_RK, 1 - scores_RK.exp().sum(-1), 1.0, "kl", V)
    rows_R = torch.randperm(16, generator=g)[:rows].sort().values
    return Batch(ids_BT, rows_R, torch.randint(V, (rows,), generator=g), teacher, 0.03, 0.07, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_head_is_the_models_own(family: str):
    model, batch = model_of(family), batch_of()
    with torch.no_grad():
        want_BTV = model(input_ids=batch.input_ids_BT, use_cache=False).logits
        backbone = getattr(model, model.base_model_prefix)
        hidden = backbone(input_ids=batch.input_ids_BT, use_cache=False).last_hidden_state
        got = models.head_logits(model, hidden.flatten(0, 1))
    assert torch.allclose(got, want_BTV.flatten(0, 1), atol=1e-6)
    assert getattr(model, model.base_model_prefix) is backbone


def dense_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The same two terms by autograd over all logits at once."""
    logits = model(input_ids=batch.input_ids_BT, use_cache=False).logits.flatten(0, 1)[batch.rows_R]
    logq, t = torch.log_softmax(logits.float(), -1), batch.teacher
    lm = -logq.gather(-1, batch.gold_R[:, None]).sum()
    rest = torch.ones_like(logq, dtype=torch.bool).scatter(-1, t.ids_RK, False)
    tail = torch.logsumexp(logq.masked_fill(~rest, -torch.inf), -1)
    fuse = -(t.probs_RK * logq.gather(-1, t.ids_RK)).sum() - (t.tail_R * tail).sum() + t.negentropy_R.sum()
    return batch.lm_scale * lm + batch.fuse_scale * fuse


@pytest.mark.parametrize("chunk", [1, 4, 9, 100], ids="{} rows a chunk".format)
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2", "Cohere"])
def test_loss_and_every_gradient_do_not_depend_on_the_chunks(family: str, chunk: int):
    model, batch = model_of(family), batch_of()
    dense = dense_loss(model, batch)
    dense.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss, sums = Fusion(model, chunk * V)(batch)
    loss.backward()
    assert loss.item() == pytest.approx(dense.item(), rel=1e-5)
    assert (batch.lm_scale * sums[0] + batch.fuse_scale * sums[1]).item() == pytest.approx(loss.item())
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, want[name], atol=2e-5, rtol=1e-4), name


def test_a_scaled_loss_scales_the_gradient():
    model, batch = model_of("Llama"), batch_of()
    Fusion(model)(batch)[0].backward()
    once = model.lm_head.weight.grad.clone()
    model.zero_grad()
    (3 * Fusion(model)(batch)[0]).backward()
    assert torch.allclose(model.lm_head.weight.grad, 3 * once, rtol=1e-5)


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch):
    model, batch, seen = model_of("Llama"), batch_of(), []
    forward = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda h: seen.append(h.shape[-2]) or forward(h))
    Fusion(model, 4 * V)(batch)
    assert seen == [4, 4, 1]
