"""Where a run's pods may go: the queue, the priority, and the part of Kubernetes' pod API for placement.

Used by spec.py. The fields under tolerations and affinity are Kubernetes' own (core/v1), bounded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusechat.spec_types import Base, LabelKey, LabelValue, ObjectName

Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=50)]
Values = Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=100)]
Names = Annotated[tuple[ObjectName, ...], Field(max_length=50)]
Weight = Annotated[int, Field(ge=1, le=100)]


class Toleration(Base):
    """A taint that the pods accept."""

    key: LabelKey | None = Field(None, description="Key of the taint; unset with operator Exists: every key.")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="How key and value are compared.")
    value: Annotated[str, Field(max_length=253)] | None = Field(None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint; unset: every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        None, description="How long a NoExecute taint is tolerated."
    )


class Requirement(Base):
    """A condition on a label."""

    key: LabelKey = Field(description="Label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="How the label is compared; Gt and Lt are for nodes only."
    )
    values: Values = Field((), description="Values it is compared with.")


Requirements = Annotated[tuple[Requirement, ...], Field(max_length=50)]


class NodeTerm(Base):
    """Conditions that a node must meet together."""

    match_expressions: Requirements = Field((), description="Conditions on the node's labels.")
    match_fields: Requirements = Field((), description="Conditions on the node's fields.")


class PreferredNode(Base):
    """A preference for nodes, with its weight."""

    weight: Weight = Field(description="1 to 100.")
    preference: NodeTerm = Field(description="Which nodes.")


class RequiredNodes(Base):
    """Nodes that meet at least one of the terms."""

    node_selector_terms: tuple[NodeTerm, ...] = Field(min_length=1, max_length=20, description="Terms.")


class NodeAffinity(Base):
    """Which nodes the pods may or would rather run on."""

    required: RequiredNodes | None = Field(
        None, alias="requiredDuringSchedulingIgnoredDuringExecution", description="Nodes they may run on."
    )
    preferred: tuple[PreferredNode, ...] = Field(
        (),
        max_length=20,
        alias="preferredDuringSchedulingIgnoredDuringExecution",
        description="Nodes they would rather run on.",
    )


class LabelSelector(Base):
    """Objects by their labels."""

    match_labels: Labels = Field(default_factory=dict, description="Labels with these values.")
    match_expressions: Requirements = Field((), description="Conditions on labels.")


class PodTerm(Base):
    """Pods, and the part of the cluster that is shared with them."""

    topology_key: LabelKey = Field(description="Node label whose equal value makes one place.")
    label_selector: LabelSelector | None = Field(None, description="Which pods.")
    namespaces: Names = Field((), description="Namespaces of those pods; empty: the run's own.")
    namespace_selector: LabelSelector | None = Field(None, description="Namespaces by their labels.")


class PreferredPods(Base):
    """A preference for places, with its weight."""

    weight: Weight = Field(description="1 to 100.")
    pod_affinity_term: PodTerm = Field(description="Which pods.")


class PodAffinity(Base):
    """Pods beside which (or away from which) the run's pods go."""

    required: tuple[PodTerm, ...] = Field(
        (),
        max_length=20,
        alias="requiredDuringSchedulingIgnoredDuringExecution",
        description="Places they must share (or avoid).",
    )
    preferred: tuple[PreferredPods, ...] = Field(
        (),
        max_length=20,
        alias="preferredDuringSchedulingIgnoredDuringExecution",
        description="Places they would rather share (or avoid).",
    )


class Affinity(Base):
    """Kubernetes' affinity, handed to every pod as it is."""

    node_affinity: NodeAffinity | None = Field(None, description="By nodes.")
    pod_affinity: PodAffinity | None = Field(None, description="Beside pods.")
    pod_anti_affinity: PodAffinity | None = Field(None, description="Away from pods.")


class Scheduling(Base):
    """Queue, priority and placement of every pod of the run. Never part of an address."""

    queue_name: ObjectName | None = Field(None, description="Kueue's LocalQueue that admits the steps.")
    priority_class: ObjectName | None = Field(None, description="PriorityClass of the pods (and in Kueue).")
    node_selector: Labels = Field(default_factory=dict, description="Labels of the nodes they may run on.")
    tolerations: tuple[Toleration, ...] = Field((), max_length=50, description="Taints they accept.")
    affinity: Affinity | None = Field(None, description="Kubernetes' affinity.")
