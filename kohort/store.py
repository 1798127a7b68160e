"""The store of a study: a folder with an index of what was trained, and the arrays, one file for each block.

In come trials and trained blocks; out come the same, to as many processes as like to read, while one process writes.
The index is a database of SQLite, which says in one transaction that the blocks of a task are there; their files are in
their places before. The room exists so that whoever is killed loses the running tasks and no other block, and so that
nothing damaged, and nothing that a stranger wrote, is read as a result.
"""

import collections
import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import socket
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kohort import files
from kohort.files import Contents

INDEX, BLOCKS, LOCK, WRITER = "index.sqlite", "blocks", "writer.lock", "writer.json"
JOURNALS = f"{INDEX}-journal", f"{LOCK}-journal"
# How a journal of SQLite ends that names another file, one which SQLite removes when it has undone what the journal
# says. kohort's transactions are of one database, and never name one.
NAMES_ANOTHER_FILE = bytes.fromhex("d9d505f920a163d7")
# How one begins, and where it says how many pages of how many bytes the database had, which SQLite makes it have again.
BEGINS, PAGES, PAGE_BYTES, MOST_PAGE_BYTES = NAMES_ANOTHER_FILE, slice(16, 20), slice(24, 28), 2**16
# What a killed writer leaves among the blocks.
LEFT = re.compile(r"[0-9a-f]{64}\.safetensors|\..*\.part")
APPLICATION = 0x6B6F686F  # in the head of the index: "koho"
KIND, VERSION = "block", 1  # of the files
# What a reader takes in at most: a study from elsewhere may claim anything.
MOST_INDEX_BYTES, MOST_BLOCK_BYTES, MOST_VALUE_BYTES = 2**30, 2**31, 2**26
# A reader waits so long for the writer to end a transaction, which takes milliseconds.
PATIENCE_SECONDS = 30.0

# Each brings the index from the version of its place to the next; a study that was begun is never changed otherwise.
# `total` is the sum of the digests of all rows, so that a row that is changed or lost is noticed.
MIGRATIONS = (
    """
    CREATE TABLE study (id INTEGER PRIMARY KEY CHECK (id = 1), about TEXT NOT NULL, total TEXT NOT NULL);
    CREATE TABLE trial (id INTEGER PRIMARY KEY, parameters TEXT NOT NULL UNIQUE, specification TEXT NOT NULL);
    CREATE TABLE block (
        id INTEGER PRIMARY KEY,
        trial INTEGER NOT NULL REFERENCES trial (id),
        first_epoch INTEGER NOT NULL,
        epochs INTEGER NOT NULL,
        seeds TEXT NOT NULL,
        file TEXT NOT NULL UNIQUE,
        about TEXT NOT NULL
    );
    """,
)


class TrialRow(NamedTuple):
    """One setting of a study."""

    id: int
    parameters: dict[str, Any]  # what the network function was called with
    specification: dict  # the model it gave, and how that is compiled


class BlockRow(NamedTuple):
    """Members of one trial that were trained together, from one epoch to another."""

    trial: int
    first_epoch: int
    epochs: int  # the number of the epoch that they have reached
    seeds: tuple[int, ...]
    file: str  # its name is the hash of all that the block is made from
    about: dict  # wall seconds, versions, device


class Records(NamedTuple):
    """All that an index holds, as it was at one moment."""

    about: dict  # what all trials share: arguments of the fit, fingerprint of the data; empty before the first run
    trials: dict[int, TrialRow]
    blocks: list[BlockRow]


