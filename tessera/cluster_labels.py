"""Labels of clusters by the language model of the settings, where a cluster asks for them.

The model is shown, of each group, its terms and the texts that lie nearest to its centre, several groups at a time, so
that it can tell them apart. What it says is taken group by group; one that it has no usable label for keeps its terms,
and so do all when the model cannot be asked: an execution does not fail for want of a name.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tessera.budget import Budget, BudgetSpent
from tessera.clustering import Floats, Integers
from tessera.language import NOT_SET, LanguageError, LanguageModel, Prompt, Reply
from tessera.models.base import JsonObject
from tessera.models.clusters import LlmLabeling
from tessera.stages.asking import by_id, results_of
from tessera.stages.outside import unfit

#: Most groups that are named, the largest first; and how many of them in one prompt.
MAX_LABELLED, _AT_ONCE = 200, 8
LABEL_CHARS, SUMMARY_CHARS, KEYWORD_CHARS, KEYWORDS = 200, 2000, 60, 10
#: All prompts of one execution end within this time.
_LIMIT_S = 900.0
#: How often it is asked whether the execution still is to go on while the model answers.
_POLL_S = 0.5
_TASK = (
    "Each item of `data` is a group of documents that belong together: `terms` that are frequent in it and rare in the "
    "others, and the beginnings of some of its documents. Name each group with a `label` of two to six words that says "
    "what its documents have in common and sets it apart from the other groups, in the language of the documents."
)
_SUMMARY = " Describe it in a `summary` of one or two sentences."
_KEYWORDS = f" Give up to {KEYWORDS} `keywords`."


def label(
    model: LanguageModel | None,
    asked: LlmLabeling,
    folder: Path,
    result: JsonObject,
    labels: Integers,
    distances: Floats,
    still_wanted: Callable[[], None],
) -> None:
    """Name the groups of `result`, whose texts are in `folder`, in place; `llm_labeling` tells how that went.

    `still_wanted` is called while the model thinks, and raises when it need not think any longer.
    """
    groups = result["centroids"][:MAX_LABELLED]
    told: JsonObject = {"model": None, "labelled": 0, "llm_calls": 0, "tokens_used": 0, "error": None}
    result["llm_labeling"] = told
    if model is None:
        told["error"] = f"Labels are terms: {NOT_SET}."
        return
    told["model"] = model.which(asked.model_name)
    samples = _samples(folder, labels, distances, len(groups), asked)
    data = [{"terms": group["keywords"], "documents": samples[number]} for number, group in enumerate(groups)]
    budget = Budget(wait_s=_LIMIT_S)
    waiting = list(_batches(data, model.max_prompt_chars - len(asked.custom_prompt or _TASK) - 4000))
    while waiting:
        numbers = waiting.pop(0)
        try:
            reply = _ask(model, _prompt(asked, data, numbers), budget, still_wanted)
        except BudgetSpent as error:
            told["error"] = error.message
            return
        except LanguageError as error:
            told["llm_calls"] += error.calls
            told["tokens_used"] += error.tokens
            told["error"] = error.message
            if error.kind in ("unreachable", "refused"):
                return  # so would be all others
            if len(numbers) > 1:
                waiting = [[number] for number in numbers] + waiting
            continue
        told["llm_calls"] += reply.calls
        told["tokens_used"] += reply.tokens
        found = by_id(reply.value)
        for number in numbers:
            given = _readable(found.get(number + 1), asked)
            if given is None:
                told["error"] = (
                    "The language model had no usable label for some groups; these keep their terms."
                )
                continue
            groups[number] |= given
            told["labelled"] += 1


def _ask(model: LanguageModel, prompt: Prompt, budget: Budget, still_wanted: Callable[[], None]) -> Reply:
    """Return the reply, from a thread that nobody waits for when the execution ends before it."""
    done: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            done.put(model.ask(prompt, budget))
        except Exception as error:  # noqa: BLE001  raised again by who waits
            done.put(error)

    threading.Thread(target=ask, name="cluster-labels", daemon=True).start()
    while True:
        try:
            found = done.get(timeout=_POLL_S)
        except queue.Empty:
            still_wanted()
            continue
        if isinstance(found, Exception):
            raise found
        return found


def _prompt(asked: LlmLabeling, data: Sequence[JsonObject], numbers: Sequence[int]) -> Prompt:
    task = asked.custom_prompt or (
        _TASK + _SUMMARY * asked.include_summary + _KEYWORDS * asked.include_keywords
    )
    if asked.labeling_context:
        task += f"\n\nWhat the documents are, by who keeps them: {asked.labeling_context}"
    properties: JsonObject = {"label": {"type": "string"}}
    if asked.include_summary:
        properties["summary"] = {"type": "string"}
    if asked.include_keywords:
        properties["keywords"] = {"type": "array", "items": {"type": "string"}}
    item = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return Prompt(
        f"{task}\n\nReply with one result for each item of `data`, under its `id`.",
        [{"id": number + 1, **data[number]} for number in numbers],
        results_of(item),
        max_tokens=min(16_000, 500 * len(numbers) + 500),
        model=asked.model_name,
    )


def _samples(
    folder: Path, labels: Integers, distances: Floats, count: int, asked: LlmLabeling
) -> list[list[str]]:
    """Return the beginnings of the texts that lie nearest to the centre of each of the first `count` groups."""
    near: list[list[int]] = []
    for number in range(count):
        rows = np.flatnonzero(labels == number)
        # Some have no text: twice as many are looked at.
        order = np.argsort(distances[rows], kind="stable")[: 2 * asked.max_samples_per_cluster]
        near.append(rows[order].tolist())
    wanted = {row for rows in near for row in rows}
    texts: dict[int, str] = {}
    with (folder / "texts.jsonl").open(encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            if row in wanted:
                texts[row] = str(json.loads(line)).strip()[: asked.sample_text_max_length]
    return [[texts[row] for row in rows if texts[row]][: asked.max_samples_per_cluster] for rows in near]


def _batches(data: Sequence[JsonObject], max_chars: int) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for number, item in enumerate(data):
        own = len(orjson.dumps(item)) + 40
        if batch and (len(batch) >= _AT_ONCE or size + own > max_chars):
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += own
    if batch:
        yield batch


def _readable(given: Any, asked: LlmLabeling) -> JsonObject | None:
    """Return what a reply says of a group, cut to what a label is; None without a usable label."""
    if not isinstance(given, Mapping) or unfit(given) is not None:
        return None
    named = given.get("label")
    name = " ".join(named.split()) if isinstance(named, str) else ""
    if not name:
        return None
    found: JsonObject = {"label": name[:LABEL_CHARS]}
    summary, keywords = given.get("summary"), given.get("keywords")
    if asked.include_summary and isinstance(summary, str) and summary.strip():
        found["summary"] = summary.strip()[:SUMMARY_CHARS]
    if asked.include_keywords and isinstance(keywords, list):
        words = [word.strip()[:KEYWORD_CHARS] for word in keywords if isinstance(word, str) and word.strip()]
        if words:
            found["keywords"] = words[:KEYWORDS]
    return found
