"""Faces, Office files, pages and whole sites, from the request to the hit."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.faces import red_square, write_models
from tests.http.loop import Loop, encoded
from tests.http.processes import Server
from tests.office import HTML, docx_file, pptx_file, xlsx_file
from tests.website import Site, serving

PAGES = {"feature_extractor_name": "document_graph_extractor", "version": "v1"}
SCRAPER = {"feature_extractor_name": "web_scraper", "version": "v1"}
FACES = {"feature_extractor_name": "face_identity_extractor", "version": "v1"}


class Place(Loop):
    def search(self, collection: str, *searches: dict[str, Any], **parameters: Any) -> list[Any]:
        stage = {"stage_id": "feature_search", "parameters": {"searches": list(searches), **parameters}}
        body = {"collection_identifiers": [collection], "stages": [stage], "inputs": {}, "return_urls": True}
        return list(self.post("/retrievers/execute", body)["documents"])

    def failures(self, bucket: str, batch: dict[str, Any]) -> list[dict[str, Any]]:
        path = f"/buckets/{bucket}/batches/{batch['batch_id']}/failed-documents"
        return list(self.get(path)["results"])


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Place]:
    with server.client() as client:
        body = {"namespace_name": "modalities", "feature_extractors": [PAGES, SCRAPER, FACES]}
        yield Place(client, client.post("/v1/namespaces", json=body).raise_for_status().json())


# --- faces --------------------------------------------------------------------------------------------


@pytest.fixture
def install(server: Server) -> Iterator[Callable[[], None]]:
    """Put the small models where the server looks for them, until the test has ended."""
    folder = Path(server.data) / "models"
    yield lambda: write_models(folder, (), red=True) and None
    for name in ("scrfd-2.5g", "arcface-r100"):
        shutil.rmtree(folder / name, ignore_errors=True)


def png(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return encoded(out.getvalue())


def test_a_face_is_found_by_a_face_with_its_place(place: Place, install: Callable[[], None]) -> None:
    """Without the models the row says which command helps; afterwards the same row goes through."""
    bucket = place.bucket({"photo": {"type": "image"}})
    collection = place.collection(bucket, FACES)
    scene = red_square((640, 480), (160, 160, 176, 176))
    scene.paste((30, 60, 200), (300, 0, 640, 480))
    scene.paste((255, 0, 0), (480, 160, 496, 176))
    blob = {"property": "photo", "type": "image", "data": png(scene)}
    photo = place.object(bucket, {"blobs": [blob]})
    batch = place.run(bucket, [photo])
    (failed,) = place.failures(bucket, batch)
    assert "tessera models pull scrfd-2.5g" in failed["error"], failed
    install()
    assert place.run(bucket, [photo])["status"] == "COMPLETED"
    found = place.documents(collection, sort={"field": "face_index", "direction": "asc"})
    assert [one["face_index"] for one in found] == [0, 1]
    assert {one["root_object_id"] for one in found} == {photo}
    # The face on blue, cut out and enlarged.
    crop = scene.crop((368, 32, 608, 336)).resize((720, 912))
    query = {
        "feature_uri": "mixpeek://face_identity_extractor@v1/face_identity_arcface_r100_v1",
        "query": {"input_mode": "content", "value": f"data:image/png;base64,{png(crop)}"},
    }
    best, other = place.search(collection, query)
    assert best["score"] > other["score"]
    assert best["locator"] == {"kind": "region", "bbox": best["bbox"], "width": 640, "height": 480}
    assert best["bbox"][0] == pytest.approx(480 - 7 * 16, abs=2)
    assert best["source_image_url"].partition("#")[2].startswith("xywh=")
    assert len(best["landmarks"]) == 5
    stage = {"stage_id": "feature_search", "parameters": {"searches": [{**query, "query": "a man"}]}}
    body = {"collection_identifiers": [collection], "stages": [stage], "inputs": {}}
    said = place.refused(400, "POST", "/retrievers/execute", body)
    assert "a picture of a face, not by text" in said


# --- Office files and pages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "fragment", "cells"),
    [
        ("pdf", docx_file, "block=3", ["Fresnel prism", "412.00"]),
        ("pdf", pptx_file, "page=2&viewrect=72,144,360,72", ["Fresnel prism", "412.00"]),
        ("excel", xlsx_file, "'Spare%20parts'!A2:C2", ["Fresnel prism", "412", "1871-05-03"]),
    ],
)
def test_a_row_of_an_office_file_is_found_with_its_place(
    place: Place, kind: str, data: Callable[[], bytes], fragment: str, cells: list[str]
) -> None:
    bucket = place.bucket({"file": {"type": kind}})
    collection = place.collection(bucket, PAGES)
    blob = {"property": "file", "type": kind, "data": encoded(data())}
    batch = place.run(bucket, [place.object(bucket, {"blobs": [blob]})])
    assert batch["status"] == "COMPLETED", batch
    search = {
        "feature_uri": "mixpeek://document_graph_extractor@v1/text_embedding",
        "query": {"input_mode": "text", "value": "price of the fresnel prism"},
    }
    best, *_ = place.search(collection, search, {**search, "lexical": True})
    assert (best["object_type"], best["cells"]) == ("table_row", cells)
    address, _, found = best[f"source_{kind}_url"].partition("#")
    assert found == fragment
    assert httpx.get(address).content[:2] == b"PK"


def test_html_in_a_text_property_falls_into_blocks(place: Place) -> None:
    bucket = place.bucket({"page": {"type": "text"}})
    collection = place.collection(bucket, PAGES)
    page = {"property": "page", "type": "text", "data": HTML}
    plain = {"property": "page", "type": "text", "data": "No markup here."}
    ids = [place.object(bucket, {"blobs": [blob]}) for blob in (page, plain)]
    batch = place.run(bucket, ids)
    (failed,) = place.failures(bucket, batch)
    assert "text_extractor" in failed["error"]
    found = place.documents(collection)
    assert {one["object_type"] for one in found} == {"heading", "paragraph", "list", "table_row", "code"}
    assert {one["locator"].get("anchor") for one in found} == {"lamp", "prices"}


# --- sites --------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        found.serve("/robots.txt", b"User-agent: *\nDisallow: /private\n")
        yield found


def page(site: Site, path: str, body: str) -> str:
    return site.serve(path, f"<title>{path}</title><p>{body}</p>".encode(), Content_Type="text/html")


def test_a_site_is_crawled_searched_and_crawled_again(place: Place, site: Site) -> None:
    """A page that is gone when the site is crawled again goes, one that changed keeps its document's id."""
    seed = page(
        site,
        "/",
        'Of lighthouses. <a href="/lamp">The lamp</a> <a href="/tea">Tea</a> <a href="/private">-</a>',
    )
    page(site, "/lamp", "The lamp of the lighthouse burned whale oil.")
    page(site, "/tea", "Tea is brewed for four minutes.")
    bucket = place.bucket({"address": {"type": "string"}})
    extractor = SCRAPER | {"input_mappings": {"url": "address"}, "parameters": {"max_depth": 1}}
    collection = place.collection(bucket, extractor)
    source = place.object(bucket, {"address": seed})
    assert place.run(bucket, [source])["status"] == "COMPLETED"
    found = {one["url"]: one for one in place.documents(collection)}
    assert set(found) == {seed, site.url("/lamp"), site.url("/tea")}
    assert found[seed]["crawl"]["refused_by_robots"] == 1
    best, *_ = place.search(
        collection,
        {
            "feature_uri": "mixpeek://web_scraper@v1/multilingual_e5_large_instruct_v1",
            "query": {"input_mode": "text", "value": "what fuel did it use?"},
        },
    )
    assert (best["url"], best["title"]) == (site.url("/lamp"), "/lamp")
    assert best["locator"]["kind"] == "text"

    page(site, "/lamp", "The lamp is electric now.")
    site.serve("/tea", b"", 410)
    assert place.run(bucket, [source])["status"] == "COMPLETED"
    again = {one["url"]: one for one in place.documents(collection)}
    assert set(again) == {seed, site.url("/lamp")}
    lamp = again[site.url("/lamp")]
    assert lamp["document_id"] == found[site.url("/lamp")]["document_id"]
    assert "electric" in lamp["text"]
    assert [item["url"] for item in again[seed]["crawl"]["failed"]] == [site.url("/tea")]


def test_a_crawl_of_what_is_not_public_fails_and_connects_nowhere(place: Place, server: Server) -> None:
    bucket = place.bucket({"address": {"type": "string"}})
    collection = place.collection(bucket, SCRAPER | {"input_mappings": {"url": "address"}})
    batch = place.run(bucket, [place.object(bucket, {"address": f"{server.url}/v1/health"})])
    (failed,) = place.failures(bucket, batch)
    assert "not public" in failed["error"]
    assert place.documents(collection) == []
    refused = {**SCRAPER, "parameters": {"render_strategy": "javascript"}}
    body = {
        "collection_name": "scripts",
        "source": {"type": "bucket", "bucket_ids": [bucket]},
        "feature_extractor": refused,
    }
    assert "not available" in place.refused(422, "POST", "/collections", body)
