"""A run's own store that answers late, or not to it any more: the engine and its probes, without S3."""

from __future__ import annotations

import pytest

from tests.unit.operator.runs import a_run
from tests.unit.operator.slow_store import OWN, with_slow_store
from tests.unit.operator.world import World


@pytest.mark.parametrize("slow", [5, 60, 200, 320])
def test_a_run_ends_however_long_its_probes_wait(monkeypatch, slow):
    world = World(a_run(sources=1, storage=OWN))
    engine, edges = with_slow_store(world, monkeypatch, slow)
    until = world.now + 200 * (slow + 10)
    while world.now < until and not world.over():
        edges.turn(engine, 5)
    assert world.condition("Succeeded")["status"] == "True", world.condition("Ready")


def test_a_probe_in_a_queue_that_never_takes_it_goes_when_the_queue_is_mended(monkeypatch):
    world = World(a_run(sources=1, storage=OWN, scheduling={"queueName": "tpyo"}))
    engine, edges = with_slow_store(world, monkeypatch, 1e9)
    for _ in range(3):
        edges.turn(engine, 5)
    waiting = set(edges.jobs)
    assert waiting
    edges.slow = 0
    world.edit(scheduling={})
    for _ in range(400):
        if world.over():
            break
        edges.turn(engine, 2)
    assert world.over(), world.condition("Ready")
    assert not waiting & set(edges.jobs)


def test_a_suspended_run_stays_suspended_while_its_store_is_away(monkeypatch):
    world = World(a_run(sources=1, storage=OWN))
    engine, edges = with_slow_store(world, monkeypatch)
    for _ in range(40):
        edges.turn(engine)
        if "extract-s0" in world.created:
            break
    world.edit(suspend=True)
    for _ in range(20):
        edges.turn(engine)
    assert world.condition("Suspended")["status"] == "True"
    edges.fails = True
    world.edit(ttl="20m")
    for _ in range(12):
        edges.turn(engine)
    assert world.condition("Suspended")["status"] == "True"
