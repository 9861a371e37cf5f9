"""The house stands: source roots stay source roots, light things stay light, tables agree, nothing leaks."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fusechat.plan import VERSIONS
from fusechat.spec import STAGES, StageResources, StageScratch

from tests.conftest import find_shared

ROOT = Path(__file__).parents[2]
SOURCES = [p for root in ("core", "operator", "stages") for p in sorted((ROOT / root).rglob("*.py"))]


@pytest.mark.parametrize("root", ["core", "operator", "stages"])
def test_source_roots_are_no_packages(root):
    # With operator/__init__.py the standard library's `operator` is shadowed and python dies on start.
    assert not (ROOT / root / "__init__.py").exists()
    assert (ROOT / root).is_dir()


@pytest.mark.parametrize("names", ["fusechat fusechat.cli fusechat.local fusechat.crd", "fusechat_operator"])
def test_core_and_operator_never_import_torch(names):
    heavy = ("torch", "transformers", "numpy", "fusechat_stages", "boto3")
    code = f"import sys, {', '.join(names.split())}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("name", ["entry", "shards", "artifacts", "resolve", "fetch", "filter"])
def test_light_stages_never_import_torch(name):
    heavy = ("torch", "transformers")
    code = f"import sys, fusechat_stages.{name}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_stage_is_named_alike_everywhere():
    assert set(VERSIONS) == set(STAGES)
    assert set(StageResources.model_fields) == set(StageScratch.model_fields) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_version_that_plan_asks_for(stage):
    path = ROOT / "stages" / "fusechat_stages" / f"{stage}.py"
    module = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["VERSION"]
    ]
    assert found == [VERSIONS[stage]]


def test_only_models_imports_the_auto_classes():
    importers = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
        for alias in node.names
        if alias.name.startswith("Auto")
    }
    assert importers <= {"models.py"}


def test_every_module_says_what_it_is():
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path


def test_entry_points_lead_somewhere():
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group="fusechat.stages")}
    assert set(found) == {"entry", "preload"}
    for point in found.values():
        module, _, attribute = point.value.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_tracked_files_name_no_place_of_one_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(r"(^|[^A-Za-z0-9_.-])/(home|root|Users|work|opt)/[A-Za-z0-9_.-]+")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if name.startswith("images/"):  # its places are the containers'
            continue
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{name}: {hit.group(0).strip()}" for hit in private.finditer(text)]
    assert found == []


def test_shared_data_is_found_by_the_environment_or_beside_the_checkout(tmp_path):
    (tmp_path / "named" / "golden").mkdir(parents=True)
    (tmp_path / "shared" / "golden").mkdir(parents=True)
    checkout = tmp_path / "checkout"
    assert find_shared({}, checkout) == tmp_path / "shared"
    assert find_shared({"FUSECHAT_SHARED": str(tmp_path / "named")}, checkout) == tmp_path / "named"
    assert find_shared({"FUSECHAT_SHARED": str(tmp_path / "none")}, checkout) is None