class Store:
    """A folder that holds a study."""

    def __init__(self, path: Any) -> None:
        """Looks at the place; nothing is made or read."""
        self.folder = Path(os.path.realpath(files.checked_path(path)))
        self.shown = os.fspath(path)
        with self._explained():  # it may be in a folder, or be one, that may not be looked into
            if self.folder.exists() and not self.folder.is_dir():
                step = "A cohort that was saved in a file is read by `kohort.Cohort.load`; name a folder for the study"
                raise self._refused("which is a file", step)
            if not self.folder.exists():
                files.checked_target(self.folder)  # its folder must exist
            elif not self.exists and self._holds_other_things():
                raise self._refused("a folder that holds other things", "Name a folder that is empty or not there yet")

    def _holds_other_things(self) -> bool:
        """Says whether anything is there but what one leaves who was killed before there was an index."""
        left = {BLOCKS, LOCK, WRITER, *JOURNALS}
        blocks = self.folder / BLOCKS
        return any(each.name not in left for each in self.folder.iterdir()) or (
            blocks.exists() and (not blocks.is_dir() or any(blocks.iterdir()))
        )

    @property
    def exists(self) -> bool:
        """Whether a study has been begun here."""
        with self._explained():
            return (self.folder / INDEX).exists()

    # --- reading ------------------------------------------------------------------------------------------------------

    def records(self) -> Records:
        """Reads the whole index, at one moment.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is damaged, is not kohort's, or of a newer version.
        """
        if not self.exists:
            raise FileNotFoundError(
                f"`path` must be a study. Received: path={self.shown!r}, where there is none. "
                "Check the name, or train one: `kohort.Study(path, network, grid, seeds=...).run(x, y, epochs=...)`."
            )
        with self._connected() as connection:
            return self._records(connection)

    def contents(self, block: BlockRow) -> Contents:
        """Reads the arrays of a block, once every byte of its file is found to be as it was written.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is damaged, or is that of another block.
        """
        path = self.file(block)
        contents = files.read(path, KIND, VERSION, most_bytes=MOST_BLOCK_BYTES)
        if contents.about.get("block") != block.file:
            raise ValueError(
                f"`path` must be a study whose files are in their places. Received: path={os.fspath(path)!r}, which "
                "holds another block than its name says. Take another copy of the study."
            )
        return contents

    def file(self, block: BlockRow) -> Path:
        """Returns where the arrays of a block are."""
        return self.folder / BLOCKS / f"{block.file}.safetensors"

    def _records(self, connection: sqlite3.Connection) -> Records:
        with self._explained():
            connection.execute("BEGIN")  # one moment for all that follows
            if not self._version(connection):
                connection.execute("ROLLBACK")
                return Records({}, {}, [])
            study = connection.execute("SELECT about, total FROM study").fetchall()
            trials = connection.execute("SELECT id, parameters, specification FROM trial ORDER BY id").fetchall()
            columns = ", ".join(BlockRow._fields)
            blocks = connection.execute(f"SELECT {columns} FROM block ORDER BY id").fetchall()
            connection.execute("COMMIT")
        return self._checked(study, trials, blocks)

    def _checked(self, study: list, trials: list, blocks: list) -> Records:
        """Returns the rows as records, once their sum is found right and they are of the form that they must have."""
        if not study and not trials and not blocks:
            return Records({}, {}, [])
        try:
            [(about, total)] = study
            rows = [("study", about), *(("trial", *row) for row in trials), *(("block", *row) for row in blocks)]
            if total != added("0" * 64, rows):
                raise ValueError("a row is not as it was written, or is missing")
            own = {row[0]: TrialRow(row[0], _a(dict, row[1]), _a(dict, row[2])) for row in trials}
            records = Records(_about(about), own, [_block(row) for row in blocks])
            if not {block.trial for block in records.blocks} <= set(own):
                raise ValueError("a block is of no trial")
        except (TypeError, ValueError, RecursionError, AttributeError) as error:
            raise self._damaged(" ".join(str(error).split())[:120]) from error
        return records

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writer(self) -> Iterator["Writer"]:
        """Makes this process the only one that writes, until the end of the block or of the process.

        Raises:
            OSError: If the folder cannot be written.
            BlockingIOError: If another process, or another thread, writes.
            ValueError: If the index is damaged, is not kohort's, or of a newer version.
        """
        with self._explained():
            self._check_own()
            (self.folder / BLOCKS).mkdir(parents=True, exist_ok=True)
        with self._locked(), self._connected(write=True) as connection:
            self._migrate(connection)
            records = self._records(connection)
            self._sweep(records)
            yield Writer(self, connection, records)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock of the writer: one of SQLite's, which the system takes away from whoever dies."""
        with self._explained():
            lock = sqlite3.connect(self.folder / LOCK, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            with self._explained():
                lock.execute("BEGIN EXCLUSIVE")
                me = {"process": os.getpid(), "computer": socket.gethostname()}
                (self.folder / WRITER).write_text(json.dumps(me))
            yield
        finally:
            lock.close()

    @contextlib.contextmanager
    def _connected(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        path = self.folder / INDEX
        with self._explained():
            self._check_own()
            if path.exists() and path.stat().st_size > MOST_INDEX_BYTES:
                raise self._damaged(f"it is larger than {MOST_INDEX_BYTES} bytes")
            # Also for reading it is opened to be written, where that is allowed: what a killed writer left has to be
            # undone first. SQLite opens what may not be written to be read.
            mode = "rwc" if write else "rw"
            uri = f"{path.as_uri()}?mode={mode}"
            connection = sqlite3.connect(uri, PATIENCE_SECONDS, isolation_level=None, uri=True)
        try:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_VALUE_BYTES)
            with self._explained():
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.execute(f"PRAGMA query_only = {'OFF' if write else 'ON'}")
                connection.execute("PRAGMA synchronous = EXTRA")
            yield connection
        finally:
            connection.close()

    def _check_own(self) -> None:
        """Raises if something in the folder would have files elsewhere changed or removed: it may be a stranger's."""
        for name in (INDEX, BLOCKS, LOCK, WRITER, *JOURNALS):
            if (self.folder / name).is_symlink():
                step = "Take another copy of the study; to keep it elsewhere, link to its whole folder"
                raise self._refused(f"in which {name} is a link", step)
        for name in (INDEX, LOCK, WRITER, *JOURNALS):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(self.folder / name).st_mode):  # to open a pipe would wait for ever
                    raise self._refused(f"in which {name} is no file", "Take another copy of the study")
        for name in JOURNALS:
            with contextlib.suppress(FileNotFoundError), open(self.folder / name, "rb") as journal:
                head = journal.read(PAGE_BYTES.stop)
                pages, size = (int.from_bytes(head[place], "big") for place in (PAGES, PAGE_BYTES))
                if head.startswith(BEGINS) and pages * (size or MOST_PAGE_BYTES) > MOST_INDEX_BYTES:
                    raise self._damaged(f"its journal would make it larger than {MOST_INDEX_BYTES} bytes")
                journal.seek(-min(len(NAMES_ANOTHER_FILE), os.fstat(journal.fileno()).st_size), os.SEEK_END)
                if journal.read() == NAMES_ANOTHER_FILE:
                    raise self._damaged("its journal names another file")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Returns the version of the index, 0 if it is empty, once it is known to be one of kohort's."""
        [(version,)] = connection.execute("PRAGMA user_version")
        [(application,)] = connection.execute("PRAGMA application_id")
        schema = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
        if not version and not application and not schema:
            return 0
        if application != APPLICATION:
            raise self._refused("a database that is not kohort's", "Name another folder")
        if version > len(MIGRATIONS):
            raise ValueError(
                f"`path` must be a study of a version up to {len(MIGRATIONS)}, which this kohort reads. "
                f"Received: path={self.shown!r}, of version {version}. Upgrade kohort to read it."
            )
        if schema != schema_of(version):  # a view or a trigger could do anything
            raise self._damaged("it has other tables than kohort makes")
        return version

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Brings the index to the newest version, in one transaction for each step."""
        with self._explained():
            for number in range(self._version(connection), len(MIGRATIONS)):
                migrate(connection, number)

    def _sweep(self, records: Records) -> None:
        """Removes the files that a killed writer left without a row."""
        known = {self.file(block) for block in records.blocks}
        for path in (self.folder / BLOCKS).iterdir():
            if path not in known and LEFT.fullmatch(path.name):
                with self._explained():
                    path.unlink()

    # --- refusals -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises what SQLite and the system raise as errors that say what to do."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            code = sqlite3.SQLITE_ERROR if code is None else code
            plain = code & 0xFF  # without what extends it
            if plain == sqlite3.SQLITE_BUSY:
                raise self._busy() from error
            number = UNWRITABLE.get(code, UNWRITABLE.get(plain))
            if number is None:
                raise self._damaged(str(error)) from error
            raise self._unwritable(number) from error
        except UnicodeDecodeError as error:  # of a text in the index, or of what SQLite says of it
            raise self._damaged("a text in it is none") from error
        except OSError as error:
            if str(error).startswith("`"):  # it says so already
                raise
            raise self._unwritable(error.errno or errno.EIO) from error

    def _busy(self) -> BlockingIOError:
        writer = {}
        with contextlib.suppress(OSError, ValueError):
            writer = json.loads((self.folder / WRITER).read_text()[:1000])
        who = "process {process} on {computer}".format_map(writer) if len(writer) == 2 else "another process"
        return BlockingIOError(
            f"`path` must be a study that nobody else is training. Received: path={self.shown!r}, which {who} is "
            "training. Wait until it has ended; to look at it meanwhile, use `kohort.open`."
        )

    def _unwritable(self, number: int) -> OSError:
        error = type(OSError(number, ""))(
            f"`path` must be a place that can be read and written. Received: path={self.shown!r} "
            f"({os.strerror(number)}). Choose another place, or make room there; all blocks that it holds are whole."
        )
        error.errno = number
        return error

    def _refused(self, received: str, step: str) -> ValueError:
        return ValueError(f"`path` must be the folder of a study. Received: path={self.shown!r}, {received}. {step}.")

    def _damaged(self, why: str) -> ValueError:
        return ValueError(
            f"`path` must be a study whose index is whole. Received: path={self.shown!r}, whose {INDEX} is damaged "
            f"({why}). Take another copy of it."
        )


UNWRITABLE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_READONLY_DIRECTORY: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}


class Writer:
    """The one that writes; `records` is what the store holds, kept up to date."""

    def __init__(self, store: Store, connection: sqlite3.Connection, records: Records) -> None:
        """Writes nothing yet."""
        self.store, self.records, self._connection = store, records, connection
        # What can be in a store once only: of each trial and first epoch, the seeds.
        self._there: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
        self._note(records.blocks)

    def declare(self, about: dict, trials: Sequence[tuple[dict, dict]]) -> None:
        """Notes what all trials share, if nobody has yet, and the trials that are not there yet.

        Args:
            about: Values of JSON.
            trials: Pairs (parameters, specification).
        """
        known = {canonical(row.parameters) for row in self.records.trials.values()}
        new = [(p, s) for p, s in trials if canonical(p) not in known]
        first = 1 + max(self.records.trials, default=0)
        rows = [(first + i, json.dumps(p), canonical(s)) for i, (p, s) in enumerate(new)]  # in the order of the user's
        is_first = not self.records.about
        if not rows and not is_first:
            return
        with self._transaction([*([("study", canonical(about))] if is_first else []), *(("trial", *r) for r in rows)]):
            if is_first:
                self._connection.execute("INSERT INTO study VALUES (1, ?, ?)", (canonical(about), "0" * 64))
            self._connection.executemany("INSERT INTO trial VALUES (?, ?, ?)", rows)
        trials_now = self.records.trials | {
            row[0]: TrialRow(row[0], *pair) for row, pair in zip(rows, new, strict=True)
        }
        self.records = self.records._replace(about=about if is_first else self.records.about, trials=trials_now)

    def commit(self, *finished: tuple[BlockRow, Contents]) -> list[BlockRow]:
        """Puts blocks into the store, all or none: first their files, then their rows, which name the files.

        Each transaction waits for the disk several times, as long as a small network trains.

        Raises:
            OSError: If the disk is full or the place cannot be written; what is there stays as it is.
        """
        blocks = [block._replace(file=self._name(block)) for block, _ in finished]
        members = [(block.trial, block.first_epoch, seed) for block in blocks for seed in block.seeds]
        if len(set(members)) < len(members) or any(seed in self._there[trial, at] for trial, at, seed in members):
            trials = sorted({block.trial for block in blocks})
            raise RuntimeError(f"A member of the trials {trials} is in the store already, and nothing is there twice.")
        for block, (_, contents) in zip(blocks, finished, strict=True):
            whole = Contents({**contents.about, "block": block.file}, contents.arrays)
            files.put(self.store.file(block), files.sealed(KIND, VERSION, whole))
        rows = [[canonical(value) if isinstance(value, dict | tuple) else value for value in block] for block in blocks]
        with self._transaction([("block", *row) for row in rows]):
            marks = ", ".join("?" * len(BlockRow._fields))
            self._connection.executemany(f"INSERT INTO block ({', '.join(BlockRow._fields)}) VALUES ({marks})", rows)
        self.records.blocks.extend(blocks)
        self._note(blocks)
        return blocks

    def _note(self, blocks: Iterable[BlockRow]) -> None:
        for block in blocks:
            self._there[block.trial, block.first_epoch].update(block.seeds)

    def _name(self, block: BlockRow) -> str:
        trial = self.records.trials[block.trial]
        whole = [self.records.about, trial.parameters, trial.specification, block[1:4]]
        return hashlib.sha256(canonical(whole).encode()).hexdigest()

    @contextlib.contextmanager
    def _transaction(self, rows: list[tuple]) -> Iterator[None]:
        """Writes all that the block writes, or nothing, and adds these rows to the sum of all."""
        with self.store._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                [(total,)] = self._connection.execute("SELECT total FROM study")
                self._connection.execute("UPDATE study SET total = ?", (added(total, rows),))
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def migrate(connection: sqlite3.Connection, number: int) -> None:
    """Takes one step of the migrations, or none of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in MIGRATIONS[number].split(";")[:-1]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@functools.cache
