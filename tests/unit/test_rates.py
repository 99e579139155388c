"""Rates and forecasts: what is fitted from chunks that ran, and how a batch's time is put together from it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tessera import forecast, rates
from tessera.db.engine import Database
from tessera.db.migrate import migrate
from tessera.forecast import Load
from tessera.measures import AMOUNTS, Cost, Measure, Used, measure_files, measure_inputs, summed
from tessera.rates import BATCH, FIRST_BATCH, Known, Moments, Rates, Seen, makespan
from tests.media import SPEECH

NAMES = ("files", "seconds", "gigapixels")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'tessera.sqlite3'}")
    migrate(db)
    yield db
    db.close()


def seen(rows: list[tuple[tuple[float, ...], float]]) -> Moments:
    moments = Moments(NAMES, 200)
    for amounts, seconds in rows:
        moments.add(amounts, {"seconds": seconds})
    return moments


def predicted(moments: Moments, amounts: tuple[float, ...]) -> float:
    return float(
        sum(weight * amount for weight, amount in zip(moments.weights("seconds"), amounts, strict=True))
    )


def test_one_chunk_gives_a_rate_of_its_main_amount() -> None:
    moments = seen([((1, 60, 1.4), 30.0)])
    assert moments.weights("seconds") == (0, pytest.approx(0.5), 0)
    assert predicted(moments, (1, 3600, 80)) == pytest.approx(1800)


def test_weights_are_found_again_where_the_chunks_tell_them_apart() -> None:
    chunks = [
        ((files, seconds, giga), 2 * files + 0.5 * seconds + 3 * giga)
        for files, seconds, giga in ((1, 10, 1), (5, 10, 4), (2, 300, 2), (9, 40, 90), (3, 3, 0.1))
    ]
    assert seen(chunks).weights("seconds") == pytest.approx((2, 0.5, 3), rel=1e-6)


def test_noise_makes_no_weight_negative_and_no_prediction_wild() -> None:
    rng = random.Random(4)
    chunks = []
    for _ in range(40):
        files = rng.randint(1, 64)
        seconds = files * rng.uniform(1, 20)
        chunks.append(((files, seconds, seconds / 40), 0.3 * seconds * rng.uniform(0.7, 1.4)))
    moments = seen(chunks)
    assert min(moments.weights("seconds")) >= 0
    for files, seconds in ((1, 5), (10, 100), (64, 3600)):
        assert 0.2 * seconds < predicted(moments, (files, seconds, seconds / 40)) < 0.45 * seconds


def test_what_is_older_counts_less() -> None:
    moments = seen([((1, 10, 1), 10.0)] * 600 + [((1, 10, 1), 20.0)] * 600)
    assert predicted(moments, (1, 10, 1)) == pytest.approx(20, rel=0.15)


def test_what_an_attempt_added_up_by_itself_counts_as_if_each_chunk_had_been_kept(db: Database) -> None:
    """Half of it is older, so that what fades is seen; two batches here, one there."""
    amounts = [(float(n % 7 + 1), n / 3) for n in range(300)]
    chunks = [
        Used("text", 0.01 * a + 0.2 * b, ((((a, b), n % 5, n * 10)),)) for n, (a, b) in enumerate(amounts)
    ]
    straight = Rates(AMOUNTS["text"])
    for number, used in enumerate(chunks):
        straight.add_chunk(used, load_s=1.0 if number % 100 == 0 else 0.0)
    for start in (0, 150):
        found = Seen()
        for number, used in enumerate(chunks[start : start + 150], start):
            load_s = 1.0 if number % 100 == 0 else 0.0
            found.add("col_1", "text_extractor", "hash", Cost(used.seconds + load_s, load_s, (used,)))
        with db.write() as connection:
            rates.record(connection, "here", found, wall_s=None, workers=2, is_first=False)
    with db.read() as connection:
        kept, _ = rates.known_at(connection, "here", ["text_extractor"]).of("text_extractor", "hash", "text")
    assert kept is not None
    for mine, theirs in zip(kept.weights(), straight.weights(), strict=True):
        assert mine == pytest.approx(theirs)
    assert kept.per_file() == pytest.approx(straight.per_file())
    assert kept.loading_s() == straight.loading_s() == 1.0


def test_time_is_told_by_chunks_and_documents_by_sources() -> None:
    """Texts of any length are one document each; a chunk alone could not tell."""
    rates_ = Rates(("files", "kilocharacters"))
    rows = tuple(((1.0, length), 1, 100) for length in (0.1, 1.0, 7.0))
    rates_.add_chunk(Used("text", 4.05, rows), load_s=1.5)
    rates_.add_chunk(Used("text", 8.1, rows * 2), load_s=0.0)
    again = Rates.from_json(orjson.loads(orjson.dumps(rates_.to_json())))
    took = again.weights().of((1, 20.0))
    assert took.seconds == pytest.approx(10)
    assert (took.documents, took.size_bytes) == (pytest.approx(1), pytest.approx(100))
    assert (again.per_file().seconds, again.loading_s()) == (pytest.approx(1.35), 1.5)


@pytest.mark.parametrize(
    ("items", "workers", "took"),
    [([], 2, 0), ([5], 2, 5), ([5, 1, 1, 1], 2, 5), ([4, 4, 4], 2, 8), ([3, 3, 3], 1, 9)],
)
def test_makespan(items: list[float], workers: int, took: float) -> None:
    assert makespan(items, workers) == took


def attempt(seconds: float, *, rows: int = 64) -> Seen:
    """Two chunks of `rows` texts of a thousand characters, each `seconds` long."""
    found = Seen()
    for _ in range(2):
        used = Used("text", seconds, (((1.0, 1.0), 1, 1000),) * rows)
        found.add("col_1", "text_extractor", "hash", Cost(seconds + 1.5, 1.5, (used,)))
    return found


def test_a_forecast_is_chunks_on_workers_loading_and_what_a_batch_takes_beside(db: Database) -> None:
    with db.write() as connection:
        rates.record(connection, "here", attempt(4.0), wall_s=8.5, workers=2, is_first=True)
        rates.record(connection, "here", attempt(4.0), wall_s=6.0, workers=2, is_first=False)
    with db.read() as connection:
        known = rates.known_at(connection, "here", ["text_extractor"])
        assert not rates.known_at(connection, "elsewhere", ["text_extractor"]).by_key
    # 160 texts are three chunks, of 64, 64 and 32: four seconds, then two.
    load = Load({}, "text_extractor", "hash", [Measure("text", 1000, characters=1000)] * 160)
    part = forecast.predict(load, known)
    assert part.chunks == pytest.approx((4, 4, 2))
    assert (part.documents, part.size_bytes, part.basis) == (160, pytest.approx(320_000), "measured")

    def took(*, warm: frozenset[str] | None, side_by_side: bool = False, parts: int = 1) -> float:
        return forecast.duration([part] * parts, known, 2, side_by_side=side_by_side, warm=warm)

    here = frozenset({"text_extractor"})
    assert took(warm=here) == pytest.approx(6 + 0.5)
    assert took(warm=frozenset()) == pytest.approx(6 + 1.5 + 0.5)
    assert took(warm=None) == pytest.approx(6 + 1.5 + 3)
    # Two batches of it: one collection after the other, or all chunks as workers are free.
    assert took(warm=here, parts=2) == pytest.approx(12 + 0.5)
    assert took(warm=here, parts=2, side_by_side=True) == pytest.approx(10 + 0.5)


def test_what_an_extractor_reads_elsewhere_is_a_chunk_for_each_source(db: Database) -> None:
    with db.write() as connection:
        rates.record(connection, "here", attempt(4.0), wall_s=None, workers=2, is_first=False)
    with db.read() as connection:
        known = rates.known_at(connection, "here", ["text_extractor"])
    load = Load(
        {}, "text_extractor", "hash", [Measure("text", 1000, characters=1000)] * 3, reads_elsewhere=True
    )
    assert len(forecast.predict(load, known).chunks) == 3


def test_whose_rates_stand_for_others_is_told(db: Database) -> None:
    with db.write() as connection:
        rates.record(connection, "here", attempt(4.0), wall_s=None, workers=2, is_first=False)
    with db.read() as connection:
        known = rates.known_at(connection, "here", ["text_extractor"])
    one = [Measure("text", 1000, characters=1000)]
    basis = {
        name: forecast.predict(load, known).basis
        for name, load in {
            "same": Load({}, "text_extractor", "hash", list(one)),
            "other parameters": Load({}, "text_extractor", "another", list(one)),
            "other kind": Load({}, "text_extractor", "hash", [Measure("pdf", pages=3)]),
            "other extractor": Load({}, "image_extractor", "hash", [Measure("image", 9, width=9, height=9)]),
            "documents of another collection": Load({}, "text_extractor", "hash", unmeasured=10),
        }.items()
    }
    assert basis == {
        "same": "measured",
        "other parameters": "other_parameters",
        "other kind": "none",
        "other extractor": "none",
        "documents of another collection": "measured",
    }
    # What could not be measured is like the others of its load.
    part = forecast.predict(Load({}, "text_extractor", "hash", list(one), unmeasured=3), known)
    assert (part.chunks, part.documents) == ((pytest.approx(0.25),), pytest.approx(4))


def test_what_a_batch_takes_beside_is_kept_only_when_it_was_seen(db: Database) -> None:
    with db.write() as connection:
        rates.record(connection, "here", attempt(4.0), wall_s=None, workers=2, is_first=False)
        assert Known(rates._read(connection, "here", [""])).around(is_first=False) is None
        rates.record(connection, "here", attempt(4.0), wall_s=6.5, workers=2, is_first=True)
        found = Known(rates._read(connection, "here", [""]))
    assert {kind for _, _, kind in found.by_key} == {FIRST_BATCH}
    assert BATCH not in {kind for _, _, kind in found.by_key}
    around = found.around(is_first=False)
    assert around is not None
    assert around.weights().of((1, 0)).seconds == pytest.approx(1.0)


def test_files_are_measured_by_their_headers(tmp_path: Path) -> None:
    from tessera import sample_media, sample_pages

    (tmp_path / "film.mp4").write_bytes(sample_media.video(shots=sample_media.SHOTS[:2]))
    (tmp_path / "red.png").write_bytes(sample_media.pictures()["red-circle.png"])
    (tmp_path / "report.pdf").write_bytes(sample_pages.report())
    (tmp_path / "note.txt").write_text("A lighthouse.")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 no")
    names = {
        "film.mp4": "video",
        "red.png": "image",
        "report.pdf": "pdf",
        "note.txt": "text",
        "bad.pdf": "pdf",
    }
    film, red, report, note, bad, speech = measure_files(
        [*((str(tmp_path / name), kind) for name, kind in names.items()), (str(SPEECH), "audio")]
    )
    assert film is not None and red is not None and report is not None and note is not None
    length = sum(shot.seconds for shot in sample_media.SHOTS[:2])
    assert (film.duration_s, film.width, film.height) == (pytest.approx(length, abs=0.2), 320, 240)
    assert red.width * red.height > 0
    assert (report.pages, note.characters, bad) == (3, 13, None)
    assert speech is not None and speech.duration_s > 10
    # Sound alone in a container of films, and what decides of several inputs.
    assert measure_files([(str(SPEECH), "video")]) == [speech]
    both = measure_inputs([("words", None, None), (None, tmp_path / "film.mp4", "video/mp4")])
    assert both == film
    (used,) = summed([(film, 2.0, 3, 100), (film, 4.0, 3, 100)])
    assert used.amounts()[:2] == (2, pytest.approx(2 * film.duration_s))
    assert (used.seconds, used.rows[0][1:]) == (6, (3, 100))
