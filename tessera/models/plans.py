"""Plans: what extracting sources would take, before any of it is done."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model

SourceKind = Literal["video", "audio", "image", "pdf", "text", "other"]
Basis = Literal["measured", "other_parameters", "none"]

#: So many sources one plan may have, each as often as its `count` says.
MAX_SOURCES = 100_000


class PlannedSource(Model):
    """A source by its measures; those that do not apply to its kind are left out."""

    kind: SourceKind
    count: int = Field(1, ge=1, le=MAX_SOURCES, description="So many sources with these measures.")
    size_bytes: int = Field(0, ge=0, le=2**50)
    duration_s: float = Field(0.0, ge=0, le=1e7, description="Of video and sound.")
    width: int = Field(0, ge=0, le=100_000, description="In pixels, of video and pictures.")
    height: int = Field(0, ge=0, le=100_000)
    frames_per_s: float = Field(0.0, ge=0, le=1000, description="Of video; 0 stands for 25.")
    pages: int = Field(0, ge=0, le=1_000_000, description="Of PDF files.")
    characters: int = Field(0, ge=0, le=2**40, description="Of texts.")
    is_measured: bool = Field(
        True, description="False: only kind and size are known; the others of its kind stand for it."
    )


class PlannedGroup(Model):
    """Sources that one extractor is to take."""

    feature_extractor_name: str = Field(max_length=256)
    version: str = Field("v1", max_length=64)
    parameters: JsonObject | None = None
    sources: list[PlannedSource] = Field(min_length=1, max_length=10_000)


class PlanSourcesRequest(Model):
    """Sources that are nowhere yet, by their measures: groups are batches that run side by side."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "groups": [
                        {
                            "feature_extractor_name": "video_extractor",
                            "version": "v1",
                            "sources": [{"kind": "video", "duration_s": 3600, "width": 1280, "height": 720}],
                        }
                    ]
                }
            ]
        }
    )

    groups: list[PlannedGroup] = Field(min_length=1, max_length=100)


class PlanBatchRequest(Model):
    """Objects of a bucket, all of them unless some are named, and the collections that would process them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object_ids": ["obj_0f3a9c5e77d1b2c4"]}]})

    object_ids: list[str] | None = Field(None, min_length=1, max_length=MAX_SOURCES)
    collection_ids: list[str] | None = Field(None, min_length=1, max_length=1000)


class PlannedExtractor(Model):
    """What one collection, or one group, would take. `basis` says from whose rates; ``none``: there are none."""

    collection_id: str | None = None
    feature_extractor_name: str
    version: str
    sources: int = Field(description="How many would be extracted.")
    unchanged: int = Field(0, description="How many are as they were: they cost nothing.")
    unmeasured: int = Field(0, description="How many could not be measured; the others stand for them.")
    amounts: dict[str, dict[str, float]] = Field(description="By kind of source: files, seconds, pages …")
    worker_seconds: float | None = Field(description="Time of workers, all together.")
    documents: int | None
    disk_bytes: int | None = Field(description="Artifacts, files such as thumbnails, and the index.")
    basis: Basis


class PlanResponse(Model):
    """A prediction. What no rate is known of counts nothing in the totals, and `is_complete` is false then."""

    seconds: float | None = Field(description="From submitting to COMPLETED, on this server as it is now.")
    documents: int | None
    disk_bytes: int | None = Field(description="What would be added, besides the sources themselves.")
    source_bytes: int = Field(description="Size of the sources.")
    workers: int
    is_complete: bool
    extractors: list[PlannedExtractor]
    advice: str | None = Field(description="What would make the prediction better.")
