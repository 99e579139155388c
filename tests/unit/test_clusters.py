"""Clusters with time and libraries in the test's hand: what a trigger fires when, and once. Real tables."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from tessera import (
    cluster_enrichment,
    cluster_labels,
    cluster_runs,
    cluster_triggers,
    clustering,
    clusters,
    enrichment_requests,
    events,
    materialising,
    retrievers,
    schedules,
)
from tessera.cluster_artifacts import Found, artifact_key
from tessera.config import Settings
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import cluster_runs as run_rows
from tessera.db.tables import cluster_triggers as trigger_rows
from tessera.db.tables import clusters as cluster_rows
from tessera.db.tables import collections, enrichments, erasures, namespaces, tasks
from tessera.errors import BadRequestError, InsufficientStorageError
from tessera.language import LanguageModel
from tessera.models.cluster_triggers import (
    CreateTriggerRequest,
    TriggerHistoryRequest,
    TriggerModel,
    TriggerStatus,
    UpdateTriggerRequest,
)
from tessera.models.clusters import LlmLabeling
from tessera.models.retrievers import CreateRetrieverRequest
from tessera.models.tasks import TaskStatus
from tessera.wiring import close_warehouse, open_warehouse
from tests.language_endpoint import KEY, Endpoint
from tests.unit.rows import insert_namespace

WHO = Principal(
    key_id="key_1",
    organization_id="org_1",
    internal_id="int_1",
    user_id="usr_1",
    permissions=frozenset({"read", "write", "delete", "admin"}),
)


class Clock:
    """When the test began: what happens is noted at the time that it is, and triggers are looked at later."""

    start = datetime.now(UTC)


def later(**more: float) -> str:
    return schedules.written(Clock.start + timedelta(**more))


class Place:
    """A warehouse whose jobs do not run, with a cluster over a collection without documents."""

    def __init__(self, wh: Warehouse) -> None:
        self.wh = wh
        at = now()
        with wh.db.write() as connection:
            insert_namespace(connection, "ns_1", "one")
            connection.execute(
                collections.insert().values(
                    collection_id="col_1",
                    namespace_id="ns_1",
                    collection_name="texts",
                    source={"type": "bucket", "bucket_ids": []},
                    feature_extractor={"feature_extractor_name": "passthrough_extractor", "version": "v1"},
                    input_schema={},
                    output_schema={},
                    created_at=at,
                    updated_at=at,
                )
            )
            definition = {
                "collection_ids": ["col_1"],
                "cluster_type": "attribute",
                "vector_config": None,
                "attribute_config": {"attributes": ["kind"]},
                "filters": None,
                "enrich_source_collection": False,
                "source_enrichment_config": None,
            }
            connection.execute(
                cluster_rows.insert().values(
                    cluster_id="clust_1",
                    namespace_id="ns_1",
                    cluster_name="kinds",
                    definition=definition,
                    created_at=at,
                    updated_at=at,
                )
            )

    def trigger(self, kind: str, **schedule: Any) -> TriggerModel:
        asked = {"cluster_id": "clust_1", "trigger_type": kind, "schedule_config": schedule}
        return cluster_triggers.create(self.wh, WHO, "one", CreateTriggerRequest.model_validate(asked))

    def seen(self, trigger: TriggerModel) -> TriggerModel:
        return cluster_triggers.get(self.wh, WHO, "one", trigger.trigger_id)

    def fire(self, **more: float) -> int:
        return cluster_triggers.fire_due(self.wh, later(**more))

    def end_run(self) -> None:
        """Do the execution that waits: without documents it fails."""
        claimed = cluster_runs.claim(self.wh, "me", lambda: {"me"})
        assert claimed is not None
        cluster_runs.run(self.wh, claimed, threading.Event())

    def count(self, written: int = 0, deleted: int = 0, **more: Any) -> None:
        with self.wh.db.write() as connection:
            events.documents_written(connection, "ns_1", "col_1", written=written, deleted=deleted, **more)

    def close(self) -> None:
        with self.wh.db.write() as connection:
            for table in (cluster_rows, collections, namespaces):
                connection.execute(table.delete())


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    wh = open_warehouse(
        Settings(data=tmp_path_factory.mktemp("triggers") / "data", offline=True), run_jobs=False
    )
    yield wh
    close_warehouse(wh)


@pytest.fixture
def place(warehouse: Warehouse) -> Iterator[Place]:
    Clock.start = datetime.now(UTC)
    place = Place(warehouse)
    yield place
    place.close()


# --- schedules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        ("0 2 * * *", "UTC", "2026-01-31T02:00:00+00:00", "2026-02-01T02:00:00+00:00"),
        ("30 8 * * MON-FRI", "America/New_York", "2026-07-03T13:00:00+00:00", "2026-07-06T12:30:00+00:00"),
        # 02:30 is left out in the night of the change; Debian's cron runs it when the clock goes on.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+00:00", "2026-03-29T01:00:00+00:00"),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00+00:00", "2028-02-29T00:00:00+00:00"),
    ],
)
def test_when_a_cron_expression_comes_next(expression: str, zone: str, after: str, expected: str) -> None:
    found = schedules.next_cron(expression, zone, datetime.fromisoformat(after))
    assert found == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    ("expression", "zone", "says"),
    [
        ("* * * * * *", "UTC", "five fields"),
        ("61 * * * *", "UTC", "no cron expression"),
        ("0 0 30 2 *", "UTC", "no cron expression"),
        ("0 2 * * *", "Mars/Base", "no time zone"),
        ("0 2 * * *", "../../etc/passwd", "no time zone"),
        ("0 2 * * *", "", "no time zone"),
    ],
)
def test_what_is_no_schedule(expression: str, zone: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        schedules.next_cron(expression, zone, Clock.start)


# --- firing ----------------------------------------------------------------------------------------------


def test_times_that_were_missed_fire_once(place: Place) -> None:
    hourly = place.trigger("interval", interval_seconds=3600)
    nightly = place.trigger("cron", cron_expression="0 2 * * *")
    assert place.fire(minutes=59) == 0
    # Three days without a server.
    assert place.fire(days=3) == 1
    assert place.fire(days=3) == 0  # both are of one cluster, whose execution is under way
    place.end_run()
    assert place.fire(days=3) == 1
    place.end_run()
    assert place.fire(days=3) == 0
    shown = place.seen(hourly)
    assert shown.execution_count == place.seen(nightly).execution_count == 1
    assert shown.last_triggered_at == later(days=3)
    assert shown.next_scheduled_at is not None
    # It keeps its beat: a whole number of hours after it was made, the first that is still to come.
    ahead = schedules.read(shown.next_scheduled_at) - schedules.read(hourly.next_scheduled_at or "")
    assert ahead % timedelta(hours=1) == timedelta(0)
    assert later(days=3) < shown.next_scheduled_at <= later(days=3, hours=1)


def test_of_several_servers_one_fires(place: Place) -> None:
    trigger = place.trigger("interval", interval_seconds=60)
    begun: list[int] = []
    gate = threading.Barrier(4)

    def look() -> None:
        gate.wait()
        begun.append(place.fire(hours=1))

    servers = [threading.Thread(target=look) for _ in range(4)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert sorted(begun) == [0, 0, 0, 1]
    history = cluster_triggers.history(place.wh, WHO, "one", trigger.trigger_id, TriggerHistoryRequest())
    assert (history.total, history.executions[0].status) == (1, "pending")
    with place.wh.db.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(run_rows)).scalar_one() == 1


def test_failures_are_told_counted_and_end_it(place: Place) -> None:
    trigger = place.trigger("interval", interval_seconds=60)
    for number in range(1, cluster_triggers.MAX_FAILURES + 1):
        assert place.fire(hours=number) == 1
        place.end_run()
        shown = place.seen(trigger)
        assert (shown.consecutive_failures, shown.last_execution_status) == (number, "failed")
        assert "no document" in str(shown.last_execution_error)
    assert (shown.status, shown.next_scheduled_at) == ("failed", None)
    assert place.fire(days=9) == 0
    shown = cluster_triggers.set_status(place.wh, WHO, "one", trigger.trigger_id, TriggerStatus.ACTIVE)
    assert (shown.status, shown.consecutive_failures) == ("active", 0)
    assert place.fire(days=9) == 1
    # Somebody cancels it: that says nothing of the trigger.
    with place.wh.db.write() as connection:
        run = clusters.last_run(connection, "clust_1")
        assert run is not None
        cluster_runs.end(connection, run["run_id"], "Cancelled.", status=TaskStatus.CANCELED)
    shown = place.seen(trigger)
    assert (shown.consecutive_failures, shown.last_execution_status) == (0, "cancelled")


def test_what_came_due_while_it_was_paused_is_not_made_up_for(place: Place) -> None:
    trigger = place.trigger("interval", interval_seconds=60, start_immediately=True)
    assert (trigger.next_scheduled_at or "") <= now()
    paused = cluster_triggers.set_status(place.wh, WHO, "one", trigger.trigger_id, TriggerStatus.PAUSED)
    assert (paused.status, paused.next_scheduled_at) == ("paused", None)
    assert place.fire(days=1) == 0
    resumed = cluster_triggers.set_status(place.wh, WHO, "one", trigger.trigger_id, TriggerStatus.ACTIVE)
    assert (resumed.next_scheduled_at or "") > now()
    # Another schedule is in force at once.
    changed = UpdateTriggerRequest(schedule_config={"interval_seconds": 7200})
    shown = cluster_triggers.update(place.wh, WHO, "one", trigger.trigger_id, changed)
    assert later(hours=1) < (shown.next_scheduled_at or "") < later(hours=3)


def test_an_event_waits_for_documents_and_for_its_cooldown(place: Place) -> None:
    added = {"event_type": "documents_added", "collection_id": "texts", "event_threshold": 10}
    trigger = place.trigger("event", **added, cooldown_seconds=3600)
    assert trigger.schedule_config["collection_id"] == "col_1"
    place.count(written=9)
    place.count(deleted=5)
    place.count(written=50, are_edits=True)  # what clusters write into documents, for one
    assert place.fire(minutes=1) == 0
    assert place.seen(trigger).event_counter == 9
    place.count(written=3)
    assert place.fire(minutes=1) == 1
    place.end_run()
    shown = place.seen(trigger)
    assert (shown.event_counter, shown.last_cooldown_at) == (0, later(minutes=1))
    # Enough again, but it rests; then it fires once for all that came.
    for _ in range(5):
        place.count(written=10)
    assert place.seen(trigger).next_scheduled_at == later(minutes=61)
    assert place.fire(minutes=60) == 0
    assert place.fire(minutes=62) == 1
    place.end_run()
    assert place.fire(days=1) == 0

    gone = place.trigger("event", event_type="documents_deleted", collection_id="col_1")
    place.count(deleted=1)
    assert place.fire(days=1) == 1
    assert place.seen(gone).execution_count == 1


def test_a_trigger_that_has_no_next_moment_any_more_fails_and_holds_up_no_other(place: Place) -> None:
    """As on a machine that does not know its time zone; the others are fired all the same."""
    lost, kept = (
        place.trigger("cron", cron_expression="* * * * *"),
        place.trigger("interval", interval_seconds=3600),
    )
    gone = {"cron_expression": "* * * * *", "timezone": "Gone/Away"}
    with place.wh.db.write() as connection:
        this = trigger_rows.c.trigger_id == lost.trigger_id
        connection.execute(sa.update(trigger_rows).where(this).values(schedule=gone))
    assert place.fire(hours=2) == 1
    assert place.seen(kept).execution_count == 1
    seen = place.seen(lost)
    assert (seen.status, seen.execution_count, seen.next_scheduled_at) == ("failed", 0, None)
    assert "time zone" in str(seen.last_execution_error)
    with pytest.raises(BadRequestError, match=r"'Gone/Away'\) is no time zone.*PATCH .*schedule_config"):
        cluster_triggers.set_status(place.wh, WHO, "one", lost.trigger_id, TriggerStatus.ACTIVE)
    there = UpdateTriggerRequest(
        schedule_config={"cron_expression": "* * * * *", "timezone": "UTC"}, status=TriggerStatus.ACTIVE
    )
    cluster_triggers.update(place.wh, WHO, "one", lost.trigger_id, there)
    seen = place.seen(lost)
    assert (seen.status, seen.consecutive_failures) == ("active", 0)
    assert seen.next_scheduled_at is not None


def test_a_cluster_has_so_many_triggers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_triggers, "MAX_TRIGGERS", 1)
    place.trigger("interval", interval_seconds=60)
    with pytest.raises(BadRequestError, match="1 triggers"):
        place.trigger("interval", interval_seconds=60)


# --- executions ------------------------------------------------------------------------------------------


def begun(place: Place) -> str:
    """Begin an execution and return its id."""
    with place.wh.db.write() as connection:
        clusters.begin(connection, "org_1", {"cluster_id": "clust_1", "namespace_id": "ns_1"}, {})
        run = clusters.last_run(connection, "clust_1", *clusters.OPEN)
        assert run is not None
        return str(run["run_id"])


def stood(place: Place, run_id: str) -> Any:
    with place.wh.db.read() as connection:
        return connection.execute(sa.select(run_rows).where(run_rows.c.run_id == run_id)).mappings().one()


def test_a_server_that_came_while_another_looked_keeps_what_it_took_up(place: Place) -> None:
    run_id = begun(place)
    assert cluster_runs.claim(place.wh, "first", lambda: {"first"}) is not None
    # The second one has last seen who is alive before the first one was there.
    seen = iter([{"second"}, {"first", "second"}])
    assert cluster_runs.claim(place.wh, "second", lambda: next(seen)) is None
    assert (stood(place, run_id)["holder"], stood(place, run_id)["crashes"]) == ("first", 0)
    # Once the first one is dead it is the second one's, and the death counts.
    assert cluster_runs.claim(place.wh, "second", lambda: {"second"}) is not None
    assert (stood(place, run_id)["holder"], stood(place, run_id)["crashes"]) == ("second", 1)


def test_many_executions_of_one_namespace_hold_up_no_other(place: Place) -> None:
    begun(place)
    with place.wh.db.write() as connection:
        insert_namespace(connection, "ns_2", "two")
        cluster = connection.execute(sa.select(cluster_rows)).mappings().one()
        of_two = {**cluster, "cluster_id": "clust_2", "namespace_id": "ns_2"}
        second = {**cluster, "cluster_id": "clust_3", "cluster_name": "more"}
        connection.execute(cluster_rows.insert(), [second, of_two])
        clusters.begin(connection, "org_1", second, {})
        clusters.begin(connection, "org_1", of_two, {})
    order = []
    for _ in range(3):
        claimed = cluster_runs.claim(place.wh, "me", lambda: {"me"})
        assert claimed is not None
        order.append(stood(place, claimed.run_id)["namespace_id"])
        with place.wh.db.write() as connection:
            cluster_runs.end(connection, claimed.run_id, "Ended.")
    assert order == ["ns_1", "ns_2", "ns_1"]


def test_none_is_begun_while_documents_are_erased(place: Place) -> None:
    begun(place)
    at = now()
    erasing = {"task_id": "tsk_1", "namespace_id": "ns_1", "targets": {}, "report": {}}
    with place.wh.db.write() as connection:
        connection.execute(erasures.insert().values(**erasing, created_at=at, due_at=at))
    assert cluster_runs.claim(place.wh, "me", lambda: {"me"}) is None
    with place.wh.db.write() as connection:
        connection.execute(erasures.delete())
    assert cluster_runs.claim(place.wh, "me", lambda: {"me"}) is not None


def test_a_defect_fails_an_execution_and_a_full_disk_lets_it_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(error: Exception) -> None:
        def do(_: Any) -> None:
            raise error

        monkeypatch.setattr(cluster_runs._Run, "do", do)

    run_id = begun(place)
    wrong(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InsufficientStorageError):
        place.end_run()
    assert (stood(place, run_id)["status"], stood(place, run_id)["holder"]) == ("processing", None)
    wrong(KeyError("secret"))
    place.end_run()
    assert stood(place, run_id)["status"] == "failed"
    assert stood(place, run_id)["error"] == "Internal error: KeyError. The server's log has more."


def test_old_executions_go_but_for_the_last_good_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_runs, "KEPT_RUNS", 2)
    runs = []
    for status in ("completed", "completed", "failed", "failed", "failed"):
        runs.append(begun(place))
        with place.wh.db.write() as connection:
            this = run_rows.c.run_id == runs[-1]
            connection.execute(sa.update(run_rows).where(this).values(status=status))
    files = [place.wh.blobs.new_path(artifact_key("ns_1", run_id)) for run_id in runs]
    for file in files:
        file.write_bytes(b"found")
    cluster_runs.prune(place.wh, "clust_1")
    with place.wh.db.read() as connection:
        left = set(connection.execute(sa.select(run_rows.c.run_id)).scalars())
    assert left == {runs[1], runs[3], runs[4]}
    assert [file.exists() for file in files] == [False, True, False, True, True]


def test_an_execution_that_is_cancelled_enriches_no_further(place: Place) -> None:
    found = Found(["doc_1"], ["col_1"], [0], [0.5], [(0.0, 0.0)])
    row = {"namespace_id": "ns_1", "definition": {"source_enrichment_config": None}}

    def stopped() -> None:
        raise cluster_runs.Stopped

    with pytest.raises(cluster_runs.Stopped):
        cluster_enrichment.enrich_all(place.wh, row, {"centroids": []}, found, stopped)


def test_a_result_holds_so_many_groups() -> None:
    cluster_runs.check_groups(cluster_runs.MAX_GROUPS)
    with pytest.raises(BadRequestError, match="10,001 groups"):
        cluster_runs.check_groups(cluster_runs.MAX_GROUPS + 1)


# --- labels by a language model --------------------------------------------------------------------------

TEXTS = ["rain on a tent", "wind and a tent", "a soup of lentils", "lentils with ginger"]


class Naming:
    """Two groups of two texts, and a model that names them."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        (folder / "texts.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in TEXTS))
        self.folder = folder
        self.model = LanguageModel(endpoint.url, "small", KEY, first_wait_s=0.001)

    def name(self, still_wanted: Callable[[], None] = lambda: None, **asked: Any) -> dict[str, Any]:
        labels, distances = np.array([0, 0, 1, 1], np.int32), np.array([2, 1, 1, 2], np.float32)
        result = {
            "centroids": [
                {"cluster_id": "cl_0", "label": "tent", "keywords": ["tent", "rain"]},
                {"cluster_id": "cl_1", "label": "lentils", "keywords": ["lentils", "soup"]},
            ]
        }
        wanted = LlmLabeling(enabled=True, **asked)
        cluster_labels.label(self.model, wanted, self.folder, result, labels, distances, still_wanted)
        return result


