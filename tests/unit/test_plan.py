"""plan.py: a namespace as it will be, or everything that is wrong with the request, together."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    Problem,
    TesseraError,
    ValidationError,
    raise_problems,
)
from tessera.models import IndexType, PayloadIndex
from tessera.models.namespaces import NamespaceInfrastructure
from tessera.plan import (
    PROTECTED_FIELDS,
    SYSTEM_INDEXES,
    NamespacePlan,
    effective_indexes,
    plan_namespace,
    plan_patch,
    plan_update,
)
from tests.toys import Toys, index

SYSTEM_NAMES = [index.field_name for index in SYSTEM_INDEXES]


REGISTRY: Any = Toys()


def request(**changes: Any) -> dict[str, Any]:
    """A request that is fine, with `changes`; a key whose value is ``...`` is left out."""
    body = {
        "namespace_name": "films",
        "feature_extractors": [{"feature_extractor_name": "word_extractor", "version": "v1"}],
        **changes,
    }
    return {key: value for key, value in body.items() if value is not ...}


def plan(**changes: Any) -> NamespacePlan:
    return plan_namespace(request(**changes), REGISTRY)


def problems(body: Any, make: Any = None) -> list[Problem]:
    with pytest.raises(ValidationError) as caught:
        (make or (lambda b: plan_namespace(b, REGISTRY)))(body)
    return list(caught.value.problems)


def place(problem: Problem) -> str:
    return ".".join(map(str, problem.location))


# --- what a plan holds --------------------------------------------------------------------------------


def test_a_plan_is_the_request_normalised_and_what_follows_from_it() -> None:
    made = plan(
        description="d",
        payload_indexes=[{"field_name": "metadata.title", "type": "text"}],
        feature_extractors=[
            {
                "feature_extractor_name": "word_extractor",
                "version": "1.0.0",
                "params": {"size": 8, "other": 1},
            }
        ],
    )
    assert made.namespace_name == "films"
    assert made.description == "d"
    assert made.namespace_type == "standard"
    assert made.feature_extractors == (
        {"feature_extractor_name": "word_extractor", "version": "1.0.0", "params": {"size": 8, "other": 1}},
    )
    assert made.vectors == ({"name": "word_extractor_v1_embedding", "dimensions": 8, "distance": "cosine"},)
    assert made.vector_inference_map == {"word_extractor_v1_embedding": "counter"}
    assert made.infrastructure is None
    assert made.auto_create_indexes is False
    assert [(i.field_name, i.is_protected) for i in made.indexes] == [
        ("metadata.title", False),
        ("language", True),
        ("start_time", True),
        *((name, True) for name in SYSTEM_NAMES),
    ]


def test_an_extractor_without_vectors_makes_a_namespace_without_vectors() -> None:
    made = plan(feature_extractors=[{"feature_extractor_name": "pass_extractor", "version": "v1"}])
    assert made.vectors == ()
    assert [i.field_name for i in made.indexes] == SYSTEM_NAMES


def test_the_tenant_comes_first_among_the_systems_indexes_and_is_the_only_one_that_places_points() -> None:
    assert SYSTEM_NAMES[0] == "internal_id"
    assert [i.field_name for i in SYSTEM_INDEXES if i.field_schema["is_tenant"]] == ["internal_id"]


def test_the_same_request_gives_the_same_plan() -> None:
    body = request(payload_indexes=[{"field_name": "a", "type": "integer"}])
    before = repr(body)
    assert plan_namespace(body, REGISTRY) == plan_namespace(body, REGISTRY)
    assert repr(body) == before


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "spotify_playlists_dev", "Filme & Töne", "日本語", "a" * 64, "ns_dev", "it's 100 % new"]
)
def test_names_that_are_taken(name: str) -> None:
    assert plan(namespace_name=name).namespace_name == name


def test_names_are_kept_composed() -> None:
    assert plan(namespace_name="e\u0301te").namespace_name == "\u00e9te"


@pytest.mark.parametrize(
    "name",
    [
        "", "a" * 65, " a", "a ", "a/b", "a\nb", "a\x00b", "a\u202eb", "ns_0123456789abcdef", "list", "stats",
        "templates", "migrations", "plugins", "standalone", ".", "..", 5, None, ["a"],
    ],
)  # fmt: skip
def test_names_that_are_refused(name: Any) -> None:
    (problem,) = problems(request(namespace_name=name))
    assert place(problem) == "body.namespace_name"
    assert "namespace_name" in problem.message


def test_name_is_another_spelling_of_namespace_name() -> None:
    assert plan(namespace_name=..., name="films").namespace_name == "films"
    assert plan(name="films").namespace_name == "films"
    (problem,) = problems(request(name="books"))
    assert problem.kind == "name_mismatch"
    assert "'books'" in problem.message
    assert "'films'" in problem.message


def test_a_name_is_required() -> None:
    (problem,) = problems(request(namespace_name=...))
    assert place(problem) == "body.namespace_name"
    assert problem.message == "namespace_name is required."


# --- extractors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extractors", "where", "words"),
    [
        (..., "body.feature_extractors", ["required"]),
        (None, "body.feature_extractors", ["list"]),
        ([], "body.feature_extractors", ["at least 1"]),
        ([{}], "body.feature_extractors.0.feature_extractor_name", ["required"]),
        (["word_extractor"], "body.feature_extractors.0", ["object"]),
        (
            [{"feature_extractor_name": "wrod_extractor", "version": "v1"}],
            "body.feature_extractors.0.feature_extractor_name",
            ["'wrod_extractor'", "word_extractor", "pass_extractor"],
        ),
        (
            [{"feature_extractor_name": "word_extractor", "version": "2.0"}],
            "body.feature_extractors.0.version",
            ["'2.0'", "v1", "1.0.0"],
        ),
        (
            [{"feature_extractor_name": "word_extractor", "version": "v1"}] * 2,
            "body.feature_extractors.1",
            ["word_extractor v1", "twice"],
        ),
        (
            [
                {"feature_extractor_name": "word_extractor", "version": "v1"},
                {"feature_extractor_name": "word_extractor", "version": "1.0.0"},
            ],
            "body.feature_extractors.1",
            ["v1", "1.0.0", "spellings"],
        ),
        (
            [
                {"feature_extractor_name": "word_extractor", "version": "v1"},
                {"feature_extractor_name": "multiword_extractor", "version": "v1"},
            ],
            "body.feature_extractors.1",
            ["word_extractor", "multiword_extractor", "spellings"],
        ),
        (
            [{"feature_extractor_name": "word_extractor", "version": "v1", "params": {"size": 65}}],
            "body.feature_extractors.0.params.size",
            ["size", "65", "at most 64"],
        ),
        (
            [{"feature_extractor_name": "word_extractor", "version": "v1", "params": []}],
            "body.feature_extractors.0.params",
            ["object"],
        ),
        (
            [{"feature_extractor_name": "word_extractor", "version": "v1", "params": {"model": "huge"}}],
            "body.feature_extractors.0.params",
            ["huge", "tessera models pull"],
        ),
        (
            [{"feature_extractor_name": "word_extractor", "version": "v1", "params": {"x": 2**70}}],
            "body.feature_extractors.0.params",
            ["64 bits"],
        ),
        (
            [{"feature_extractor_name": "word_extractor", "version": "v1", "params": {"x": "a\x00"}}],
            "body.feature_extractors.0.params",
            ["NUL"],
        ),
    ],
)
def test_extractors_that_are_refused(extractors: Any, where: str, words: list[str]) -> None:
    found = problems(request(feature_extractors=extractors))
    assert where in [place(p) for p in found]
    message = next(p.message for p in found if place(p) == where)
    for word in words:
        assert word in message


def test_the_id_of_an_extractor_in_a_request_is_accepted_whatever_it_says() -> None:
    made = plan(
        feature_extractors=[
            {"feature_extractor_name": "word_extractor", "version": "v1", "feature_extractor_id": "anything"}
        ]
    )
    assert "feature_extractor_id" not in made.feature_extractors[0]


# --- payload indexes ----------------------------------------------------------------------------------

TEXT = {"type": "text", "tokenizer": "word", "min_token_len": 2, "max_token_len": 15, "lowercase": True}


@pytest.mark.parametrize(
    ("kind", "schema", "expected"),
    [
        ("text", None, TEXT),
        ("text", {}, TEXT),
        ("text", {"type": None, "tokenizer": None}, TEXT),
        (
            "text",
            {"tokenizer": "prefix", "min_token_len": 1},
            {**TEXT, "tokenizer": "prefix", "min_token_len": 1},
        ),
        ("keyword", None, {"type": "keyword", "is_tenant": False}),
        ("keyword", {"type": "keyword", "is_tenant": True}, {"type": "keyword", "is_tenant": True}),
        # What both official clients make of a keyword schema: keys of another class.
        (
            "keyword",
            {"type": "keyword", "min_token_len": 2, "max_token_len": 15, "lowercase": True},
            {"type": "keyword", "is_tenant": False},
        ),
        ("keyword", {"min_token_len": "nonsense"}, {"type": "keyword", "is_tenant": False}),
        ("integer", None, {"type": "integer", "lookup": True, "range": True}),
        ("integer", {"range": False}, {"type": "integer", "lookup": True, "range": False}),
        ("uuid", None, {"type": "uuid", "is_tenant": False}),
        ("float", None, {"type": "float"}),
        ("bool", {"is_tenant": True}, {"type": "bool"}),
        ("geo", {"type": "geo"}, {"type": "geo"}),
        ("datetime", {"type": "a word nobody knows"}, {"type": "datetime"}),
    ],
)
def test_the_outer_type_chooses_the_parameters(kind: str, schema: Any, expected: dict[str, Any]) -> None:
    made = plan(payload_indexes=[{"field_name": "metadata.x", "type": kind, "field_schema": schema}])
    assert made.user_indexes == (
        PayloadIndex(
            field_name="metadata.x", type=IndexType(kind), field_schema=expected, is_protected=False
        ),
    )


@pytest.mark.parametrize("kind", list(IndexType))
@pytest.mark.parametrize("inner", list(IndexType))
def test_a_schema_that_names_another_type_is_refused(kind: IndexType, inner: IndexType) -> None:
    body = request(
        payload_indexes=[{"field_name": "x", "type": kind.value, "field_schema": {"type": inner.value}}]
    )
    if kind == inner:
        plan_namespace(body, REGISTRY)
        return
    (problem,) = problems(body)
    assert place(problem) == "body.payload_indexes.0.field_schema.type"
    assert repr(inner.value) in problem.message
    assert repr(kind.value) in problem.message


@pytest.mark.parametrize(
    ("index", "where", "words"),
    [
        ({"type": "text"}, "field_name", ["required"]),
        ({"field_name": "a"}, "type", ["required"]),
        ({"field_name": "", "type": "text"}, "field_name", ["at least 1"]),
        ({"field_name": "a" * 256, "type": "text"}, "field_name", ["at most 255"]),
        ({"field_name": "a", "type": "txet"}, "type", ["'txet'", "text", "keyword", "geo"]),
        ({"field_name": "a..b", "type": "text"}, "field_name", ["'a..b'", "empty segment"]),
        ({"field_name": ".a", "type": "text"}, "field_name", ["empty segment"]),
        ({"field_name": "a.", "type": "text"}, "field_name", ["empty segment"]),
        ({"field_name": "a. .b", "type": "text"}, "field_name", ["empty segment"]),
        ({"field_name": "a[].b", "type": "text"}, "field_name", ["[]", "reserved"]),
        ({"field_name": "_s", "type": "text"}, "field_name", ["_s", "reserved"]),
        ({"field_name": "_s.title", "type": "keyword"}, "field_name", ["_s", "reserved"]),
        ({"field_name": 'a"b', "type": "text"}, "field_name", ["quote"]),
        ({"field_name": "a\\b", "type": "text"}, "field_name", ["backslash"]),
        ({"field_name": "a\nb", "type": "text"}, "field_name", ["control"]),
        ({"field_name": "a", "type": "text", "field_schema": []}, "field_schema", ["object"]),
        (
            {"field_name": "a", "type": "text", "field_schema": {"tokenizer": "wrod"}},
            "field_schema.tokenizer",
            ["'wrod'", "word", "whitespace", "prefix", "multilingual"],
        ),
        (
            {"field_name": "a", "type": "text", "field_schema": {"min_token_len": -1}},
            "field_schema.min_token_len",
            ["-1", "at least 0"],
        ),
        (
            {"field_name": "a", "type": "text", "field_schema": {"min_token_len": 9, "max_token_len": 3}},
            "field_schema",
            ["9", "3"],
        ),
        (
            {"field_name": "a", "type": "integer", "field_schema": {"lookup": False, "range": False}},
            "field_schema",
            ["lookup", "range"],
        ),
        (
            {"field_name": "a", "type": "keyword", "field_schema": {"is_tenant": "perhaps"}},
            "field_schema.is_tenant",
            ["true or false"],
        ),
    ],
)
def test_indexes_that_are_refused(index: dict[str, Any], where: str, words: list[str]) -> None:
    (problem,) = problems(request(payload_indexes=[index]))
    assert place(problem) == f"body.payload_indexes.0.{where}"
    for word in words:
        assert word in problem.message


@pytest.mark.parametrize(
    "name", ["a", "metadata.title", "with blank", "_score", "_sx.y", "metadata.created_at", "Ü-1.x"]
)
def test_field_names_that_are_taken(name: str) -> None:
    assert plan(payload_indexes=[{"field_name": name, "type": "keyword"}]).user_indexes[0].field_name == name


def test_one_field_has_oneindex() -> None:
    (problem,) = problems(
        request(payload_indexes=[{"field_name": "a", "type": "text"}, {"field_name": "a", "type": "keyword"}])
    )
    assert place(problem) == "body.payload_indexes.1.field_name"
    assert problem.kind == "duplicate_field_name"
    assert "payload_indexes[0]" in problem.message


@pytest.mark.parametrize("name", sorted(PROTECTED_FIELDS))
@pytest.mark.parametrize("flag", [False, True])
def test_protected_fields_are_a_400(name: str, flag: bool) -> None:
    with pytest.raises(BadRequestError) as caught:
        plan(payload_indexes=[{"field_name": name, "type": "keyword", "is_protected": flag}])
    assert repr(name) in caught.value.message
    assert f"metadata.{name}" in caught.value.message
    (entry,) = caught.value.details["validation_errors"]  # type: ignore[misc]
    assert entry["location"] == ["body", "payload_indexes", 0, "field_name"]


def test_a_user_cannot_protect_anindex() -> None:
    made = plan(payload_indexes=[{"field_name": "a", "type": "keyword", "is_protected": True}])
    assert made.user_indexes[0].is_protected is False


def test_a_users_index_takes_the_place_of_the_extractors_when_the_types_agree() -> None:
    made = plan(
        payload_indexes=[{"field_name": "language", "type": "keyword", "field_schema": {"is_tenant": True}}]
    )
    assert [i.field_name for i in made.indexes] == ["language", "start_time", *SYSTEM_NAMES]
    assert made.indexes[0].field_schema == {"type": "keyword", "is_tenant": True}
    # It comes back when the user removes that entry, so the plan keeps it.
    assert [i.field_name for i in made.added_indexes] == ["language", "start_time", *SYSTEM_NAMES]


def test_an_index_that_contradicts_the_extractors_is_a_400() -> None:
    with pytest.raises(BadRequestError) as caught:
        plan(payload_indexes=[{"field_name": "start_time", "type": "integer"}])
    for word in ("'start_time'", "float", "integer"):
        assert word in caught.value.message


@pytest.mark.parametrize("indexes", [None, ..., []])
def test_indexes_may_be_left_out(indexes: Any) -> None:
    assert plan(payload_indexes=indexes).user_indexes == ()


# --- other fields -------------------------------------------------------------------------------------


def test_optional_fields() -> None:
    made = plan(auto_create_indexes=True, namespace_type="marketplace", description=None)
    assert (made.auto_create_indexes, made.namespace_type, made.description) == (True, "marketplace", None)
    made = plan(auto_create_indexes=None, namespace_type=None, infrastructure=None)
    assert (made.auto_create_indexes, made.namespace_type) == (False, "standard")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("namespace_type", "private"),
        ("auto_create_indexes", "yes"),
        ("auto_create_indexes", 1),
        ("description", 5),
        ("description", "a\x00b"),
        ("payload_indexes", {}),
        ("infrastructure", "shared"),
    ],
)
def test_optional_fields_that_are_refused(field: str, value: Any) -> None:
    found = problems(request(**{field: value}))
    assert [place(p) for p in found] == [f"body.{field}"]


@pytest.mark.parametrize("body", [None, [], "text", 5])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    (problem,) = problems(body)
    assert problem.location == ("body",)


def test_unknown_keys_are_ignored() -> None:
    assert plan(mode="managed", ttl_seconds=60, page_size=3).namespace_name == "films"


# --- several problems at once -------------------------------------------------------------------------


def test_everything_that_is_wrong_is_reported_together_in_the_order_of_the_fields() -> None:
    found = problems(
        {
            "payload_indexes": [
                {"field_name": "created_at", "type": "datetime"},
                {"field_name": "a..b", "type": "text"},
                {"field_name": "c", "type": "nonsense"},
                {"field_name": "d", "type": "keyword", "field_schema": {"type": "text"}},
            ],
            "feature_extractors": [
                {"feature_extractor_name": "word_extractor", "version": "v9"},
                {"feature_extractor_name": "nobody", "version": "v1"},
                {"version": "v1"},
            ],
            "namespace_name": "a/b",
            "infrastructure": {"qdrant_collection": "abc", "compute_tier": "dedicated_cpu"},
        }
    )
    assert [place(p) for p in found] == [
        "body.namespace_name",
        "body.feature_extractors.0.version",
        "body.feature_extractors.1.feature_extractor_name",
        "body.feature_extractors.2.feature_extractor_name",
        "body.payload_indexes.0.field_name",
        "body.payload_indexes.1.field_name",
        "body.payload_indexes.2.type",
        "body.payload_indexes.3.field_schema.type",
        "body.infrastructure.qdrant_url",
        "body.infrastructure.ray_head_node_url",
        "body.infrastructure.qdrant_api_key",
    ]


def test_semantic_problems_are_422_unless_all_of_them_are_400() -> None:
    protected = {"field_name": "created_at", "type": "datetime"}
    with pytest.raises(BadRequestError):
        plan(payload_indexes=[protected])
    assert len(problems(request(payload_indexes=[protected, {"field_name": "a..b", "type": "text"}]))) == 2


def test_a_conflict_is_told_only_when_nothing_else_is_wrong() -> None:
    taken = Problem(("body", "namespace_name"), "taken", "taken", 409)
    with pytest.raises(AlreadyExistsError):
        raise_problems([taken])
    with pytest.raises(BadRequestError):
        raise_problems([taken, Problem(("body",), "b", "b", 400)])


# --- infrastructure -----------------------------------------------------------------------------------

DEDICATED = {
    "qdrant_collection": "ns_production",
    "qdrant_url": "https://qdrant.example:6333",
    "qdrant_api_key": "canary-key",
    "ray_head_node_url": "ray://ray.example:10001",
    "compute_tier": "dedicated_cpu",
}
GPU = {**DEDICATED, "compute_tier": "dedicated_gpu", "gpu_type": "A100", "gpus_per_worker": 2}


@pytest.mark.parametrize(
    "infrastructure",
    [
        {},
        {"qdrant_collection": "ns_dev"},
        # The page's own shared example, URL and all.
        {
            "autoscaling_enabled": False,
            "compute_tier": "shared",
            "description": "Shared development namespace",
            "max_concurrent_jobs": 10,
            "qdrant_collection": "ns_dev",
            "ray_head_node_url": "ray://shared-cluster:10001",
        },
        {"compute_tier": None, "max_workers": None, "gpu_type": None},
        {"qdrant_url": "http://q:6333", "qdrant_api_key": "k"},
        DEDICATED,
        {
            **DEDICATED,
            "ray_dashboard_url": "http://prod-dashboard:8265",
            "ray_cluster_id": "ray_prod_cluster",
        },
        GPU,
    ],
)
def test_infrastructure_that_is_taken(infrastructure: dict[str, Any]) -> None:
    made = plan(infrastructure=infrastructure)
    assert isinstance(made.infrastructure, NamespaceInfrastructure)
    assert "canary-key" not in repr(made)


@pytest.mark.parametrize("tier", ["dedicated_cpu", "dedicated_gpu"])
@pytest.mark.parametrize("field", ["qdrant_collection", "qdrant_url", "qdrant_api_key", "ray_head_node_url"])
@pytest.mark.parametrize("value", [..., None])
def test_each_field_that_a_dedicated_tier_lacks_is_named(tier: str, field: str, value: Any) -> None:
    sent = {**GPU, "compute_tier": tier, field: value}
    (problem,) = problems(request(infrastructure={k: v for k, v in sent.items() if v is not ...}))
    assert place(problem) == f"body.infrastructure.{field}"
    assert f"infrastructure.{field} is required" in problem.message
    assert tier in problem.message


@pytest.mark.parametrize("field", ["gpu_type", "gpus_per_worker"])
def test_each_field_that_a_gpu_tier_lacks_is_named(field: str) -> None:
    sent = {key: value for key, value in GPU.items() if key != field}
    (problem,) = problems(request(infrastructure=sent))
    assert place(problem) == f"body.infrastructure.{field}"


def test_all_missing_fields_are_named_together() -> None:
    found = problems(request(infrastructure={"compute_tier": "dedicated_gpu"}))
    assert {str(p.location[-1]) for p in found} == {
        "qdrant_collection", "qdrant_url", "qdrant_api_key", "ray_head_node_url", "gpu_type", "gpus_per_worker",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"qdrant_collection": "ab"}, "qdrant_collection"),
        ({"qdrant_collection": "a" * 129}, "qdrant_collection"),
        ({"compute_tier": "huge"}, "compute_tier"),
        ({"ray_cluster_id": "prod"}, "ray_cluster_id"),
        ({"max_concurrent_jobs": 0}, "max_concurrent_jobs"),
        ({"max_concurrent_jobs": 1001}, "max_concurrent_jobs"),
        ({"min_workers": 101}, "min_workers"),
        ({"max_workers": 0}, "max_workers"),
        ({"min_workers": 5, "max_workers": 3}, "min_workers"),
        ({"gpus_per_worker": 9}, "gpus_per_worker"),
        ({**GPU, "gpus_per_worker": 0}, "gpus_per_worker"),
        ({"max_custom_plugins": 101}, "max_custom_plugins"),
        ({"max_custom_models": 51}, "max_custom_models"),
        ({"autoscaling_enabled": "perhaps"}, "autoscaling_enabled"),
        ({"qdrant_url": "http://q:6333"}, "qdrant_api_key"),
        ({"qdrant_url": "ftp://q", "qdrant_api_key": "k"}, "qdrant_url"),
        ({"qdrant_url": "q:6333", "qdrant_api_key": "k"}, "qdrant_url"),
        ({"qdrant_url": "http://", "qdrant_api_key": "k"}, "qdrant_url"),
        ({"qdrant_url": "http://q:port", "qdrant_api_key": "k"}, "qdrant_url"),
        ({"qdrant_url": "http://user:canary-pass@q:6333", "qdrant_api_key": "k"}, "qdrant_url"),
        ({"qdrant_url": "http://q:6333?key=canary-pass", "qdrant_api_key": "k"}, "qdrant_url"),
        ({"ray_head_node_url": "ray://head"}, "ray_head_node_url"),
        ({"ray_head_node_url": "http://head:10001"}, "ray_head_node_url"),
        ({"ray_dashboard_url": "head:8265"}, "ray_dashboard_url"),
    ],
)
def test_infrastructure_that_is_refused(changes: dict[str, Any], where: str) -> None:
    (problem,) = problems(request(infrastructure={"qdrant_collection": "ns_dev", **changes}))
    assert place(problem) == f"body.infrastructure.{where}"
    assert where in problem.message
    assert "canary" not in problem.message


def test_no_message_holds_the_qdrant_key() -> None:
    for key in ("canary-key" * 1000, ["canary-key"], {"a": "canary-key"}):
        found = problems(request(infrastructure={**DEDICATED, "qdrant_api_key": key}))
        assert found
        assert "canary" not in " ".join(p.message for p in found)


# --- changes ------------------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    """The row of a namespace as it was planned."""
    made = plan(description="old", payload_indexes=[{"field_name": "a", "type": "text"}])
    return {
        "namespace_name": made.namespace_name,
        "description": made.description,
        "user_indexes": [i.model_dump(mode="json") for i in made.user_indexes],
        "added_indexes": [i.model_dump(mode="json") for i in made.added_indexes],
        "auto_create_indexes": made.auto_create_indexes,
        "infrastructure": NamespaceInfrastructure(qdrant_collection="ns_x").model_dump(mode="json"),
        **changes,
    }


A_TEXT = PayloadIndex(field_name="a", type=IndexType.TEXT, field_schema=TEXT)
B_FLOAT = PayloadIndex(field_name="b", type=IndexType.FLOAT, field_schema={"type": "float"})


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({}, {}),
        ({"namespace_name": None, "auto_create_indexes": None, "infrastructure": None}, {}),
        ({"namespace_name": "films", "description": "old"}, {}),
        ({"payload_indexes": [{"field_name": "a", "type": "text"}]}, {}),
        ({"namespace_name": "books"}, {"namespace_name": "books"}),
        ({"name": "books"}, {"namespace_name": "books"}),
        ({"description": None}, {"description": None}),
        ({"description": ""}, {"description": ""}),
        ({"auto_create_indexes": True}, {"auto_create_indexes": True}),
        ({"payload_indexes": None}, {"user_indexes": ()}),
        ({"payload_indexes": []}, {"user_indexes": ()}),
        ({"payload_indexes": [{"field_name": "b", "type": "float"}]}, {"user_indexes": (B_FLOAT,)}),
        (
            {"payload_indexes": [{"field_name": "b", "type": "float"}, {"field_name": "a", "type": "text"}]},
            {"user_indexes": (B_FLOAT, A_TEXT)},
        ),
        ({"feature_extractors": [], "page_size": 3}, {}),
    ],
)
def test_a_patch_changes_what_it_names(body: dict[str, Any], changes: dict[str, Any]) -> None:
    assert dict(plan_patch(body, row()).values) == changes


def test_a_put_sets_name_and_indexes_and_leaves_out_the_rest() -> None:
    change = plan_update(
        {"namespace_name": "books", "description": "new", "auto_create_indexes": True}, row()
    )
    assert dict(change.values) == {"namespace_name": "books"}
    assert dict(plan_update({"namespace_name": "films"}, row()).values) == {}
    assert dict(plan_update({"payload_indexes": []}, row()).values) == {"user_indexes": ()}


def test_what_was_read_can_be_sent_back() -> None:
    current = row()
    shown = [*current["user_indexes"], *current["added_indexes"]]
    for plan_change in (plan_patch, plan_update):
        assert dict(plan_change({"payload_indexes": shown}, current).values) == {}
    # The official clients lose is_tenant of a keyword schema and add keys of a text schema on the way.
    mangled = [
        {
            **entry,
            "field_schema": {
                "type": entry["type"],
                "min_token_len": 2,
                "max_token_len": 15,
                "lowercase": True,
            },
        }
        for entry in shown
    ]
    assert dict(plan_patch({"payload_indexes": mangled}, current).values) == {}


@pytest.mark.parametrize(
    "entry",
    [
        {"field_name": "internal_id", "type": "keyword"},
        {"field_name": "internal_id", "type": "text", "is_protected": True},
        {"field_name": "document_id", "type": "keyword", "is_protected": True},
        {"field_name": "start_time", "type": "integer"},
    ],
)
def test_a_patch_cannot_touch_what_the_system_or_an_extractor_indexes(entry: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        plan_patch({"payload_indexes": [entry]}, row())


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"namespace_name": "a/b"}, "body.namespace_name"),
        ({"namespace_name": ""}, "body.namespace_name"),
        ({"payload_indexes": [{"field_name": "a"}]}, "body.payload_indexes.0.type"),
        ({"payload_indexes": 5}, "body.payload_indexes"),
    ],
)
def test_changes_that_are_refused(body: dict[str, Any], where: str) -> None:
    for plan_change in (plan_patch, plan_update):
        (problem,) = problems(body, lambda b, make=plan_change: make(b, row()))
        assert place(problem) == where


def test_an_omitted_key_stands_for_the_stored_one_while_the_url_is_the_same() -> None:
    stored = {**row()["infrastructure"], "qdrant_url": "https://q:6333", "qdrant_api_key": "sealed"}
    body = {"infrastructure": {"qdrant_collection": "ns_x", "qdrant_url": "https://q:6333", "max_workers": 3}}
    assert "infrastructure" in plan_patch(body, row(infrastructure=stored)).values
    for changed in (row(), row(infrastructure={**stored, "qdrant_url": "https://other:6333"})):
        (problem,) = problems(body, lambda b, current=changed: plan_patch(b, current))
        assert place(problem) == "body.infrastructure.qdrant_api_key"


def test_the_index_in_force_is_the_users_where_both_name_a_field() -> None:
    added = (index("a", IndexType.KEYWORD), index("b", IndexType.FLOAT))
    assert effective_indexes((A_TEXT,), added) == (A_TEXT, added[1])
    assert effective_indexes((), added) == added


def test_every_problem_is_a_sentence_with_its_place() -> None:
    body = {"namespace_name": 5, "feature_extractors": [{"feature_extractor_name": "x", "version": ""}]}
    for problem in problems(body):
        assert problem.message.endswith(".")
        assert isinstance(problem, Problem)
        assert problem.location[0] == "body"


def test_errors_are_of_the_projects_own_tree() -> None:
    with pytest.raises(TesseraError):
        plan_namespace({}, REGISTRY)
