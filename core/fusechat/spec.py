"""FusionRun: every field of a run, typed, bounded, documented and with the paper's default.

The only place a field is named: crd.py writes the CRD and the reference page of it, plan.py reads it. The
parts are in spec_types.py, spec_stages.py and spec_scheduling.py, the rules between fields in spec_rules.py.
`load` turns YAML, a path or the API server's object into one. Knows no plan and no cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from fusechat.spec_load import read
from fusechat.spec_rules import is_pinned
from fusechat.spec_scheduling import Scheduling
from fusechat.spec_stages import Align, AlignMethod, Evaluate, Extract, Filter, Fuse, Merge
from fusechat.spec_types import (
    Base,
    DataUri,
    Duration,
    HttpUrl,
    Line,
    ModelName,
    ModelUri,
    ObjectName,
    Resources,
    Revision,
    Scratch,
    SecretRef,
    Share,
    StoreUri,
    seconds,
)

__all__ = ["STAGES", "FusionRun", "Model", "RunSpec", "load", "seconds"]

API_VERSION = "fusechat.io/v1alpha1"
KIND = "FusionRun"
STAGES = ("resolve", "fetch", "extract", "align", "filter", "fuse", "merge", "evaluate", "report")
Template = Literal["auto", "openchat_3.5", "mistral", "llama-3", "gemma", "phi-3", "qwen", "internlm2", "yi"]
Profile = Literal["Corrected", "Published"]


class Model(Base):
    """A chat model in Hugging Face's folder layout, safetensors only."""

    name: ModelName = Field(description="Short name; unique in the run. Steps and scores carry it.")
    uri: ModelUri = Field(description="hf://owner/name, s3://bucket/folder or file://folder (laptop only).")
    revision: Revision | None = Field(
        None,
        description="Full commit of the hub, or sha256:<digest> of an s3:// or file:// folder. Unset, or a "
        "branch: resolved once, and the run's condition Reproducible is False.",
    )
    template: Template = Field(
        "auto", description="Chat template; auto is the tokenizer's own. Published: the pivot's serves all."
    )
    resources: Resources | None = Field(
        None,
        description="What this model's extract and evaluations ask for, in place of the stages'; the pivot's "
        "serve the targets and the fused model too.",
    )
    scratch: Scratch | None = Field(
        None,
        description="Local disk of this model's fetch, extract and evaluations, in place of the stages'; the "
        "pivot's serve the targets and the fused model too.",
    )
    allow_remote_code: bool = Field(
        False,
        description="Copy the Python files of the model's repository too, by a full commit; none is run.",
    )
    secret_ref: SecretRef | None = Field(
        None, description="Secret with the key HF_TOKEN, for the hub; s3:// is read as the store is."
    )

    @property
    def pinned(self) -> bool:
        """Whether the user pinned it: a full commit, or a content digest."""
        return is_pinned(self.revision)


class Dataset(Base):
    """The conversations on which the models are compared and the pivot is trained."""

    uri: DataUri = Field(
        description="hf://datasets/owner/name, s3://bucket/folder or file://folder-or-file (laptop only)."
    )
    revision: Revision | None = Field(
        None, description="Full commit, or sha256:<digest>; unset: resolved once."
    )
    split: Line | None = Field(None, description="Split of the dataset, by name; unset: every file.")
    shards: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="Pods that share the blocks of extract, align and filter. Changes speed only."
    )
    limit: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        None, description="Only the first so many conversations."
    )
    secret_ref: SecretRef | None = Field(
        None, description="Secret with the key HF_TOKEN, for the hub; s3:// is read as the store is."
    )

    @property
    def pinned(self) -> bool:
        """Whether the user pinned it: a full commit, or a content digest."""
        return is_pinned(self.revision)


