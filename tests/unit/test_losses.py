"""The two terms of a fusion step against their definitions in float64, and what the edges do."""

import pytest
import torch
from fusechat_stages.numerics.losses import (
    Teacher,
    corrected_teacher,
    fusion_loss_,
    lm_loss_,
    published_teacher,
)

R, V, K = 7, 23, 4


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [R, V], gold [R], and a teacher's own top-k: ids, fp16 log-probabilities, tail mass."""
    g = torch.Generator().manual_seed(seed)
    teacher_RV = torch.log_softmax(3 * torch.randn(R, V, generator=g), -1)
    scores_RK, ids_RK = teacher_RV.topk(K)
    tail_R = 1 - scores_RK.exp().sum(-1)
    return (
        torch.randn(R, V, generator=g),
        torch.randint(V, (R,), generator=g),
        ids_RK,
        scores_RK.half(),
        tail_R,
    )


def reference(
    logits_RV: torch.Tensor, gold_R: torch.Tensor, teacher: Teacher, lm: float, fuse: float
) -> tuple[float, float, torch.Tensor]:
    """The module docstring's formulas, in float64 by autograd over a dense log-softmax."""
    logits = logits_RV.double().requires_grad_()
    logq = torch.log_softmax(logits, -1)
    lm_R = -logq.gather(-1, gold_R[:, None])[:, 0]
    fuse_R = []
    for r in range(len(gold_R)):
        ids = teacher.ids_RK[r][teacher.kept_RK[r]]
        p = teacher.probs_RK[r][teacher.kept_RK[r]].double()
        rest = torch.ones(logits.shape[1], dtype=torch.bool)
        rest[ids] = False
        term = -(p * logq[r, ids]).sum() - teacher.tail_R[r].double() * torch.logsumexp(logq[r, rest], 0)
        fuse_R.append(term + teacher.negentropy_R[r])
    fuse_sum = (torch.stack(fuse_R) * teacher.weight_R).sum()
    (lm * lm_R.sum() + fuse * fuse_sum).backward()
    return lm_R.sum().item(), fuse_sum.item(), logits.grad


