"""Taxonomies: written in every spelling, on demand, in a stage, and at work on a collection, whatever is killed."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop
from tests.http.processes import Server

URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
VECTOR = "text_extractor_v1_embedding"
TOPICS = {
    "garden": "Gardening: soil, seeds, roses, pruning and watering plants.",
    "kitchen": "Cooking: recipes, soup, lentils, ginger, baking bread in the oven.",
    "travel": "Hiking in the mountains with a tent, boots and a rucksack.",
}
NOTES = {
    "garden": "Prune the roses and water the plants in the garden soil.",
    "kitchen": "A soup of red lentils with ginger, cooked slowly.",
    "travel": "A tent and hiking boots for the mountains.",
}


class Place(Loop):
    """A namespace with topics, each a document with its vector, and a retriever that finds them by text."""

    shelf: str
    topics: str
    retriever: str


def make_place(loop: Place) -> Place:
    """Fill a namespace with topics and a retriever."""
    bucket = loop.shelf = loop.bucket({"note": {"type": "text"}})
    extractor = {
        **TEXT,
        "input_mappings": {"text": "note"},
        "field_passthrough": [{"source_path": "topic"}, {"source_path": "tags"}],
    }
    loop.topics = loop.collection(bucket, extractor)
    ids = [loop.note(bucket, text, topic=topic, tags=[topic, "topic"]) for topic, text in TOPICS.items()]
    assert loop.run(bucket, ids)["status"] == "COMPLETED"
    loop.retriever = str(
        loop.post(
            "/retrievers",
            {
                "retriever_name": "topics-by-text",
                "collection_identifiers": [loop.topics],
                "stages": [
                    {
                        "stage_id": "feature_search",
                        "parameters": {"feature_uri": URI, "input": {"text": "{{INPUT.q}}"}, "limit": 3},
                    }
                ],
                "input_schema": {"q": {"type": "text", "required": True}},
            },
        )["retriever_id"]
    )
    return loop


@pytest.fixture(scope="module")
def place(either_server: Server) -> Iterator[Place]:
    with either_server.client() as client:
        made = client.post(
            "/v1/namespaces", json={"namespace_name": "taxonomies", "feature_extractors": [TEXT, PASSTHROUGH]}
        )
        here = Place(client, made.raise_for_status().json())
        yield make_place(here)
        client.delete(f"/v1/namespaces/{here.namespace_id}")


def flat(place: Place, **fields: Any) -> dict[str, Any]:
    return {
        "taxonomy_type": "flat",
        "retriever_id": place.retriever,
        "input_mappings": [{"input_key": "q", "source_type": "payload", "path": "text"}],
        "source_collection": {
            "collection_id": place.topics,
            "enrichment_fields": [
                {"field_path": "topic", "target_field": "metadata.topic"},
                {"field_path": "tags", "merge_mode": "append"},
            ],
        },
        **fields,
    }


_numbers = iter(range(1000))


def taxonomy(place: Place, config: dict[str, Any] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = place.post(
        "/taxonomies",
        {"taxonomy_name": f"topics-{next(_numbers)}", "config": flat(place) if config is None else config},
    )
    return made


def notes(place: Place, **fields: Any) -> tuple[str, list[str], str]:
    """Return a bucket with a note for each topic, its objects, and a collection that reads it."""
    bucket = place.bucket()
    ids = [place.note(bucket, text, tags=["mine"], about=topic) for topic, text in NOTES.items()]
    extractor = {
        **TEXT,
        "input_mappings": {"text": "note"},
        "field_passthrough": [{"source_path": "tags"}, {"source_path": "about"}],
    }
    return bucket, ids, place.collection(bucket, extractor, **fields)


def until(read: Callable[[], Any], is_so: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 60
    while not is_so(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


# --- what is written -----------------------------------------------------------------------------------


def test_a_name_is_one_name_in_either_form_of_unicode(place: Place) -> None:
    """A Mac writes ü as two characters, a form as one; collection, retriever and taxonomy are found by both."""
    one, two = (unicodedata.normalize(form, "Bücher") for form in ("NFC", "NFD"))
    place.collection(place.bucket(), collection_name=two)
    stage = {"stage_id": "attribute_filter", "parameters": {"field": "topic", "operator": "eq", "value": "x"}}
    retriever = {"retriever_name": two, "collection_identifiers": [two], "stages": [stage]}
    assert place.post("/retrievers", retriever)["retriever_name"] == one
    assert place.get(f"/retrievers/{two}")["retriever_name"] == one
    body = {"taxonomy_name": two, "config": flat(place, retriever_id=two)}
    made = place.post("/taxonomies", body)
    assert (made["taxonomy_name"], place.get(f"/taxonomies/{two}")) == (one, made)
    place.delete(f"/taxonomies/{two}")


@pytest.mark.operation("POST", "/v1/taxonomies", 200)
@pytest.mark.operation("GET", "/v1/taxonomies/{taxonomy_identifier}", 200)
@pytest.mark.operation("PATCH", "/v1/taxonomies/{taxonomy_identifier}", 200)
@pytest.mark.operation("DELETE", "/v1/taxonomies/{taxonomy_identifier}", 200)
@pytest.mark.operation("POST", "/v1/taxonomies/list", 200)
@pytest.mark.operation("GET", "/v1/taxonomies", 200)
@pytest.mark.operation("POST", "/v1/taxonomies/{taxonomy_identifier}/clone", 201)
@pytest.mark.operation("POST", "/v1/taxonomies/{taxonomy_identifier}/versions", 200)
@pytest.mark.operation("GET", "/v1/taxonomies/{taxonomy_identifier}/versions", 200)
def test_a_taxonomy_keeps_every_version(place: Place) -> None:
    made = taxonomy(place)
    assert (made["version"], made["ready"], made["config"]["taxonomy_type"]) == (1, True, "flat")
    assert made["retriever_id"] == place.retriever
    path = f"/taxonomies/{made['taxonomy_id']}"
    assert place.get(f"/taxonomies/{made['taxonomy_name']}") == made

    changed = place.patch(path, {"description": "What notes are about", "metadata": {"owner": "me"}})
    assert (changed["version"], changed["description"]) == (1, "What notes are about")
    assert "changes nothing" in place.refused(400, "PATCH", path, {})

    config = {**flat(place), "input_mappings": {"q": "payload.title"}}
    second = place.post(f"{path}/versions", {"config": config})
    assert (second["version"], second["input_mappings"][0]["path"]) == (2, "payload.title")
    assert place.post(f"{path}/versions", config)["version"] == 2  # the same makes none
    third = place.patch(path, {"config": flat(place)})
    assert third["version"] == 3
    listed = place.get(f"{path}/versions")
    assert [item["version"] for item in listed["results"]] == [3, 2, 1]
    assert listed["total_count"] == 3
    assert place.get(f"{path}?version=2")["config"] == second["config"]
    assert "not found" in place.refused(404, "GET", f"{path}?version=9")

    copy = place.post(f"{path}/clone", {"taxonomy_name": "a-copy"}, status=201)
    assert copy["source_taxonomy_id"] == made["taxonomy_id"]
    assert (copy["taxonomy"]["version"], copy["taxonomy"]["config"]) == (1, third["config"])
    place.refused(409, "POST", f"{path}/clone", {"taxonomy_name": "a-copy"})
    found = place.post("/taxonomies/list", {"search": "a-copy"})
    assert [item["taxonomy_name"] for item in found["results"]] == ["a-copy"]
    assert found["stats"]["flat_taxonomies"] == 1
    assert place.get("/taxonomies")["total_count"] >= 2
    assert place.delete("/taxonomies/a-copy")["success"] is True
    place.refused(404, "GET", "/taxonomies/a-copy")


def test_the_guides_spelling_is_read(place: Place) -> None:
    made = place.post(
        "/taxonomies",
        {
            "taxonomy_name": "by-the-guide",
            "taxonomy_type": "flat",
            "retriever_id": "topics-by-text",
            "input_mappings": {"q": "payload.text"},
            "source_collection": place.topics,
            "enrichment_fields": ["topic"],
        },
    )
    assert made["config"]["source_collection"] == {
        "collection_id": place.topics,
        "enrichment_fields": [{"field_path": "topic", "target_field": None, "merge_mode": "replace"}],
    }
    assert made["config"]["retriever_id"] == place.retriever


@pytest.mark.parametrize(
    ("status", "told", "change"),
    [
        (422, "taxonomy_type is 'round'", {"taxonomy_type": "round"}),
        (400, "Retriever 'nobody' was not found", {"retriever_id": "nobody"}),
        (400, "Collection 'nowhere' was not found", {"source_collection": "nowhere"}),
        (422, "requires the input(s) q", {"input_mappings": []}),
        (422, "no field of a document", {"input_mappings": {"q": "_s.text"}}),
        (
            400,
            "is not a feature",
            {"input_mappings": [{"input_key": "q", "source_type": "vector", "path": "no"}]},
        ),
        (422, "needs `override`", {"input_mappings": [{"input_key": "q", "source_type": "literal"}]}),
        (400, "step_analytics is not available", {"step_analytics": {"timestamp_field": "a"}}),
        (422, "is the document's own", {"source_collection": {"collection_id": "", "enrichment_fields": []}}),
    ],
)
def test_what_is_wrong_is_refused(place: Place, status: int, told: str, change: dict[str, Any]) -> None:
    config = {**flat(place), **change}
    if change.get("source_collection") == {"collection_id": "", "enrichment_fields": []}:
        fields = [{"field_path": "topic", "target_field": "document_id"}]
        config["source_collection"] = {"collection_id": place.topics, "enrichment_fields": fields}
    assert told in place.refused(status, "POST", "/taxonomies", {"taxonomy_name": "wrong", "config": config})


def test_a_tree_has_a_root_and_a_retriever(place: Place) -> None:
    _, _, other = notes(place)

    def refused(status: int, **config: Any) -> str:
        body = {"taxonomy_name": "wrong", "config": {"taxonomy_type": "hierarchical", **config}}
        return place.refused(status, "POST", "/taxonomies", body)

    assert "needs hierarchical_nodes" in refused(422)
    nodes = [{"collection_id": place.topics, "parent_collection_id": other}]
    assert "is no node of this taxonomy" in refused(422, hierarchical_nodes=nodes)
    nodes.append({"collection_id": other, "parent_collection_id": place.topics})
    assert "its own ancestor" in refused(422, hierarchical_nodes=nodes)
    assert "needs a retriever" in refused(422, hierarchical_nodes=[{"collection_id": place.topics}])
    for strategy, lack in (("cluster", "clustering"), ("llm", "language model")):
        told = refused(400, inference_strategy=strategy, inference_collections=[place.topics])
        assert lack in told


def test_schemas_tell_who_is_whose_parent(place: Place) -> None:
    """What is general has few fields; what is special has those and more."""
    ids = {}
    for name, fields in (("general", ["a"]), ("special", ["a", "b"]), ("beside", ["c"])):
        bucket = place.bucket({field: {"type": "string"} for field in fields})
        ids[name] = place.collection(bucket)
    made = taxonomy(
        place,
        {
            "taxonomy_type": "hierarchical",
            "inference_strategy": "schema",
            "inference_collections": [ids["special"], ids["general"], ids["beside"]],
            "retriever_id": place.retriever,
            "input_mappings": {"q": "text"},
        },
    )
    parents = {n["collection_id"]: n["parent_collection_id"] for n in made["config"]["hierarchical_nodes"]}
    assert parents == {ids["special"]: ids["general"], ids["general"]: None, ids["beside"]: None}


# --- on demand -----------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/taxonomies/execute/{taxonomy_identifier}", 200)
@pytest.mark.operation("POST", "/v1/taxonomies/{taxonomy_identifier}/execute", 200)
def test_documents_are_compared_and_nothing_is_stored(place: Place) -> None:
    made = taxonomy(place)
    sent = [{"text": text, "tags": ["mine"]} for text in NOTES.values()] + [{"title": "without a text"}]
    body = {"source_documents": sent, "top_k": 1, "min_confidence": 0.2}
    answer = place.post(f"/taxonomies/execute/{made['taxonomy_id']}", body)
    assert answer["stats"] == {"processed_docs": 4, "batches": 1, "errors": 0, "enriched": 3}
    assert [match["label"] for match in answer["matches"]] == list(NOTES)
    assert [result.get("metadata") for result in answer["results"]] == [
        *({"topic": topic} for topic in NOTES),
        None,
    ]
    assert answer["results"][0]["tags"] == ["mine", "garden", "topic"]
    said = answer["results"][0]["_taxonomies"][0]
    assert (said["taxonomy_id"], said["version"]) == (made["taxonomy_id"], 1)
    assert said["enriched_fields"] == ["metadata.topic", "tags"]
    match = answer["matches"][0]
    assert match["path"] == ["garden"]
    assert 0.2 <= match["confidence"] == match["score"] <= 1

    again = place.post(f"/taxonomies/{made['taxonomy_name']}/execute?version=1", body)
    assert again["results"] == answer["results"]
    one = place.post(
        f"/taxonomies/execute/{made['taxonomy_id']}",
        {**body, "source_documents": None, "inputs": {"q": "soup"}},
    )
    assert one["matches"][0]["label"] == "kitchen"
    nothing = place.post(
        f"/taxonomies/execute/{made['taxonomy_id']}", {"source_documents": sent[:1], "min_confidence": 1}
    )
    assert (nothing["matches"], nothing["results"]) == ([], sent[:1])
    path = f"/taxonomies/execute/{made['taxonomy_id']}"
    assert "Name the documents" in place.refused(400, "POST", path, {})
    assert "apply-taxonomy" in place.refused(400, "POST", path, {**body, "join_mode": "batch"})
    place.refused(404, "POST", path, {"document_ids": ["doc_" + "0" * 32]})
    assert "_taxonomies" not in str(place.documents(place.topics))


def test_stored_documents_are_compared_by_their_own_vectors(place: Place) -> None:
    """By its text or by its vector a document of the same space is as near to every node."""
    bucket, ids, collection = notes(place)
    assert place.run(bucket, ids)["status"] == "COMPLETED"
    mapping = {"input_key": "q", "source_type": "vector", "path": VECTOR}
    by_vector = taxonomy(place, flat(place, input_mappings=[mapping]))
    body = {"source_collection_id": collection, "top_k": 3, "min_confidence": 0}
    found = [
        place.post(f"/taxonomies/execute/{made['taxonomy_id']}", body)["matches"]
        for made in (taxonomy(place), by_vector)
    ]
    scores = [{(m["document_id"], m["label"]): m["score"] for m in matches} for matches in found]
    assert scores[0].keys() == scores[1].keys()
    assert len(scores[0]) == 9
    for key, score in scores[0].items():
        assert scores[1][key] == pytest.approx(score, abs=1e-3)
    # A node is not compared with itself.
    body["source_collection_id"] = place.topics
    own = place.post(f"/taxonomies/execute/{by_vector['taxonomy_id']}", body)["matches"]
    assert len(own) == 6


def test_a_stage_enriches_what_is_found(place: Place) -> None:
    bucket, ids, collection = notes(place)
    assert place.run(bucket, ids)["status"] == "COMPLETED"
    made = taxonomy(place)

    def found(**parameters: Any) -> dict[str, Any]:
        stage = {
            "stage_id": "taxonomy_enrich",
            "parameters": {
                "taxonomy_id": made["taxonomy_id"],
                "min_confidence": 0.2,
                "top_k": 1,
                **parameters,
            },
        }
        answer: dict[str, Any] = place.post(
            "/retrievers/execute", {"stages": [stage], "collection_identifiers": [collection]}
        )
        return answer

    answer = found()
    assert {d["about"]: d["metadata"]["topic"] for d in answer["documents"]} == {t: t for t in NOTES}
    (told,) = answer["stage_statistics"]["stages"].values()
    assert told["metadata"] == {"assigned": 3, "compared": 3}
    some = found(when={"field": "about", "operator": "eq", "value": "garden"}, fields=["tags"])["documents"]
    assert [d["about"] for d in some if "_taxonomies" in d] == ["garden"]
    assert all(d["tags"] == (["garden", "topic"] if d["about"] == "garden" else ["mine"]) for d in some)
    assert all("_taxonomies" not in d for d in found(min_confidence=1.0)["documents"])
    bad = {"stage_id": "taxonomy_enrich", "parameters": {"taxonomy_id": "nobody"}}
    assert "was not found" in place.refused(400, "POST", "/retrievers/execute", {"stages": [bad]})
    bad["parameters"] = {"taxonomy_id": "{{INPUT.q}}"}
    assert "written out" in place.refused(422, "POST", "/retrievers/execute", {"stages": [bad]})
    # A taxonomy by a retriever that runs a taxonomy would never end.
    good = {"stage_id": "taxonomy_enrich", "parameters": {"taxonomy_id": made["taxonomy_id"]}}
    around = place.post("/retrievers", {"retriever_name": "around", "stages": [good]})
    config = flat(place, retriever_id=around["retriever_id"], input_mappings={})
    told = place.refused(422, "POST", "/taxonomies", {"taxonomy_name": "round", "config": config})
    assert "runs a taxonomy itself" in told


def test_a_hierarchy_assigns_the_deepest_nodes_with_their_way(place: Place) -> None:
    """Nodes are collections; what is above a node that fits comes with it, with its fields."""
    nodes = {}
    for name, text in (
        ("plants", "Plants, trees, flowers, vegetables and everything in a garden."),
        ("roses", "Roses: pruning roses, watering roses, rose bushes in the garden."),
        ("cars", "Engines, tyres and gearboxes of racing cars."),
    ):
        bucket = place.bucket()
        extractor = {
            **TEXT,
            "input_mappings": {"text": "note"},
            "field_passthrough": [{"source_path": f"{name}_key"}],
        }
        nodes[name] = place.collection(bucket, extractor)
        assert place.run(bucket, [place.note(bucket, text, **{f"{name}_key": name})])["status"] == "COMPLETED"
    made = taxonomy(
        place,
        {
            "taxonomy_type": "hierarchical",
            "retriever_id": place.retriever,
            "input_mappings": {"q": "text"},
            "hierarchical_nodes": [
                {"collection_id": nodes["plants"], "label": "Plants", "enrichment_fields": ["plants_key"]},
                {
                    "collection_id": nodes["roses"],
                    "label": "Roses",
                    "parent_collection_id": nodes["plants"],
                    "enrichment_fields": ["roses_key"],
                },
                {"collection_id": nodes["cars"], "label": "Cars"},
            ],
        },
    )
    path = f"/taxonomies/execute/{made['taxonomy_id']}"
    body = {"source_documents": [{"text": NOTES["garden"]}], "min_confidence": 0.25}
    answer = place.post(path, body)
    (match,) = answer["matches"]
    assert (match["path"], match["hierarchy_level"], match["node_id"]) == (
        ["Plants", "Roses"],
        1,
        nodes["roses"],
    )
    (result,) = answer["results"]
    assert (result["plants_key"], result["roses_key"]) == ("plants", "roses")
    assert (result["category_id"], result["category_name"]) == (nodes["roses"], "Roses")
    assert (result["tier1_label"], result["tier2_label"]) == ("Plants", "Roses")
    chain = place.post(path, {**body, "hierarchical_enrichment_style": "full_chain"})["results"][0]
    assert "category_id" not in chain
    assert chain["tier2_id"] == nodes["roses"]


# --- at work on a collection ---------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/apply-taxonomy", 200)
def test_a_collection_carries_what_its_taxonomies_say(place: Place) -> None:
    """A batch ends with it; another version, another list and no list at all are followed by tasks."""
    made = taxonomy(place)
    application = {"taxonomy_id": made["taxonomy_name"], "min_confidence": 0.2, "top_k": 1}
    bucket, ids, collection = notes(place, taxonomy_applications=[application])
    path = f"/collections/{collection}"
    shown = place.get(path)["taxonomy_applications"]
    assert [(one["taxonomy_id"], one["execution_mode"]) for one in shown] == [
        (made["taxonomy_id"], "materialize")
    ]
    assert place.run(bucket, ids)["status"] == "COMPLETED"
    found = {d["about"]: d for d in place.documents(collection)}
    assert {about: d["metadata"]["topic"] for about, d in found.items()} == {t: t for t in NOTES}
    assert found["garden"]["tags"] == ["mine", "garden", "topic"]
    assert [said["version"] for said in found["garden"]["_taxonomies"]] == [1]
    assert "_enriched" not in found["garden"]
    assert found["garden"]["updated_at"] == found["garden"]["created_at"]
    by_topic = {"field": "metadata.topic", "operator": "eq", "value": "travel"}
    assert [d["about"] for d in place.documents(collection, filters=by_topic)] == ["travel"]

    # Compared again it is as it was: nothing is appended twice.
    def apply(**body: Any) -> Any:
        task = place.post(f"{path}/apply-taxonomy", {"taxonomy_id": made["taxonomy_id"], **body})
        assert (task["status"], task["estimated_documents"]) == ("PENDING", 3)
        return place.wait(task["task_id"])

    task = apply()
    assert (task["status"], task["task_type"]) == ("COMPLETED", "api_taxonomies_materialize")
    assert task["additional_data"]["progress"]["done"] == 3
    assert {d["about"]: d for d in place.documents(collection)} == found

    # Another version: the fields of the first are taken back, the new ones come.
    fields = [{"field_path": "topic", "target_field": "theme"}]
    source = {"collection_id": place.topics, "enrichment_fields": fields}
    place.post(
        f"/taxonomies/{made['taxonomy_id']}/versions", {"config": flat(place, source_collection=source)}
    )
    new = until(
        lambda: {d["about"]: d for d in place.documents(collection)},
        lambda found: all(d["_taxonomies"][0]["version"] == 2 for d in found.values()),
    )
    assert (new["garden"]["theme"], new["garden"]["tags"]) == ("garden", ["mine"])
    assert "metadata" not in new["garden"]

    # What is applied is not deleted; without the application everything is as it was extracted.
    assert "applied to 1 collection" in place.refused(409, "DELETE", f"/taxonomies/{made['taxonomy_id']}")
    place.patch(path, {"taxonomy_applications": []})
    plain = until(
        lambda: {d["about"]: d for d in place.documents(collection)},
        lambda found: not any("_taxonomies" in d for d in found.values()),
    )
    assert (plain["garden"]["tags"], "theme" in plain["garden"]) == (["mine"], False)
    told = place.refused(400, "POST", f"{path}/apply-taxonomy", {"taxonomy_id": made["taxonomy_id"]})
    assert "is not applied" in told
    place.delete(f"/taxonomies/{made['taxonomy_id']}")


def test_what_is_written_later_is_compared_too(place: Place) -> None:
    """Ready-made documents, and documents that somebody changes, get what taxonomies say of what they are then."""
    made = taxonomy(place)
    application = {"taxonomy_id": made["taxonomy_id"], "min_confidence": 0.2, "top_k": 1}
    _, _, collection = notes(place, taxonomy_applications=[application])
    path = f"/collections/{collection}/documents"
    document_id = place.post(path, {"text": NOTES["kitchen"]})["document_id"]

    def topic_of() -> Any:
        return (place.get(f"{path}/{document_id}").get("metadata") or {}).get("topic")

    until(topic_of, lambda topic: topic == "kitchen")
    place.patch(f"{path}/{document_id}", {"text": NOTES["travel"]})
    until(topic_of, lambda topic: topic == "travel")
    place.send("PUT", f"{path}/{document_id}", {"text": NOTES["garden"], "own": 1})
    until(topic_of, lambda topic: topic == "garden")


def test_what_users_changed_stays_theirs(place: Place) -> None:
    made = taxonomy(place)
    application = {"taxonomy_id": made["taxonomy_id"], "min_confidence": 0.2, "top_k": 1}
    bucket, ids, collection = notes(place, taxonomy_applications=[application])
    assert place.run(bucket, ids)["status"] == "COMPLETED"
    (document,) = [d for d in place.documents(collection) if d["about"] == "garden"]
    path = f"/collections/{collection}/documents/{document['document_id']}"
    place.patch(path, {"metadata.topic": "my own"})
    task = place.post(f"/collections/{collection}/apply-taxonomy", {"taxonomy_id": made["taxonomy_id"]})
    assert place.wait(task["task_id"])["status"] == "COMPLETED"
    shown = place.get(path)
    assert shown["metadata"]["topic"] == "my own"
    assert shown["_taxonomies"][0]["assignments"][0]["label"] == "garden"
    told = place.refused(422, "PATCH", path, {"_taxonomies": []})
    assert "belongs to the system" in told


def test_only_some_documents_and_on_demand(place: Place) -> None:
    made = taxonomy(place)
    some = {"field": "about", "operator": "eq", "value": "garden"}
    application = {"taxonomy_id": made["taxonomy_id"], "min_confidence": 0.2, "scroll_filters": some}
    bucket, ids, collection = notes(place, taxonomy_applications=[application])
    assert place.run(bucket, ids)["status"] == "COMPLETED"
    assert [d["about"] for d in place.documents(collection) if "_taxonomies" in d] == ["garden"]
    quiet = {"taxonomy_id": made["taxonomy_id"], "execution_mode": "on_demand"}
    bucket, ids, collection = notes(place, taxonomy_applications=[quiet])
    assert place.run(bucket, ids)["status"] == "COMPLETED"
    assert not [d for d in place.documents(collection) if "_taxonomies" in d]
    (shown,) = place.get(f"/collections/{collection}")["taxonomy_applications"]
    assert (shown["execution_mode"], shown["is_on_demand"]) == (None, True)
    for change, told in (
        ({"taxonomy_id": "nobody"}, "was not found"),
        ({"target_collection_id": place.topics}, "not available"),
    ):
        body = {"taxonomy_applications": [{**quiet, **change}]}
        assert told in place.refused(400, "PATCH", f"/collections/{collection}", body)


def test_a_retriever_that_is_gone_is_told(place: Place) -> None:
    spare = place.post(f"/retrievers/{place.retriever}/clone", {"retriever_name": "spare"}, status=201)
    made = taxonomy(place, flat(place, retriever_id=spare["retriever_id"]))
    bucket, ids, collection = notes(place, taxonomy_applications=[{"taxonomy_id": made["taxonomy_id"]}])
    place.delete(f"/retrievers/{spare['retriever_id']}")
    told = place.refused(400, "POST", f"/taxonomies/execute/{made['taxonomy_id']}", {"inputs": {"q": "x"}})
    assert "was deleted" in told
    batch = place.run(bucket, ids)
    assert batch["status"] == "COMPLETED"
    assert len(place.documents(collection)) == 3
    lines = place.get(f"/buckets/{bucket}/batches/{batch['batch_id']}/logs")
    assert "was deleted" in str(lines)
    task = place.post(f"/collections/{collection}/apply-taxonomy", {"taxonomy_id": made["taxonomy_id"]})
    ended = place.wait(task["task_id"])
    assert (ended["status"], "was deleted" in ended["error"]) == ("FAILED", True)


def test_an_erased_node_leaves_nothing_in_what_it_was_copied_into(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Neither in documents nor in any file: their fields are as before, and they are compared with what is left."""
    data = tmp_path_factory.mktemp("erased") / "data"
    server = Server.start(data)
    try:
        with server.client() as client:
            made = {"namespace_name": "erased", "feature_extractors": [TEXT, PASSTHROUGH]}
            here = make_place(
                Place(client, client.post("/v1/namespaces", json=made).raise_for_status().json())
            )
            secret = "quetzalcoatl"
            node = here.note(here.shelf, NOTES["garden"], topic=secret, tags=[secret])
            assert here.run(here.shelf, [node])["status"] == "COMPLETED"
            found = taxonomy(here)
            application = {"taxonomy_id": found["taxonomy_id"], "min_confidence": 0.2, "top_k": 3}
            bucket, ids, collection = notes(here, taxonomy_applications=[application])
            assert here.run(bucket, ids)["status"] == "COMPLETED"
            copied = {d["about"]: d["metadata"]["topic"] for d in here.documents(collection)}
            assert copied["garden"] == secret
            task = here.post(f"/namespaces/{here.namespace_id}/erase", {"object_ids": [node]})
            assert here.wait(task["task_id"])["status"] == "COMPLETED"
            shown = until(
                lambda: here.documents(collection),
                lambda documents: all("_taxonomies" in document for document in documents),
            )
            assert secret not in str(shown)
            assert {d["about"]: d["metadata"]["topic"] for d in shown} == {t: t for t in NOTES}
    finally:
        server.stop()
    for path in data.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_appends_nothing_twice(tmp_path: Path) -> None:
    """The task that applies a taxonomy survives the server; its documents are as if nothing had happened."""
    server = Server.start(
        tmp_path / "data", environment={"TESSERA_TEST_FAILPOINT": "enrichment.logged:2:self"}
    )
    try:
        with server.client() as client:
            here = joined(client)
            collection = here.topics
            path = f"/collections/{collection}"
            application = {"taxonomy_id": "stock"}
            here.patch(path, {"taxonomy_applications": [application]})
            (task,) = here.post("/tasks/list", {"filters": {"task_type": "api_taxonomies_materialize"}})[
                "results"
            ]
            assert server.wait_until_dead(60)
        server = Server.start(tmp_path / "data")
        with server.client(namespace=here.namespace_id) as client:
            here.client = client
            ended = here.wait(task["task_id"])
            assert (ended["status"], ended["additional_data"]["done"]) == ("COMPLETED", COPIES)
            found = here.documents(collection)
            assert len(found) == COPIES
            # Exactly what an exact condition says: every other one has a sku that is in stock.
            assert all(
                (d.get("places"), "_taxonomies" in d)
                == ((["mine", "shelf"], True) if d["sku"] == "a" else (["mine"], False))
                for d in found
            )
            assert {d["_taxonomies"][0]["assignments"][0]["score"] for d in found if d["sku"] == "a"} == {1.0}
    finally:
        server.kill(group=True)


