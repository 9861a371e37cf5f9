"""Where a run's artifacts lie and how its Pods get in: the cluster's default store, or the run's own. Pure.

Used by once. The operator has credentials for the default store only; what another has, probes ask.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusechat.spec import FusionRun, Storage

from fusechat_operator.settings import DefaultStore


@dataclass(frozen=True)
class Place:
    """`own`: not the default store, so that only Pods of the run's namespace can ask it."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
    secret: str | None = None
    service_account: str | None = None
    own: bool = False

    @property
    def identity(self) -> str:
        """One text for one store; names of children are made of it, and stay what they were by default."""
        return f"{self.uri} {self.endpoint or 'AWS'}" if self.own else self.uri

    @property
    def way_in(self) -> str:
        """The credentials, as a person finds them."""
        if self.secret:
            return f"Secret {self.secret}"
        return f"ServiceAccount {self.service_account or 'default'}"


def place(run: FusionRun, store: DefaultStore | None) -> Place:
    """Of what a run does not say the default store's. ValueError where that does not name one store."""
    own = run.spec.storage
    if store is None:
        return _without_default(own)
    uri, endpoint = (own.uri or store.uri).rstrip("/"), own.endpoint or store.endpoint
    elsewhere = endpoint != store.endpoint
    named = own.secret_ref is not None or own.service_account_name is not None
    if elsewhere and own.uri is None:
        raise ValueError(
            f"spec.storage names another endpoint ({endpoint}) and no bucket there; set spec.storage.uri too"
        )
    if elsewhere and not named:
        raise ValueError(
            f"spec.storage names {uri} at {endpoint}, which the credentials of the cluster's default store "
            "are not for; set spec.storage.secretRef or serviceAccountName"
        )
    secret = own.secret_ref.name if own.secret_ref else None if named else store.secret
    account = own.service_account_name or (None if own.secret_ref else store.service_account)
    region = own.region or (None if elsewhere else store.region)
    if elsewhere or uri != store.uri:
        return Place(uri, endpoint, region, secret, account, own=True)
    return Place(store.uri, store.endpoint, store.region, secret, account)


def _without_default(own: Storage) -> Place:
    if own.uri is None or (own.secret_ref is None and own.service_account_name is None):
        raise ValueError(
            "this cluster has no default store for artifacts; the chart sets one (store.uri), or name "
            "your own in spec.storage (uri, endpoint, and secretRef or serviceAccountName)"
        )
    secret = own.secret_ref.name if own.secret_ref else None
    return Place(own.uri.rstrip("/"), own.endpoint, own.region, secret, own.service_account_name, own=True)
