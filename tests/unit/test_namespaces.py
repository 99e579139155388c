"""Namespaces as services: one transaction to create, nothing left after a refusal, two sweeps to purge."""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import sqlalchemy as sa

from tessera import log, namespaces, organizations
from tessera.adapters.qdrant.edge import EdgeVectors
from tessera.blobs import Blobs
from tessera.config import Settings
from tessera.context import Principal, Warehouse
from tessera.db import tables
from tessera.db.engine import Database, now
from tessera.db.migrate import migrate
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NotEnabledError,
    NotFoundError,
    UnavailableError,
    ValidationError,
)
from tessera.fetching import Fetcher
from tessera.models.namespaces import ListNamespacesRequest, NamespaceModel
from tessera.pagination import read_page
from tessera.ports import Document
from tessera.sealing import Vault
from tessera.views import Location, Views
from tests.toys import Toys

KEY = "sk_live_" + "a" * 40
DEDICATED = {
    "qdrant_collection": "ns_production",
    "qdrant_url": "http://127.0.0.1:9",
    "qdrant_api_key": "canary-qdrant-key",
    "ray_head_node_url": "ray://127.0.0.1:9",
    "compute_tier": "dedicated_cpu",
}


class Bell:
    """A job queue that only counts how often it was woken."""

    def __init__(self) -> None:
        self.rung = 0

    def wake(self) -> None:
        self.rung += 1

    def is_running(self) -> bool:
        return True


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """A warehouse on real SQLite, real blobs and the real engine; extractors are toys."""
    folder = tmp_path_factory.mktemp("warehouse")
    settings = Settings(data=folder, extract_timeout_s=30)
    db = Database(f"sqlite:///{folder / 'tessera.sqlite3'}")
    migrate(db)
    organizations.bootstrap(db, KEY)
    blobs, vectors = Blobs(settings.blobs_path), EdgeVectors(1, 32, folder / "run")
    views = Views(db, vectors, blobs, lambda view_id, _place: Location(str(settings.views_path / view_id)))
    runner: Any = None
    registry: Any = Toys()
    yield Warehouse(
        settings,
        db,
        blobs,
        vectors,
        views,
        runner,
        runner,
        registry,
        Bell(),
        Fetcher(max_bytes=2**20),
        b"k" * 32,
        Vault([b"m" * 32]),
    )
    views.close()
    vectors.close()
    db.close()


@pytest.fixture
def wh(place: Warehouse) -> Iterator[Warehouse]:
    """The same warehouse, empty again."""
    yield place
    left = {row["namespace_id"] for table in (tables.namespaces, tables.purges) for row in rows(place, table)}
    for namespace_id in left:
        place.views.purge(namespace_id, [f"{namespace_id}-1"])
        place.blobs.delete_namespace(namespace_id)
    with place.db.write() as connection:
        for table in (tables.namespaces, tables.tasks, tables.purges, tables.idempotency):
            connection.execute(table.delete())
        connection.execute(tables.organizations.update().values(infrastructure=None))


@pytest.fixture
def me(wh: Warehouse) -> Principal:
    keys = organizations.Keys(wh.db)
    found = keys.check(KEY)
    keys.close()
    return found


@pytest.fixture
def other(wh: Warehouse, me: Principal) -> Iterator[Principal]:
    """A key of another organization."""
    row = {"organization_id": "org_other", "internal_id": "int_other", "organization_name": "other"}
    with wh.db.write() as connection:
        connection.execute(tables.organizations.insert().values(**row, created_at=now(), updated_at=now()))
    yield replace(me, organization_id="org_other", internal_id="int_other")
    with wh.db.write() as connection:
        connection.execute(tables.namespaces.delete())
        connection.execute(
            tables.organizations.delete().where(tables.organizations.c.organization_id == "org_other")
        )


def body(name: str = "films", **changes: Any) -> dict[str, Any]:
    return {
        "namespace_name": name,
        "feature_extractors": [{"feature_extractor_name": "word_extractor", "version": "1.0.0"}],
        **changes,
    }


def put_documents(wh: Warehouse, namespace_id: str, *payloads: dict[str, Any]) -> None:
    vector = np.array([1, 0, 0, 0], dtype=np.float32)
    documents = [
        Document(f"doc_{number:032x}", payload, {"word_extractor_v1_embedding": vector})
        for number, payload in enumerate(payloads)
    ]
    with wh.db.write() as connection:
        seq = log.append_edit(connection, namespace_id, upserts=documents)
    wh.views.apply(namespace_id, seq)


def rows(wh: Warehouse, table: sa.Table) -> list[Any]:
    with wh.db.read() as connection:
        return list(connection.execute(sa.select(table)).mappings())


def view_folder(wh: Warehouse, namespace_id: str) -> Path:
    return wh.settings.views_path / f"{namespace_id}-1"


def page(wh: Warehouse, request: dict[str, Any] | None = None, **query: Any) -> Any:
    return read_page(wh, "/v1/namespaces/list", {k: str(v) for k, v in query.items()}, request or {})


def listed(
    wh: Warehouse, who: Principal, request: dict[str, Any] | None = None, **query: Any
) -> dict[str, Any]:
    return namespaces.list_(
        wh, who, page(wh, request, **query), ListNamespacesRequest.model_validate(request or {})
    )


