"""A film with a voice and words in its picture, and a recording: what is said and shown is found, with its time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tessera import sample_media
from tessera.reading import alike
from tests.http.loop import Loop, encoded
from tests.http.processes import Server
from tests.media import SAID, SPEECH, sound_as

SAID_URI = "mixpeek://video_extractor@1.0.0/multilingual_e5_large_instruct_v1"
#: Eleven seconds: two phrases are shown, two sentences are said to their end.
SHOTS, PHRASES = sample_media.FILM_SHOTS[:2], sample_media.PHRASES[:2]


@pytest.fixture(scope="module")
def loop(server: Server) -> Iterator[Loop]:
    with server.client() as client:
        body = {
            "namespace_name": "film_and_sound",
            "feature_extractors": [{"feature_extractor_name": "video_extractor", "version": "1.0.0"}],
        }
        made = client.post("/v1/namespaces", json=body)
        assert made.status_code == 200, made.text
        yield Loop(client, made.json())
        client.delete(f"/v1/namespaces/{made.json()['namespace_id']}")


@pytest.fixture(scope="module")
def film(loop: Loop) -> str:
    """The collection of the film."""
    bucket = loop.bucket({"film": {"type": "video"}})
    collection = loop.collection(
        bucket,
        {
            "feature_extractor_name": "video_extractor",
            "version": "1.0.0",
            "parameters": {"split_method": "silence", "run_ocr": True, "enable_segment_clips": True},
        },
    )
    data = sample_media.film(SPEECH, shots=SHOTS, phrases=PHRASES, moving=False)
    made = loop.object(bucket, {"blobs": [{"property": "film", "type": "video", "data": encoded(data)}]})
    assert loop.run(bucket, [made])["status"] == "COMPLETED"
    return collection


def search(loop: Loop, collection: str, words: str) -> list[Any]:
    retriever = loop.post(
        "/retrievers",
        {
            "retriever_name": f"{collection} {words}",
            "collection_identifiers": [collection],
            "input_schema": {"query": {"type": "text", "required": True}},
            "stages": [
                {
                    "stage_type": "filter",
                    "stage_id": "feature_search",
                    "parameters": {
                        "feature_uri": SAID_URI,
                        "input": {"text": "{{INPUT.query}}"},
                        "limit": 5,
                    },
                }
            ],
        },
    )["retriever_id"]
    found = loop.post(f"/retrievers/{retriever}/execute", {"inputs": {"query": words}})
    return list(found["documents"])


@pytest.mark.parametrize("line", PHRASES, ids=lambda line: line.text)
def test_words_in_the_picture_are_found_with_their_time(
    loop: Loop, film: str, line: sample_media.Line
) -> None:
    best, *_ = search(loop, film, line.text)
    assert alike(best["ocr_text"], line.text), "a letter may be misread"
    assert best["start_time"] == pytest.approx(line.start_s, abs=1)
    assert best["end_time"] == pytest.approx(line.end_s, abs=1)
    place = best["locator"]
    assert (place["kind"], place["width"], place["height"]) == ("time", 640, 480)
    assert place["start_ms"] == round(best["start_time"] * 1000)
    left, top, right, bottom = place["bbox"]
    assert left == pytest.approx(90, abs=15)
    assert 370 < top < bottom < 430
    assert left < right < 420


@pytest.mark.parametrize(
    ("query", "number"), [("quiet port before dawn", 0), ("a man with bread in a basket", 1)]
)
def test_a_sentence_that_was_spoken_is_found_with_its_time(
    loop: Loop, film: str, query: str, number: int
) -> None:
    best, *_ = search(loop, film, query)
    line = SAID[number]
    assert best["transcription_source"] == "pocketsphinx-en-us"
    assert best["locator"] == {
        "kind": "time",
        "start_ms": round(best["start_time"] * 1000),
        "end_ms": round(best["end_time"] * 1000),
    }
    assert best["start_time"] == pytest.approx(line["start_time"], abs=1)
    assert best["words"][0]["start_time"] == pytest.approx(line["start_time"], abs=0.5)
    assert best["words"][-1]["end_time"] == pytest.approx(line["end_time"], abs=0.5)


def test_each_span_has_its_own_clip(loop: Loop, film: str, client: httpx.Client) -> None:
    spans = [one for one in loop.documents(film, return_url=True) if "video_segment_url" in one]
    assert len(spans) >= 3
    for span in spans:
        answer = client.get(span["video_segment_url"])
        assert answer.status_code == 200
        assert answer.content[4:8] == b"ftyp"


def test_a_recording_is_an_input_of_its_own(loop: Loop, tmp_path: Any) -> None:
    bucket = loop.bucket({"recording": {"type": "audio"}})
    extractor = {"feature_extractor_name": "multimodal_extractor", "version": "v1"}
    collection = loop.collection(bucket, {**extractor, "parameters": {"split_method": "silence"}})
    sound = sound_as(SPEECH, tmp_path / "speech.mp3", "libmp3lame", until_s=6.9).read_bytes()
    made = loop.object(
        bucket, {"blobs": [{"property": "recording", "type": "audio", "data": encoded(sound)}]}
    )
    assert loop.run(bucket, [made])["status"] == "COMPLETED"
    best, *_ = search(loop, collection, "somebody brings bread")
    assert best["start_time"] == pytest.approx(SAID[1]["start_time"], abs=1)
    assert best["end_time"] == pytest.approx(SAID[1]["end_time"], abs=1)


def test_a_language_that_no_model_knows_is_refused_when_it_is_sent(loop: Loop) -> None:
    bucket = loop.bucket({"recording": {"type": "audio"}})
    extractor = {"feature_extractor_name": "video_extractor", "version": "1.0.0"}
    body = {"collection_name": "klingon", "source": {"type": "bucket", "bucket_ids": [bucket]}}
    sent = {**extractor, "parameters": {"transcription_language": "klingon"}}
    said = loop.refused(422, "POST", "/collections", {**body, "feature_extractor": sent})
    assert "feature_extractor.parameters.transcription_language" in said and "klingon" in said
    assert "send one of af, am, " in said and "or null" in said
    space = {"namespace_name": "qo_nos"}
    of_space = {**extractor, "params": {"transcription_language": "klingon"}}
    said = loop.refused(422, "POST", "/namespaces", {**space, "feature_extractors": [of_space]})
    assert "feature_extractors[0].params.transcription_language" in said
    for number, language in enumerate(("en-GB", "ENG", "de", "deu", "yue", None)):
        sent = {**extractor, "parameters": {"transcription_language": language}}
        loop.post("/collections", {**body, "collection_name": f"said_{number}", "feature_extractor": sent})


def test_a_collection_with_a_language_that_was_stored_before_still_opens(loop: Loop, server: Server) -> None:
    bucket = loop.bucket({"recording": {"type": "audio"}})
    extractor = {"feature_extractor_name": "video_extractor", "version": "1.0.0"}
    collection = loop.collection(bucket, {**extractor, "parameters": {"transcription_language": "uk"}})
    with sqlite3.connect(server.data / "tessera.sqlite3") as database:
        database.execute(
            "UPDATE collections SET feature_extractor = replace(feature_extractor, '\"uk\"', '\"klingon\"') "
            "WHERE collection_id = ?",
            (collection,),
        )
    shown = loop.get(f"/collections/{collection}")
    assert shown["feature_extractor"]["parameters"]["transcription_language"] == "klingon"
    assert shown["vector_indexes"]


def test_a_model_of_speech_that_is_not_installed_is_refused_with_the_command(loop: Loop) -> None:
    bucket = loop.bucket({"recording": {"type": "audio"}})
    extractor = {
        "feature_extractor_name": "video_extractor",
        "version": "1.0.0",
        "parameters": {"transcription_model": "faster-whisper-small"},
    }
    body = {
        "collection_name": "deaf",
        "source": {"type": "bucket", "bucket_ids": [bucket]},
        "feature_extractor": extractor,
    }
    said = loop.refused(400, "POST", "/collections", body)
    assert "tessera models pull faster-whisper-small" in said or "tessera[speech]" in said
