"""The small parts that a FusionRun's fields are made of: bounded text, numbers, quantities, references.

Used by spec.py, spec_stages.py, spec_scheduling.py and spec_status.py. Every text, list and map is bounded
here, so that the CRD made of it is too. Knows no stage and no rule between fields.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from fusechat import spec_rules
from fusechat.spec_rules import DURATION
from fusechat.spec_rules import seconds as seconds


class Base(BaseModel):
    """A frozen object of the FusionRun: camelCase outside, snake_case inside, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _obey_rules(self) -> Any:
        broken = spec_rules.broken(self)
        if broken:
            raise ValueError("\n".join(broken))
        return self


def text(pattern: str, form: str, longest: int, shortest: int = 1) -> Any:
    """Metadata of a text field: its pattern (RE2), the words an error uses for it, and its bounds."""
    return Field(pattern=pattern, min_length=shortest, max_length=longest, json_schema_extra={"x-form": form})


LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DOTTED = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
QUALIFIED = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
HUB_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?"
PLACES = r"s3://[a-z0-9][a-z0-9.-]+(/.*)?|file://.+"

ModelName = Annotated[
    str, text(LABEL, "a short name of lower-case letters, digits and dashes (at most 40)", 40)
]
ObjectName = Annotated[str, text(DOTTED, "a Kubernetes name (lower-case letters, digits, - and .)", 253)]
LabelKey = Annotated[str, text(QUALIFIED, "a label's name, as `team` or `example.org/team`", 317)]
LabelValue = Annotated[
    str,
    text(
        r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        "a label's value (at most 63 letters, digits, -_.)",
        63,
        0,
    ),
]
Line = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\r\n]*$")]
ModelUri = Annotated[
    str,
    text(
        rf"^(hf://{HUB_NAME}|{PLACES})$",
        "hf://owner/name, s3://bucket/folder or file://folder",
        1024,
    ),
]
DataUri = Annotated[
    str,
    text(
        rf"^(hf://datasets/{HUB_NAME}|{PLACES})$",
        "hf://datasets/owner/name, s3://bucket/folder or file://folder-or-file",
        1024,
    ),
]
StoreUri = Annotated[
    str, text(r"^s3://[a-z0-9][a-z0-9.-]+(/[^\s]*)?$", "s3://bucket or s3://bucket/prefix", 1024)
]
HttpUrl = Annotated[str, text(r"^https?://[^\s]+$", "an address that begins with http:// or https://", 1024)]
Revision = Annotated[
    str,
    text(
        r"^[A-Za-z0-9][A-Za-z0-9._/:+-]*$",
        "a full commit (40 hex digits), a branch or tag, or for s3:// and file:// sha256:<64 hex digits>",
        128,
    ),
]
Duration = Annotated[
    str,
    text(DURATION, "a time such as 90s, 90m or 1h30m (at most 8760h)", 32),
]
Quantity = (
    Annotated[int, Field(ge=0, le=10**15)]
    | Annotated[
        str,
        text(
            r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
            "a Kubernetes quantity such as 4, 500m or 64Gi",
            32,
        ),
    ]
)
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class SecretRef(Base):
    """A Secret of the run's own namespace."""

    name: ObjectName = Field(description="Name of the Secret.")


class SecretKey(Base):
    """One key of a Secret of the run's own namespace; on a laptop, an environment variable of that name."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: Annotated[str, text(r"^[-._A-Za-z0-9]+$", "a Secret's key", 253)] = Field(
        "token", description="Key whose value is used."
    )


class Resources(Base):
    """What one pod of a step asks for. Never part of an address: another size recomputes nothing."""

    gpus: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None, description="GPUs of one pod. Unset: extract and evaluate 1, fuse one a process, the others 0."
    )
    gpu_resource: LabelKey = Field("nvidia.com/gpu", description="Name of the GPU resource on the nodes.")
    cpu: Quantity | None = Field(None, description="CPUs requested. Unset: the stage's own.")
    memory: Quantity | None = Field(
        None, description="Memory requested, and its limit. Unset: the stage's own."
    )


class Scratch(Base):
    """Local disk of one pod: downloads, caches and what is about to be uploaded."""

    size: Quantity = Field("50Gi", description="Space requested.")
    storage_class: ObjectName | None = Field(
        None,
        description="StorageClass of a generic ephemeral volume. Unset: an emptyDir on the node, with a "
        "request for ephemeral storage of this size.",
    )