def names_of(answer: dict[str, Any]) -> list[str]:
    return [item["namespace_name"] for item in answer["results"]]


# --- create -------------------------------------------------------------------------------------------


def test_create_answers_every_field_and_get_answers_the_same(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(
        wh,
        me,
        body(description="d", payload_indexes=[{"field_name": "metadata.title", "type": "text"}]),
    )
    assert set(made) == set(NamespaceModel.model_fields)
    NamespaceModel.model_validate(made, strict=False)
    assert made == namespaces.get(wh, me, made["namespace_id"]) == namespaces.get(wh, me, "films")
    assert made["feature_extractors"] == [
        {
            "feature_extractor_name": "word_extractor",
            "version": "1.0.0",
            "params": None,
            "feature_extractor_id": "word_extractor_1.0.0",
        }
    ]
    protected = [index["is_protected"] for index in made["payload_indexes"]]
    assert protected == [False] + [True] * (len(protected) - 1)
    assert made["payload_index_count"] == 1
    assert made["vector_inference_map"] == {"word_extractor_v1_embedding": "counter"}
    assert made["infrastructure"]["compute_tier"] == "shared"
    assert made["infrastructure"]["qdrant_collection"].startswith("ns_")
    assert made["infrastructure"]["qdrant_url"] is None
    assert (made["document_count"], made["bucket_count"], made["object_count"]) == (0, 0, 0)
    assert made["created_at"] == made["updated_at"]


def test_create_is_a_row_and_one_log_entry_and_makes_no_files(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body(payload_indexes=[{"field_name": "a", "type": "float"}]))
    (row,) = rows(wh, tables.namespaces)
    (entry,) = rows(wh, tables.log_entries)
    assert (row["head"], row["mark_seq"], entry["seq"], entry["kind"]) == (1, 0, 1, "indexes")
    logged = [index["field_name"] for index in orjson.loads(entry["body"])]
    assert logged == [index["field_name"] for index in made["payload_indexes"]]
    assert not view_folder(wh, made["namespace_id"]).exists()
    assert not wh.blobs.path(made["namespace_id"]).exists()


def test_a_taken_name_is_a_conflict_in_one_organization_only(
    wh: Warehouse, me: Principal, other: Principal
) -> None:
    namespaces.create(wh, me, body())
    with pytest.raises(AlreadyExistsError, match="'films' exists"):
        namespaces.create(wh, me, body())
    with pytest.raises(ValidationError):
        namespaces.create(wh, me, body(payload_indexes=[{"field_name": "a..b", "type": "text"}]))
    namespaces.create(wh, me, body("Films"))
    namespaces.create(wh, other, body())
    assert len(rows(wh, tables.namespaces)) == 3


def test_of_many_that_want_one_name_one_gets_it(wh: Warehouse, me: Principal) -> None:
    def attempt(_: int) -> str:
        try:
            return str(namespaces.create(wh, me, body())["namespace_id"])
        except AlreadyExistsError:
            return "taken"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(24)))
    assert sorted(outcomes)[1:] == ["taken"] * 23 or outcomes.count("taken") == 23
    assert len(rows(wh, tables.namespaces)) == len(rows(wh, tables.log_entries)) == 1


def test_what_is_sent_with_shared_infrastructure_is_shown_without_its_key(
    wh: Warehouse, me: Principal
) -> None:
    sent = {**DEDICATED, "compute_tier": "shared", "max_concurrent_jobs": 3, "description": "Shared"}
    shown = namespaces.create(wh, me, body(infrastructure=sent))["infrastructure"]
    expected = {key: value for key, value in sent.items() if key != "qdrant_api_key"}
    assert {key: shown[key] for key in expected} == expected
    assert "qdrant_api_key" not in shown
    assert b"canary" not in b"".join(
        file.read_bytes() for file in wh.settings.data.glob("tessera.sqlite3*")
    ), "the key is in clear in the database"


@pytest.mark.parametrize("tier", ["dedicated_cpu", "dedicated_gpu"])
def test_dedicated_is_checked_in_full_and_an_unreachable_one_leaves_nothing(
    wh: Warehouse, me: Principal, tier: str
) -> None:
    sent = {**DEDICATED, "compute_tier": tier, "gpu_type": "A100", "gpus_per_worker": 1}
    with pytest.raises(ValidationError, match="qdrant_url"):
        namespaces.create(wh, me, body(infrastructure={**sent, "qdrant_url": None}))
    with pytest.raises(UnavailableError, match=r"Ray head at 127\.0\.0\.1:9 cannot be reached") as caught:
        namespaces.create(wh, me, body(infrastructure=sent), idempotency_key="k1")
    assert (caught.value.status, caught.value.type) == (503, "ServiceUnavailableError")
    assert caught.value.retryable
    for table in (tables.namespaces, tables.log_entries, tables.idempotency, tables.doomed_views):
        assert rows(wh, table) == []
    # The name and the key are free.
    namespaces.create(wh, me, body(), idempotency_key="k1")
    with pytest.raises(AlreadyExistsError):
        namespaces.create(wh, me, body(infrastructure=sent))


