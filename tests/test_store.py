"""The store of a study: whole blocks or none, read by many, written by one, and nothing of a stranger's is run."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from refusals import refused

from kohort import blocks, files, store
from kohort.blocks import history_of
from kohort.files import Contents
from kohort.store import BlockRow, Store

RNG = np.random.default_rng(3)
ABOUT = {"fit": {"batch_size": None}, "data": {"x": "00"}, "exact": False}
TRIALS = [({"hidden": 2, "activation": "relu"}, {"model": {"layers": 2}}), ({"hidden": 4}, {"model": {"layers": 2}})]
ARRAYS = {"seeds": np.array([3, 4], np.uint32), "history/loss": RNG.random((2, 5)).astype("float32")}


pytestmark = pytest.mark.usefixtures("annotations_unchecked")


def block(trial=1, seeds=(3, 4), first_epoch=0, epochs=5):
    return BlockRow(trial, first_epoch, epochs, seeds, "", {"wall_seconds": 0.5, "versions": {"keras": "3"}})


def contents():
    return Contents({"model": "m"}, ARRAYS)


@pytest.fixture
def study(tmp_path):
    """A store of two trials and two blocks."""
    made = Store(tmp_path / "a.kohort")
    with made.writer() as writer:
        writer.declare(ABOUT, TRIALS)
        writer.commit((block(), contents()))
        writer.commit((block(2, (0,)), contents()))
    return made


def edit(study, *statements):
    """Changes the index as a stranger may, and adds the sum up anew."""
    connection = sqlite3.connect(study.folder / "index.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    rows = [("study", *connection.execute("SELECT about FROM study").fetchone())]
    rows += [("trial", *row) for row in connection.execute("SELECT id, parameters, specification FROM trial")]
    columns = ", ".join(BlockRow._fields)
    rows += [("block", *row) for row in connection.execute(f"SELECT {columns} FROM block")]
    connection.execute("UPDATE study SET total = ?", (store.added("0" * 64, rows),))
    connection.close()


# --- what is written is read ------------------------------------------------------------------------------------------


def test_what_is_committed_is_read(study):
    records = Store(study.folder).records()

    assert records.about == ABOUT
    assert [(row.parameters, row.specification) for row in records.trials.values()] == TRIALS
    assert list(records.trials[1].parameters) == ["hidden", "activation"]  # in the order of the user
    assert [(b.trial, b.first_epoch, b.epochs, b.seeds) for b in records.blocks] == [(1, 0, 5, (3, 4)), (2, 0, 5, (0,))]
    assert records.blocks[0].about["wall_seconds"] == 0.5
    read = study.contents(records.blocks[0])
    assert read.about["model"] == "m"
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read.arrays[name], array)


def test_the_name_of_a_file_tells_all_that_a_block_is_made_from(study, tmp_path):
    first, second = study.records().blocks
    other = Store(tmp_path / "b.kohort")
    with other.writer() as writer:
        writer.declare({**ABOUT, "data": {"x": "01"}}, TRIALS)
        [elsewhere] = writer.commit((block(), contents()))
        [further] = writer.commit((block(first_epoch=5, epochs=9), contents()))

    assert len({first.file, second.file, elsewhere.file, further.file}) == 4
    assert sorted(path.name for path in (study.folder / "blocks").iterdir()) == sorted(
        f"{each.file}.safetensors" for each in (first, second)
    )


def test_trials_are_declared_once(study):
    with study.writer() as writer:
        writer.declare({"other": 1}, [*TRIALS, ({"hidden": 8}, {})])
        assert [row.parameters["hidden"] for row in writer.records.trials.values()] == [2, 4, 8]

    assert study.records().about == ABOUT
    assert list(study.records().trials) == [1, 2, 3]


@pytest.mark.parametrize("seeds", [[(4, 9)], [(7, 8), (8, 9)]])
def test_nothing_is_there_twice(study, seeds):
    """Neither with what was there before, nor with what comes at the same time: then none of it is put in."""
    with study.writer() as writer, pytest.raises(RuntimeError, match=r"nothing is there twice"):
        writer.commit(*((block(seeds=own), contents()) for own in seeds))

    assert len(study.records().blocks) == 2


def test_blocks_that_come_together_are_there_all_or_none(study, monkeypatch):
    """Their rows are written in one transaction, after their files."""
    together, added = [(block(seeds=(seed,)), contents()) for seed in (7, 8)], store.added

    def broken(total, rows):
        """Fails at the second of them; it is the last that is done in a transaction."""
        return 1 / 0 if any("[8]" in row for row in rows) else added(total, rows)

    with study.writer() as writer, monkeypatch.context() as patched:
        patched.setattr(store, "added", broken)
        with pytest.raises(ZeroDivisionError):
            writer.commit(*together)
    assert len(study.records().blocks) == 2

    with study.writer() as writer:
        made = writer.commit(*together)
    assert study.records().blocks[2:] == made
    assert [study.contents(each).about["block"] for each in made] == [each.file for each in made]


def test_the_index_is_an_ordinary_database(study):
    with sqlite3.connect(study.folder / "index.sqlite") as connection:
        [(journal,)] = connection.execute("PRAGMA journal_mode")
        [(version,)] = connection.execute("PRAGMA user_version")
        seconds = connection.execute("SELECT about ->> 'wall_seconds' FROM block").fetchall()

    assert (journal, version, seconds) == ("delete", 1, [(0.5,), (0.5,)])


# --- readers, writers and what they leave -----------------------------------------------------------------------------


READER = """
import sys
from kohort.store import Store
print(len(Store(sys.argv[1]).records().blocks), flush=True)
"""


def test_another_process_reads_while_one_writes(study):
    with study.writer() as writer:
        writer.commit((block(seeds=(7,)), contents()))
        done = subprocess.run(
            [sys.executable, "-c", READER, str(study.folder)], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr


def test_one_writes_at_a_time(study):
    message = rf"`path` must be a study that nobody else is training\. .* process {os.getpid()} on .* Wait until"
    with study.writer():
        with pytest.raises(BlockingIOError, match=message), Store(study.folder).writer():
            pass
    with Store(study.folder).writer() as writer:  # nothing is left of it
        assert len(writer.records.blocks) == 2


def test_what_a_killed_writer_left_is_removed(study):
    orphan, part = study.folder / "blocks" / f"{'0' * 64}.safetensors", study.folder / "blocks" / ".x.ab.part"
    orphan.write_bytes(b"half")
    part.write_bytes(b"half")
    assert len(Store(study.folder).records().blocks) == 2
    assert orphan.exists()  # a reader removes nothing

    with study.writer():
        assert not orphan.exists()
        assert not part.exists()


@pytest.mark.parametrize("name", ["index.sqlite", "blocks", "writer.lock", "writer.json"])
def test_a_link_to_another_place_is_refused(name, study, tmp_path):
    """In a study of a stranger it could name any file, to be written, or a folder of which files are removed."""
    other = tmp_path / "other"
    if (study.folder / name).exists():
        os.rename(study.folder / name, other)
    else:
        other.write_text("precious")
    before = other.read_bytes() if other.is_file() else sorted(other.iterdir())
    os.symlink(other, study.folder / name)
    with pytest.raises(
        ValueError, match=rf"`path` must be the folder of a study\. .* in which {name} is a link\. Take"
    ):
        study.writer().__enter__()
    assert before == (other.read_bytes() if other.is_file() else sorted(other.iterdir()))


@pytest.mark.parametrize("name", ["index.sqlite-journal", "writer.lock-journal"])
def test_a_journal_that_names_another_file_is_refused(name, study):
    """SQLite removes the file that it names."""
    (study.folder / name).write_bytes(b"\0" * 512 + store.NAMES_ANOTHER_FILE)
    for act in (study.records, lambda: study.writer().__enter__()):
        with pytest.raises(ValueError, match=r"`path` must be a study whose index is whole\. .* names another file"):
            act()


def test_what_is_not_the_writers_is_not_removed(study):
    other = study.folder / "blocks" / "notes.txt"
    other.write_text("mine")
    with study.writer():
        assert other.exists()


def test_a_file_without_its_row_is_no_block(study, monkeypatch):
    """Killed between the file and the row: the block is not there, and can be committed again."""

    def killed(*_):
        raise KeyboardInterrupt

    with study.writer() as writer:
        with monkeypatch.context() as patch:
            patch.setattr(store, "added", killed)
            with pytest.raises(KeyboardInterrupt):
                writer.commit((block(seeds=(7,)), contents()))
        assert len(Store(study.folder).records().blocks) == 2
        assert len(list((study.folder / "blocks").iterdir())) == 3
        writer.commit((block(seeds=(7,)), contents()))
    assert len(study.records().blocks) == 3


def test_migrations_are_taken_in_order(study, monkeypatch):
    monkeypatch.setattr(store, "MIGRATIONS", (*store.MIGRATIONS, "ALTER TABLE trial ADD COLUMN note TEXT;"))
    store.schema_of.cache_clear()
    assert len(Store(study.folder).records().blocks) == 2  # an older one is read as it is
    with study.writer() as writer:
        writer.commit((block(seeds=(7,)), contents()))
    with sqlite3.connect(study.folder / "index.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT note FROM trial").fetchall() == [(None,), (None,)]
    monkeypatch.undo()
    store.schema_of.cache_clear()

    message = r"`path` must be a study of a version up to 1, .* of version 2\. Upgrade kohort to read it\."
    with pytest.raises(ValueError, match=message):
        study.records()


# --- places that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p.write_text("x"), ValueError, r"must be the folder of a study\. .*, which is a file\. A cohort"),
        (lambda p: (p.mkdir(), (p / "x").touch()), ValueError, r"a folder that holds other things\. Name a folder"),
        (lambda p: None, FileNotFoundError, r"`path` must be a study\. .*, where there is none\. Check the name"),
        (lambda p: p.mkdir(), FileNotFoundError, r"`path` must be a study\."),
    ],
)
def test_a_place_that_is_no_study(make, error, message, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(error, match=message):
        Store(tmp_path / "a").records()


def test_a_path_is_a_path_in_a_folder(tmp_path):
    with pytest.raises(TypeError, match=r"`path` must be a path\. Received: path=3"):
        Store(3)
    with pytest.raises(FileNotFoundError, match=r"`path` must be in a folder that exists\."):
        Store(tmp_path / "no" / "a")


# --- damage -----------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_of_the_index_is_noticed_or_changes_nothing(study):
    path = study.folder / "index.sqlite"
    whole, records = path.read_bytes(), study.records()
    noticed = []
    for place in RNG.permutation(len(whole))[:500].tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(RNG.integers(8))
        path.write_bytes(damaged)
        try:
            assert study.records() == records  # in a place that holds nothing
        except (ValueError, OSError) as error:
            noticed.append(str(error))
    assert len(noticed) > 15
    assert [said for said in noticed if not said.startswith("`path` must be a")] == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM block WHERE id = 1",
        "UPDATE block SET about = replace(about, '0.5', '0.4') WHERE id = 2",
        "UPDATE trial SET parameters = replace(parameters, '4', '5')",
        "UPDATE study SET about = replace(about, 'false', 'true')",
        "INSERT INTO block SELECT 9, trial, 5, 9, seeds, replace(file, 'a', 'b'), about FROM block WHERE id = 1",
        "DELETE FROM study",
    ],
)
def test_a_row_that_is_changed_or_lost_is_noticed(study, statement):
    with sqlite3.connect(study.folder / "index.sqlite") as connection:
        connection.execute(statement)
    connection.close()

    message = r"`path` must be a study whose index is whole\. .*index\.sqlite is damaged \(.*\)\. Take another copy"
    with pytest.raises(ValueError, match=message):
        study.records()


def test_a_flipped_bit_of_a_block_is_noticed(study):
    first = study.records().blocks[0]
    path = study.file(first)
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)

    with pytest.raises(ValueError, match=r"`path` must be a whole file that kohort saved\. .*which is damaged"):
        study.contents(first)


def test_a_block_in_the_place_of_another_is_noticed(study):
    first, second = study.records().blocks
    shutil.copy(study.file(second), study.file(first))

    with pytest.raises(ValueError, match=r"files are in their places\. .* holds another block than its name says"):
        study.contents(first)


def test_a_block_that_is_gone_is_named(study):
    first = study.records().blocks[0]
    study.file(first).unlink()

    with pytest.raises(FileNotFoundError, match=rf"`path` must be a file that can be read\. .*{first.file}"):
        study.contents(first)


# --- strangers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block SET file = '../../../secret' WHERE id = 1",
        "UPDATE block SET seeds = '[]'",
        "UPDATE block SET seeds = '{}'",
        "UPDATE block SET seeds = '[-1]'",
        "UPDATE block SET seeds = '[true]'",
        "UPDATE block SET seeds = 7.5",
        "UPDATE block SET epochs = 'many'",
        "UPDATE block SET epochs = 0",
        "UPDATE block SET trial = 77",
        "UPDATE block SET about = '3'",
        "UPDATE trial SET parameters = '[1]' WHERE id = 1",
        f"UPDATE trial SET specification = '{'[' * 50000}'",
        "UPDATE study SET about = 'no JSON'",
    ],
)
def test_an_index_that_adds_up_and_is_of_no_form_is_refused(study, statement):
    edit(study, statement)

    with pytest.raises(ValueError, match=r"`path` must be a study whose index is whole\."):
        study.records()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW more AS SELECT load_extension('x')",
        "CREATE TRIGGER t AFTER INSERT ON block BEGIN DELETE FROM block; END",
        "CREATE TABLE more (a)",
        "CREATE INDEX i ON block (abs(trial))",
        "DROP TABLE trial",
    ],
)
def test_other_tables_are_refused(study, statement):
    with sqlite3.connect(study.folder / "index.sqlite") as connection:
        connection.execute(statement)
    connection.close()

    for act in (study.records, lambda: study.writer().__enter__()):
        with pytest.raises(ValueError, match=r"it has other tables than kohort makes"):
            act()


def test_a_database_of_somebody_else_is_refused(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    with sqlite3.connect(folder / "index.sqlite") as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()

    with pytest.raises(ValueError, match=r"a database that is not kohort's\. Name another folder"):
        Store(folder).records()
    with pytest.raises(ValueError, match=r"a database that is not kohort's"), Store(folder).writer():
        pass
    (folder / "index.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ValueError, match=r"index\.sqlite is damaged \(file is not a database\)"):
        Store(folder).records()


def test_what_is_too_large_is_not_read(study, monkeypatch):
    first = study.records().blocks[0]
    with monkeypatch.context() as patch:
        patch.setattr(store, "MOST_BLOCK_BYTES", 100)
        with pytest.raises(ValueError, match=r"which has \d+ bytes; at most 100 are read"):
            study.contents(first)
    with monkeypatch.context() as patch:
        patch.setattr(store, "MOST_INDEX_BYTES", 100)
        with pytest.raises(ValueError, match=r"it is larger than 100 bytes"):
            study.records()
    monkeypatch.setattr(store, "MOST_VALUE_BYTES", 50)
    with pytest.raises(ValueError, match=r"index\.sqlite is damaged \(.*too big.*\)"):
        study.records()


def ragged(short, long):
    """A trial of so many members with one epoch, of which the first goes on to so many; and what reads it."""
    rows = [block(seeds=tuple(range(short)))._replace(epochs=1), block(seeds=(0,))._replace(first_epoch=1, epochs=long)]

    def read(row):
        members, numbers = len(row.seeds), np.arange(row.first_epoch, row.epochs)
        curves = {"history/loss": np.ones((members, len(numbers)), "float32")}
        return Contents({}, {"seeds": np.array(row.seeds), "epoch": numbers, "stopped_epoch": [-1] * members, **curves})

    return rows, lambda row: Contents({}, {name: np.asarray(array) for name, array in read(row).arrays.items()})


def test_a_few_members_of_many_epochs_beside_many_members_take_no_memory(monkeypatch):
    """A study from elsewhere may hold megabytes and ask for hundreds of gigabytes; an honest one is read."""
    assert history_of(*ragged(3000, 4000))["loss"].shape == (3000, 4000)  # 48 MB, whatever is held
    monkeypatch.setattr(blocks, "MOST_ROOM_BYTES", 2**18)
    assert history_of(*ragged(300, 300))["loss"].shape == (300, 300)
    made, room = [], blocks._room
    monkeypatch.setattr(blocks, "_room", lambda *arguments: made.append(room(*arguments)) or made[-1])
    message = r"`path` must be a study whose curves take at most 64 times .* 3,000 x 4,000 members and epochs of 48,0"
    with refused(ValueError, message):
        history_of(*ragged(3000, 4000))
    assert sum(array.nbytes for array in made) < 2**18


def test_files_that_are_no_files_are_refused(study):
    first = study.records().blocks[0]
    study.file(first).unlink()
    os.mkfifo(study.file(first))  # to read it would wait for ever

    with pytest.raises(IsADirectoryError, match=r"`path` must be a file that can be read\."):
        study.contents(first)


@pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite-journal", "writer.lock-journal", "writer.json"])
def test_no_pipe_is_opened(study, name):
    """To read one, to which nobody writes, would wait for ever."""
    (study.folder / name).unlink(missing_ok=True)
    os.mkfifo(study.folder / name)

    for act in (Store(study.folder).records, lambda: Store(study.folder).writer().__enter__()):
        with refused(ValueError, rf"`path` must be the folder of a study\. .*, in which {name} is no file\."):
            act()


def test_the_note_of_the_writer_is_not_trusted(study):
    with study.writer():
        (study.folder / "writer.json").write_text(json.dumps({"process": "x", "computer": 1, "more": 2}))
        with pytest.raises(BlockingIOError, match=r"which another process is training"), Store(study.folder).writer():
            pass


def test_blocks_are_read_by_what_reads_every_file(study):
    first = study.records().blocks[0]

    assert files.read(study.file(first), "block", 1).about["block"] == first.file


def test_who_was_killed_before_there_was_an_index_may_begin_again(tmp_path):
    (tmp_path / "blocks").mkdir()
    for left in ("writer.lock", "writer.json", "writer.lock-journal", "index.sqlite-journal"):
        (tmp_path / left).touch()
    assert not Store(tmp_path).exists
    (tmp_path / "blocks" / "mine").touch()
    with pytest.raises(ValueError, match="a folder that holds other things"):
        Store(tmp_path)
