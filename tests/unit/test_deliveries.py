"""Deliveries: who sends what when, with several servers, dead ones and slow receivers. Real tables, real HTTP."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tessera import deliveries, events, sealing, secret_store
from tessera.config import Settings
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import namespaces, webhook_deliveries, webhooks
from tessera.deliveries import Deliverer, signature, wait_s
from tessera.models.webhooks import EventType, secret_bytes
from tessera.slots import Slot
from tessera.wiring import close_warehouse, open_warehouse
from tests.receiver import Receiver, hanging, receiving
from tests.unit.rows import insert_namespace
from tests.website import PUBLIC

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Place:
    """A warehouse with one namespace, whose jobs do not run: deliverers are started by the test."""

    def __init__(self, wh: Warehouse) -> None:
        self.wh = wh
        self.alive: set[str] = set()
        self.started: list[Deliverer] = []
        with wh.db.write() as connection:
            insert_namespace(connection, "ns_1", "one")

    def hook(self, name: str, url: str, *, timeout: float = 10.0, **columns: Any) -> None:
        sealed = {"url": self.wh.vault.seal(url), "headers": None, "timeout": timeout}
        values = {
            "event_types": ["object.created"],
            "channels": [{"channel": "webhook", "configs": sealed}],
            "secret": self.wh.vault.seal(SECRET),
            **columns,
        }
        at = now()
        with self.wh.db.write() as connection:
            connection.execute(
                webhooks.insert().values(
                    webhook_id=name,
                    webhook_name=name,
                    organization_id="org_1",
                    created_at=at,
                    updated_at=at,
                    **values,
                )
            )

    def emit(self, *subjects: str) -> None:
        for subject in subjects:
            with self.wh.db.write() as connection:
                events.emit(connection, "ns_1", EventType.OBJECT_CREATED, subject, {})

    def start(self, token: str) -> Deliverer:
        self.alive.add(token)
        deliverer = Deliverer(self.wh, lambda: Slot(0, token), lambda: set(self.alive))
        deliverer.start()
        self.started.append(deliverer)
        return deliverer

    def rows(self, **columns: Any) -> list[Any]:
        which = [webhook_deliveries.c[name] == value for name, value in columns.items()]
        with self.wh.db.read() as connection:
            return list(connection.execute(sa.select(webhook_deliveries).where(*which)).mappings())

    def webhook(self, name: str) -> Any:
        with self.wh.db.read() as connection:
            return (
                connection.execute(sa.select(webhooks).where(webhooks.c.webhook_id == name)).mappings().one()
            )

    def until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "in vain"
            time.sleep(0.01)

    def close(self) -> None:
        for deliverer in self.started:
            deliverer.stop()
        with self.wh.db.write() as connection:
            for table in (webhook_deliveries, webhooks, namespaces):
                connection.execute(table.delete())


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    settings = Settings(
        data=tmp_path_factory.mktemp("deliveries") / "data",
        offline=True,
        fetch_allowed_networks=f"{PUBLIC}/32",
        webhook_retry_s=0.02,
        job_lease_s=1,
    )
    wh = open_warehouse(settings, run_jobs=False)
    yield wh
    close_warehouse(wh)


@pytest.fixture
def place(warehouse: Warehouse) -> Iterator[Place]:
    place = Place(warehouse)
    yield place
    place.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def told(receiver: Receiver, path: str) -> Counter[str]:
    return Counter(call.event["subject"]["id"] for call in receiver.at(path))


# --- pure ------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_reference_implementations() -> None:
    """The example of the Svix libraries, from which Standard Webhooks took its scheme."""
    key = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert key is not None and len(key) == 24
    found = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_AAAA", "whsec_%%%%", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
)
def test_what_is_no_secret(secret: str) -> None:
    assert secret_bytes(secret) is None


def test_waits_grow_differ_and_are_bounded() -> None:
    assert [wait_s(n, 5, 0.5) for n in (1, 2, 3, 4, 20, 10**6)] == [5, 20, 80, 320, 21600, 21600]
    assert (wait_s(1, 5, 0), wait_s(1, 5, 1)) == (4, 6)
    assert wait_s(1, 5, 0.5, retry_after_s=60) == 60
    assert wait_s(1, 5, 0.5, retry_after_s=10**9) == 21600


# --- recording -------------------------------------------------------------------------------------------


def test_what_is_rolled_back_is_not_told(place: Place) -> None:
    place.hook("wh", "http://example.org/")
    woken: list[int] = []
    place.wh.db.listen(events.TOPIC, lambda: woken.append(len(place.rows())))
    with pytest.raises(ZeroDivisionError), place.wh.db.write() as connection:
        events.emit(connection, "ns_1", EventType.OBJECT_CREATED, "obj_1", {})
        raise ZeroDivisionError
    assert place.rows() == [] and woken == []
    place.emit("obj_2")
    assert woken == [1], "told once, when it can be read"


def test_without_a_webhook_for_it_nothing_is_written(place: Place) -> None:
    place.hook("other", "http://example.org/", event_types=["object.deleted"])
    place.hook("paused", "http://example.org/", is_active=False)
    place.emit("obj_1")
    assert place.rows() == []
    with place.wh.db.write() as connection:
        connection.execute(
            sa.update(webhooks).values(organization_id="org_2", event_types=["object.created"])
        )
    place.emit("obj_1")
    assert place.rows() == [], "another organization's"


# --- several servers -------------------------------------------------------------------------------------


def test_each_event_is_sent_by_one_of_several_servers(place: Place, receiver: Receiver) -> None:
    place.hook("wh", receiver.url("/several"))
    subjects = [f"obj_{number}" for number in range(150)]
    for token in ("slot_a", "slot_b", "slot_c"):
        place.start(token)
    place.emit(*subjects)
    place.until(lambda: len(place.rows(status="DELIVERED")) == len(subjects))
    assert told(receiver, "/several") == Counter(subjects)
    assert {row["holder"] for row in place.rows()} == {None}


def test_what_a_dead_server_held_is_sent_by_another(place: Place, receiver: Receiver) -> None:
    place.hook("wh", receiver.url("/inherited"))
    place.emit("obj_1", "obj_2")
    first, second = place.rows()
    with place.wh.db.write() as connection:
        for row, holder in ((first, "slot_dead"), (second, "slot_other")):
            mine = webhook_deliveries.c.delivery_id == row["delivery_id"]
            connection.execute(sa.update(webhook_deliveries).where(mine).values(holder=holder))
    place.alive.add("slot_other")
    place.start("slot_a")
    place.until(lambda: place.rows(status="DELIVERED"))
    assert [row["delivery_id"] for row in place.rows(status="DELIVERED")] == [first["delivery_id"]]
    place.alive.discard("slot_other")
    place.until(lambda: len(place.rows(status="DELIVERED")) == 2)
    assert sum(told(receiver, "/inherited").values()) == 2


def test_what_comes_back_too_late_is_another_server_s_to_record(place: Place, receiver: Receiver) -> None:
    place.hook("wh", receiver.url("/late"))
    place.emit("obj_1")
    with place.wh.db.write() as connection:
        (taken,) = deliveries.take(connection, "wh", 10, "slot_a")
        assert deliveries.take(connection, "wh", 10, "slot_b") == []
    outcome = deliveries.attempt(place.wh, taken, threading.Event())
    with place.wh.db.write() as connection:
        connection.execute(sa.update(webhook_deliveries).values(holder="slot_b"))
        deliveries.record(connection, [outcome], 5, 3600)
    (row,) = place.rows()
    assert (row["status"], row["holder"], row["attempts"]) == ("PENDING", "slot_b", 0)


def test_a_server_that_ends_gives_back_what_it_was_sending(place: Place, receiver: Receiver) -> None:
    released = threading.Event()
    receiver.answers["/slow"] = hanging(released)
    place.hook("wh", receiver.url("/slow"))
    place.emit("obj_1")
    deliverer = place.start("slot_a")
    receiver.wait("/slow")
    deliverer.stop()
    (row,) = place.rows()
    assert (row["status"], row["holder"], row["attempts"]) == ("PENDING", None, 0)
    released.set()


# --- receivers that fail ---------------------------------------------------------------------------------


def test_after_failures_a_webhook_rests_and_one_event_finds_out(place: Place, receiver: Receiver) -> None:
    """A receiver that is down is not asked for each of a thousand events; once it is back they all come."""
    url = receiver.answer("/down", 500)
    place.hook("wh", url)
    subjects = [f"obj_{number}" for number in range(50)]
    place.emit(*subjects)
    place.start("slot_a")
    place.until(lambda: place.webhook("wh")["consecutive_failures"] >= deliveries.REST_AFTER + 4)
    asked, failures = len(receiver.at("/down")), place.webhook("wh")["consecutive_failures"]
    assert asked <= failures + 1, "one at a time"
    assert place.webhook("wh")["rest_until"] > place.webhook("wh")["last_failure_at"]
    receiver.answer("/down", 200)
    place.until(lambda: len(place.rows(status="DELIVERED")) == len(subjects))
    assert place.webhook("wh")["consecutive_failures"] == 0
    assert place.webhook("wh")["rest_until"] == ""


def test_many_receivers_that_never_answer_hold_up_nobody(place: Place, receiver: Receiver) -> None:
    """Nor do those that answer late take all the room: the good one is through while all others still hang."""
    released = threading.Event()
    for number in range(80):
        receiver.answers[f"/dead{number}"] = hanging(released)
        place.hook(f"dead{number}", receiver.url(f"/dead{number}"), timeout=30.0)
    place.hook("good", receiver.url("/good"))
    place.start("slot_a")
    subjects = [f"obj_{number}" for number in range(20)]
    place.emit(*subjects)
    place.until(lambda: len(place.rows(webhook_id="good", status="DELIVERED")) == len(subjects))
    assert told(receiver, "/good") == Counter(subjects)
    with place.wh.db.read() as connection:
        assert connection.execute(sa.select(sa.func.sum(webhooks.c.consecutive_failures))).scalar() == 0
    assert all(len(receiver.wait(f"/dead{number}")) == 1 for number in range(80))
    released.set()


def test_a_receiver_that_is_well_gets_several_at_once_but_not_too_many(
    place: Place, receiver: Receiver
) -> None:
    released = threading.Event()
    place.hook("wh", receiver.url("/lanes"))
    deliverer = place.start("slot_a")
    place.emit("obj_first")
    place.until(lambda: place.rows(status="DELIVERED"))
    receiver.answers["/lanes"] = hanging(released)
    place.emit(*(f"obj_{number}" for number in range(10)))
    receiver.wait("/lanes", 1 + deliveries.LANES)
    deliverer.wake()
    place.until(lambda: len([row for row in place.rows() if row["holder"]]) == deliveries.LANES)
    assert len(receiver.at("/lanes")) == 1 + deliveries.LANES
    receiver.answer("/lanes", 200)
    released.set()
    place.until(lambda: len(place.rows(status="DELIVERED")) >= 7)


def test_late_ones_are_given_up_and_old_ones_forgotten(place: Place) -> None:
    place.hook("wh", "http://example.org/", is_active=False)

    def stamp(days: float) -> str:
        return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    ages = {"young": 1.0, "late": 4.0, "done": 4.0, "old": 8.0}
    with place.wh.db.write() as connection:
        for name, age in ages.items():
            connection.execute(
                webhook_deliveries.insert().values(
                    delivery_id=name,
                    webhook_id="wh",
                    channel=0,
                    event_id=name,
                    event_type="object.created",
                    body=b"{}",
                    status="DELIVERED" if name in ("done", "old") else "PENDING",
                    due_at=stamp(age),
                    created_at=stamp(age),
                    updated_at=stamp(age),
                )
            )
    assert deliveries.sweep(place.wh) is False
    assert {row["delivery_id"]: row["status"] for row in place.rows()} == {
        "young": "PENDING",
        "late": "FAILED",
        "done": "DELIVERED",
    }


def test_a_secret_that_was_lost_is_said(place: Place) -> None:
    """`tessera secrets discard` leaves empty ones behind."""
    place.hook("wh", "http://example.org/", secret=place.wh.vault.seal(""))
    place.emit("obj_1")
    with place.wh.db.write() as connection:
        (taken,) = deliveries.take(connection, "wh", 1, "slot_a")
    outcome = deliveries.attempt(place.wh, taken, threading.Event())
    assert outcome.error is not None and "PUT the webhook anew" in outcome.error
    gone = deliveries.attempt(place.wh, replace(taken, channel=None), threading.Event())
    assert gone.final and gone.error is not None


def test_a_new_master_key_seals_webhooks_anew(place: Place, receiver: Receiver) -> None:
    place.hook("wh", receiver.url("/resealed"))
    old = sealing.read_keys(place.wh.settings.data / "master.key")
    vault = sealing.Vault([b"n" * sealing.KEY_BYTES, *old])
    assert secret_store.reseal_all(place.wh.db, vault) == 2
    only_new = sealing.Vault([b"n" * sealing.KEY_BYTES])
    row = place.webhook("wh")
    assert only_new.unseal(row["secret"]) == SECRET
    assert only_new.unseal(row["channels"][0]["configs"]["url"]) == receiver.url("/resealed")
