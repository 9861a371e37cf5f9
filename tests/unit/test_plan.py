"""The plan: which steps a run has, what moves an address and what does not."""

import copy

import pytest
from fusechat.plan import VERSIONS, Subject, plan, subjects
from fusechat.progress import needed
from fusechat.spec import load

DIGEST = "sha256:" + "a" * 64
BASE = {
    "apiVersion": "fusechat.io/v1alpha1",
    "kind": "FusionRun",
    "metadata": {"name": "t"},
    "spec": {
        "pivot": {"name": "p", "uri": "s3://bucket/p", "revision": "sha256:" + "1" * 64},
        "sources": [
            {"name": "a", "uri": "s3://bucket/a", "revision": "sha256:" + "2" * 64},
            {"name": "b", "uri": "s3://bucket/b", "revision": "sha256:" + "3" * 64},
        ],
        "dataset": {"uri": "s3://bucket/d.jsonl", "revision": "sha256:" + "4" * 64},
        "controls": ["SFT"],
        "evaluate": {"exactMatch": {"uri": "s3://bucket/q.jsonl", "revision": "sha256:" + "5" * 64}},
    },
}


def addresses(change=None):
    raw = copy.deepcopy(BASE)
    if change:
        change(raw["spec"])
    return {step.name: step.address for step in plan(load(raw)).steps}


def moved(change):
    before, after = addresses(), addresses(change)
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


def test_what_a_step_is_given_does_not_tell_whose_run_it_is():
    """Runs share steps: the bytes of one must not depend on which of them made it."""
    other = {**BASE, "metadata": {"name": "other", "namespace": "elsewhere", "uid": "u2"}}
    assert plan(load(other)).steps == plan(load(BASE)).steps


def test_steps_come_after_their_inputs_and_have_names_and_addresses_of_their_own():
    made = plan(load(BASE))
    seen = set()
    for step in made.steps:
        assert set(step.inputs.values()) <= seen
        seen.add(step.name)
    assert len(seen) == len(made.steps)
    assert len({step.address for step in made.steps}) == len(made.steps)
    assert made.unpinned == ()


def test_the_steps_of_a_run_with_two_sources():
    names = [step.name for step in plan(load(BASE)).steps]
    assert names == [
        "fetch-pivot", "fetch-a", "fetch-b", "fetch-dataset", "fetch-exactmatch",
        "extract-pivot", "extract-a", "extract-b",
        "align-a", "align-b", "filter-a", "filter-b",
        "control-sft", "fuse-a", "fuse-b", "merge",
        "evaluate-pivot", "evaluate-source-a", "evaluate-source-b", "evaluate-control-sft",
        "evaluate-target-a", "evaluate-target-b", "evaluate-fused",
    ]  # fmt: skip


def test_a_new_source_costs_its_own_pair_the_merge_and_the_fused_evaluation():
    def add(spec):
        spec["sources"].append({"name": "c", "uri": "s3://bucket/c", "revision": "sha256:" + "6" * 64})

    before, after = addresses(), addresses(add)
    old = set(before.values())
    assert {name for name, where in after.items() if where not in old} == {
        "fetch-c", "extract-c", "align-c", "filter-c", "fuse-c", "merge",
        "evaluate-source-c", "evaluate-target-c", "evaluate-fused",
    }  # fmt: skip


def put(section, **values):
    return lambda spec: spec.setdefault(section, {}).update(values)


EVERYTHING_TRAINED = {"control-sft", "fuse-a", "fuse-b", "merge", "evaluate-control-sft", "evaluate-target-a",
                      "evaluate-target-b", "evaluate-fused"}  # fmt: skip
FUSED = {"merge", "evaluate-fused"}
PAIRS = EVERYTHING_TRAINED - {"control-sft", "evaluate-control-sft"}


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (put("merge", selectTopK=0.2), FUSED),
        (put("merge", method="linear"), FUSED),
        (put("merge", density=0.3), set()),
        (put("fuse", lmWeight=0.5), PAIRS),
        (put("fuse", epochs=1), EVERYTHING_TRAINED),
        (put("fuse", globalBatch=64), EVERYTHING_TRAINED),
        (put("fuse", microBatch=1), set()),
        (put("fuse", nodes=2), set()),
        (put("fuse", gradientCheckpointing=False), set()),
        (put("fuse", checkpointMinutes=3), set()),
        (put("extract", tokensPerBatch=512), set()),
        (put("dataset", shards=8), set()),
        (put("gates", keptShare=0.5), set()),
        (put("retries", disruption=3), set()),
        (put("scheduling", queueName="q"), set()),
        (put("resources", fuse={"gpus": 8}), set()),
        (lambda spec: spec["pivot"].update(name="q"), set()),
        (lambda spec: spec["sources"][0].update(uri="s3://elsewhere/a"), set()),
        (lambda spec: spec["evaluate"]["exactMatch"].update(maxNewTokens=9),
         {n for n in addresses() if n.startswith("evaluate")}),
    ],
)  # fmt: skip
def test_an_address_moves_exactly_when_the_bytes_may(change, want):
    assert moved(change) == want