def schema_of(version: int) -> list[tuple]:
    """Returns the tables of an index of this version, as SQLite tells them."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for number in range(version):
            migrate(connection, number)
        return connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()


def added(total: str, rows: Sequence[tuple]) -> str:
    """Returns the sum of the digests of rows, in any order, with one that was made before."""
    digests = [hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in rows]
    return f"{sum(int(digest, 16) for digest in [total, *digests]) % 2**256:064x}"


def canonical(value: Any) -> str:
    """Returns values of JSON as one text, the same for equal ones."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _a(kind: type, text: Any) -> Any:
    value = json.loads(text)
    if not isinstance(value, kind):
        raise ValueError(f"a value is no {kind.__name__}")
    return value


def _block(row: tuple) -> BlockRow:
    trial, first_epoch, epochs, seeds, file, about = row
    seeds = tuple(_a(list, seeds))
    integers = all(type(number) is int and 0 <= number < 2**32 for number in (trial, first_epoch, epochs, *seeds))
    if not integers or not seeds or first_epoch >= epochs or not re.fullmatch("[0-9a-f]{64}", file):
        raise ValueError("a block has values that none can have")
    return BlockRow(trial, first_epoch, epochs, seeds, file, _about(about))


# What others read of what is said of a study or a block, and what it is.
SAID = {"fit": dict, "data": dict, "versions": dict, "device": str, "directions": dict}
TIMES = ("wall_seconds", "finished")


def _about(text: Any) -> dict:
    about = _a(dict, text)
    wrong = [name for name, kind in SAID.items() if not isinstance(about.get(name, kind()), kind)]
    wrong += [name for name in TIMES if not 0 <= about.get(name, 0) < 2**36]
    if wrong or not set(about.get("directions", {}).values()) <= {None, "up", "down"}:
        raise ValueError(f"{(*wrong, 'a direction')[0]} is said to be what it cannot be")
    return about