COPIES = 450


def joined(client: httpx.Client) -> Place:
    """Return a namespace with documents that a taxonomy joins by an exact condition: it scores nothing."""
    made = {"namespace_name": "joined", "feature_extractors": [PASSTHROUGH]}
    here = Place(client, client.post("/v1/namespaces", json=made).raise_for_status().json())
    here.shelf, here.topics = here.collection(here.bucket()), here.collection(here.bucket())
    copies = [
        {"document_id": f"copy-{n}", "payload": {"sku": "ab"[n % 2], "places": ["mine"]}}
        for n in range(COPIES)
    ]
    for collection, documents in (
        (here.shelf, [{"document_id": "node", "payload": {"sku": "a", "places": "shelf"}}]),
        (here.topics, copies),
    ):
        body = {"collection_id": collection, "documents": documents}
        here.post(f"/namespaces/{here.namespace_id}/documents/upsert", body)
    same = {"field": "sku", "operator": "eq", "value": {"type": "dynamic", "field": "inputs.sku"}}
    here.retriever = here.post(
        "/retrievers",
        {
            "retriever_name": "same-sku",
            "stages": [{"stage_id": "attribute_filter", "parameters": same}],
            "input_schema": {"sku": {"type": "string", "required": True}},
        },
    )["retriever_id"]
    fields = [{"field_path": "places", "merge_mode": "append"}]
    config = {
        "retriever_id": here.retriever,
        "input_mappings": {"sku": "sku"},
        "source_collection": {"collection_id": here.shelf, "enrichment_fields": fields},
    }
    here.post("/taxonomies", {"taxonomy_name": "stock", "config": config})
    return here


