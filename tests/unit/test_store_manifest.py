"""The store's documents: to JSON and back, what a digest covers, what is refused."""

import json
import math
from dataclasses import replace

import pytest
from fusechat.errors import BadData, MissingInput
from fusechat.store import FileEntry, InputRef, Part
from fusechat.store_manifest import (
    FORMAT,
    file_name,
    manifest_from,
    manifest_json,
    part_from,
    part_json,
    text,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.s3 import ADDRESS, an_artifact

FILE = FileEntry("block-00000.arrow", f"{ADDRESS}/data/one/block-00000.arrow", 12, "ab" * 32)
METRICS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=6,
)


def read_back(manifest):
    return manifest_from(json.loads(text(manifest_json(manifest))), "here")


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), METRICS.filter(lambda m: "inf" not in repr(m)), max_size=3))
def test_a_manifest_survives_being_written_and_read(metrics):
    manifest = an_artifact(FILE, metrics=metrics, inputs={"model": InputRef("fetch/" + "b" * 64, "c" * 64)})
    assert read_back(manifest) == manifest


def test_a_part_survives_being_written_and_read():
    part = Part(7, "one", (FILE,), {"rows": 3, "dropped": {"empty": 1}})
    assert part_from(json.loads(text(part_json(part))), "here") == part


def test_the_same_manifest_is_written_as_the_same_bytes_whatever_the_order_of_its_keys():
    one, two = an_artifact(FILE, params={"a": 1, "b": 2}), an_artifact(FILE, params={"b": 2, "a": 1})
    assert text(manifest_json(one)) == text(manifest_json(two))


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"attempt": "two"}, True),
        ({"created": "2030-01-01T00:00:00Z"}, True),
        ({"host": {"cpus": 64}}, True),
        ({"files": (replace(FILE, key=f"{ADDRESS}/data/two/x"),)}, True),
        ({"files": (replace(FILE, sha256="cd" * 32),)}, False),
        ({"files": (replace(FILE, name="other"),)}, False),
        ({"files": ()}, False),
        ({"address": "extract/" + "b" * 64}, False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_digest_changes_exactly_when_the_recipe_or_the_bytes_do(changed, same):
    manifest = an_artifact(FILE)
    assert (replace(manifest, **changed).digest == manifest.digest) is same


def test_a_file_that_the_artifact_has_not_is_a_missing_input_that_says_what_it_has():
    assert an_artifact(FILE).entry(FILE.name) == FILE
    with pytest.raises(MissingInput, match=r"has no file 'nope'; it has block-00000\.arrow"):
        an_artifact(FILE).entry("nope")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_not_is_written_as_null(value):
    assert json.loads(text({"loss": value, "all": [value, 1.5]})) == {"loss": None, "all": [None, 1.5]}


def test_a_scalar_of_an_array_library_is_written_as_its_number():
    class Scalar:
        def item(self):
            return 2.5

    assert json.loads(text({"loss": Scalar()})) == {"loss": 2.5}


@pytest.mark.parametrize(
    "name", ["a", "a/b.bin", "model-00001-of-00002.safetensors", "chat template.jinja", "名"]
)
def test_plain_relative_names_are_taken(name):
    assert file_name(name) == name


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\nb", "a\0"])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="needs a plain relative name"):
        file_name(name)


GOOD = manifest_json(an_artifact(FILE))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "not a document"),
        ({}, "not a document"),
        ({**GOOD, "format": FORMAT + 1}, "upgrade fusechat"),
        ({**GOOD, "address": "../x"}, "not a document"),
        ({**GOOD, "files": [{"name": "../x", "key": "k", "size": 1, "sha256": ""}]}, "not a document"),
        ({**GOOD, "files": [{"name": "x"}]}, "not a document"),
        ({**GOOD, "inputs": []}, "not a document"),
        ({k: v for k, v in GOOD.items() if k != "attempt"}, "'attempt'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_manifest_is_refused_with_its_place(given, words):
    with pytest.raises(BadData, match="s3://here") as caught:
        manifest_from(given, "s3://here")
    assert words in str(caught.value)


def test_what_is_no_part_is_refused_with_its_place():
    with pytest.raises(BadData, match="s3://here"):
        part_from({"format": 1, "block": "x"}, "s3://here")
