"""What the images are made of: their lock files follow pyproject.toml and constraints.txt."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.conftest import CHECKOUT

LOCKS = ("operator", "stages")
HEAVY = ("torch", "transformers", "numpy", "pyarrow")


def locked(image: str) -> dict[str, str]:
    lines = (CHECKOUT / "images" / f"{image}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def constraints() -> dict[str, str]:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def direct(extra: str) -> list[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"][extra]]
    return [re.split(r"[\s\[<>=!~;]", requirement)[0].lower() for requirement in named]


@pytest.mark.parametrize("image", LOCKS)
def test_an_image_has_the_versions_that_all_tests_ran_with(image):
    known, found = constraints(), locked(image)
    assert {name: known.get(name) for name in found} == found, "run `make lock`"


@pytest.mark.parametrize("image", LOCKS)
def test_an_image_has_every_direct_dependency_of_its_extra(image):
    assert set(direct(image)) <= set(locked(image)), "run `make lock`"


def test_the_operator_image_has_none_of_the_heavy_libraries():
    assert not set(HEAVY) & set(locked("operator"))