@pytest.fixture
def naming(tmp_path: Path, language_endpoint: Endpoint) -> Naming:
    language_endpoint.reset()
    return Naming(tmp_path, language_endpoint)


def labels_of(result: dict[str, Any]) -> list[str]:
    return [each["label"] for each in result["centroids"]]


def test_the_model_sees_what_lies_nearest_and_is_asked_as_wanted(
    naming: Naming, language_endpoint: Endpoint
) -> None:
    result = naming.name(max_samples_per_cluster=1, include_summary=False, custom_prompt="Name them.")
    assert labels_of(result) == ["About tent rain", "About lentils soup"]
    (prompt,) = language_endpoint.prompts
    assert prompt["task"].startswith("Name them.")
    assert [each["documents"] for each in prompt["data"]] == [[TEXTS[1]], [TEXTS[2]]]
    assert "summary" not in result["centroids"][0]


def test_a_group_without_a_usable_label_keeps_its_terms(naming: Naming, language_endpoint: Endpoint) -> None:
    def spoil(_: dict[str, Any], text: str) -> str:
        reply = json.loads(text)
        reply["results"][1]["answer"]["label"] = "blob://ns/secret"
        return json.dumps(reply)

    language_endpoint.spoil = spoil
    result = naming.name()
    assert labels_of(result) == ["About tent rain", "lentils"]
    assert result["llm_labeling"]["labelled"] == 1
    assert "keep their terms" in result["llm_labeling"]["error"]

    # A reply that cannot be read is asked for again, group by group.
    language_endpoint.reset()
    language_endpoint.spoil = lambda body, text: "no JSON" if len(language_endpoint.calls) == 1 else text
    result = naming.name()
    assert labels_of(result) == ["About tent rain", "About lentils soup"]
    assert (result["llm_labeling"]["llm_calls"], result["llm_labeling"]["labelled"]) == (3, 2)