class Storage(Base):
    """Where artifacts lie. Unset: the cluster's default store, or on a laptop one started for the run."""

    uri: StoreUri | None = Field(None, description="s3://bucket/prefix.")
    endpoint: HttpUrl | None = Field(
        None,
        description="Address of an S3 service that is not AWS. Unset, on a cluster: the default store's.",
    )
    region: Line | None = Field(None, description="Region of the bucket.")
    secret_ref: SecretRef | None = Field(
        None, description="Secret of the run's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    )
    service_account_name: ObjectName | None = Field(
        None, description="ServiceAccount of the run's namespace whose cloud identity reaches the bucket."
    )


class StageResources(Base):
    """Resources by stage."""

    resolve: Resources | None = Field(None, description="Of resolve.")
    fetch: Resources | None = Field(None, description="Of every fetch.")
    extract: Resources | None = Field(None, description="Of every extract; a model's own goes before it.")
    align: Resources | None = Field(None, description="Of every align.")
    filter: Resources | None = Field(None, description="Of every filter.")
    fuse: Resources | None = Field(None, description="Of each node of every fuse.")
    merge: Resources | None = Field(None, description="Of merge.")
    evaluate: Resources | None = Field(None, description="Of every evaluate.")
    report: Resources | None = Field(None, description="Of report.")


class StageScratch(Base):
    """Local disk by stage."""

    resolve: Scratch | None = Field(None, description="Of resolve.")
    fetch: Scratch | None = Field(None, description="Of every fetch; a model's own goes before it.")
    extract: Scratch | None = Field(None, description="Of every extract; a model's own goes before it.")
    align: Scratch | None = Field(None, description="Of every align.")
    filter: Scratch | None = Field(None, description="Of every filter.")
    fuse: Scratch | None = Field(None, description="Of each node of every fuse.")
    merge: Scratch | None = Field(None, description="Of merge.")
    evaluate: Scratch | None = Field(None, description="Of every evaluate.")
    report: Scratch | None = Field(None, description="Of report.")


class Retries(Base):
    """How often a step is tried again, by cause. A bug (bad data, out of memory, NaN loss) never is."""

    disruption: Annotated[int, Field(ge=0, le=1000)] = Field(
        20, description="After eviction, preemption or the loss of a node."
    )
    infrastructure: Annotated[int, Field(ge=0, le=1000)] = Field(
        6,
        description="After trouble outside: the store, the hub, a full disk; with a pause that doubles.",
    )


class Gates(Base):
    """Stop before GPU hours are spent when a measure is too low. Never part of an address."""

    kept_share: Share | None = Field(None, description="Least share of samples that filter keeps, each pair.")
    alignment_coverage: Share | None = Field(
        None, description="Least share of the pivot's rows that get a row of the source, each pair."
    )
    win_share: Share | None = Field(
        None, description="Least share of samples on which the source beats the pivot, each pair."
    )


class RunSpec(Base):
    """What is fused, and how."""

    profile: Profile = Field(
        "Corrected", description="Corrected mends the method's known defects; Published repeats the release."
    )
    pivot: Model = Field(description="The model that is trained; the fused model has its shape.")
    sources: tuple[Model, ...] = Field(
        min_length=1,
        max_length=50,
        description="The models that are fused into it.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    dataset: Dataset = Field(description="The conversations.")
    extract: Extract = Field(default_factory=Extract, description="Stage extract.")
    align: Align = Field(default_factory=Align, description="Stage align.")
    filter: Filter = Field(default_factory=Filter, description="Stage filter.")
    fuse: Fuse = Field(default_factory=Fuse, description="Stage fuse.")
    controls: tuple[Literal["SFT"], ...] = Field(
        (),
        max_length=1,
        description="SFT: also train the pivot on the same samples with no distributions, to compare.",
    )
    merge: Merge = Field(default_factory=Merge, description="Stage merge.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="Stage evaluate.")
    storage: Storage = Field(default_factory=Storage, description="Where artifacts lie.")
    resources: StageResources = Field(
        default_factory=StageResources, description="CPUs, memory and GPUs by stage."
    )
    scratch: StageScratch = Field(default_factory=StageScratch, description="Local disk by stage.")
    scheduling: Scheduling = Field(
        default_factory=Scheduling, description="Queue, priority and placement of the pods."
    )
    launcher: Literal["Auto", "PyTorchJob", "TrainJob", "Job"] = Field(
        "Auto", description="What starts a training of several pods; Auto takes the first that is installed."
    )
    suspend: bool = Field(False, description="Stop what runs, checkpoint first; false again goes on.")
    ttl: Duration = Field(
        "10m", description="How long a finished child object is kept after its result; at least 1m."
    )
    deadline: Duration | None = Field(
        None, description="The run fails when it has not ended by then; after suspend it counts anew."
    )
    retries: Retries = Field(default_factory=Retries, description="How often a step is tried again.")
    gates: Gates = Field(default_factory=Gates, description="Thresholds that stop the run early.")

    @model_validator(mode="after")
    def _fill_what_follows_from_other_fields(self) -> Any:
        """The align method is the profile's, the training's length the extraction's."""
        method: AlignMethod = "MS" if self.profile == "Published" else "Bytes"
        align = self.align.model_copy(update={"method": self.align.method or method})
        fuse = self.fuse.model_copy(update={"max_length": self.fuse.max_length or self.extract.max_length})
        object.__setattr__(self, "align", align)
        object.__setattr__(self, "fuse", fuse)
        return self


class Metadata(Base):
    """What Kubernetes says of the object; of it, only these fields are read."""

    model_config = ConfigDict(extra="ignore")

    name: ObjectName = Field(description="Name of the run.")
    namespace: ObjectName = Field("default", description="Namespace of the run.")
    uid: Annotated[str, Field(max_length=128)] | None = Field(None, description="Set by the API server.")
    generation: Annotated[int, Field(ge=0)] = Field(1, description="Set by the API server.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")


class FusionRun(Base):
    """One fusion: chat models in, one fused and evaluated chat model out."""

    api_version: Literal["fusechat.io/v1alpha1"] = Field(description="fusechat.io/v1alpha1.")
    kind: Literal["FusionRun"] = Field(description="FusionRun.")
    metadata: Metadata = Field(description="Name and namespace.")
    spec: RunSpec = Field(description="What is fused, and how.")


def load(source: str | Path | Mapping[str, Any], base: Path | None = None) -> FusionRun:
    """A FusionRun from a file (Path, or its name), from YAML text, or from the API server's object.

    file:// URIs that are relative are taken from `base`, by default the file's folder (for text, the working
    directory). Raises ValueError with one sentence a problem: where, what was found, what was expected, what
    to do. The object's status is not read.
    """
    return read(FusionRun, source, base)
