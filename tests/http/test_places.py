"""Every hit with its place: pages and boxes of a PDF, ranges of characters, spans of a video, regions of a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tessera import sample_media, sample_pages
from tests.http.loop import Loop, encoded
from tests.http.processes import Server
from tests.media import photograph

NAMES = ("document_graph_extractor", "text_extractor", "image_extractor", "video_extractor")


class Place(Loop):
    def fill(self, kind: str, extractor: dict[str, Any], data: bytes) -> str:
        """Process one file and return its collection."""
        bucket = self.bucket({"file": {"type": kind}})
        mapped = {"version": "v1", "input_mappings": {kind: "file"}, **extractor}
        collection = self.collection(bucket, mapped)
        blob = {"property": "file", "type": kind, "data": encoded(data) if kind != "text" else data.decode()}
        batch = self.run(bucket, [self.object(bucket, {"blobs": [blob]})])
        assert batch["status"] == "COMPLETED", batch
        return collection

    def search(self, collection: str, *searches: dict[str, Any], **parameters: Any) -> list[Any]:
        stage = {"stage_id": "feature_search", "parameters": {"searches": list(searches), **parameters}}
        body = {"collection_identifiers": [collection], "stages": [stage], "inputs": {}, "return_urls": True}
        return list(self.post("/retrievers/execute", body)["documents"])


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Place]:
    with server.client() as client:
        extractors = [{"feature_extractor_name": name, "version": "v1"} for name in NAMES]
        body = {"namespace_name": "places", "feature_extractors": extractors}
        yield Place(client, client.post("/v1/namespaces", json=body).raise_for_status().json())


@pytest.fixture(scope="module")
def report(place: Place) -> str:
    return place.fill("pdf", {"feature_extractor_name": "document_graph_extractor"}, sample_pages.report())


DENSE = "mixpeek://document_graph_extractor@v1/multilingual_e5_large_instruct_v1"


@pytest.mark.parametrize(
    ("query", "kind", "page", "around", "text"),
    [
        (sample_pages.PROSE[2], "paragraph", 0, (60, 108, 473, 152), sample_pages.PROSE[2]),
        ("price of the fresnel prism", "table_row", 0, (60, 260, 540, 280), "412.00"),
        ("when is high water in Tobermory?", "table_row", 0, (60, 400, 335, 420), "06:10"),
        ("what to do at midnight", "list", 1, (65, 385, 220, 435), "trim the wick"),
        ("from how far could the foghorn be heard?", "paragraph", 2, (35, 50, 330, 150), "eleven miles"),
    ],
    ids=["sentence", "cell", "cell without rules", "list", "scan"],
)
@pytest.mark.parametrize("way", ["meaning", "hybrid"])
def test_what_a_pdf_says_is_found_first_with_page_and_box(
    place: Place, report: str, way: str, query: str, kind: str, page: int, around: Any, text: str
) -> None:
    searches = [{"feature_uri": DENSE, "query": {"input_mode": "text", "value": query}}]
    if way == "hybrid":
        searches.append({**searches[0], "lexical": True})
    best, *_ = place.search(report, *searches)
    assert text in best["text"]
    assert (best["object_type"], best["page_number"]) == (kind, page)
    left, top, right, bottom = best["bbox"]
    assert around[0] <= left < right <= around[2]
    assert around[1] <= top < bottom <= around[3]
    width, height = (420, 240) if page == 2 else (595, 842)
    assert best["locator"] == {
        "kind": "page",
        "page": page,
        "bbox": best["bbox"],
        "width": width,
        "height": height,
    }
    assert best["confidence_tag"] == "A"
    assert best["confidence_score"] > 0.84
    box = f"{left:.0f},{top:.0f},{right - left:.0f},{bottom - top:.0f}"
    assert best["source_pdf_url"].endswith(f"#page={page + 1}&viewrect={box}")
    blobs = {blob["field"]: blob for blob in best["document_blobs"]}
    assert blobs["source_pdf_url"] == {
        "field": "source_pdf_url",
        "role": "source",
        "type": "pdf",
        "url": best["source_pdf_url"],
        "presigned_url": best["source_pdf_url"],
    }
    assert httpx.get(best["source_pdf_url"]).content == sample_pages.report()
    assert httpx.get(best["thumbnail_url"]).headers["content-type"] == "image/jpeg"


def test_a_number_in_a_cell_is_found_by_its_words(place: Place, report: str) -> None:
    (best,) = place.search(report, {"query": "XK-4471-B", "lexical": True})
    assert best["cells"] == list(sample_pages.STOCK[1])


def test_pages_and_kinds_filter(place: Place, report: str) -> None:
    rows = place.documents(report, filters={"AND": [{"object_type": "table_row"}, {"page_number": 0}]})
    assert len(rows) == 6
    assert {row["locator"]["page"] for row in place.documents(report, filters={"locator.page": 1})} == {1}
    properties = place.get(f"/collections/{report}")["output_schema"]["properties"]
    assert (properties["locator"]["type"], properties["bbox"]["type"]) == ("object", "array")


def test_pieces_of_a_text_say_which_characters_they_are(place: Place) -> None:
    text = "The first sentence is about lamps. The second one is about ships. The third is about tea."
    extractor = {
        "feature_extractor_name": "text_extractor",
        "parameters": {"split_by": "sentences", "chunk_size": 1},
    }
    collection = place.fill("text", extractor, text.encode())
    (best, *_) = place.search(collection, {"query": "vessels at sea"})
    where = best["locator"]
    assert where == {"kind": "text", "start_char": 35, "end_char": 65}
    assert text[where["start_char"] : where["end_char"]] == best["text"] == "The second one is about ships."
    if "source_text_url" in best:  # a short text lies in the object itself and has no file
        assert best["source_text_url"].endswith("#char=35,65")


def test_spans_of_a_video_are_merged_on_request(place: Place) -> None:
    lines = sample_media.LINES[:4]
    film = sample_media.video(shots=sample_media.SHOTS[:2], lines=lines)
    extractor = {"feature_extractor_name": "video_extractor", "parameters": {"time_split_interval": 4}}
    collection = place.fill("video", extractor, film)
    search = {"query": "people walk in the beech forest to look for mushrooms", "lexical": True}
    best, *others = place.search(collection, search)
    assert others
    start_s, end_s = best["start_time"], best["end_time"]
    assert best["locator"] == {
        "kind": "time",
        "start_ms": round(start_s * 1000),
        "end_ms": round(end_s * 1000),
    }
    assert best["source_video_url"].endswith(f"#t={start_s:g},{end_s:g}")
    merged = place.search(collection, search, merge_adjacent_ms=4000)
    assert merged[0]["document_id"] == best["document_id"]
    assert len(merged) < 1 + len(others)
    parts = [part["locator"] for part in merged[0]["merged"]]
    first, last = parts[0]["start_ms"], max(part["end_ms"] for part in parts)
    assert merged[0]["locator"] == {"kind": "time", "start_ms": first, "end_ms": last}
    assert merged[0]["source_video_url"].endswith(f"#t={first / 1000:g},{last / 1000:g}")


def test_a_picture_is_a_region_and_keeps_its_secrets_when_asked(place: Place) -> None:
    data = photograph(sample_media.pictures()["city.png"])
    for parameters, told in (({}, True), ({"read_exif": False}, False)):
        extractor = {"feature_extractor_name": "image_extractor", "parameters": parameters}
        (document,) = place.documents(place.fill("image", extractor, data))
        assert document["locator"] == {
            "kind": "region",
            "bbox": [0, 0, 320, 240],
            "width": 320,
            "height": 240,
        }
        assert document["source_image_url"].endswith("#xywh=0,0,320,240")
        assert ("taken_where" in document) == ("taken_at" in document) == told