def test_a_namespace_stays_where_it_is_when_its_organization_becomes_dedicated(
    wh: Warehouse, me: Principal
) -> None:
    namespaces.create(wh, me, body("before"))
    with wh.db.write() as connection:
        connection.execute(tables.organizations.update().values(infrastructure=DEDICATED))
    with pytest.raises(UnavailableError, match="Ray head"):
        namespaces.create(wh, me, body())
    shown = namespaces.get(wh, me, "before")["infrastructure"]
    assert (shown["compute_tier"], shown["source"]) == ("shared", "server")
    assert "canary" not in str(shown)


def test_infrastructure_needs_permission(wh: Warehouse, me: Principal) -> None:
    writer = replace(me, permissions=frozenset({"read", "write"}))
    for sent in (DEDICATED, {"ray_head_node_url": "ray://h:1"}, {"compute_tier": "dedicated_gpu"}):
        with pytest.raises(ForbiddenError, match="admin"):
            namespaces.create(wh, writer, body(infrastructure=sent))
    namespaces.create(wh, writer, body(infrastructure={"max_concurrent_jobs": 2}))
    closed = replace(wh, settings=wh.settings.model_copy(update={"allow_dedicated": False}))
    with pytest.raises(NotEnabledError, match="allow_dedicated"):
        namespaces.create(closed, me, body("other", infrastructure=DEDICATED))


# --- idempotency --------------------------------------------------------------------------------------


def test_a_repeated_request_makes_one_namespace_and_gets_one_answer(wh: Warehouse, me: Principal) -> None:
    first = namespaces.create(wh, me, body(), idempotency_key="k")
    assert namespaces.create(wh, me, dict(reversed(body().items())), idempotency_key="k") == first
    with pytest.raises(ConflictError, match="another request"):
        namespaces.create(wh, me, body("books"), idempotency_key="k")
    assert names_of(listed(wh, me)) == ["films"]


def test_a_repeated_request_whose_namespace_is_gone_is_a_conflict(wh: Warehouse, me: Principal) -> None:
    namespaces.create(wh, me, body(), idempotency_key="k")
    namespaces.delete(wh, me, "films")
    with pytest.raises(ConflictError, match="deleted since"):
        namespaces.create(wh, me, body(), idempotency_key="k")
    assert rows(wh, tables.namespaces) == []


def test_a_refused_request_does_not_use_up_its_key(wh: Warehouse, me: Principal) -> None:
    namespaces.create(wh, me, body())
    with pytest.raises(AlreadyExistsError):
        namespaces.create(wh, me, body(), idempotency_key="k")
    with pytest.raises(ValidationError):
        namespaces.create(wh, me, body(""), idempotency_key="k")
    namespaces.create(wh, me, body("books"), idempotency_key="k")


def test_requests_sent_at_once_with_one_key_have_one_effect(wh: Warehouse, me: Principal) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: namespaces.create(wh, me, body(), idempotency_key="k"), range(24)))
    assert all(answer == answers[0] for answer in answers)
    assert len(rows(wh, tables.namespaces)) == 1


def test_keys_belong_to_an_organization(wh: Warehouse, me: Principal, other: Principal) -> None:
    mine = namespaces.create(wh, me, body(), idempotency_key="k")
    theirs = namespaces.create(wh, other, body("books"), idempotency_key="k")
    assert mine["namespace_id"] != theirs["namespace_id"]


# --- find ---------------------------------------------------------------------------------------------


def test_what_a_key_may_not_see_is_as_absent(wh: Warehouse, me: Principal, other: Principal) -> None:
    made = namespaces.create(wh, me, body("é", description="canary"))
    assert namespaces.get(wh, me, "e\u0301")["namespace_id"] == made["namespace_id"]
    elsewhere = replace(me, scopes=({"resource_type": "namespace", "resource_id": "customer_*"},))
    calls: list[Callable[[Principal, str], Any]] = [
        lambda who, x: namespaces.get(wh, who, x),
        lambda who, x: namespaces.patch(wh, who, x, {"description": "x"}),
        lambda who, x: namespaces.update(wh, who, x, {}),
        lambda who, x: namespaces.delete(wh, who, x),
        lambda who, x: namespaces.stats(wh, who, x),
    ]
    for call in calls:
        for who, identifier in (
            (me, "absent"),
            (me, "ns_ffffffffffffffff"),
            (other, made["namespace_id"]),
            (other, "é"),
            (elsewhere, made["namespace_id"]),
            (elsewhere, "é"),
        ):
            with pytest.raises(NotFoundError) as caught:
                call(who, identifier)
            step = "GET /v1/namespaces lists those that there are."
            assert caught.value.message == f"namespace {identifier!r} was not found. {step}"
            assert caught.value.details == {"resource": "namespace", "id": identifier}
    assert namespaces.get(wh, me, "é")["description"] == "canary"