# --- what others see of it -----------------------------------------------------------------------------


def test_events_and_the_audit_log_tell_of_each_change(place: Place) -> None:
    hook = {
        "webhook_name": "taxonomies",
        "event_types": ["taxonomy.created", "taxonomy.updated", "taxonomy.deleted"],
        "channels": [{"channel": "webhook", "configs": {"url": "http://nowhere.invalid/"}}],
    }
    webhook = place.post("/organizations/webhooks", hook, status=201)["webhook_id"]
    made = taxonomy(place)
    path = f"/taxonomies/{made['taxonomy_id']}"
    place.patch(path, {"description": "…"})
    place.delete(path)
    told = place.get(f"/organizations/webhooks/{webhook}/deliveries")["results"]
    kinds = [item["event_type"] for item in reversed(told)]
    assert kinds == ["taxonomy.created", "taxonomy.updated", "taxonomy.deleted"]
    logged = place.get(f"/organizations/audit/logs?resource_type=taxonomy&resource_id={made['taxonomy_id']}")
    actions = [event["action"] for event in reversed(logged["results"])]
    assert actions == ["taxonomy_created", "taxonomy_updated", "taxonomy_deleted"]
    place.delete(f"/organizations/webhooks/{webhook}", status=204)


def test_a_key_for_one_taxonomy_compares_what_it_brings(place: Place, either_server: Server) -> None:
    made, other = taxonomy(place), taxonomy(place)
    scope = {"resource_type": "taxonomy", "resource_id": made["taxonomy_id"], "operations": ["read"]}
    body = {"name": made["taxonomy_name"], "permissions": ["read", "write"], "scopes": [scope]}
    key = place.post("/organizations/users/admin@localhost/api-keys", body)["key"]
    with either_server.client(key=key, namespace=place.namespace_id) as client:
        narrow = Loop(client, {"namespace_id": place.namespace_id})
        sent = {"source_documents": [{"text": NOTES["garden"]}], "min_confidence": 0.2}
        for path in (
            f"/taxonomies/execute/{made['taxonomy_id']}",
            f"/taxonomies/{made['taxonomy_name']}/execute",
        ):
            assert narrow.post(path, sent)["matches"][0]["label"] == "garden"
            narrow.refused(404, "POST", path, {"source_collection_id": place.topics})
            document = place.documents(place.topics)[0]["document_id"]
            narrow.refused(404, "POST", path, {"document_ids": [document]})
        assert narrow.get(f"/taxonomies/{made['taxonomy_id']}")["version"] == 1
        narrow.refused(403, "PATCH", f"/taxonomies/{made['taxonomy_id']}", {"description": "mine"})
        for path in (f"/taxonomies/{other['taxonomy_id']}", "/taxonomies", f"/collections/{place.topics}"):
            narrow.refused(404, "GET", path)
        narrow.refused(404, "POST", f"/taxonomies/execute/{other['taxonomy_id']}", sent)


