"""A thousand probes: what belongs to somebody else reads as what does not exist, on every route.

One organization keeps a namespace full of canaries. Four others come by: an admin of another organization,
an admin key for the namespace next door, a key for one collection next door, and a key that was revoked.
Each asks every route for the canaries' ids and names, and for ids and names that nobody has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import SecretStr

from tessera.api.app import make_app
from tessera.api.auth import is_public
from tessera.config import Settings
from tessera.wiring import close_warehouse, open_warehouse
from tests.http.loop import TEXT, Loop
from tests.http.processes import Server

OPERATOR = "operator-secret-of-the-probes-0123456789"
CANARY = "canary7f3a"
USERS = "/v1/organizations/users"
HOOK = {
    "webhook_name": f"{CANARY}-hook",
    "event_types": ["collection.updated"],
    "channels": [{"channel": "webhook", "configs": {"url": "http://nowhere.invalid/"}}],
}
UPLOAD = {"filename": "note.txt", "content_type": "text/plain"}


@dataclass(frozen=True)
class World:
    server: Server
    #: What a path parameter or a body may name: real value → one of the same form that nobody has.
    foreign: dict[str, tuple[str, str]]
    #: Name → (key, its own namespace)
    principals: dict[str, tuple[str, str]]
    #: (method, template) of every route that takes a key, from the router of an application of its own.
    routes: list[tuple[str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    server = Server.start(
        tmp_path_factory.mktemp("probes") / "data", environment={"TESSERA_OPERATOR_SECRET": OPERATOR}
    )
    try:
        yield build(server, routes(tmp_path_factory.mktemp("routes") / "data"))
        assert "Traceback" not in server.log, server.log[-4000:]
    finally:
        server.stop()


def fill(client: httpx.Client, name: str, word: str) -> dict[str, str]:
    """Make a namespace with one of everything, and return the ids."""
    made = client.post("/v1/namespaces", json={"namespace_name": name, "feature_extractors": [TEXT]})
    namespace = made.raise_for_status().json()
    loop = Loop(client, namespace)
    bucket = loop.bucket(bucket_name=f"{word}-bucket", description=word)
    object_id = loop.note(bucket, f"The {word} sings.", metadata={"word": word})
    collection = loop.collection(bucket, TEXT, collection_name=f"{word}-collection", description=word)
    speechless = loop.note(bucket, " ", metadata={"word": word})
    batch = loop.run(bucket, [object_id, speechless])
    (failure,) = loop.get("/failures")["results"]
    upload = loop.post(f"/buckets/{bucket}/uploads", {**UPLOAD, "metadata": {"word": word}})
    documents = loop.documents(collection)
    retriever = loop.post(
        "/retrievers",
        {
            "retriever_name": f"{word}-retriever",
            "description": word,
            "collection_identifiers": [collection],
            "stages": [{"stage_name": "limit", "parameters": {"limit": 3}}],
        },
    )
    taxonomy = loop.post(
        "/taxonomies",
        {
            "taxonomy_name": f"{word}-taxonomy",
            "description": word,
            "config": {
                "retriever_id": retriever["retriever_id"],
                "input_mappings": [],
                "source_collection": {"collection_id": collection},
            },
        },
    )
    cluster = loop.post(
        "/clusters",
        {
            "cluster_name": f"{word}-cluster",
            "description": word,
            "collection_ids": [collection],
            "attribute_config": {"attributes": ["document_id"]},
        },
    )
    clustering = loop.post(f"/clusters/{cluster['cluster_id']}/execute", {})
    assert loop.wait(clustering["task_id"])["status"] == "COMPLETED"
    trigger = loop.post(
        "/clusters/triggers",
        {
            "cluster_id": cluster["cluster_id"],
            "trigger_type": "cron",
            "schedule_config": {"cron_expression": "0 0 1 1 *"},
            "description": word,
        },
        status=201,
    )
    execution = loop.post(f"/retrievers/{retriever['retriever_id']}/execute", {})
    judged = {"query_id": word, "query_input": {}, "relevant_documents": [documents[0]["document_id"]]}
    dataset = loop.send(
        "POST",
        "/retrievers/evaluations/datasets",
        {"dataset_name": f"{word}-dataset", "queries": [judged]},
        status=201,
    )
    evaluation = loop.send(
        "POST",
        f"/retrievers/{retriever['retriever_id']}/evaluations",
        {"dataset_name": dataset["dataset_name"]},
        status=202,
    )
    assert loop.wait(evaluation["task_id"])["status"] == "COMPLETED"
    interaction = loop.post(
        "/retrievers/interactions",
        {
            "feature_id": documents[0]["document_id"],
            "interaction_type": ["click"],
            "position": 0,
            "execution_id": execution["execution_id"],
            "user_id": word,
        },
    )
    return {
        "namespace_id": namespace["namespace_id"],
        "namespace_name": name,
        "bucket_id": bucket,
        "bucket_name": f"{word}-bucket",
        "object_id": object_id,
        "collection_id": collection,
        "collection_name": f"{word}-collection",
        "upload_id": upload["upload_id"],
        "batch_id": batch["batch_id"],
        "failure_id": failure["failure_id"],
        "task_id": batch["task_id"],
        "document_id": documents[0]["document_id"],
        "retriever_id": retriever["retriever_id"],
        "retriever_name": f"{word}-retriever",
        "execution_id": execution["execution_id"],
        "interaction_id": interaction["interaction_id"],
        "taxonomy_id": taxonomy["taxonomy_id"],
        "taxonomy_name": f"{word}-taxonomy",
        "cluster_id": cluster["cluster_id"],
        "cluster_name": f"{word}-cluster",
        "run_id": clustering["additional_data"]["run_id"],
        "dataset_id": dataset["dataset_id"],
        "dataset_name": f"{word}-dataset",
        "evaluation_id": evaluation["evaluation_id"],
        "trigger_id": trigger["trigger_id"],
    }


def build(server: Server, asked: list[tuple[str, str]]) -> World:
    with server.client() as admin:
        ours = fill(admin, f"{CANARY}-place", CANARY)
        beside = fill(admin, "next-door", "magpie")
        admin.post(USERS, json={"email": f"{CANARY}@a.example", "user_name": CANARY}).raise_for_status()
        made = admin.post(f"{USERS}/{CANARY}@a.example/api-keys", json={"name": f"{CANARY}-key"}).json()
        admin.post(
            "/v1/organizations/secrets", json={"secret_name": f"{CANARY}-secret", "secret_value": CANARY}
        ).raise_for_status()
        hook = admin.post("/v1/organizations/webhooks", json=HOOK).raise_for_status().json()
        # Told of one thing, so that there is something in its log.
        admin.patch(
            f"/v1/collections/{ours['collection_id']}",
            json={"metadata": {"word": CANARY, "told": True}},
            headers={"X-Namespace": ours["namespace_id"]},
        ).raise_for_status()
        told = admin.get(f"/v1/organizations/webhooks/{hook['webhook_id']}/deliveries").json()
        event = admin.get("/v1/organizations/audit/logs").json()["results"][0]["audit_id"]
        organization = admin.get("/v1/organizations").json()["organization_id"]

        def key(**fields: Any) -> str:
            name = f"probe-{next(_numbers)}"
            answer = admin.post(f"{USERS}/admin@localhost/api-keys", json={"name": name, **fields})
            return str(answer.raise_for_status().json()["key"])

        neighbour = key(
            permissions=["admin"],
            scopes=[{"resource_type": "namespace", "resource_id": beside["namespace_id"]}],
        )
        limited = key(
            permissions=["admin"],
            scopes=[{"resource_type": "collection", "resource_id": beside["collection_id"]}],
        )
        revoked = key(name="ended")
        admin.delete(f"{USERS}/admin@localhost/api-keys/ended").raise_for_status()
    with server.client(key=OPERATOR) as operator:
        other = operator.post(
            "/v1/private/organizations",
            json={"organization_name": "others", "users": [{"email": "boss@b.example", "user_name": "Boss"}]},
        ).raise_for_status()
        boss = operator.post(
            f"/v1/private/organizations/{other.json()['organization_id']}/users/boss@b.example/bootstrap-key"
        ).raise_for_status()
    with server.client(key=boss.json()["key"]) as client:
        abroad = fill(client, "abroad", "raven")
    foreign = {name: (value, absent(name, value)) for name, value in ours.items()}
    for name, value in {
        "user_email": f"{CANARY}@a.example",
        "key_name": f"{CANARY}-key",
        "key_id": made["key_id"],
        "secret_name": f"{CANARY}-secret",
        "webhook_id": hook["webhook_id"],
        "webhook_name": hook["webhook_name"],
        "delivery_id": told["results"][0]["delivery_id"],
        "audit_id": event,
        "organization_id": organization,
    }.items():
        foreign[name] = (value, absent(name, value))
    # Its own keys may know this one.
    foreign["organization_name"] = ("default", "nobodys")
    return World(
        server,
        foreign,
        {
            "other organization": (boss.json()["key"], abroad["namespace_id"]),
            "other namespace": (neighbour, beside["namespace_id"]),
            "limited key": (limited, beside["namespace_id"]),
            "revoked key": (revoked, beside["namespace_id"]),
        },
        asked,
    )


_numbers = itertools.count()


def absent(name: str, value: str) -> str:
    """Return a value of the same form and length that nobody has."""
    if re.fullmatch(r"[a-z]+_[0-9a-f]{16,}", value):
        prefix, _, digits = value.partition("_")
        return f"{prefix}_{'0' * len(digits)}"
    return value.replace(CANARY, "nobody0000")


def routes(data: Path) -> list[tuple[str, str]]:
    """Return (method, template) of every route that an application with all its parts has and that takes a key."""
    settings = Settings(data=data, offline=True, operator_secret=SecretStr(OPERATOR))
    wh = open_warehouse(settings, run_jobs=False)
    try:
        found = [
            (method, route.path_format)
            for route in make_app(wh).router.routes
            if isinstance(route, APIRoute) and not is_public(route.path_format)
            for method in sorted(route.methods - {"HEAD"})
        ]
    finally:
        close_warehouse(wh)
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


#: Which of the foreign values each path parameter may name.
PARAMETERS = {
    "namespace_identifier": ("namespace_id", "namespace_name"),
    "namespace_id": ("namespace_id", "namespace_name"),
    "bucket_identifier": ("bucket_id", "bucket_name"),
    "object_identifier": ("object_id",),
    "object_id": ("object_id",),
    "collection_identifier": ("collection_id", "collection_name"),
    "upload_id": ("upload_id",),
    "batch_id": ("batch_id",),
    "failure_id": ("failure_id",),
    "task_id": ("task_id",),
    "document_id": ("document_id",),
    "retriever_id": ("retriever_id", "retriever_name"),
    "execution_id": ("execution_id",),
    "interaction_id": ("interaction_id",),
    "taxonomy_identifier": ("taxonomy_id", "taxonomy_name"),
    "cluster_id": ("cluster_id", "cluster_name"),
    "run_id": ("run_id",),
    "dataset_identifier": ("dataset_id", "dataset_name"),
    "evaluation_id": ("evaluation_id",),
    "trigger_id": ("trigger_id",),
    "user_email": ("user_email",),
    "key_name": ("key_name", "key_id"),
    "key_id": ("key_id",),
    "secret_name": ("secret_name",),
    "webhook_identifier": ("webhook_id", "webhook_name"),
    "delivery_id": ("delivery_id",),
    "audit_id": ("audit_id",),
    "organization_identifier": ("organization_id", "organization_name"),
}

#: Values that lead nowhere: of the catalogue, which is public, and of nothing else.
PUBLIC = {"feature_extractor_id": "text_extractor_v1", "extractor_id": "text_extractor_v1"}


def body_of(method: str, template: str, value: dict[str, str]) -> Any:
    """Return a body that would do something, naming what is foreign wherever a body can."""
    if method in ("GET", "DELETE") and not template.endswith("/batch"):
        return None
    last = template.rsplit("/", 1)[-1]
    bodies: dict[tuple[str, str], Any] = {
        ("POST", "/v1/namespaces"): {"namespace_name": "probe x/y"},
        ("POST", "/v1/buckets"): {"bucket_name": "", "bucket_schema": {}},
        ("POST", "/v1/collections"): {
            "collection_name": "probe",
            "source": {"type": "bucket", "bucket_ids": [value["bucket_id"]]},
            "feature_extractor": TEXT,
        },
        ("POST", "/v1/retrievers"): {
            "retriever_name": "probe",
            "collection_identifiers": [value["collection_id"]],
            "stages": [{"stage_name": "limit", "parameters": {"limit": 3}}],
        },
        ("POST", "/v1/retrievers/execute"): {
            "collection_identifiers": [value["collection_id"]],
            "stages": [{"stage_name": "limit", "parameters": {"limit": 3}}],
        },
        ("POST", "/v1/retrievers/interactions"): {
            "feature_id": value["document_id"],
            "interaction_type": ["click"],
            "position": 0,
            "retriever_id": value["retriever_id"],
        },
        ("POST", "/v1/retrievers/interactions/batch"): {
            "interactions": [
                {
                    "feature_id": "x",
                    "interaction_type": ["click"],
                    "position": 0,
                    "retriever_id": value["retriever_id"],
                }
            ]
        },
        ("POST", "/v1/retrievers/interactions/list"): {"retriever_id": value["retriever_id"]},
        ("POST", "/v1/inference"): {
            "inputs": {"text": "probe"},
            "inference_name": "multilingual_e5_large_instruct_v1",
        },
        ("POST", "/v1/taxonomies"): {
            "taxonomy_name": "probe",
            "config": {
                "retriever_id": value["retriever_id"],
                "input_mappings": [],
                "source_collection": {"collection_id": value["collection_id"]},
            },
        },
        ("POST", "/v1/taxonomies/execute/{taxonomy_identifier}"): {
            "source_collection_id": value["collection_id"]
        },
        ("POST", "/v1/clusters"): {
            "collection_ids": [value["collection_id"]],
            "attribute_config": {"attributes": ["note"]},
        },
        ("POST", "/v1/clusters/enrich"): {
            "clustering_ids": [value["cluster_id"]],
            "source_collection_id": value["collection_id"],
        },
        ("POST", "/v1/retrievers/{retriever_id}/evaluations"): {"dataset_name": value["dataset_name"]},
        ("POST", "/v1/retrievers/evaluations/compare"): {
            "baseline_evaluation_id": value["evaluation_id"],
            "candidate_evaluation_id": value["evaluation_id"],
        },
        ("POST", "/v1/clusters/triggers"): {
            "cluster_id": value["cluster_id"],
            "trigger_type": "cron",
            "schedule_config": {"cron_expression": "0 0 1 1 *"},
        },
        ("POST", "/v1/documents/search"): {
            "query": "canary",
            "collection_ids": [value["collection_id"]],
        },
        ("POST", "/v1/organizations/users"): {"email": value["user_email"], "user_name": ""},
        ("POST", "/v1/organizations/secrets"): {"secret_name": "", "secret_value": "x"},
        ("POST", "/v1/organizations/webhooks"): {"webhook_name": ""},
        ("PUT", "/v1/organizations/webhooks/{webhook_identifier}"): {**HOOK, "webhook_name": "probe"},
    }
    if (method, template) in bodies:
        return bodies[method, template]
    if last in ("objects", "batches") and method == "POST":
        if last == "objects" and "batches" not in template:
            return {"blobs": [{"property": "note", "type": "text", "data": "probe"}]}
        return {"object_ids": [value["object_id"]]}
    if last == "uploads":
        return UPLOAD
    if last == "batch":
        if "uploads" in template:
            confirmations = [{"upload_id": value["upload_id"]}]
            return {"confirmations": confirmations} if "confirm" in template else {"uploads": [UPLOAD]}
        if "documents" in template and method == "POST":
            return {"updates": [{"document_id": value["document_id"], "update_data": {"note": "probe"}}]}
        if "documents" in template:
            return {"document_ids": [value["document_id"]]}
        return {"objects": [{"blobs": [{"property": "note", "type": "text", "data": "probe"}]}]}
    if last == "labels":
        return {"labels": {"cl_0": "probe"}}
    if last == "name":
        return {"run_name": "probe"}
    if last == "apply-taxonomy":
        return {"taxonomy_id": value["taxonomy_id"]}
    if last == "clone" and "taxonomies" in template:
        return {"taxonomy_name": "probe"}
    if last == "bulk":
        return {"update_data": {"note": "probe"}}
    if last == "aggregate":
        return {"aggregations": [{"function": "count", "alias": "n"}], "group_by": [{"field": "note"}]}
    if last == "api-keys":
        return {"name": "probe"}
    if last in ("documents", "upsert"):
        document = {"document_id": value["document_id"]}
        return document if last == "documents" else {**value, "documents": [document]}
    if last in (
        "list",
        "execute",
        "submit",
        "cancel",
        "retry",
        "trigger",
        "rotate",
        "confirm",
        "redeliver",
        "explain",
    ):
        return {}
    if "secret_name" in template:
        return {"secret_value": "x"}
    return {"description": "probe"}


#: What differs between any two answers; the length does not, for ids and names that nobody has are as long.
_VOLATILE = {"date", "x-request-id"}


def shape(answer: httpx.Response, swap: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """Return what of an answer may differ between two callers only if it tells them something."""
    text = answer.text
    for real, nobody in swap.items():
        text = text.replace(real, nobody)
    headers = {name: value for name, value in answer.headers.items() if name not in _VOLATILE}
    return answer.status_code, headers, text


def test_every_parameter_of_a_path_has_a_foreign_value(world: World) -> None:
    """A route that names a new kind of resource needs one in `fill`, and a line in `PARAMETERS`."""
    named = {name for _, template in world.routes for name in re.findall(r"{(\w+)}", template)}
    assert named <= PARAMETERS.keys() | PUBLIC.keys(), named - PARAMETERS.keys()
    assert all(kind in world.foreign for kinds in PARAMETERS.values() for kind in kinds)


def test_a_thousand_probes_find_nothing(world: World) -> None:
    count = 0
    swap = {real: nobody for real, nobody in world.foreign.values()}
    reals = {name: pair[0] for name, pair in world.foreign.items()}
    nobodies = {name: pair[1] for name, pair in world.foreign.items()}
    for who, (secret, own) in world.principals.items():
        with world.server.client(key=secret) as client:
            for method, template in world.routes:
                names = re.findall(r"{(\w+)}", template)
                choices = [PARAMETERS.get(name, (name,)) for name in names]
                places = [
                    ("namespace_id", own),
                    ("namespace_id", None),
                    ("namespace_name", None),
                ]
                for chosen, (place, fixed) in itertools.product(itertools.product(*choices), places):
                    shapes = []
                    for values in (reals, nobodies):
                        path = template
                        for name, kind in zip(names, chosen, strict=True):
                            # What no value is known for is probed all the same, with one that nobody has.
                            path = path.replace(f"{{{name}}}", PUBLIC.get(name) or values.get(kind, "nobody"))
                        answer = client.request(
                            method,
                            path,
                            json=body_of(method, template, values),
                            headers={"X-Namespace": fixed or values[place]},
                        )
                        count += 1
                        said = (who, method, path, fixed or values[place], answer.status_code, answer.text)
                        assert answer.status_code < 500, said
                        if who == "revoked key" and "stages" not in template:
                            assert answer.status_code == 401, said
                        # What the caller sent may be quoted back; anything else of the canaries is a leak.
                        heard = answer.text
                        for value in values.values():
                            heard = heard.replace(value, "")
                        assert CANARY not in heard, said
                        # Lists of the caller's own organization grow while it asks.
                        if names or (fixed is None and not template.startswith("/v1/organizations")):
                            shapes.append(shape(answer, swap))
                    if shapes:
                        assert shapes[0] == shapes[1], (who, method, path, shapes)
    assert count >= 1000, count
    with world.server.client() as admin:
        # All of it is still there.
        for path, name in (("namespaces", "namespace_id"), ("tasks", "task_id")):
            assert admin.get(f"/v1/{path}/{reals[name]}").status_code == 200
        headers = {"X-Namespace": reals["namespace_id"]}
        for noun, name in (
            ("buckets", "bucket_id"),
            ("collections", "collection_id"),
            ("retrievers", "retriever_id"),
            ("taxonomies", "taxonomy_id"),
            ("clusters", "cluster_id"),
            ("clusters/triggers", "trigger_id"),
        ):
            assert admin.get(f"/v1/{noun}/{reals[name]}", headers=headers).status_code == 200
        found = admin.get(
            f"/v1/collections/{reals['collection_id']}/documents/{reals['document_id']}", headers=headers
        )
        assert found.status_code == 200 and CANARY in found.text


def test_a_limited_key_reaches_what_it_is_for(world: World) -> None:
    key, own = world.principals["limited key"]
    with world.server.client() as admin, world.server.client(key=key, namespace=own) as client:
        listed = admin.get("/v1/collections", headers={"X-Namespace": own}).json()["results"][0]
        path = f"/v1/collections/{listed['collection_id']}"
        assert client.get(path).json()["collection_name"] == "magpie-collection"
        assert client.get(f"/v1/collections/{listed['collection_name']}").status_code == 200
        assert len(client.post(f"{path}/documents/list").json()["results"]) == 1
        # Everything beside it is closed, and the namespace as a whole is not there.
        for other in ("/v1/buckets/magpie-bucket", "/v1/retrievers/magpie-retriever", "/v1/collections"):
            answer = client.get(other)
            assert (answer.status_code, answer.json()["error"]["details"]["resource"]) == (404, "namespace")
        assert client.get(f"/v1/namespaces/{own}").status_code == 404
        assert client.get("/v1/namespaces").json()["results"] == []


def test_a_revoked_key_is_refused_at_once_everywhere(world: World) -> None:
    path = f"{USERS}/admin@localhost/api-keys"
    with world.server.client() as admin:
        made = admin.post(path, json={"name": "soon-gone"}).json()
        with world.server.client(key=made["key"]) as other:
            assert other.get("/v1/me").status_code == 200
            admin.delete(f"{path}/soon-gone").raise_for_status()
            for method, template in world.routes:
                if "{" not in template:
                    assert other.request(method, template).status_code == 401, (method, template)