@pytest.mark.parametrize(
    ("scopes", "seen"),
    [
        ((), ["acme_a", "acme_b", "zeta"]),
        (({"resource_type": "organization", "resource_id": "*"},), ["acme_a", "acme_b", "zeta"]),
        (({"resource_type": "namespace", "resource_id": "*"},), ["acme_a", "acme_b", "zeta"]),
        (({"resource_type": "namespace", "resource_id": "acme_*"},), ["acme_a", "acme_b"]),
        (({"resource_type": "namespace", "resource_id": "zeta"},), ["zeta"]),
        (
            (
                {"resource_type": "namespace", "resource_id": "zeta"},
                {"resource_type": "namespace", "resource_id": "acme_b"},
            ),
            ["acme_b", "zeta"],
        ),
        (({"resource_type": "bucket", "resource_id": "*"},), []),
        (({"resource_type": "namespace", "resource_id": "ACME_*"},), []),
    ],
)
def test_a_keys_scope_bounds_what_it_lists_and_makes(
    wh: Warehouse, me: Principal, scopes: tuple[Any, ...], seen: list[str]
) -> None:
    for name in ("zeta", "acme_b", "acme_a"):
        namespaces.create(wh, me, body(name))
    key = replace(me, scopes=scopes)
    answer = listed(wh, key, {"sort": {"field": "namespace_name", "direction": "asc"}})
    assert names_of(answer) == seen
    assert answer["total_count"] == len(seen)
    if "acme_a" in seen:
        namespaces.create(wh, key, body("acme_new"))
    else:
        with pytest.raises(ForbiddenError):
            namespaces.create(wh, key, body("acme_new"))


@pytest.mark.parametrize(
    ("operations", "refused"),
    [
        (None, []),
        (["delete_data"], []),
        (["read_data", "manage_permissions"], []),
        (["write_data"], ["delete"]),
        (["read_data"], ["patch", "update", "delete"]),
        (["execute_retriever"], ["patch", "update", "delete"]),
        ([], ["get", "patch", "update", "delete"]),
    ],
)
def test_a_scope_may_allow_less_than_the_key(
    wh: Warehouse, me: Principal, operations: list[str] | None, refused: list[str]
) -> None:
    namespaces.create(wh, me, body())
    scope: dict[str, object] = {"resource_type": "namespace", "resource_id": "films"}
    if operations is not None:
        scope["operations"] = operations
    key = replace(me, scopes=(scope,))
    calls: dict[str, tuple[str, Callable[[Principal], Any]]] = {
        "get": ("read", lambda who: namespaces.get(wh, who, "films")),
        "patch": ("write", lambda who: namespaces.patch(wh, who, "films", {"description": "x"})),
        "update": ("write", lambda who: namespaces.update(wh, who, "films", {})),
        "delete": ("delete", lambda who: namespaces.delete(wh, who, "films")),
    }
    for name, (asks, call) in calls.items():
        if name in refused:
            with pytest.raises(ForbiddenError, match="'films'"):
                call(replace(key, asks=asks))
        else:
            call(replace(key, asks=asks))


def test_only_a_star_is_special_in_a_scope(wh: Warehouse, me: Principal) -> None:
    for name in ("a[b]?", "ab?", "a[b]x"):
        namespaces.create(wh, me, body(name))
    key = replace(me, scopes=({"resource_type": "namespace", "resource_id": "a[b]?"},))
    assert names_of(listed(wh, key)) == ["a[b]?"]


def test_a_scope_may_name_the_id(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body())
    key = replace(me, scopes=({"resource_type": "namespace", "resource_id": made["namespace_id"]},))
    assert namespaces.get(wh, key, "films") == made


# --- list ---------------------------------------------------------------------------------------------


@pytest.fixture
def five(wh: Warehouse, me: Principal) -> list[str]:
    texts = {"alpha": "First", "Beta": None, "gamma": "third ALPHA", "delta": "", "épsilon": "Fünf"}
    for name, description in texts.items():
        namespaces.create(wh, me, body(name, description=description))
    return list(texts)


def test_lists_show_the_newest_first_in_pages(wh: Warehouse, me: Principal, five: list[str]) -> None:
    newest = five[::-1]
    assert names_of(listed(wh, me)) == newest
    answer = listed(wh, me, limit=2, offset=1)
    assert names_of(answer) == newest[1:3]
    standing = {key: answer["pagination"][key] for key in ("total", "page", "page_size", "total_pages")}
    assert standing == {"total": 5, "page": 1, "page_size": 2, "total_pages": 3}
    assert answer["total_count"] == 5
    assert names_of(listed(wh, me, page=2, page_size=2)) == newest[2:4]
    assert listed(wh, me, offset=50)["results"] == []
    assert names_of(listed(wh, me, {"sort": {"field": "created_at", "direction": "asc"}})) == five


@pytest.mark.parametrize(
    "request_", [{}, {"sort": {"field": "created_at", "direction": "asc"}}, {"search": "a"}]
)
def test_cursors_bring_every_namespace_once(
    wh: Warehouse, me: Principal, five: list[str], request_: dict[str, Any]
) -> None:
    everything = names_of(listed(wh, me, request_))
    found, cursor = [], None
    while True:
        answer = listed(wh, me, {**request_, "cursor": cursor}, limit=2)
        found += names_of(answer)
        cursor = answer["pagination"]["next_cursor"]
        if cursor is None:
            break
    assert found == everything