def test_what_was_read_may_be_sent_back_and_a_clone_has_it(place: Place) -> None:
    """Sent back as it was read it changes nothing, on demand stays on demand, and a clone carries the same."""
    made, quiet = taxonomy(place), taxonomy(place)
    applications = [
        {"taxonomy_id": made["taxonomy_id"], "min_confidence": 0.2},
        {"taxonomy_id": quiet["taxonomy_id"], "execution_mode": "on_demand"},
    ]
    _, _, collection = notes(place, taxonomy_applications=applications)
    path = f"/collections/{collection}"
    shown = place.get(path)
    assert place.patch(path, {"taxonomy_applications": shown["taxonomy_applications"]}) == shown
    copy = place.post(f"{path}/clone", {"collection_name": "with-taxonomies"}, status=201)["collection"]
    assert copy["taxonomy_applications"] == shown["taxonomy_applications"]
    body = {"taxonomy_id": quiet["taxonomy_id"]}
    assert "is not applied" in place.refused(400, "POST", f"{path}/apply-taxonomy", body)
    # What waits for a collection that is deleted ends with it.
    task = place.post(f"{path}/apply-taxonomy", {"taxonomy_id": made["taxonomy_id"]})
    place.delete(path)
    assert place.wait(task["task_id"])["status"] in ("CANCELED", "COMPLETED")


def test_the_next_tier_reads_what_taxonomies_said(place: Place) -> None:
    """Enrichment is part of a tier: collections fed by it find the fields, and not what the server keeps of them."""
    made = taxonomy(place)
    application = {"taxonomy_id": made["taxonomy_id"], "min_confidence": 0.2, "top_k": 1}
    bucket, ids, first = notes(place, taxonomy_applications=[application])
    second = place.post(
        "/collections",
        {
            "collection_name": "after-taxonomies",
            "source": {"type": "collection", "collection_ids": [first]},
            "feature_extractor": {**PASSTHROUGH, "include_all_source_fields": True},
        },
    )["collection_id"]
    assert place.run(bucket, ids)["status"] == "COMPLETED"
    found = place.documents(second)
    assert {d["about"]: d["metadata"]["topic"] for d in found} == {topic: topic for topic in NOTES}
    assert not [d for d in found if "_taxonomies" in d]
