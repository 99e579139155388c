"""faster-whisper on a model of one layer with random weights: the real runtime, words that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.inference import Models
from tessera.media import sound
from tessera.transcription import recognise
from tests.media import SPEECH

MODEL = "faster-whisper-tiny.en"
WIDTH, INNER, MELS, STAMPS = 16, 32, 80, 1501
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / MODEL)
    return Models(folder, offline=True)


def write_model(folder: Path) -> None:
    """Write a Whisper in CTranslate2's format, whose last layer prefers letters, so that something is heard."""
    from ctranslate2.specs.whisper_spec import WhisperSpec
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    stamps = [f"<|{number * 0.02:.2f}|>" for number in range(STAMPS)]
    tokens = [*letters, *SPECIAL, *stamps]
    tokenizer = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL, *stamps])
    tokenizer.save(str(folder / "tokenizer.json"))

    def weights(*shape: int) -> Any:
        return random.normal(0, 0.3, shape).astype(np.float32)

    def linear(layer: Any, out: int, into: int) -> None:
        layer.weight, layer.bias = weights(out, into), weights(out)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def attention(layer: Any, *sizes: int) -> None:
        norm(layer.layer_norm)
        for part, size in zip(layer.linear, sizes, strict=True):
            linear(part, size, WIDTH)

    def feed_forward(layer: Any) -> None:
        norm(layer.layer_norm)
        linear(layer.linear_0, INNER, WIDTH)
        linear(layer.linear_1, WIDTH, INNER)

    spec = WhisperSpec(1, 2, 1, 2)
    encoder, decoder = spec.encoder, spec.decoder
    for layer, into in ((encoder.conv1, MELS), (encoder.conv2, WIDTH)):
        layer.weight, layer.bias = weights(WIDTH, into, 3), weights(WIDTH)
    encoder.position_encodings.encodings, decoder.position_encodings.encodings = (
        weights(1500, WIDTH),
        weights(448, WIDTH),
    )
    for side in (encoder, decoder):
        norm(side.layer_norm)
        attention(side.layer[0].self_attention, 3 * WIDTH, WIDTH)
        feed_forward(side.layer[0].ffn)
    attention(decoder.layer[0].attention, WIDTH, 2 * WIDTH, WIDTH)
    decoder.embeddings.weight = weights(len(tokens), WIDTH)
    decoder.projection.weight = 4 * weights(len(tokens), WIDTH)
    decoder.projection.bias = np.array(
        [0.0] * len(letters) + [-2.0] + [-30.0] * (len(SPECIAL) - 1) + [-9.0] * STAMPS, np.float32
    )
    spec.register_vocabulary(tokens)
    spec.config.alignment_heads = [[0, 0]]
    spec.config.suppress_ids = spec.config.suppress_ids_begin = spec.config.lang_ids = []
    spec.validate()
    spec.save(str(folder))


def test_words_come_with_times_inside_their_stretch(models: Models) -> None:
    chosen = models.choose_recogniser(None, "en")
    assert chosen is not None and chosen.model_id == MODEL
    heard = recognise(SPEECH, models, MODEL, "en", [(3.6, 6.5)])
    assert heard.source == MODEL
    assert heard.pieces
    for piece in heard.pieces:
        assert piece.text == piece.text.strip() != ""
        assert 3.6 <= piece.start_s <= piece.end_s <= 6.6


def test_the_same_stretch_twice(models: Models) -> None:
    recogniser = models.recogniser(MODEL)
    ((_, samples),) = sound.stretches(SPEECH, [(0.4, 2.9)], 30)
    assert recogniser.words(samples, "en") == recogniser.words(samples, "en")
