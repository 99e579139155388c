"""The database: short read and write transactions, and one group-committing writer for what may lag.

SQLite runs in WAL mode with ``synchronous=FULL``: a write transaction that returned survives power
loss. Writers queue on a lock instead of on SQLite's busy handler, so that they are served in turn.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tessera.db.version import DataVersion, Version
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    ConflictError,
    InsufficientStorageError,
    StorageUnavailableError,
    TesseraError,
)

logger = logging.getLogger("tessera.db")

#: Emptying the write-ahead log waits so long for readers; all writers wait with it.
_CHECKPOINT_PATIENCE_MS = 100
_BUSY_TIMEOUT_S = 30
#: What SQLite says of the disk. "malformed" is also what a read that failed (EIO) becomes inside a statement.
_STORAGE_WORDS = (
    "disk is full", "no space", "disk i/o", "unable to open", "locked", "readonly", "malformed", "not a database",
)  # fmt: skip

#: Of SQL's error codes: a row with the same key is there, and a row that is referred to is not.
_UNIQUE_VIOLATION, _FOREIGN_KEY_VIOLATION = "23505", "23503"


def now() -> str:
    """Return the present time as the database holds it: RFC 3339, UTC, microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Database:
    """Connections to the metadata database at `url` (``sqlite:///…`` or ``postgresql+…``).

    Without `durable` SQLite does not wait for the disk: for what is worth nothing after a loss of power.
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        self.engine = _make_engine(url, durable=durable)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._write_lock = threading.Lock() if self.is_sqlite else contextlib.nullcontext()
        self._version = DataVersion(self.engine) if self.is_sqlite else None
        self._later: queue.SimpleQueue[Callable[[Connection], None] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._writer_lock = threading.Lock()
        self._listeners: defaultdict[str, list[Callable[[], object]]] = defaultdict(list)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read transaction: everything read inside belongs to one moment."""
        with _storage_errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    def version(self) -> Version | None:
        """Return what is another value once anybody, here or in another process, has committed anything.

        Read before rows, it says later whether they are as they were. None when that cannot be known: elsewhere than
        on SQLite, always.
        """
        return None if self._version is None else self._version.read()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a write transaction; it commits when the block ends and rolls back when it raises.

        Keep blob and engine I/O outside: other writers wait.
        """
        topics: set[str] = set()
        with _storage_errors(), self._write_lock, self.engine.connect() as connection:
            writing = connection.execution_options(tessera_write=True, tessera_topics=topics)
            with writing.begin():
                yield writing
        for topic in topics:
            for call in self._listeners[topic]:
                call()

    def listen(self, topic: str, call: Callable[[], object]) -> None:
        """Have `call` called after each transaction of this process that committed a `notify` of `topic`.

        In the thread of the transaction: `call` only wakes somebody up.
        """
        self._listeners[topic].append(call)

    def later(self, work: Callable[[Connection], None]) -> None:
        """Queue `work` for the group-committing writer; no caller waits for it and a crash may lose it.

        For what need not be exact: `last_used_at`, usage, the durable mark of a view.
        """
        with self._writer_lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_behind, name="db-writer", daemon=True)
                self._writer.start()
        self._later.put(work)

    def forget_deleted(self) -> bool:
        """Empty SQLite's write-ahead log, in which rows that were deleted live on; elsewhere nothing to do.

        Returns whether it is empty now: a reader that is under way keeps it until the next time.
        """
        if not self.is_sqlite:
            return True
        with _storage_errors(), self._write_lock:
            connection = self.engine.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute(f"PRAGMA busy_timeout={_CHECKPOINT_PATIENCE_MS}")
                try:
                    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    ((was_busy, _, _),) = cursor.fetchall()
                except self.engine.dialect.loaded_dbapi.Error as error:
                    logger.warning("the write-ahead log could not be emptied now: %s", error)
                    was_busy = True
                finally:
                    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_S * 1000}")
                    cursor.close()
            finally:
                connection.close()
        return not was_busy

    def close(self) -> None:
        """Finish queued writes and close all connections."""
        with self._writer_lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            self._later.put(None)
            writer.join(timeout=10)
        if self._version is not None:
            self._version.close()
        self.engine.dispose()

    def _write_behind(self) -> None:
        ending = False
        while not ending:
            batch = [self._later.get()]
            while len(batch) < 500:
                try:
                    batch.append(self._later.get_nowait())
                except queue.Empty:
                    break
            ending = None in batch
            work = [item for item in batch if item is not None]
            if work:
                self._commit_together(work)

    def _commit_together(self, work: list[Callable[[Connection], None]]) -> None:
        try:
            with self.write() as connection:
                for item in work:
                    item(connection)
        except Exception as error:  # noqa: BLE001  whatever one of them raised must not end the only writer
            # What lags may be lost: each of these values is written again later or recomputed.
            if len(work) > 1:
                for item in work:
                    self._commit_together([item])
            else:
                logger.warning("a value that may lag was not written: %s: %s", type(error).__name__, error)


def notify(connection: Connection, topic: str) -> None:
    """Tell who listens to `topic` (see `Database.listen`), once the transaction of `connection` has committed."""
    connection.get_execution_options()["tessera_topics"].add(topic)


def insert_or_replace(connection: Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert `rows`, replacing those whose primary key exists."""
    if rows:
        connection.execute(_replacing(_insert(connection, table), table, rows[0]), rows)


