"""Fixtures of the cluster tests: one control plane with fake nodes a session, one operator a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.node import node  # noqa: F401  (a fixture)
from tests.cluster.plane import Operator, Plane, running_plane, start_operator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """test_pods goes first: it makes children by hand, which an operator that was installed would stop."""
    items.sort(key=lambda item: item.path.name != "test_pods.py")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A real API server, controllers, scheduler, the training operator, fake nodes and a real S3."""
    s3 = tmp_path_factory.getbasetemp() / "s3"  # the real node's too: there is one environment for both
    with running_plane(tmp_path_factory.mktemp("plane"), "training-operator", s3_folder=s3) as made:
        yield made


@pytest.fixture
def start(plane: Plane) -> Iterator[Callable[..., Operator]]:
    """Starts operators; those that still run are stopped at the end."""
    begun: list[Operator] = []

    def one(name: str = "op", **environment: str) -> Operator:
        begun.append(start_operator(plane, name, **environment))
        return begun[-1]

    yield one
    for operator in begun:
        if operator.process.poll() is None:
            operator.stop()


@pytest.fixture
def operator(start: Callable[..., Operator]) -> Operator:
    """One operator that leads."""
    return start()


@pytest.fixture
def namespace(plane: Plane) -> str:
    """A fresh namespace, and a stagehand with an empty script."""
    plane.hand.script.clear()
    plane.hand.metrics.clear()
    plane.hand.pace = 0.2
    return plane.namespace()
