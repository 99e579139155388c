"""feature_search in full: facets, groups, signals of each search, collections of a search, contents behind URLs."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server
from tests.media import GREEN, RED, picture
from tests.website import Site, serving

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
IMAGE_URI = "mixpeek://image_extractor@v1/google_siglip_base_v1"
NOTES = [
    ("Ginger soup with red lentils.", "food", "ann", 4),
    ("Tomato soup for cold days.", "food", "bob", 4),
    ("Lentil salad with mint.", "food", "ann", True),
    ("A tent for heavy rain.", "camping", "bob", 1),
    ("Boots that grip on wet rock.", "camping", "cy", None),
    ("A lamp for reading.", "home", "ann", "4"),
]


class Place(Loop):
    """Six notes in one collection, one of them again in another, and two pictures."""

    notes: str
    others: str
    pictures: str

    def execute(self, *stages: Any, **fields: Any) -> Any:
        body = {"stages": list(stages), "collection_identifiers": [self.notes], **fields}
        return self.post("/retrievers/execute", body)


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Place]:
    with server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": "feature-search",
                "feature_extractors": [
                    {"feature_extractor_name": name, "version": "v1"}
                    for name in ("text_extractor", "image_extractor")
                ],
            },
        )
        here = Place(client, made.raise_for_status().json())
        kept = [{"source_path": f"metadata.{name}"} for name in ("kind", "by", "stars")]
        extractor = {**TEXT, "input_mappings": {"text": "note"}, "field_passthrough": kept}
        bucket, other = here.bucket(), here.bucket()
        here.notes, here.others = here.collection(bucket, extractor), here.collection(other, extractor)
        objects = [
            here.note(bucket, text, metadata={"kind": kind, "by": [by, "all"], "stars": stars})
            for text, kind, by, stars in NOTES
        ]
        assert here.run(bucket, objects)["status"] == "COMPLETED"
        again = here.note(other, NOTES[0][0], metadata={"kind": "other"})
        assert here.run(other, [again])["status"] == "COMPLETED"
        images = here.bucket({"image": {"type": "image"}})
        here.pictures = here.collection(
            images,
            {
                "feature_extractor_name": "image_extractor",
                "version": "v1",
                "input_mappings": {"image": "image"},
                "field_passthrough": [{"source_path": "metadata.name"}],
            },
        )
        shown = [
            here.object(
                images,
                {
                    "blobs": [{"property": "image", "type": "image", "data": encoded(colour)}],
                    "metadata": {"name": name},
                },
            )
            for name, colour in (("red", RED), ("green", GREEN))
        ]
        assert here.run(images, shown)["status"] == "COMPLETED"
        yield here
        client.delete(f"/v1/namespaces/{here.namespace_id}")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def encoded(colour: tuple[int, int, int]) -> str:
    return base64.b64encode(picture(colour)).decode()


def search(*searches: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    return {"stage_id": "feature_search", "parameters": {"searches": list(searches), **parameters}}


def dense(query: Any = "lentil soup", **fields: Any) -> dict[str, Any]:
    return {"feature_uri": TEXT_URI, "query": query, **fields}


def words(query: Any = "lentils", **fields: Any) -> dict[str, Any]:
    return {"query": query, "lexical": True, **fields}


def texts(answer: Any) -> list[str]:
    return [document["text"] for document in answer["documents"]]


# --- signals -------------------------------------------------------------------------------------------


def test_every_hit_says_what_each_search_made_of_it(place: Place) -> None:
    answer = place.execute(search(dense(), words()))
    assert len(answer["documents"]) == 6
    by_meaning = place.execute(search(dense()))["documents"]
    for document in answer["documents"]:
        said = document["features"]
        assert said.keys() == {TEXT_URI, "bm25"}
        alone = next(d for d in by_meaning if d["document_id"] == document["document_id"])
        assert said[TEXT_URI] == {"rank": by_meaning.index(alone) + 1, "score": alone["score"]}
        expected = 1 / (60 + said[TEXT_URI]["rank"])
        if said["bm25"]["rank"] is not None:
            expected += 1 / (60 + said["bm25"]["rank"])
        assert document["score"] == pytest.approx(expected)
    assert {d["text"]: d["features"]["bm25"]["score"] is None for d in answer["documents"]} == {
        text: "lentil" not in text.lower() for text, *_ in NOTES
    }


def test_two_searches_of_one_feature_have_two_names(place: Place) -> None:
    answer = place.execute(search(dense("soup"), dense("tent"), fusion="max"))
    assert answer["documents"][0]["features"].keys() == {TEXT_URI, f"{TEXT_URI}#1"}


# --- facets --------------------------------------------------------------------------------------------


def test_facets_count_every_document_that_could_be_found(place: Place) -> None:
    answer = place.execute(
        search(
            words(),
            facets=["kind", {"key": "by", "limit": 2}, {"field": "stars"}, {"key": "nowhere"}],
            final_top_k=1,
        ),
        limit=1,
    )
    assert len(answer["documents"]) == 1
    kinds, by, stars, nowhere = answer["facets"]
    assert kinds == {
        "key": "kind",
        "values": [
            {"value": "food", "count": 3}, {"value": "camping", "count": 2}, {"value": "home", "count": 1},
        ],
        "total_values": 3,
        "exact": True,
        "documents_counted": 6,
    }  # fmt: skip
    assert (by["values"], by["total_values"]) == (
        [{"value": "all", "count": 6}, {"value": "ann", "count": 3}],
        4,
    )
    # 4, "4" and true are three values; null is none.
    assert sorted((repr(each["value"]), each["count"]) for each in stars["values"]) == [
        ("'4'", 1), ("1", 1), ("4", 2), ("True", 1),
    ]  # fmt: skip
    assert nowhere["values"] == []
    assert answer["stage_statistics"]["stages"]["feature_search"]["metadata"]["facets"] == answer["facets"]


def test_facets_keep_to_the_filters(place: Place) -> None:
    food = {"field": "kind", "operator": "eq", "value": "food"}
    home = {"field": "kind", "operator": "eq", "value": "home"}
    counted = [
        place.execute(search(words(filters=food), facets=["kind"])),
        place.execute(search(words(filters=food), words(filters=home), facets=["kind"])),
        place.execute({"stage_id": "attribute_filter", "parameters": food}, search(words(), facets=["kind"])),
        place.execute(search(words(), facets=["kind"]), filters=food),
        place.execute(search(dense(), final_top_k=1), search(words(), facets=["kind"])),
    ]
    found = [{each["value"]: each["count"] for each in answer["facets"][0]["values"]} for answer in counted]
    assert found == [{"food": 3}, {"food": 3, "home": 1}, {"food": 3}, {"food": 3}, {"food": 1}]
    assert "facets" not in place.execute(search(words()))


def test_counts_that_changed_are_no_304(place: Place) -> None:
    food = {"field": "kind", "operator": "eq", "value": "food"}
    stages = [search(words("lentils", filters=food, top_k=1), facets=["kind"])]
    body = {
        "retriever_name": "counted",
        "collection_identifiers": [place.notes],
        "stages": stages,
        "cache_config": {},
    }
    path = f"/v1/retrievers/{place.post('/retrievers', body)['retriever_id']}"

    def ask(**headers: str) -> Any:
        return place.client.post(f"{path}/execute", json={}, headers={**place.headers, **headers})

    ask()
    tag = ask().headers["ETag"]
    assert ask(**{"If-None-Match": tag}).status_code == 304
    made = place.post(f"/collections/{place.notes}/documents", {"kind": "food", "text": "Bread."})
    again = ask(**{"If-None-Match": tag})
    assert again.status_code == 200
    assert again.json()["facets"][0]["values"] == [{"value": "food", "count": 4}]
    place.delete(f"/collections/{place.notes}/documents/{made['document_id']}")
    place.client.delete(path, headers=place.headers)


# --- groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("first", ["food", "home", "camping"]),
        ("all", ["food", "food", "home", "camping", "camping"]),
        ("flatten", None),
    ],
)
def test_hits_come_in_groups_of_the_best(place: Place, mode: str, expected: list[str] | None) -> None:
    ranked = [d["document_id"] for d in place.execute(search(dense("soup by lamplight")))["documents"]]
    answer = place.execute(
        search(
            dense("soup by lamplight"),
            group_by={"field": "kind", "max_per_group": 2, "output_mode": mode},
            final_top_k=1,
        )
    )
    kinds = [document["kind"] for document in answer["documents"]]
    if expected is None:
        found = [document["document_id"] for document in answer["documents"]]
        assert found == sorted(found, key=ranked.index)
        assert sorted(kinds) == ["camping", "camping", "food", "food", "home"]
    else:
        assert kinds == expected
        assert answer["documents"][0]["_group"] == {"key": "food", "index": 0, "size": 3}


def test_groups_are_looked_for_behind_the_first_hits(place: Place) -> None:
    answer = place.execute(search(dense("soup", top_k=2), group_by={"field": "kind", "limit": 3}))
    assert {document["kind"] for document in answer["documents"]} == {"food", "camping", "home"}
    # Who has no value is nobody's double.
    answer = place.execute(search(dense(), group_by={"field": "nowhere", "limit": 4}))
    assert len(answer["documents"]) == 4


# --- collections of a search ---------------------------------------------------------------------------


def test_a_search_may_keep_to_some_of_the_collections(place: Place) -> None:
    both = {"collection_identifiers": [place.notes, place.others]}
    found = place.execute(search(dense(), collection_identifiers=[place.others]), **both)
    assert texts(found) == [NOTES[0][0]]
    found = place.execute(
        search(
            dense(collection_identifiers=[place.others]),
            words("tent", collection_identifiers=[place.notes]),
        ),
        **both,
    )
    assert sorted(texts(found)) == sorted([NOTES[0][0], NOTES[3][0]])
    body = {
        "retriever_name": "astray",
        "collection_identifiers": [place.notes],
        "stages": [search(dense(collection_identifiers=[place.others]))],
    }
    assert place.others in place.refused(400, "POST", "/retrievers", body)


# --- queries -------------------------------------------------------------------------------------------


def test_content_may_lie_behind_a_url(place: Place, site: Site) -> None:
    site.serve("/red.png", picture(RED), Content_Type="text/html")
    site.serve("/note.txt", b"Ginger soup, please.")
    site.serve("/page.pdf", b"%PDF-1.7 and so on")
    pictures = {"collection_identifiers": [place.pictures]}
    for query in ({"content": {"url": site.url("/red.png")}}, {"input_mode": "content", "value": site.url("/red.png")},
                  {"image": site.url("/red.png")}, {"content": {"base64": encoded(RED)}}):  # fmt: skip
        found = place.execute(search({"feature_uri": IMAGE_URI, "query": query}), **pictures)
        assert [document["name"] for document in found["documents"]] == ["red", "green"]
    found = place.execute(search(dense({"content": site.url("/note.txt")})))
    assert texts(found)[0] == NOTES[0][0]
    for path, says in (("/page.pdf", "application/pdf"), ("/nothing", "broke off")):
        if says == "broke off":
            site.pages["/nothing"] = lambda request: request.connection.close()
        stage = search({"feature_uri": IMAGE_URI, "query": {"content": site.url(path) + "?token=secret"}})
        said = place.refused(400, "POST", "/retrievers/execute", {"stages": [stage]})
        assert says in said
        assert "secret" not in said
    for url, says in (("http://127.0.0.1:1/a.png", "not public"), ("file:///etc/passwd", "scheme file"),
                      ("s3://bucket/key", "scheme s3")):  # fmt: skip
        stage = search({"feature_uri": IMAGE_URI, "query": {"content": url}})
        assert says in place.refused(400, "POST", "/retrievers/execute", {"stages": [stage]})


def test_what_lies_behind_a_url_is_read_anew(place: Place, site: Site) -> None:
    body = {
        "retriever_name": "by-url",
        "collection_identifiers": [place.pictures],
        "stages": [search({"feature_uri": IMAGE_URI, "query": {"content": "{{INPUT.url}}"}})],
        "cache_config": {},
    }
    retriever = place.post("/retrievers", body)["retriever_id"]
    first = []
    for colour in (RED, GREEN):
        site.serve("/changing.png", picture(colour))
        found = place.post(f"/retrievers/{retriever}/execute", {"inputs": {"url": site.url("/changing.png")}})
        first.append(found["documents"][0]["name"])
    assert first == ["red", "green"]
    place.delete(f"/retrievers/{retriever}")


def test_a_query_that_is_not_given_may_be_left_out(place: Place) -> None:
    stage = search(dense("{{INPUT.q}}", on_empty="skip"), words("{{INPUT.w}}", on_empty="skip"))
    schema = {"q": {"type": "text"}, "w": {"type": "text"}}
    body = {"retriever_name": "some", "collection_identifiers": [place.notes], "stages": [stage]}
    path = f"/retrievers/{place.post('/retrievers', {**body, 'input_schema': schema})['retriever_id']}"
    assert texts(place.post(f"{path}/execute", {"inputs": {"w": "tent"}})) == [NOTES[3][0]]
    assert len(texts(place.post(f"{path}/execute", {"inputs": {"q": "tent", "w": " "}}))) == 6
    assert "on_empty" in place.refused(400, "POST", f"{path}/execute", {})
    place.delete(path)


CONFIG = {"stage_name": "s", "stage_type": "filter"}


@pytest.mark.parametrize(
    "stage",
    [
        {**CONFIG, "config": {"stage_id": "feature_search", "parameters": {"feature_uri": TEXT_URI}}},
        {**CONFIG, "config": {"stage_id": "feature_search", "parameters": {"searches": [{"query": None}]}}},
        {"stage_id": "feature_search", "parameters": {"searches": [{"query": {}}]}},
        {"stage_id": "feature_search", "parameters": {"searches": [{"query": " "}]}},
        {"stage_id": "feature_search", "parameters": {"searches": []}},
        {"stage_name": "knn_search", "parameters": {"feature_address": TEXT_URI, "limit": 3}},
        {"type": "feature_search", "feature_extractor": {"type": "text"}, "limit": 3},
    ],
)
def test_a_search_without_a_query_is_told_at_creation(place: Place, stage: Any) -> None:
    body = {"retriever_name": "silent", "collection_identifiers": [place.notes], "stages": [stage]}
    said = place.refused(422, "POST", "/retrievers", body)
    assert "query" in said or "searches" in said or "at least 1" in said
    place.refused(422, "POST", "/retrievers/execute", body)


@pytest.mark.parametrize(
    "stage",
    [
        {**CONFIG, "stage_type": "zz", "config": {"stage_id": "limit", "parameters": {}}},
        {"stage_type": "zz", "stage_id": "limit", "parameters": {}},
        {"stage_name": "limit", "stage_type": "zz", "parameters": {}},
        {"type": "limit", "stage_type": "zz"},
        {"stage_type": "zz", "parameters": {}},
    ],
)
def test_a_stage_type_that_is_none_is_told(place: Place, stage: Any) -> None:
    said = place.refused(422, "POST", "/retrievers", {"retriever_name": "zz", "stages": [stage]})
    assert "zz" in said or "not known" in said
    assert "filter" in said or "limit" in said


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"group_by": {"field": "internal_id"}}, "internal_id"),
        ({"group_by": {"field": "kind", "output_mode": "tree"}}, "output_mode"),
        ({"facets": [{"key": "_s.x"}]}, "_s.x"),
        ({"facets": [{"key": "kind", "limit": 0}]}, "limit"),
        ({"fusion": "luck"}, "fusion"),
    ],
)
def test_what_cannot_be_is_told_by_field(place: Place, parameters: Any, says: str) -> None:
    stage = search(words(), **parameters)
    assert says in place.refused(422, "POST", "/retrievers", {"retriever_name": "w", "stages": [stage]})


def test_searches_under_their_older_name(place: Place) -> None:
    stage = {
        "stage_type": "filter",
        "stage_id": "feature_search",
        "parameters": {
            "features": [{"feature_uri": TEXT_URI, "query_input": "{{INPUT.q}}", "top_k": 3}],
            "final_top_k": 2,
        },
    }
    assert len(texts(place.execute(stage, inputs={"q": "soup"}))) == 2