def insert_for_each(
    connection: Connection, table: sa.Table, texts: Sequence[str], row: Callable[[Any], dict[str, Any]]
) -> None:
    """Insert, or replace, a row for each of `texts`.

    `row` is given a text and returns its row: values that are the same for all, the text, a text before it (``+``), or
    a list of these. SQLite gets all texts as one, which saves three quarters of what a thousand rows cost; there `row`
    is given the column of them.
    """
    if connection.dialect.name != "sqlite":
        insert_or_replace(connection, table, [row(text) for text in texts])
        return
    columns = {name: _selected(value) for name, value in row(_listed(texts)).items()}
    given = sa.select(*columns.values()).where(sa.true())  # else ON CONFLICT would be the condition of a join
    statement = _insert(connection, table).from_select(list(columns), given)
    connection.execute(_replacing(statement, table, columns))


def is_among(connection: Connection, column: sa.Column[Any], texts: Sequence[str]) -> sa.ColumnElement[bool]:
    """Return the condition that `column` is one of `texts`; SQLite gets them as one."""
    return column.in_(sa.select(_listed(texts)) if connection.dialect.name == "sqlite" else texts)


def insert_or_add(
    connection: Connection,
    table: sa.Table,
    rows: list[dict[str, Any]],
    *,
    sums: Collection[str],
    latest: Collection[str] = (),
) -> None:
    """Insert `rows`; where a primary key exists, `sums` are added to what is there, and of `latest` the later stays."""
    statement = _insert(connection, table)
    later = sa.func.max if connection.dialect.name == "sqlite" else sa.func.greatest
    changed = {name: table.c[name] + statement.excluded[name] for name in sums}
    changed |= {name: later(table.c[name], statement.excluded[name]) for name in latest}
    keys = list(table.primary_key)
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def insert_missing(connection: Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert those of `rows` whose primary key does not exist."""
    if rows:
        connection.execute(_insert(connection, table).on_conflict_do_nothing(), rows)


def _insert(connection: Connection, table: sa.Table) -> Any:
    from sqlalchemy.dialects import postgresql, sqlite

    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _replacing(statement: Any, table: sa.Table, names: Iterable[str]) -> Any:
    """Return an INSERT of the columns `names` that replaces a row whose primary key exists."""
    keys = [column.name for column in table.primary_key]
    changed = {name: statement.excluded[name] for name in names if name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=changed)


def _selected(value: Any) -> Any:
    if isinstance(value, list):
        return sa.func.json_array(*value)
    return value if isinstance(value, sa.ColumnElement) else sa.literal(value)


def _listed(texts: Sequence[str]) -> Any:
    """Return the column of `texts` as SQLite reads them from one JSON text."""
    return sa.func.json_each(orjson.dumps(texts).decode()).table_valued("value").c.value


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except sa.exc.DatabaseError as error:
        if type(error) not in (sa.exc.DatabaseError, sa.exc.OperationalError):
            raise  # about a statement and its values, which may hold any word
        text = str(error.orig).lower()
        if any(word in text for word in _STORAGE_WORDS):
            logger.warning("the database cannot be used now: %s", error.orig)
        if "disk is full" in text or "no space" in text:
            raise InsufficientStorageError(
                "The disk that holds the data directory is full; nothing of this request was kept. Free space and "
                "send it again.",
                retry_after_s=5,
            ) from error
        if any(word in text for word in _STORAGE_WORDS):
            raise StorageUnavailableError(
                "The metadata database cannot be used now; nothing of this request was kept. Try again; the server's "
                "log has more.",
                retry_after_s=2,
            ) from error
        raise


def refused(error: Exception) -> TesseraError | None:
    """Return what a client is told of an error with which PostgreSQL refused its values; None for any other.

    There two transactions may both find a name free: the second one's INSERT waits for the first, and is refused. On
    SQLite writers stand in line, so a constraint that is not met is a defect, and stays one.
    """
    if not isinstance(error, sa.exc.DBAPIError):
        return None
    code = getattr(error.orig, "sqlstate", None)
    if code == _UNIQUE_VIOLATION:
        return AlreadyExistsError(
            "Another request stored the same at this moment, so nothing of this one was kept. Read what there is, or "
            "choose another name."
        )
    if code == _FOREIGN_KEY_VIOLATION:
        return ConflictError(
            "Something that this request refers to was deleted at this moment, so nothing of it was kept. Read what "
            "there is, and send it again."
        )
    if isinstance(error, sa.exc.DataError) and "NUL (0x00)" in str(error.orig):
        return BadRequestError(
            "The request has a text with the character U+0000, which this server's database cannot hold. Leave it out."
        )
    return None


def _make_engine(url: str, *, durable: bool) -> Engine:
    def dumps(value: object) -> str:
        return orjson.dumps(value).decode()

    common: dict[str, Any] = {
        "json_serializer": dumps,
        "json_deserializer": orjson.loads,
        "hide_parameters": True,  # they are tenants' data, and an error goes into the log
    }
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, **common)
    engine = sa.create_engine(
        url,
        module=_sqlite_module(),
        pool_size=32,
        max_overflow=32,
        connect_args={"timeout": _BUSY_TIMEOUT_S},
        **common,
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we emit BEGIN ourselves, see below
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={'FULL' if durable else 'OFF'}",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "mmap_size=268435456",
            "secure_delete=ON",  # a purge leaves no trace of deleted rows in free pages
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    # pysqlite3 shares one prepared statement among all cursors of a connection that ran its text. A cursor that
    # was left open when its transaction ended (an exception while its rows were read) resets that statement when
    # it is collected, in the middle of somebody else's rows: they come twice, and the next use of it is refused.
    # So no cursor outlives its turn with the connection.
    @sa.event.listens_for(engine, "after_cursor_execute")
    def _remember(connection: Connection, cursor: Any, *_: object) -> None:
        connection.info.setdefault("cursors", []).append(cursor)

    @sa.event.listens_for(engine, "reset")
    def _close_cursors(_connection: object, record: Any, _state: object) -> None:
        for cursor in record.info.pop("cursors", ()):
            cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get("tessera_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _sqlite_module() -> Any:
    """Return `pysqlite3` (a SQLite that is known to be fixed), or the standard module where it has no wheel."""
    try:
        from pysqlite3 import dbapi2
    except ImportError:
        import sqlite3 as dbapi2
    return dbapi2