def test_extraction_parameters_move_everything_but_the_fetches():
    still = addresses().keys() - moved(put("extract", topK=5))
    assert still == {"fetch-pivot", "fetch-a", "fetch-b", "fetch-dataset", "fetch-exactmatch",
                     "evaluate-pivot", "evaluate-source-a", "evaluate-source-b"}  # fmt: skip


def test_the_order_of_sources_moves_the_merge_alone():
    assert moved(lambda spec: spec["sources"].reverse()) == FUSED


def test_published_hashes_its_micro_batch_and_counts_before_it_maps():
    def published(spec, **fuse):
        spec["profile"] = "Published"
        spec["pivot"]["template"] = "openchat_3.5"
        spec["fuse"] = fuse

    names = addresses(published)
    assert {"count-a", "map-a", "align-a"} <= names.keys()
    assert names["fuse-a"] != addresses(lambda spec: published(spec, microBatch=2))["fuse-a"]


@pytest.mark.parametrize("method", ["EM", "MinED"])
def test_only_ms_counts(method):
    def published(spec):
        spec.update(profile="Published", align={"method": method})
        spec["pivot"]["template"] = "openchat_3.5"

    assert not any(name.startswith("count") for name in addresses(published))


def test_multi_teacher_trains_once_and_does_not_merge():
    names = addresses(put("fuse", strategy="MultiTeacher"))
    assert "fuse" in names
    assert not {"merge", "fuse-a", "evaluate-target-a"} & names.keys()
    assert "evaluate-fused" in names


def test_what_is_not_pinned_leaves_what_follows_pending():
    raw = copy.deepcopy(BASE)
    del raw["spec"]["sources"][1]["revision"]
    made = plan(load(raw))
    pending = {step.name for step in made.steps if step.address is None}
    assert made.unpinned == ("b",)
    assert pending == {"fetch-b", "extract-b", "align-b", "filter-b", "fuse-b", "merge", "evaluate-source-b",
                       "evaluate-target-b", "evaluate-fused"}  # fmt: skip
    assert plan(load(raw), {"b": "sha256:" + "3" * 64}).step("merge").address == addresses()["merge"]


def test_subjects_are_chosen_by_the_spec():
    run = load(
        {
            **BASE,
            "spec": {
                **BASE["spec"],
                "evaluate": {**BASE["spec"]["evaluate"], "subjects": ["Fused", "Pivot"]},
            },
        }
    )
    assert [subject for subject, _, _ in subjects(run)] == [Subject("Pivot", "p"), Subject("Fused", "fused")]


@pytest.mark.parametrize("name", ["pivot", "dataset"])
def test_a_source_named_like_a_step_is_refused(name):
    raw = copy.deepcopy(BASE)
    raw["spec"]["sources"][0]["name"] = name
    with pytest.raises(ValueError, match=name):
        plan(load(raw))


def test_a_cached_run_costs_a_probe_a_sink():
    made, probed = plan(load(BASE)), []

    def published(step):
        probed.append(step.name)
        return True

    assert needed(made, published) == set()
    assert set(probed) == {n for n in addresses() if n.startswith("evaluate")} | {"merge"}


def test_only_what_a_missing_sink_needs_is_made():
    made = plan(load(BASE))
    lost = {"evaluate-fused", "merge", "fuse-a", "align-a"}
    assert needed(made, lambda step: step.name not in lost) == {
        "evaluate-fused",
        "merge",
        "fuse-a",
        "align-a",
    }
    assert needed(made, lambda step: step.name != "align-a") == set()


def test_every_stage_has_a_version():
    assert {step.stage for step in plan(load(BASE)).steps} <= VERSIONS.keys()