def test_a_cursor_goes_on_where_it_stood_though_others_were_added(
    wh: Warehouse, me: Principal, five: list[str]
) -> None:
    first = listed(wh, me, limit=2)
    namespaces.create(wh, me, body("new"))
    namespaces.delete(wh, me, names_of(first)[0])
    second = listed(wh, me, {"cursor": first["pagination"]["next_cursor"]}, limit=2)
    assert names_of(second) == five[::-1][2:4]
    with pytest.raises(BadRequestError, match="another list, filter or sort"):
        listed(wh, me, {"cursor": first["pagination"]["next_cursor"], "search": "a"}, limit=2)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"filters": {"namespace_name": "ALPHA"}}, ["alpha"]),
        ({"filters": {"namespace_name": "ALPHA"}, "case_sensitive": True}, []),
        ({"filters": {"namespace_name": {"$regex": "^.*ta$"}}}, ["delta", "Beta"]),
        ({"filters": {"namespace_name": {"$in": ["alpha", "gamma"]}}}, ["gamma", "alpha"]),
        ({"filters": {"namespace_name": {"$ne": "alpha"}}}, ["épsilon", "delta", "gamma", "Beta"]),
        ({"filters": {"description": "first"}}, ["alpha"]),
        ({"filters": {"description": {"$exists": False}}}, ["Beta"]),
        ({"filters": {"namespace_name": "alpha", "description": "third"}}, []),
        ({"search": "alpha"}, ["gamma", "alpha"]),
        ({"search": "alpha", "case_sensitive": True}, ["alpha"]),
        ({"search": "ÉPS"}, ["épsilon"]),
        ({"search": "ns_"}, ["épsilon", "delta", "gamma", "Beta", "alpha"]),
        (
            {"sort": {"field": "namespace_name", "direction": "asc"}},
            ["Beta", "alpha", "delta", "gamma", "épsilon"],
        ),
        (
            {"sorts": [{"field": "namespace_name", "direction": "desc"}]},
            ["épsilon", "gamma", "delta", "alpha", "Beta"],
        ),
        (
            {"sort": {"field": "description", "direction": "desc"}, "search": "t"},
            ["gamma", "alpha", "delta", "Beta"],
        ),
    ],
)
def test_lists_filter_search_and_sort(
    wh: Warehouse, me: Principal, five: list[str], request_: dict[str, Any], expected: list[str]
) -> None:
    answer = listed(wh, me, request_)
    assert names_of(answer) == expected
    assert answer["total_count"] == len(expected)


def test_a_filter_on_an_unknown_field_is_refused(wh: Warehouse, me: Principal) -> None:
    with pytest.raises(ValidationError, match=r"'colour'.*namespace_name"):
        listed(wh, me, {"filters": {"AND": [{"field": "colour", "operator": "eq", "value": 1}]}})


def test_lists_add_up_what_they_show(wh: Warehouse, me: Principal, five: list[str]) -> None:
    stats = listed(wh, me, limit=2)["stats"]
    indexes = len(namespaces.get(wh, me, "alpha")["payload_indexes"])
    assert stats["total_feature_extractors"] == 2
    assert stats["total_payload_indexes"] == 2 * indexes
    assert stats["avg_payload_indexes_per_namespace"] == indexes
    assert listed(wh, me, {"search": "nobody"})["stats"]["avg_documents_per_namespace"] == 0


def test_creating_and_listing_cost_the_same_after_a_thousand(wh: Warehouse, me: Principal) -> None:
    def timed(call: Callable[[], Any]) -> float:
        # Of the processor: what others do meanwhile is not counted.
        begun = time.thread_time()
        call()
        return time.thread_time() - begun

    def made(numbers: range) -> list[float]:
        return [timed(functools.partial(namespaces.create, wh, me, body(f"n{n}"))) for n in numbers]

    took = made(range(1000))
    early, late = statistics.median(took[10:110]), statistics.median(took[-100:])
    if late > 1.5 * early:  # once more: on a busy machine a hundred can meet a bad moment
        late = min(late, statistics.median(made(range(1000, 1100))))
    assert late <= 1.5 * early
    assert len(listed(wh, me)["results"]) == 10
    first = [timed(lambda: listed(wh, me, limit=10)) for _ in range(50)]
    last = [timed(lambda: listed(wh, me, limit=10, offset=900)) for _ in range(50)]
    assert statistics.median(last) <= 2 * statistics.median(first)
    assert not wh.settings.views_path.exists() or not any(wh.settings.views_path.iterdir())


# --- change -------------------------------------------------------------------------------------------