def test_a_model_that_cannot_be_asked_fails_nothing(naming: Naming, language_endpoint: Endpoint) -> None:
    language_endpoint.statuses += [401]
    result = naming.name()
    assert labels_of(result) == ["tent", "lentils"]
    assert "key" in result["llm_labeling"]["error"]
    assert len(language_endpoint.calls) == 1
    naming.model = None  # type: ignore[assignment]
    assert "TESSERA_LLM_BASE_URL" in naming.name()["llm_labeling"]["error"]


def test_an_execution_that_is_cancelled_waits_for_no_model(
    naming: Naming, language_endpoint: Endpoint
) -> None:
    language_endpoint.delay_s = 5

    def stopped() -> None:
        raise cluster_runs.Stopped

    with pytest.raises(cluster_runs.Stopped):
        naming.name(stopped)


# --- the library -----------------------------------------------------------------------------------------


def test_without_the_library_there_is_no_stage_and_the_command_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = CreateRetrieverRequest.model_validate(
        {
            "retriever_name": "themes",
            "collection_identifiers": ["texts"],
            "stages": [{"stage_id": "cluster", "parameters": {"n_clusters": 3}}],
        }
    )
    assert "cluster" in [each["stage_id"] for each in retrievers.stage_catalogue(place.wh)]
    monkeypatch.setattr(clustering, "is_installed", lambda: False)
    assert "cluster" not in [each["stage_id"] for each in retrievers.stage_catalogue(place.wh)]
    with pytest.raises(BadRequestError, match=r"pip install 'tessera\[clusters\]'"):
        retrievers.create(place.wh, WHO, "one", asked)


