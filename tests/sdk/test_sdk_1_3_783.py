"""The official client 1.3.783, unmodified, against a real server."""

from __future__ import annotations

from typing import Any

import pytest

CLIENT = "1.3.783"
SCENARIOS = (
    "scenarios_typed.py",
    "scenarios_organizations.py",
    "scenarios_objects.py",
    "scenarios_failures.py",
    "scenarios_pipelines.py",
    "scenarios_documents.py",
    "scenarios_search.py",
    "scenarios_webhooks.py",
    "scenarios_clusters.py",
    "scenarios_evaluations.py",
    "scenarios_retrievers.py",
    "scenarios_interactions.py",
    "scenarios_taxonomies.py",
    "scenarios_high_level.py",
)

pytestmark = pytest.mark.timeout(600)


def test_scenario(outcome: Any) -> None:
    if not outcome.ok:
        pytest.fail(outcome.report, pytrace=False)