def test_a_patch_changes_what_it_names_and_nothing_else(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(
        wh, me, body(description="d", payload_indexes=[{"field_name": "a", "type": "float"}])
    )
    assert namespaces.patch(wh, me, "films", {}) == made
    assert namespaces.update(wh, me, "films", {}) == made
    changed = namespaces.patch(wh, me, "films", {"description": None, "auto_create_indexes": True})
    assert (changed["description"], changed["auto_create_indexes"]) == (None, True)
    assert changed["updated_at"] > made["updated_at"]
    same = {"description", "auto_create_indexes", "updated_at"}
    assert {k: v for k, v in changed.items() if k not in same} == {
        k: v for k, v in made.items() if k not in same
    }
    assert changed == namespaces.get(wh, me, "films")
    assert len(rows(wh, tables.log_entries)) == 1


def test_renaming_keeps_the_id_and_frees_the_name(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body())
    namespaces.create(wh, me, body("books"))
    for change in (namespaces.patch, namespaces.update):
        with pytest.raises(AlreadyExistsError, match="'books'"):
            change(wh, me, "films", {"namespace_name": "books"})
    assert (
        namespaces.patch(wh, me, "films", {"namespace_name": "movies"})["namespace_id"]
        == made["namespace_id"]
    )
    with pytest.raises(NotFoundError):
        namespaces.get(wh, me, "films")
    assert namespaces.create(wh, me, body())["namespace_id"] != made["namespace_id"]


def test_an_index_change_is_a_log_entry_and_opens_no_empty_view(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body(payload_indexes=[{"field_name": "a", "type": "float"}]))
    changed = namespaces.patch(wh, me, "films", {"payload_indexes": [{"field_name": "b", "type": "geo"}]})
    assert [i["field_name"] for i in changed["payload_indexes"] if not i["is_protected"]] == ["b"]
    entries = [[i["field_name"] for i in orjson.loads(e["body"])] for e in rows(wh, tables.log_entries)]
    assert entries[1] == ["b", *entries[0][1:]]
    assert not view_folder(wh, made["namespace_id"]).exists()
    # Sent again it changes nothing.
    again = namespaces.patch(wh, me, "films", {"payload_indexes": [{"field_name": "b", "type": "geo"}]})
    assert again == changed
    assert len(rows(wh, tables.log_entries)) == 2


def test_an_extractors_index_comes_back_when_the_user_lets_go_of_its_field(
    wh: Warehouse, me: Principal
) -> None:
    made = namespaces.create(wh, me, body(payload_indexes=[{"field_name": "language", "type": "keyword"}]))
    assert [i["field_name"] for i in made["payload_indexes"]].count("language") == 1
    assert made["payload_indexes"][0]["is_protected"] is False
    changed = namespaces.patch(wh, me, "films", {"payload_indexes": None})
    (language,) = [i for i in changed["payload_indexes"] if i["field_name"] == "language"]
    assert language["is_protected"] is True
    assert "language" in [i["field_name"] for i in orjson.loads(rows(wh, tables.log_entries)[1]["body"])]


def test_indexes_are_the_engines_and_follow_a_patch(wh: Warehouse, me: Principal) -> None:
    """Added ones index what is there already, dropped ones go, a value of another type is not counted."""
    made = namespaces.create(wh, me, body(payload_indexes=[{"field_name": "year", "type": "integer"}]))
    put_documents(
        wh, made["namespace_id"], {"year": 1999, "title": "The Matrix"}, {"year": "soon"}, {"title": "Up"}
    )

    def reported() -> dict[str, Any]:
        answer = namespaces.stats(wh, me, "films")
        assert answer["document_count"] == 3
        return {item["field_name"]: item for item in answer["payload_indexes"]}

    before = reported()
    assert (before["year"]["type"], before["year"]["points"]) == ("integer", 1)
    assert before["year"]["params"].items() >= {"lookup": True, "range": True}.items()
    assert before["internal_id"]["type"] == "keyword"
    namespaces.patch(wh, me, "films", {"payload_indexes": [{"field_name": "title", "type": "text"}]})
    after = reported()
    assert "year" not in after
    assert (after["title"]["type"], after["title"]["points"]) == ("text", 2)
    assert set(before) - {"year"} == set(after) - {"title"}
    assert namespaces.get(wh, me, "films")["document_count"] == 3


def test_a_patch_reaches_a_view_that_was_opened_empty(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body())
    assert namespaces.stats(wh, me, "films")["document_count"] == 0
    assert wh.views.is_open(made["namespace_id"])
    namespaces.patch(wh, me, "films", {"payload_indexes": [{"field_name": "year", "type": "integer"}]})
    assert namespaces.stats(wh, me, "films")["payload_indexes"][0]["field_name"] == "year"


def test_two_changes_at_once_do_not_mix(wh: Warehouse, me: Principal) -> None:
    namespaces.create(wh, me, body())

    def change(number: int) -> None:
        if number % 2:
            namespaces.patch(wh, me, "films", {"description": f"d{number}"})
        else:
            indexes = [{"field_name": f"f{number}", "type": "float"}]
            namespaces.patch(wh, me, "films", {"payload_indexes": indexes})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(16)))
    now_shown = namespaces.get(wh, me, "films")
    logged = [i["field_name"] for i in orjson.loads(rows(wh, tables.log_entries)[-1]["body"])]
    assert logged == [i["field_name"] for i in now_shown["payload_indexes"]]
    assert now_shown["description"] in {f"d{n}" for n in range(1, 16, 2)}
    assert [e["seq"] for e in rows(wh, tables.log_entries)] == list(range(1, 10))


def test_infrastructure_can_be_changed_while_it_moves_nothing(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body())
    shown = namespaces.patch(wh, me, "films", {"infrastructure": {"max_concurrent_jobs": 2}})[
        "infrastructure"
    ]
    assert shown["max_concurrent_jobs"] == 2
    assert shown["qdrant_collection"] == made["infrastructure"]["qdrant_collection"]
    # What was read can be sent back.
    assert namespaces.patch(wh, me, "films", {"infrastructure": shown})["infrastructure"] == shown
    put_documents(wh, made["namespace_id"], {"a": 1})
    again = namespaces.patch(wh, me, "films", {"infrastructure": {**shown, "max_concurrent_jobs": 4}})
    assert again["infrastructure"]["max_concurrent_jobs"] == 4


