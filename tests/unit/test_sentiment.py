"""Labels of texts, on a model whose answers can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessera.errors import BadSample, InferenceServiceUnavailableError
from tessera.extractors.base import Feature, Input, Sample
from tessera.inference import SENTIMENT, Models
from tessera.registry import Registry
from tests.sentiment import write_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_classifier(made / SENTIMENT)
    return made


def share(negative: float, positive: float) -> float:
    return float(np.exp(positive) / (np.exp(negative) + np.exp(positive)))


def test_scores_are_the_models_whatever_stands_beside_a_text(folder: Path) -> None:
    classifier = Models(folder, offline=True).classifier()
    texts = ["Good lamp", "bad bad", "a", "good " * 40 + "bad " * 3_000, "bad"] * 20
    scores = classifier.scores(texts, 512)
    expected = [share(0.1, 2.2), share(3, 0), 0.5, share(36, 80), share(1.5, 0)] * 20
    np.testing.assert_allclose(scores[:, 1], expected, atol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    (cut,) = classifier.scores(["good " * 40 + "bad " * 3_000], 41)
    assert cut[1] == pytest.approx(share(1.5, 80), abs=1e-5)
    assert classifier.scores([], 512).shape == (0, 2)


def test_labels_that_may_hold_at_once(tmp_path: Path) -> None:
    write_classifier(tmp_path / SENTIMENT, problem_type="multi_label_classification")
    (scores,) = Models(tmp_path, offline=True).classifier().scores(["good bad"], 512)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-1.5, -2.0])), atol=1e-5)


@pytest.mark.parametrize("config", [{"id2label": {}}, {"id2label": {"0": "a", "1": "b", "2": "c"}}])
def test_a_folder_of_another_form_says_so(tmp_path: Path, config: dict[str, object]) -> None:
    write_classifier(tmp_path / SENTIMENT, **config)
    with pytest.raises(InferenceServiceUnavailableError, match="label"):
        Models(tmp_path, offline=True).classifier().scores(["good"], 512)


def extracted(folder: Path, text: str, **params: object) -> Feature:
    extractor = Registry.load(folder, offline=True).extractor("sentiment_classifier", "v1")
    (outcome,) = extractor.extract(
        [Sample({"text": Input(text=text)})], extractor.Params.model_validate(params)
    )
    if isinstance(outcome, BadSample):
        raise outcome
    (feature,) = outcome
    return feature


def test_a_text_becomes_a_document_with_its_label(folder: Path) -> None:
    feature = extracted(folder, "A good lamp.")
    assert feature.fields == {
        "text": "A good lamp.",
        "label": "POSITIVE",
        "score": round(share(0.1, 2.2), 4),
        "scores": {"NEGATIVE": round(1 - share(0.1, 2.2), 4), "POSITIVE": round(share(0.1, 2.2), 4)},
    }
    assert not feature.vectors
    feature = extracted(folder, "bad", return_all_scores=False, embed=True)
    assert (feature.fields["label"], "scores" in feature.fields) == ("NEGATIVE", False)
    assert feature.vectors["sentiment_classifier_v1_embedding"].shape == (384,)


def test_without_the_model_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSample, match=f"tessera models pull {SENTIMENT}") as caught:
        extracted(tmp_path, "good")
    assert caught.value.kind == "model_missing"
