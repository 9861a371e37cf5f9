"""The paper's run: its children are those of the golden file, and fit the schemas of those who take them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from fusechat import launch
from fusechat.launch import argv
from fusechat.plan import plan
from fusechat.spec import load
from fusechat_operator import pods

from tests.unit.operator import paper

KUBERNETES = "1.34"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def test_the_children_are_those_of_the_golden_file():
    made = paper.text()
    if os.environ.get("FUSECHAT_UPDATE_GOLDEN") == "1":
        paper.GOLDEN.write_text(made, encoding="utf-8")
    kept = paper.GOLDEN.read_text(encoding="utf-8")
    assert made == kept, "run with FUSECHAT_UPDATE_GOLDEN=1, and review what has changed"


@cache
def golden() -> list[dict[str, Any]]:
    """The objects of the golden file."""
    return [json.loads(json.dumps(each)) for _, objects in paper.children() for each in objects]


def named(found: Mapping[str, Any]) -> str:
    return f"{found['kind']} {found['metadata']['labels']['fusechat.io/step']}"


KUBERNETES_KINDS = ("Job", "Service")


@pytest.mark.parametrize("number", range(len(golden())), ids=lambda n: named(golden()[n]))
def test_every_object_fits_the_schema_of_who_takes_it(number, request):
    found = golden()[number]
    if found["kind"] in KUBERNETES_KINDS:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    else:
        schema = definitions(request.getfixturevalue("shared"))[found["apiVersion"], found["kind"]]
        jsonschema.Draft202012Validator(schema).validate(found)
        for template in templates(found):
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("spec", "nprocPerNode"), 1),
        (("spec", "nProcPerNode"), "1"),
        (("spec", "runPolicy", "cleanPodPolice"), "None"),
        (("spec", "pytorchReplicaSpecs", "Master", "template", "spec", "contaners"), []),
    ],
)
def test_the_check_of_the_schemas_would_find_a_mistake(shared, path, wrong):
    found = next(f for f in golden() if f["kind"] == "PyTorchJob")
    broken = json.loads(json.dumps(found))
    *way, last = path
    place = broken
    for part in way:
        place = place[part]
    place[last] = wrong
    schema = definitions(shared)[found["apiVersion"], found["kind"]]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(broken)


def test_the_check_of_kubernetes_own_kinds_would_find_one_too():
    job = json.loads(json.dumps(next(f for f in golden() if f["kind"] == "Job")))
    job["spec"]["podFailurePolice"] = job["spec"].pop("podFailurePolicy")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


@cache
def definitions(shared: Path) -> dict[tuple[str, str], Any]:
    """The schemas of the real CRDs, as strict as the API server is about fields that it does not know."""
    found = [yaml.load(path.read_text(), LOADER) for path in sorted((shared / "crds").glob("*.yaml"))]
    found += json.loads((shared / "kube/addons/trainer.crds.json").read_text())["items"]
    made = {}
    for definition in found:
        spec = definition["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            made[key] = strict(version["schema"]["openAPIV3Schema"])
    return made


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A structural schema as JSON schema: unknown fields are errors."""
    made = {key: schema[key] for key in ("type", "enum", "required", "pattern", "maxLength") if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        made = {"type": ["integer", "string"]}
    if "items" in schema:
        made["items"] = strict(schema["items"])
    if "properties" in schema:
        made["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(schema.get("additionalProperties"), Mapping):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    return made


def templates(found: Any) -> list[dict[str, Any]]:
    """Every Pod template in an object."""
    if isinstance(found, list):
        return [each for item in found for each in templates(item)]
    if not isinstance(found, Mapping):
        return []
    if "containers" in found.get("spec", {}):
        return [{"metadata": {"name": "p", **found["metadata"]}, "spec": found["spec"]}]
    return [each for value in found.values() for each in templates(value)]


def pod_specs() -> list[dict[str, Any]]:
    return [template["spec"] for found in golden() for template in templates(found)]


def test_every_pod_is_restricted_and_writes_only_where_it_may():
    """Pod Security's `restricted`, a read-only root, no token: in every one of them."""
    for spec in pod_specs():
        pod, (container,) = spec["securityContext"], spec["containers"]
        assert (pod["runAsNonRoot"], pod["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"scratch": "/scratch", "shm": "/dev/shm"}
        env = {each["name"]: each.get("value") for each in container["env"]}
        assert {env[name] for name in ("HOME", "TMPDIR", "FUSECHAT_SCRATCH")} == {"/scratch"}
        assert not [name for name, value in env.items() if "KEY" in name and value], (
            "no credential is written out"
        )


def test_every_pod_has_a_bounded_memory_and_disk_and_the_gpus_that_it_asks_for():
    for spec in pod_specs():
        (container,) = spec["containers"]
        asked, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert limits["memory"] == asked["memory"]
        assert "cpu" not in limits
        assert limits.get("nvidia.com/gpu") == asked.get("nvidia.com/gpu")
        scratch = next(v for v in spec["volumes"] if v["name"] == "scratch")
        assert scratch["emptyDir"]["sizeLimit"] == asked["ephemeral-storage"]


MACHINES = {
    "AWS p4d.24xlarge": (96, 1152),
    "AWS p4de.24xlarge": (96, 1152),
    "Google a2-highgpu-8g": (96, 633),
    "Google a2-ultragpu-8g": (96, 1266),
    "Azure ND96asr_v4": (96, 900),
}
"""CPUs and GiB of machines with 8 A100, as their owners publish them (Google's GB as GiB)."""


@pytest.mark.parametrize("machine", MACHINES)
def test_a_training_on_8_gpus_fits_a_machine_of_8_a100_with_room_for_the_nodes_own(machine):
    cpus, gibibytes = MACHINES[machine]
    for spec in pod_specs():
        asked = spec["containers"][0]["resources"]["requests"]
        if asked.get("nvidia.com/gpu") == "8":
            assert int(asked["cpu"]) <= cpus - 8
            assert int(asked["memory"].removesuffix("Gi")) <= gibibytes - 32


def test_an_evaluation_asks_for_what_its_model_needs():
    made = plan(load(paper.the_run()))
    run = load(paper.the_run())
    wanted = {"source-mixtral": 2, "source-qwen": 4, "source-starling": 1, "fused": 1, "pivot": 1}
    assert {name: pods.gpus(run, made.step(f"mtbench-{name}")) for name in wanted} == wanted


def test_what_a_run_makes_is_evaluated_like_its_pivot():
    found = paper.the_run()
    found["spec"]["pivot"]["resources"] = {"gpus": 4}
    run = load(found)
    made = plan(run)
    assert {pods.gpus(run, made.step(f"mtbench-{n}")) for n in ("pivot", "fused", "target-qwen")} == {4}


def test_every_launcher_runs_the_same_argv():
    """A TrainJob and a Job of one machine, a PyTorchJob's master: what the stage is told is the same."""
    by_nodes: dict[str, set[tuple[str, ...]]] = {}
    for spec in pod_specs():
        args = spec["containers"][0]["args"]
        if args[0] == "fuse":
            by_nodes.setdefault(args[-1], set()).add(tuple(args))
    assert [len(found) for found in by_nodes.values()] == [1, 1]


def test_entry_reads_from_each_argv_what_the_plan_says():
    plans = [plan(load(paper.the_run(nodes=nodes))) for nodes in (1, 2)]
    known = {str(step.address) for made in plans for step in made.steps}
    for spec in pod_specs():
        args = [a.replace("$(JOB_COMPLETION_INDEX)", "0") for a in spec["containers"][0]["args"]]
        told = launch.parse(args)
        assert argv(told) == args
        assert told.address in known or told.stage in ("resolve", "report")


def test_names_fit_what_their_objects_may_be_called():
    """63 for labels and Services, less what an operator appends: -master-0, -worker-1023, an index."""
    for found in golden():
        name = found["metadata"]["name"]
        assert len(name) <= 63 - len("-worker-1023")
        assert all(len(value) <= 63 for value in found["metadata"]["labels"].values())