def test_a_key_stays_while_its_url_does_and_is_never_shown(wh: Warehouse, me: Principal) -> None:
    sent = {**DEDICATED, "compute_tier": "shared"}
    namespaces.create(wh, me, body(infrastructure=sent))
    without = {key: value for key, value in sent.items() if key != "qdrant_api_key"}
    shown = namespaces.patch(wh, me, "films", {"infrastructure": {**without, "max_workers": 3}})
    assert "canary" not in str(shown)
    assert "qdrant_api_key" in rows(wh, tables.namespaces)[0]["infrastructure"]
    with pytest.raises(ValidationError, match="qdrant_api_key"):
        namespaces.patch(
            wh, me, "films", {"infrastructure": {**without, "qdrant_url": "https://elsewhere:6333"}}
        )
    with pytest.raises(UnavailableError):
        namespaces.patch(wh, me, "films", {"infrastructure": {**without, "compute_tier": "dedicated_cpu"}})


def test_a_namespace_does_not_move(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body())
    with pytest.raises(UnavailableError):
        namespaces.patch(wh, me, "films", {"infrastructure": DEDICATED, "description": "x"})
    assert namespaces.get(wh, me, "films") == made
    put_documents(wh, made["namespace_id"], {"a": 1})
    with pytest.raises(ConflictError, match="only an empty namespace"):
        namespaces.patch(wh, me, "films", {"infrastructure": DEDICATED})
    with pytest.raises(ForbiddenError):
        reader = replace(me, permissions=frozenset({"read", "write"}))
        namespaces.patch(wh, reader, "films", {"infrastructure": DEDICATED})


# --- delete -------------------------------------------------------------------------------------------


def fill(wh: Warehouse, namespace_id: str) -> None:
    """Put something of the namespace into every table and store."""
    at = now()
    inside = {"namespace_id": namespace_id, "created_at": at, "updated_at": at}
    texts = {"description": "canary-description"}
    with wh.db.write() as connection:
        for table, values in (
            (
                tables.buckets,
                {"bucket_id": "bkt_1", "bucket_name": "canary-bucket", "bucket_schema": {}, **texts},
            ),
            (
                tables.objects,
                {
                    "object_id": "obj_1",
                    "bucket_id": "bkt_1",
                    "fields": {"secret": "canary-object"},
                    "blobs": [],
                    "content_hash": "x",
                },
            ),
            (
                tables.collections,
                {
                    "collection_id": "col_1",
                    "collection_name": "canary-collection",
                    "source": {},
                    "feature_extractor": {},
                    "input_schema": {},
                    "output_schema": {},
                    **texts,
                },
            ),
            (
                tables.batches,
                {"batch_id": "btch_1", "bucket_id": "bkt_1", "object_ids": [], "collection_ids": []},
            ),
            (
                tables.retrievers,
                {"retriever_id": "ret_1", "retriever_name": "canary-retriever", "definition": {}, **texts},
            ),
            (
                tables.tasks,
                {
                    "task_id": "tsk_inside",
                    "organization_id": "org_x",
                    "task_type": "api_buckets_batches_process",
                    "status": "PENDING",
                },
            ),
        ):
            connection.execute(table.insert().values(**inside, **values))
        connection.execute(
            tables.sources.insert().values(
                namespace_id=namespace_id,
                collection_id="col_1",
                source_id="obj_1",
                input_hash="",
                plan_hash="",
                document_ids=["canary-document-id"],
            )
        )
        connection.execute(
            tables.batch_rows.insert().values(
                batch_id="btch_1",
                collection_id="col_1",
                object_id="obj_1",
                namespace_id=namespace_id,
                updated_at=at,
            )
        )
    wh.blobs.put(namespace_id, b"canary-blob")
    put_documents(wh, namespace_id, {"text": "canary-payload", "title": "canary-title"})


def traces(wh: Warehouse, canary: bytes) -> list[str]:
    """Return the files below the data directory that hold `canary`."""
    files = [file for file in wh.settings.data.rglob("*") if file.is_file()]
    return [str(file.relative_to(wh.settings.data)) for file in files if canary in file.read_bytes()]


def test_deleting_is_at_once_for_readers_and_frees_the_name(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body())
    namespace_id = made["namespace_id"]
    fill(wh, namespace_id)
    shown = namespaces.get(wh, me, "films")
    counts = ("document_count", "bucket_count", "collection_count", "object_count")
    assert [shown[name] for name in counts] == [1, 1, 1, 1]
    assert isinstance(wh.jobs, Bell)
    rung = wh.jobs.rung
    answer = namespaces.delete(wh, me, "films")
    assert wh.jobs.rung == rung + 1
    assert answer["success"] is True
    for identifier in ("films", namespace_id):
        with pytest.raises(NotFoundError):
            namespaces.get(wh, me, identifier)
        with pytest.raises(NotFoundError):
            namespaces.delete(wh, me, identifier)
    for table in tables.metadata.sorted_tables:
        if "namespace_id" in table.c and table.name not in ("purges", "tasks"):
            assert rows(wh, table) == [], table.name
    (task,) = rows(wh, tables.tasks)
    assert (task["task_id"], task["task_type"], task["status"]) == (
        answer["task_id"],
        "api_namespaces_delete",
        "PENDING",
    )
    assert task["namespace_id"] is None
    assert task["additional_data"]["document_count"] == 1
    again = namespaces.create(wh, me, body())
    assert again["namespace_id"] != namespace_id
    assert namespaces.stats(wh, me, "films")["document_count"] == 0


