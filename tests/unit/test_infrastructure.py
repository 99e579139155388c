"""Whose infrastructure a namespace runs on: namespace × organization × server, three tiers each."""

from __future__ import annotations

import itertools

import pytest

from tessera.models.namespaces import ComputeTier
from tessera.namespaces import Backend, resolve_infrastructure

SHARED, CPU, GPU = ComputeTier

#: (namespace, organization, server) → who decides. 27 rows, written out.
TABLE = {
    (SHARED, SHARED, SHARED): "server",
    (SHARED, SHARED, CPU): "server",
    (SHARED, SHARED, GPU): "server",
    (SHARED, CPU, SHARED): "organization",
    (SHARED, CPU, CPU): "organization",
    (SHARED, CPU, GPU): "organization",
    (SHARED, GPU, SHARED): "organization",
    (SHARED, GPU, CPU): "organization",
    (SHARED, GPU, GPU): "organization",
    (CPU, SHARED, SHARED): "namespace",
    (CPU, SHARED, CPU): "namespace",
    (CPU, SHARED, GPU): "namespace",
    (CPU, CPU, SHARED): "namespace",
    (CPU, CPU, CPU): "namespace",
    (CPU, CPU, GPU): "namespace",
    (CPU, GPU, SHARED): "namespace",
    (CPU, GPU, CPU): "namespace",
    (CPU, GPU, GPU): "namespace",
    (GPU, SHARED, SHARED): "namespace",
    (GPU, SHARED, CPU): "namespace",
    (GPU, SHARED, GPU): "namespace",
    (GPU, CPU, SHARED): "namespace",
    (GPU, CPU, CPU): "namespace",
    (GPU, CPU, GPU): "namespace",
    (GPU, GPU, SHARED): "namespace",
    (GPU, GPU, CPU): "namespace",
    (GPU, GPU, GPU): "namespace",
}


def backend(owner: str, tier: ComputeTier) -> Backend:
    return Backend(
        tier, f"http://{owner}:6333", f"ray://{owner}:10001", f"http://{owner}:8265", f"{owner} key"
    )


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(itertools.product(ComputeTier, repeat=3))


@pytest.mark.parametrize(("tiers", "decides"), TABLE.items())
def test_resolution(tiers: tuple[ComputeTier, ComputeTier, ComputeTier], decides: str) -> None:
    offered = {
        owner: backend(owner, tier)
        for owner, tier in zip(("namespace", "organization", "server"), tiers, strict=True)
    }
    resolved = resolve_infrastructure(offered["namespace"], offered["organization"], offered["server"])
    assert resolved.source == decides
    # All of it comes from one place: no URL of one with the key of another.
    assert resolved.backend is offered[decides]


@pytest.mark.parametrize("namespace", ComputeTier)
@pytest.mark.parametrize("server", ComputeTier)
def test_an_organization_without_infrastructure_decides_nothing(
    namespace: ComputeTier, server: ComputeTier
) -> None:
    resolved = resolve_infrastructure(backend("namespace", namespace), None, backend("server", server))
    assert resolved.source == ("server" if namespace == SHARED else "namespace")


def test_urls_beside_shared_route_nothing() -> None:
    resolved = resolve_infrastructure(
        backend("namespace", SHARED), backend("organization", SHARED), Backend()
    )
    assert resolved.backend == Backend()


def test_a_backend_reads_what_is_stored_and_hides_its_key() -> None:
    read = Backend.of(
        {"compute_tier": "dedicated_cpu", "qdrant_url": "http://q:6333", "qdrant_api_key": "canary"}
    )
    assert (read.compute_tier, read.qdrant_url, read.qdrant_api_key) == (CPU, "http://q:6333", "canary")
    assert "canary" not in repr(read)
    assert Backend.of(None) == Backend.of({}) == Backend()
