"""The rate of a step is of the attempt that tells it, also where several processes share the step."""

from types import SimpleNamespace

import pytest
from fusechat.local import Runner
from fusechat.pace import rate
from fusechat.screen import _figures


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"done": 30, "seconds": 10}, 3.0),
        ({"done": 90, "from": 70, "seconds": 10}, 2.0),
        ({"done": 70, "from": 70, "seconds": 10}, 0.0),
        ({"done": 70, "from": 70, "seconds": 0}, 0.0),
        ({"done": None, "from": None, "seconds": None}, 0.0),
        ({}, 0.0),
    ],
)
def test_a_rate_is_what_this_attempt_did_over_its_seconds(told, expected):
    assert rate(told) == expected


def test_a_resumed_training_shows_the_time_that_is_left_at_its_own_pace():
    told = {"done": 90, "total": 120, "from": 80, "seconds": 20.0, "unit": "steps", "loss": 1.0}
    assert _figures(told) == {"done": "90/120 steps loss 1.000", "rate": "0.5 steps/s", "eta": "1:00 left"}


def test_shards_that_began_at_different_places_are_summed():
    """Two processes of a step, of which one goes on after 40 samples of an earlier attempt."""
    told = [{"done": 60, "total": 100, "from": 40, "seconds": 10}, {"done": 20, "total": 100, "seconds": 10}]
    active = [SimpleNamespace(key=("extract-pivot", n), read=lambda _, n=n: told[n]) for n in range(2)]
    (seen,) = Runner._moving(SimpleNamespace(_active=active)).values()  # type: ignore[arg-type]
    assert (seen["done"], seen["total"], rate(seen)) == (80, 200, 4.0)
