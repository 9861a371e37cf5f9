"""What a step is made of does not depend on how it is split; how it is split covers it exactly once."""

import numpy as np
import pytest
import torch
import transformers
from fusechat_stages.entry import FolderInput
from fusechat_stages.training.batches import Schedule, build, rate, split
from fusechat_stages.training.examples import Examples, compile_examples
from fusechat_stages.training.head import Fusion
from fusechat_stages.training.recipe import Recipe

from tests.fuse_case import RECIPE, V, make_case


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    root = tmp_path_factory.mktemp("case")
    case = make_case(root)
    inputs = {role: FolderInput(folder) for role, folder in case.inputs().items()}
    return compile_examples(
        recipe(), inputs["pivot"], [inputs["aligned.0"]], [inputs["selection.0"]], root / "examples"
    )


def recipe(**changes) -> Recipe:
    return Recipe.read({**RECIPE, **changes}, {})


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own():
    schedule = Schedule(samples=21, batch=8, epochs=3, seed=5)
    steps = [schedule.at(step) for step in range(schedule.steps)]
    assert [len(s) for s in steps] == [8, 8, 5] * 3
    epochs = [np.concatenate(steps[i : i + 3]) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    again = Schedule(samples=21, batch=8, epochs=3, seed=5)
    assert np.array_equal(again.at(4), steps[4])
    assert not np.array_equal(Schedule(21, 8, 3, seed=6).at(4), steps[4])


def test_the_order_is_the_same_on_every_machine():
    assert Schedule(6, 6, 1, 42).order(0).tolist() == [3, 2, 5, 4, 1, 0]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("tokens", [20, 70, 10_000])
@pytest.mark.parametrize("profile", ["Corrected", "Published"])
def test_a_split_covers_the_step_once_with_as_many_passes_on_every_rank(
    examples: Examples, profile: str, tokens: int, world: int
):
    samples = np.array([3, 1, 12, 7, 5, 0, 9])
    ranks = split(examples, samples, recipe(profile=profile), world=world, tokens=tokens)
    assert len({len(micros) for micros in ranks}) == 1
    real = [m for micros in ranks for m in micros if m.lm > 0]
    assert sorted(np.concatenate([m.samples for m in real])) == sorted(samples)
    if profile == "Corrected":
        for m in real:
            assert len(m.samples) == 1 or len(m.samples) * examples.inputs[m.samples].max() <= tokens


def gradient(examples: Examples, profile: str, world: int, tokens: int) -> torch.Tensor:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V + 4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    fusion, told = Fusion(transformers.LlamaForCausalLM(config)), recipe(profile=profile)
    for micros in split(examples, np.arange(11), told, world=world, tokens=tokens):
        for micro in micros:
            fusion(build(examples, micro, told, V))[0].backward()
    return torch.cat([p.grad.flatten() for p in fusion.parameters()])


@pytest.mark.parametrize(("world", "tokens"), [(1, 40), (2, 10_000), (3, 40)])
def test_the_gradient_of_a_step_does_not_depend_on_the_split(examples: Examples, world: int, tokens: int):
    whole = gradient(examples, "Corrected", 1, 10_000)
    assert torch.allclose(gradient(examples, "Corrected", world, tokens), whole, atol=1e-6)


def test_published_means_per_micro_batch_are_another_gradient(examples: Examples):
    whole = gradient(examples, "Corrected", 1, 10_000)
    assert not torch.allclose(gradient(examples, "Published", 1, 10_000), whole, atol=1e-4)
    assert torch.allclose(
        gradient(examples, "Published", 1, 10_000), gradient(examples, "Published", 3, 40), atol=1e-6
    )


def test_a_batch_holds_each_samples_rows_and_the_tokens_they_predict(examples: Examples):
    (micro,) = split(examples, np.array([2, 0]), recipe(), world=1, tokens=10_000)[0]
    batch = build(examples, micro, recipe(), V)
    assert batch.input_ids_BT.shape == (2, examples.inputs[[0, 2]].max())
    row = 0
    for b, s in enumerate(micro.samples):
        tokens = examples.tokens[examples.token_offsets[s] : examples.token_offsets[s + 1]]
        assert batch.input_ids_BT[b, : examples.inputs[s]].tolist() == tokens[:-1].tolist()
        for position in examples.position[examples.row_offsets[s] : examples.row_offsets[s + 1]]:
            flat = int(batch.rows_R[row])
            assert divmod(flat, batch.input_ids_BT.shape[1]) == (b, position)
            assert int(batch.gold_R[row]) == tokens[position + 1]
            row += 1
    assert row == len(batch.rows_R) == len(batch.teacher.ids_RK)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_learning_rate_is_transformers(scheduler: str, ratio: float):
    steps, name = 37, scheduler if scheduler != "constant" else "constant_with_warmup"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = 4 if ratio else 0  # ceil(37 * .1)
    theirs = transformers.get_scheduler(name, optimizer, warmup, steps)
    for step in range(steps):
        assert rate(step, steps, ratio, scheduler) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