def emptied(ids_RK: torch.Tensor, scores_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row 1 keeps nothing, row 2 one id, row 3 has a hole in the middle, as alignment leaves them."""
    for r, slots in ((1, [0, 1, 2, 3]), (2, [1, 2, 3]), (3, [1])):
        ids_RK[r, slots], scores_RK[r, slots] = -1, -torch.inf
    return ids_RK, scores_RK


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("profile", ["Corrected", "Published"])
def test_loss_and_gradient_are_the_definitions(profile: str, temperature: float, loss: str):
    logits_RV, gold_R, ids_RK, scores_RK, tail_R = rows()
    ids_RK, scores_RK = emptied(ids_RK, scores_RK)
    if profile == "Published":
        teacher = published_teacher(ids_RK, scores_RK, temperature, loss)
    else:
        teacher = corrected_teacher(ids_RK, scores_RK, tail_R, temperature, loss, vocabulary=V)
    want_lm, want_fuse, want_grad = reference(logits_RV, gold_R, teacher, 0.3, 0.7)
    lm, fuse = fusion_loss_(logits_RV, gold_R, teacher, 0.3, 0.7)
    assert lm.item() == pytest.approx(want_lm, rel=1e-5)
    assert fuse.item() == pytest.approx(want_fuse, rel=1e-5, abs=1e-5)
    assert torch.allclose(logits_RV.double(), want_grad, atol=1e-6)


def test_plain_loss_is_the_fusion_loss_without_its_second_term():
    logits_RV, gold_R, ids_RK, scores_RK, tail_R = rows(1)
    teacher = corrected_teacher(ids_RK, scores_RK, tail_R, 1.0, "ce", V)
    plain_RV, both_RV = logits_RV.clone(), logits_RV.clone()
    assert torch.allclose(
        lm_loss_(plain_RV, gold_R, 0.5), fusion_loss_(both_RV, gold_R, teacher, 0.5, 0.0)[0]
    )
    assert torch.allclose(plain_RV, both_RV, atol=1e-7)


def test_a_teacher_that_is_the_model_has_no_kl_and_no_gradient():
    logits_RV, gold_R, *_ = rows(2)
    scores_RK, ids_RK = torch.log_softmax(logits_RV, -1).topk(K)
    teacher = corrected_teacher(ids_RK, scores_RK, 1 - scores_RK.exp().sum(-1), 1.0, "kl", V)
    _, fuse = fusion_loss_(logits_RV, gold_R, teacher, 0.0, 1.0)
    assert fuse.item() == pytest.approx(0, abs=1e-5)
    assert logits_RV.abs().max() < 1e-6


def test_corrected_keeps_probabilities_and_tail_as_they_are_and_published_renormalises():
    _, _, ids_RK, scores_RK, tail_R = rows(3)
    kept = corrected_teacher(ids_RK, scores_RK, tail_R, 1.0, "ce", V)
    assert torch.allclose(kept.probs_RK.sum(-1) + kept.tail_R, torch.ones(R), atol=2e-3)
    assert torch.equal(kept.tail_R, tail_R)
    published = published_teacher(ids_RK, scores_RK, 1.0, "ce")
    assert torch.allclose(published.probs_RK.sum(-1), torch.ones(R), atol=1e-2)
    assert published.tail_R.abs().max() == 0


def test_mass_of_ids_beyond_the_tokenizer_joins_the_tail():
    _, _, ids_RK, scores_RK, tail_R = rows(4)
    vocabulary = int(ids_RK[:, 0].min()) + 1  # some rows keep nothing below it
    teacher = corrected_teacher(ids_RK, scores_RK, tail_R, 1.0, "ce", vocabulary)
    assert teacher.ids_RK[teacher.kept_RK & (teacher.probs_RK > 0)].max() < vocabulary
    assert torch.allclose(teacher.probs_RK.sum(-1) + teacher.tail_R, torch.ones(R), atol=2e-3)
    assert teacher.weight_R.min() == 1  # their tail still says something
    assert (teacher.tail_R > tail_R + 0.1).any()


def test_rows_without_a_source_position_leave_the_sum():
    logits_RV, gold_R, ids_RK, scores_RK, tail_R = rows(5)
    ids_RK[:], scores_RK[:] = -1, -torch.inf
    teacher = corrected_teacher(ids_RK, scores_RK, tail_R, 1.0, "kl", V)
    _, fuse = fusion_loss_(logits_RV, gold_R, teacher, 0.0, 1.0)
    assert teacher.weight_R.sum() == 0
    assert fuse == 0
    assert logits_RV.abs().max() == 0


@pytest.mark.parametrize("gap", [50.0, 95.0, 1e4])
def test_a_model_that_gives_the_tail_nothing_still_has_a_finite_loss_and_gradient(gap: float):
    logits_RV = torch.zeros(1, V)
    logits_RV[0, :K] = gap
    teacher = corrected_teacher(
        torch.arange(K)[None], torch.full((1, K), 0.2).log(), torch.tensor([0.2]), 1.0, "ce", V
    )
    _, fuse = fusion_loss_(logits_RV, torch.tensor([0]), teacher, 0.5, 0.5)
    assert torch.isfinite(fuse)
    assert torch.isfinite(logits_RV).all()


def test_the_gradient_of_a_row_sums_to_nothing():
    """A softmax does not see a shift of all logits: so the gradient has no component along it."""
    logits_RV, gold_R, ids_RK, scores_RK, tail_R = rows(6)
    teacher = corrected_teacher(*emptied(ids_RK, scores_RK), tail_R, 1.0, "ce", V)
    fusion_loss_(logits_RV, gold_R, teacher, 0.4, 0.6)
    assert logits_RV.sum(-1).abs().max() < 1e-5