def test_a_purge_removes_every_trace_in_two_sweeps(
    wh: Warehouse, me: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = namespaces.create(wh, me, body(description="canary-namespace"))
    namespace_id = made["namespace_id"]
    fill(wh, namespace_id)
    assert view_folder(wh, namespace_id).exists()
    assert traces(wh, b"canary")
    task_id = namespaces.delete(wh, me, "films")["task_id"]
    namespaces.purge(wh, namespace_id)
    assert traces(wh, b"canary") == []
    assert not view_folder(wh, namespace_id).exists()
    (task,) = rows(wh, tables.tasks)
    assert (task["task_id"], task["status"]) == (task_id, "COMPLETED")
    # A worker that was under way writes its file after the first sweep.
    wh.blobs.put(namespace_id, b"canary-late")
    namespaces.purge(wh, namespace_id)
    assert traces(wh, b"canary-late"), "swept before the longest extraction has ended"
    (purge,) = rows(wh, tables.purges)
    monkeypatch.setattr(namespaces, "now", lambda: purge["targets"]["due_at"])
    namespaces.purge(wh, namespace_id)
    assert traces(wh, b"canary") == []
    assert rows(wh, tables.purges) == []
    namespaces.purge(wh, namespace_id)


def test_a_purge_that_was_cut_short_is_resumed(
    wh: Warehouse, me: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace_id = namespaces.create(wh, me, body())["namespace_id"]
    fill(wh, namespace_id)
    namespaces.delete(wh, me, "films")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Blobs, "delete_namespace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            namespaces.purge(wh, namespace_id)
    assert [row["status"] for row in rows(wh, tables.tasks)] == ["PENDING"]
    namespaces.purge(wh, namespace_id)
    assert [row["status"] for row in rows(wh, tables.tasks)] == ["COMPLETED"]
    assert not wh.blobs.path(namespace_id).exists()


def test_a_sweep_that_fails_is_tried_again_later(
    wh: Warehouse, me: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must neither end the task nor be repeated at once without end."""
    namespace_id = namespaces.create(wh, me, body())["namespace_id"]
    wh.blobs.put(namespace_id, b"data")
    namespaces.delete(wh, me, "films")
    with monkeypatch.context() as patched:
        patched.setattr(Blobs, "delete_namespace", lambda *_: None)
        namespaces.purge(wh, namespace_id)
    namespaces.purge(wh, namespace_id)
    assert [row["status"] for row in rows(wh, tables.tasks)] == ["PENDING"]
    assert wh.blobs.path(namespace_id).exists()
    (purge,) = rows(wh, tables.purges)
    assert now() < purge["targets"]["due_at"]
    monkeypatch.setattr(namespaces, "now", lambda: purge["targets"]["due_at"])
    namespaces.purge(wh, namespace_id)
    assert [row["status"] for row in rows(wh, tables.tasks)] == ["COMPLETED"]
    assert not wh.blobs.path(namespace_id).exists()
    assert rows(wh, tables.purges), "the second sweep is still to come"


def test_keys_that_saw_only_this_namespace_are_revoked(wh: Warehouse, me: Principal) -> None:
    made = namespaces.create(wh, me, body())
    with wh.db.read() as connection:
        pattern = dict(connection.execute(sa.select(tables.api_keys)).mappings().one())
    scopes: dict[str, list[dict[str, str]]] = {
        "by-id": [{"resource_type": "namespace", "resource_id": made["namespace_id"]}],
        "by-name": [{"resource_type": "namespace", "resource_id": "films"}],
        "pattern": [{"resource_type": "namespace", "resource_id": "f*"}],
        "two": [
            {"resource_type": "namespace", "resource_id": "films"},
            {"resource_type": "namespace", "resource_id": "books"},
        ],
        "all": [],
    }
    try:
        with wh.db.write() as connection:
            for name, value in scopes.items():
                key = {
                    "key_id": f"key_{name}",
                    "name": name,
                    "key_hash": name.encode().ljust(32),
                    "scopes": value,
                }
                connection.execute(tables.api_keys.insert().values(**{**pattern, **key}))
        namespaces.delete(wh, me, "films")
        status = {row["name"]: row["status"] for row in rows(wh, tables.api_keys)}
        assert {name for name, state in status.items() if state == "revoked"} == {"by-id", "by-name"}
    finally:
        with wh.db.write() as connection:
            connection.execute(tables.api_keys.delete().where(tables.api_keys.c.name.in_(scopes)))


def test_searches_go_on_while_namespaces_come_and_go(wh: Warehouse, me: Principal) -> None:
    """A namespace that is deleted under a reader is a 404 for it, never another one's data."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                namespaces.stats(wh, me, "films")
            except NotFoundError:
                pass
            except Exception as error:
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(5):
        made = namespaces.create(wh, me, body())
        put_documents(wh, made["namespace_id"], {"a": 1})
        namespaces.delete(wh, me, "films")
        namespaces.purge(wh, made["namespace_id"])
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
