"""The CRD: structural, bounded, small, the same every time, and saying what Python says."""

import json
import re
from pathlib import Path

import pytest
import yaml
from fusechat import crd, reference
from fusechat.spec import RunSpec
from fusechat.spec_rules import RULES

ROOT = Path(__file__).parents[2]


def openapi():
    return crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def walk(node, path=""):
    """Every schema in the schema, with its path."""
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from walk(node[key], f"{path}.{key}")


def worded(node):
    """The expressions that stand in CEL, with a message in words."""
    rules = [rule["rule"] for rule in node.get("x-kubernetes-validations", [])]
    return [found for rule in rules for found in re.findall(r"self\.matches\(r'(.*)'\)$", rule)]


FIELDS = [(path, node) for path, node in walk(openapi()) if path.startswith((".spec", ".status"))]


def test_every_text_list_and_map_is_bounded():
    bound = {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}
    for path, node in FIELDS:
        kind = node.get("type")
        free = "enum" in node or "properties" in node or kind not in bound
        assert free or bound[kind] in node, path


def test_the_schema_is_structural():
    for path, node in FIELDS:
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "const", "title", "additionalProperties"} & (
            node.keys() - ({"additionalProperties"} if "properties" not in node else set())
        ), path
        assert set(node.get("required", ())) <= set(node.get("properties", {})), path


def test_every_field_is_described():
    assert [
        path
        for path, node in FIELDS
        if "description" not in node and not path.endswith((".items", "Properties"))
    ] == []


def test_numbers_of_the_spec_are_bounded():
    numbers = [(p, n) for p, n in FIELDS if n.get("type") in ("integer", "number") and p.startswith(".spec")]
    assert [path for path, node in numbers if not {"minimum", "maximum"} <= node.keys()] == []


def test_defaults_are_in_the_schema_where_they_are_in_python():
    spec = openapi()["properties"]["spec"]["properties"]
    assert spec["fuse"]["properties"]["learningRate"]["default"] == 5e-6
    assert spec["merge"]["properties"]["selectTopK"]["default"] == 0.1
    assert spec["suspend"]["default"] is False
    assert "default" not in spec["align"]["properties"]["method"]  # it is the profile's
    assert spec["profile"]["enum"] == ["Corrected", "Published"]


def test_a_run_that_no_operator_has_seen_reads_as_in_progress():
    assert openapi()["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_lists_of_named_things_are_keyed():
    spec, status = openapi()["properties"]["spec"], openapi()["properties"]["status"]
    for node, key in (
        (spec["properties"]["sources"], "name"),
        (status["properties"]["steps"], "name"),
        (status["properties"]["conditions"], "type"),
    ):
        assert node["x-kubernetes-list-type"] == "map"
        assert node["x-kubernetes-list-map-keys"] == [key]
        assert key in node["items"]["required"]


def test_every_rule_with_cel_stands_in_the_schema():
    stands = [rule for _, node in walk(openapi()) for rule in node.get("x-kubernetes-validations", [])]
    for rule in RULES:
        found = [told for told in stands if told["rule"] == rule.cel]
        assert found, rule.name
        assert all(told["message"].endswith(rule.message) for told in found)
        assert all(told.get("fieldPath", f".{rule.field}") == f".{rule.field}" for told in found)
        assert "\n" not in rule.message


def test_patterns_are_re2_and_anchored():
    for path, node in FIELDS:
        for pattern in [node[key] for key in ("pattern",) if key in node] + worded(node):
            assert pattern.startswith("^"), path
            assert pattern.endswith("$"), path
            assert not re.search(r"\(\?[=!<]|\\[1-9]", pattern), path


def test_what_has_words_shows_no_expression():
    uri = openapi()["properties"]["spec"]["properties"]["dataset"]["properties"]["uri"]
    assert "pattern" not in uri
    assert uri["x-kubernetes-validations"][0]["message"].startswith("expected hf://datasets/owner/name")
    assert len([node for _, node in FIELDS if worded(node)]) > 20


def test_columns_names_and_subresource():
    made = crd.crd()
    version = made["spec"]["versions"][0]
    columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert list(columns)[:6] == ["Ready", "Stage", "Progress", "Cached", "Score", "Age"]
    assert columns["Ready"] == '.status.conditions[?(@.type=="Ready")].status'
    assert version["subresources"] == {"status": {}}
    assert made["spec"]["names"]["shortNames"] == ["fr"]
    assert made["spec"]["names"]["categories"] == ["fusion"]
    assert len(version["selectableFields"]) <= 8


def test_the_file_is_small_enough_for_client_side_apply():
    assert len(crd.crd_yaml().encode()) < 200_000
    assert len(json.dumps(crd.crd())) < 200_000  # goes whole into an annotation of at most 256 KiB


def test_the_committed_files_are_what_make_generate_writes(tmp_path):
    crd.main([str(tmp_path), str(tmp_path)])
    for made, kept in ((crd.FILE_NAME, ROOT / "crds"), ("reference.md", ROOT / "docs")):
        assert (tmp_path / made).read_text() == (kept / made).read_text(), "run `make generate`"


def test_the_reference_names_every_field_of_the_spec():
    page = reference.page()
    names = {name for path, node in walk(crd.schema(RunSpec)) for name in node.get("properties", {})}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_the_generator_explains_its_use():
    with pytest.raises(SystemExit, match="usage"):
        crd.main(["one"])


def test_the_yaml_is_the_crd():
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    assert yaml.load(crd.crd_yaml(), fast) == crd.crd()