# --- taxonomies at work on a collection ------------------------------------------------------------------


def test_an_enrichment_that_fails_keeps_what_it_had_counted(place: Place) -> None:
    applied = {
        "taxonomy_id": "tax_gone",
        "execution_mode": "materialize",
        "execution_phase": 1,
        "priority": 0,
    }
    targets = {"is_full": True, "filters": None, "done": 5, "assigned": 3, "failed": 1, "total": 9}
    with place.wh.db.write() as connection:
        connection.execute(sa.update(collections).values(taxonomy_applications=[applied]))
        task_id = enrichment_requests.request(
            connection,
            {"namespace_id": "ns_1", "organization_id": "org_1"},
            {"collection_id": "col_1"},
            ["tax_gone"],
        )
        connection.execute(sa.update(enrichments).values(targets=targets))
        asked = connection.execute(sa.select(enrichments.c.enrichment_id)).scalar_one()
    materialising.run(place.wh, asked)
    with place.wh.db.read() as connection:
        this = tasks.c.task_id == task_id
        task = connection.execute(sa.select(tasks).where(this)).mappings().one()
    assert (task["status"], task["additional_data"]["done"], task["additional_data"]["failed"]) == (
        "FAILED",
        5,
        1,
    )
    assert "tax_gone" in task["error"]
