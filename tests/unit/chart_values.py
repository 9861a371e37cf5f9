"""Values that the chart's tests render, and those that it has by itself."""

from __future__ import annotations

import yaml

from tests.helm import CHART

EVERYTHING = {
    "watchNamespaces": ["team-a", "team-b"],
    "clusterName": "west",
    "image": {"repository": "registry.example.com:5000/fc/operator", "digest": f"sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "replicas": 3,
    "store": {
        "uri": "s3://fuse/west",
        "endpoint": "https://s3.example.com",
        "region": "eu-central-1",
        "operatorSecret": "store-operator",
        "secret": "store",
        "serviceAccount": "stage",
    },
    "stages": {
        "image": {"repository": "registry.example.com/fc/stages", "tag": "1.2", "pullPolicy": "Always"},
        "images": {"fuse": "registry.example.com/fc/fuse:9"},
        "pullSecrets": ["pull", "other"],
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
        "runAs": 1000,
        "scratchRequests": False,
    },
    "tuning": {
        "workers": 8,
        "storeThreads": 9,
        "apiQps": 12.5,
        "apiBurst": 100000,
        "pollSeconds": 11,
        "queueSeconds": 12,
        "leaseSeconds": 7,
    },
    "ports": {"health": 8081, "metrics": 9091},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "serviceAccount": {
        "name": "fuser",
        "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"},
    },
    "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
    "podLabels": {"team": "fusion"},
    "podAnnotations": {"note": "x"},
    "priorityClassName": "high",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "pool", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
}
LITTLE = {
    "serviceAccount": {"create": False},
    "rbac": {"aggregate": False},
    "podDisruptionBudget": {"enabled": False},
    "metrics": {"service": False},
    "replicas": 1,
}
SETS = {
    "defaults": {},
    "everything": EVERYTHING,
    "little": LITTLE,
    "as a part of another chart": {"global": {"x": 1}},
}


def flat(values, path=""):
    """Every value with its path; an empty map is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def default_values():
    return yaml.safe_load((CHART / "values.yaml").read_text())
