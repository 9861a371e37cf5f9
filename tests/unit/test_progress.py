"""The next move of a run: what starts, what waits and why, how it ends."""

import pytest
from fusechat.plan import Plan, Step
from fusechat.progress import Observed, State, decide

ADDRESS = "x/" + "0" * 63


def made(*steps):
    return Plan("t", "t", 1, "Corrected", steps)


def step(name, stage="filter", inputs=(), address=None):
    digit = f"{abs(hash(name)) % 10**10:064d}"
    where = address or f"{stage}/{digit}"
    return Step(name, stage, {}, {f"i{n}": name for n, name in enumerate(inputs)}, where)


CHAIN = made(step("a"), step("b", inputs=["a"]), step("c", inputs=["b"]))
P, R, C, D, F = (Observed(s) for s in (State.PENDING, State.RUNNING, State.CACHED, State.DONE, State.FAILED))


def names(decision):
    return [s.name for s in decision.start]


@pytest.mark.parametrize(
    ("observed", "start", "outcome"),
    [
        ({"a": P, "b": P, "c": P}, ["a"], None),
        ({"a": R, "b": P, "c": P}, [], None),
        ({"a": D, "b": P, "c": P}, ["b"], None),
        ({"a": C, "b": D, "c": P}, ["c"], None),
        ({"a": C, "b": D, "c": D}, [], "Succeeded"),
        ({"c": C}, [], "Succeeded"),
        ({"b": P, "c": P}, ["b"], None),
        ({"a": F, "b": P, "c": P}, [], "Failed"),
        ({"a": D, "b": R, "c": F}, [], None),
    ],
)
def test_a_chain_goes_on_as_far_as_it_can(observed, start, outcome):
    decision = decide(CHAIN, observed, slots=4, gates={})
    assert (names(decision), decision.outcome) == (start, outcome)


def test_the_decision_is_the_same_when_asked_again():
    observed = {"a": D, "b": P, "c": P}
    assert decide(CHAIN, observed, slots=1, gates={}) == decide(CHAIN, observed, slots=1, gates={})


def test_slots_bound_what_runs_and_the_longest_way_goes_first():
    wide = made(step("x"), step("y"), step("train", "fuse", ["y"]), step("z"))
    observed = {"x": P, "y": P, "train": P, "z": R}
    assert names(decide(wide, observed, slots=2, gates={})) == ["y"]
    assert names(decide(wide, observed, slots=1, gates={})) == []


def test_what_is_independent_of_a_failure_goes_on_and_the_rest_says_why_it_waits():
    fork = made(step("bad"), step("after", inputs=["bad"]), step("good"))
    decision = decide(fork, {"bad": F, "after": P, "good": P}, slots=2, gates={})
    assert names(decision) == ["good"]
    assert decision.waiting == {"after": "bad failed"}


def test_one_artifact_is_made_once():
    twins = made(step("one", address=ADDRESS), step("two", address=ADDRESS))
    decision = decide(twins, {"one": P, "two": P}, slots=2, gates={})
    assert names(decision) == ["one"]
    assert decision.waiting == {"two": "another step makes the same artifact"}
    assert names(decide(twins, {"one": R, "two": P}, slots=2, gates={})) == []


def test_a_gate_stops_the_training_it_stands_before_and_nothing_else():
    pairs = made(
        step("filter-a"), step("filter-b"),
        step("fuse-a", "fuse", ["filter-a"]), step("fuse-b", "fuse", ["filter-b"]),
        step("merge", "merge", ["fuse-a", "fuse-b"]),
    )  # fmt: skip
    poor, rich = Observed(State.DONE, {"keptShare": 0.2}), Observed(State.DONE, {"keptShare": 0.9})
    observed = {"filter-a": poor, "fuse-a": P, "filter-b": rich, "fuse-b": P, "merge": P}
    decision = decide(pairs, observed, slots=4, gates={"keptShare": 0.5})
    assert names(decision) == ["fuse-b"]
    ended = decide(pairs, {**observed, "fuse-b": D}, slots=4, gates={"keptShare": 0.5})
    assert ended.outcome == "Failed"
    assert "filter-a has 0.2, at least 0.5 is asked for" in ended.message
    assert decide(pairs, observed, slots=4, gates={"keptShare": 0.1}).waiting.keys() == {"merge"}
