"""The catalog's promises."""

import itertools
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from protocol.audit import START, check_chain
from protocol.errors import LinkError, Refused, StateError
from protocol.messages import Alert, Inventory, UpdateStatus
from protocol.objects import Conditions
from protocol.results import Loss
from protocol.wire import encode
from server import migrations, retention
from server.publish import in_force
from server.settings import Retention
from server.storage.catalog import Catalog, Session
from server.storage.jobs import COMPRESS
from server.storage.records import Compressed, EnrolmentToken, Member, Phase, Release, Totals
from server.storage.results import Added
from server.storage.schema import metadata
from tests.fakes.catalog_rows import a_device, a_rollout


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    catalog = Catalog(url)
    yield catalog
    catalog.close()


def enrol(catalog: Catalog, *names: str) -> None:
    with catalog.write() as session:
        for name in names or ("tractor-1",):
            session.devices.enrol(a_device(name))


def lose(session: Session, *ranges: tuple[int, int]) -> None:
    losses = [Loss(lane="results", first=first, last=last, reason="budget", at_ms=1) for first, last in ranges]
    session.results.add_losses("d", "e", "results", [(loss, encode(loss)) for loss in losses], at_ms=1)


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(catalog: Catalog, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_opening_it_again_keeps_what_is_there(url: str) -> None:
    first = Catalog(url)
    enrol(first)
    first.close()
    second = Catalog(url)
    with second.read() as session:
        assert session.devices.get("tractor-1") == a_device()
    second.close()


def at_version(url: str, version: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    engine.dispose()


def test_who_only_looks_makes_no_catalog_and_changes_none(url: str) -> None:
    with pytest.raises(StateError, match=r"missing|none"):
        Catalog(url, migrate=False)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    engine.dispose()
    Catalog(url).close()
    looked = Catalog(url, migrate=False)
    with looked.read() as session:
        assert session.devices.all() == []
    looked.close()


def test_who_only_looks_leaves_an_older_catalog_to_the_server_that_runs_on_it(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Catalog(url).close()
    newer = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, newer)
    content = 'from alembic import op\nrevision = "0004"\ndown_revision = "0003"\n'
    content += 'def upgrade():\n    op.execute("CREATE TABLE more (name VARCHAR(8))")\n'
    (newer / "versions" / "0003_more.py").write_text(content)
    monkeypatch.setattr(migrations, "__file__", str(newer / "__init__.py"))
    with pytest.raises(StateError, match="version 0003, and this program works with 0004") as refused:
        Catalog(url, migrate=False)
    assert "start this version's server" in refused.value.hint
    Catalog(url).close()
    Catalog(url, migrate=False).close()


@pytest.mark.parametrize("migrate", [True, False])
def test_a_catalog_of_a_newer_version_is_refused(url: str, *, migrate: bool) -> None:
    Catalog(url).close()
    at_version(url, "9999")
    with pytest.raises(StateError, match="version 9999, and this program knows up to 0003"):
        Catalog(url, migrate=migrate)


def test_a_column_that_is_missing_is_not_told_as_a_full_disk(catalog: Catalog, url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE devices DROP COLUMN returned"))
    engine.dispose()
    with pytest.raises(LinkError) as failed, catalog.read() as session:
        session.devices.all()
    assert "another version" in failed.value.hint


def test_a_damaged_catalog_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(LinkError) as failed:
        Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    assert "it is damaged" in failed.value.hint


def test_a_block_that_raises_never_happened(catalog: Catalog) -> None:
    with pytest.raises(RuntimeError), catalog.write() as session:
        session.devices.enrol(a_device())
        session.events.add(1, "enrolled")
        raise RuntimeError
    with catalog.read() as session:
        assert session.devices.all() == []
        assert session.events.after(0, 10) == []


def test_embedded_commits_survive_a_power_cut(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    with catalog.write() as session:
        connection = session._connection
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    catalog.close()


def test_everything_of_a_device_comes_back(catalog: Catalog) -> None:
    full = a_device(
        set_apart="why",
        token_counter=7,
        contact_id="c" * 32,
        answer=b"\x00answer",
        object_version=1 << 40,
        last_contact_ms=5,
        inventory=Inventory(agent="0.1.0", platform="x", accelerators=("cpu",)),
        inventory_sha256="a" * 64,
        epoch="e" * 32,
        versions={"image/root": 1},
        unsure_of_time=True,
    )
    with catalog.write() as session:
        session.devices.enrol(full)
    with catalog.read() as session:
        assert session.devices.get("tractor-1") == full
        assert session.devices.all() == [replace(full, answer=None)]
        assert session.devices.standing("tractor-1") == (b"\x00key", False)
        assert session.devices.standing("nobody") is None
        assert session.devices.count() == {"total": 1, "revoked": 0, "set_apart": 1, "returned": 0}


def test_saving_a_contact_changes_neither_groups_nor_revocation(catalog: Catalog) -> None:
    enrol(catalog)
    with catalog.write() as session:
        session.devices.set_groups("tractor-1", ["late"])
        session.devices.revoke("tractor-1", 9)
        session.devices.save(a_device(groups=("all",), token_counter=3))
    with catalog.read() as session:
        kept = session.devices.get("tractor-1")
        assert kept is not None
        assert (kept.groups, kept.revoked_ms, kept.token_counter) == (("late",), 9, 3)


def test_groups_are_counted_by_product_without_revoked_machines(catalog: Catalog) -> None:
    enrol(catalog, "a", "b", "c")
    with catalog.write() as session:
        session.devices.set_groups("b", ["all", "early"])
        session.devices.revoke("c", 1)
        assert session.devices.group_size("pest-detector", "all") == 2
        assert session.devices.group_size("pest-detector", "early") == 1
        assert session.devices.group_size("weed-detector", "all") == 0


def test_versions_of_objects_rise_whatever_the_clock_does(catalog: Catalog) -> None:
    enrol(catalog)
    with catalog.write() as session:
        assert [session.devices.next_version("tractor-1", now) for now in (100, 100, 50, 200)] == [100, 101, 102, 200]


def test_statuses_and_alerts_are_kept_once_by_machine_and_id(catalog: Catalog) -> None:
    enrol(catalog, "a", "b")
    one = UpdateStatus(id="1" * 32, manifest="a" * 64, rollout="r", state="TRIAL", at_ms=1, detail="nul \x00 ' \"")
    alert = Alert(id="2" * 32, kind="k", at_ms=1)
    with catalog.write() as session:
        assert session.devices.add_statuses("a", [one, one], 0) == [one]
        assert session.devices.add_statuses("a", [one], 2) == []
        assert session.devices.add_statuses("b", [one], 3) == [one]
        assert session.devices.add_alerts("a", [alert], 1) == [alert]
        later = [UpdateStatus(id=f"{n:032x}", manifest="a" * 64, rollout="r", state="x", at_ms=1) for n in (9, 8, 7)]
        session.devices.add_statuses("a", later, 1)
        assert session.devices.statuses("a", 10) == [*reversed(later), one]
        assert session.devices.alerts("b", 10) == []


def test_rows_are_kept_exactly_once(catalog: Catalog) -> None:
    with catalog.write() as session:
        assert session.results.add("d", "e", "results", [*enumerate([b"0", b"1"], 0)], at_ms=1) == Added(2)
        assert session.results.add("d", "e", "results", [*enumerate([b"1", b"2"], 1)], at_ms=1) == Added(1)
        assert session.results.add("d", "e", "results", [*enumerate([b"X", b"2", b"3"], 1)], at_ms=1) == Added(1, (1,))
        assert session.results.add("d", "e", "results", [*enumerate([b"X"], 1)], at_ms=1) == Added(0, (1,))
        assert session.results.add("d", "other", "results", [*enumerate([b"0"], 0)], at_ms=1) == Added(1)
        assert session.results.add("d", "e", "alarms", [*enumerate([], 0)], at_ms=1) == Added()
    with catalog.read() as session:
        assert session.results.totals()["d"]["results"].ingested == 5
        assert session.results.conflict_counts() == {"d": 1}
        assert session.results.next_seqs("d", "e") == {"results": 4}
        rows = session.results.rows("d", "results", 0, 10)
        assert [(row.epoch, row.seq, row.body) for row in rows] == [
            ("e", 0, b"0"),
            ("e", 1, b"1"),
            ("e", 2, b"2"),
            ("e", 3, b"3"),
            ("other", 0, b"0"),
        ]
        assert session.results.rows("d", None, rows[3].id, 10) == rows[4:]


def test_losses_count_each_number_once_and_not_what_arrived(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.results.add("d", "e", "results", [*enumerate([b"3"], 3)], at_ms=1)
        for told in ((0, 4), (2, 9), (0, 4), (20, 20)):
            lose(session, told)
        assert session.results.totals()["d"]["results"].lost == 10
        # A row that was given up for lost comes after all.
        session.results.add("d", "e", "results", [*enumerate([b"late"], 20)], at_ms=1)
        totals = session.results.totals()["d"]["results"]
        assert (totals.ingested, totals.lost) == (2, 9)


def test_losses_are_counted_as_sets_count_and_kept_as_few_ranges(catalog: Catalog) -> None:
    chance = random.Random(7)
    rows: set[int] = set()
    lost: set[int] = set()
    with catalog.write() as session:
        for step in range(150):
            first = chance.randrange(60)
            last = first + chance.randrange(6)
            if chance.random() < 0.4:
                session.results.add("d", "e", "results", [(n, b"row") for n in range(first, last + 1)], at_ms=1)
                rows |= {*range(first, last + 1)}
            else:
                told = [(first, last), (first + 20, last + chance.randrange(30))] if step % 3 else [(first, last)]
                lose(session, *(each for each in told if each[0] <= each[1]))
                for begin, end in told:
                    lost |= {*range(begin, end + 1)}
            assert session.results.totals()["d"]["results"] == Totals(ingested=len(rows), lost=len(lost - rows))
            ranges = session.results._lost("d", "e", "results", 0, 1000).spans
            assert {number for begin, end in ranges for number in range(begin, end + 1)} == lost
            assert all(end + 1 < begin for (_, end), (begin, _) in itertools.pairwise(ranges)), ranges
            if len(rows | lost) > 80:
                rows, lost = set(), set()
                for table in ("results", "losses", "lost_ranges", "lane_totals"):
                    session._connection.exec_driver_sql(f"DELETE FROM {table}")


def test_what_a_batch_reads_does_not_grow_with_what_its_lane_lost(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")

    def steps(number: int) -> int:
        """Of SQLite's machine, for a row and a loss record that are not the lane's newest."""
        with catalog.write() as session:
            database = session._connection.connection.dbapi_connection
            assert database is not None
            taken = []
            database.set_progress_handler(lambda: taken.append(1), 10)
            session.results.add("d", "e", "results", [(number, b"row")], at_ms=1)
            lose(session, (number + 3, number + 3))
            database.set_progress_handler(None, 0)
        return len(taken)

    few = steps(1)
    with catalog.write() as session:
        lose(session, *((number, number + 1) for number in range(100, 20_000, 10)))
    many = steps(10_005)
    catalog.close()
    assert many < 2 * few, "one range before, and those that are reached into"


def test_quarantine_is_bounded(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.storage.results.CONFLICTS_A_DEVICE", 3)
    with catalog.write() as session:
        session.results.add("d", "e", "results", [*enumerate([b"x"] * 10, 0)], at_ms=1)
        added = session.results.add("d", "e", "results", [*enumerate([b"y"] * 10, 0)], at_ms=1)
        assert len(added.clashing) == 10
        assert session.results.conflict_counts() == {"d": 3}


def test_a_token_is_found_by_its_hash_and_remembers_who_used_it(catalog: Catalog) -> None:
    token = EnrolmentToken("tractor-1", "pest-detector", ("a", "b"), 100, None)
    with catalog.write() as session:
        session.tokens.add_enrolment("h" * 64, token, 1)
        assert session.tokens.enrolment("h" * 64) == token
        assert session.tokens.enrolment("x" * 64) is None
        session.tokens.use_enrolment("h" * 64, b"key")
        assert session.tokens.enrolment("h" * 64) == replace(token, used_by=b"key")
        session.tokens.add_operator("o" * 64, "alice", 1, 100)
        assert session.tokens.operator("o" * 64, 99) == "alice"
        assert session.tokens.operator("o" * 64, 100) is None


def test_signed_metadata_is_kept_for_ever_and_served_files_change(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.repositories.add_signed("image", "root", 1, b"one")
        session.repositories.add_signed("image", "root", 1, b"one")
        session.repositories.add_signed("image", "root", 10, b"ten")
        session.repositories.add_signed("image", "root", 2, b"two")
        session.repositories.serve("image", {"timestamp.json": b"a", "1.snapshot.json": b"s"})
        session.repositories.serve("image", {"timestamp.json": b"b"}, forget=["1.snapshot.json", "timestamp.json"])
        session.repositories.serve("director", {"timestamp.json": b"d"})
        assert session.repositories.all_signed("image", "root") == {1: b"one", 2: b"two", 10: b"ten"}
        session.repositories.add_signed("image", "targets", 9, b"nine")
        session.repositories.add_signed("image", "targets", 10, b"ten")
        session.repositories.add_signed("image", "p", 3, b"three")
        session.repositories.add_signed("director", "targets", 11, b"eleven")
        assert session.repositories.newest_signed("image") == {"targets": b"ten", "p": b"three"}
        assert session.repositories.served("image", "timestamp.json") == b"b"
        assert session.repositories.served_names("image") == ["timestamp.json"]
        assert session.repositories.served("director", "timestamp.json") == b"d"


def test_what_is_in_force_is_read_without_all_that_was(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    with catalog.write() as session:
        for version in range(1, 21):
            for role in ("targets", "pest-detector"):
                session.repositories.add_signed("image", role, version, version.to_bytes(1) * 1000)
        session.repositories.add_signed("image", "root", 1, b"root")
    with catalog.read() as session:
        read = []

        def note(_cursor: object, row: tuple[object, ...]) -> tuple[object, ...]:
            read.extend(value for value in row if isinstance(value, bytes))
            return row

        database = session._connection.connection.dbapi_connection
        assert database is not None
        database.row_factory = note
        published = in_force(session, "image")
        database.row_factory = None
    catalog.close()
    assert published is not None and published.roots == {1: b"root"}
    assert (published.targets[0], published.delegated["pest-detector"][0]) == (20, 20)
    assert len(read) == 3


def test_releases_are_listed_and_delisted(catalog: Catalog) -> None:
    def release(version: str, counter: int) -> Release:
        return Release("p", version, str(counter) * 64, 10, counter, 0, 2, 100, True)

    with catalog.write() as session:
        assert session.repositories.put_releases("p", [release("1.0.0", 1), release("1.1.0", 2)]) == []
        assert [gone.version for gone in session.repositories.put_releases("p", [release("1.1.0", 2)])] == ["1.0.0"]
        assert session.repositories.put_releases("p", [release("1.1.0", 2)]) == []
        assert [(r.version, r.listed) for r in session.repositories.releases("p")] == [
            ("1.1.0", True),
            ("1.0.0", False),
        ]
        session.repositories.put_releases("p", [release("1.0.0", 1), release("1.1.0", 2)])
        assert all(release.listed for release in session.repositories.releases())


def test_a_job_is_claimed_by_one_and_by_another_after_its_lease(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.payloads.want(["a" * 64, "a" * 64, "b" * 64], 1)
        session.payloads.want(["a" * 64], 2)
        assert session.jobs.waiting(COMPRESS) == 2
    claimed = []
    for now in (10, 10, 10, 10 + 1000):
        with catalog.write() as session:
            claimed.append(session.jobs.claim(COMPRESS, now, 1000))
    assert [claim and claim.subject for claim in claimed] == ["a" * 64, "b" * 64, None, "a" * 64]
    made = Compressed("a" * 64, 10, "p" * 64, 5, None, 0)
    with catalog.write() as session:
        session.payloads.put(made)
        session.payloads.put(made)
        session.payloads.want(["a" * 64], 3)
        session.jobs.fail(claimed[1], "no", 2000)
        assert session.payloads.get(["a" * 64, "b" * 64]) == {"a" * 64: made}
        assert session.jobs.waiting(COMPRESS) == 1
        assert session.jobs.claim(COMPRESS, 2001, 1) is None
        again = session.jobs.claim(COMPRESS, 2000 + 2000, 1)
        assert again is not None and (again.subject, again.tries) == ("b" * 64, 2)
        assert not session.jobs.renew(claimed[1], 4000, 1)  # it is no longer the first one's
        assert session.jobs.renew(again, 4000, 1)
        # A clock that was ahead and went back keeps nobody waiting until it is there again.
        assert session.jobs.renew(again, 4000 + 6 * 86_400_000, 60_000)
        assert session.jobs.claim(COMPRESS, 5000, 1) is not None


def test_rollouts_keep_their_order_and_their_members(catalog: Catalog) -> None:
    enrol(catalog, "a", "b")
    base = a_rollout(
        phases=(Phase(count=1), Phase(percent=12.5, success_percent=80)),
        conditions=Conditions(signals_clear=("driving",)),
    )
    with catalog.write() as session:
        one = session.rollouts.add(base)
        two = session.rollouts.add(replace(base, name="two"))
        assert session.rollouts.all("p") == [two, one]
        assert session.rollouts.get("one") == one
        session.rollouts.join(Member("one", "a", 0, 5))
        session.rollouts.join(Member("one", "b", 1, 6))
        session.rollouts.end("one", "a", "committed", None, 7)
        assert session.rollouts.taken("one") == {0: 1, 1: 1}
        assert session.rollouts.memberships("a") == {"one": Member("one", "a", 0, 5, "committed", None, 7)}
        session.rollouts.move("one", phase=1)
        session.rollouts.turn("one", "halted", "why", judged_from_ms=9)
        assert session.rollouts.get("one") == replace(one, phase=1, state="halted", why="why", judged_from_ms=9)
        assert session.rollouts.count() == {"active": 1, "paused": 0, "halted": 1}


def test_writers_in_many_threads_lose_nothing(catalog: Catalog) -> None:
    enrol(catalog)

    def work() -> None:
        for _ in range(25):
            with catalog.write() as session:
                session.facts.put("n", session.facts.number("n") + 1)
                session.devices.next_version("tractor-1", 0)

    with catalog.write() as session:
        session.facts.put("n", 0)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.read() as session:
        assert session.facts.number("n") == 100
        assert session.devices.get("tractor-1").object_version == 100


def test_the_audit_trail_keeps_order_and_no_control_characters(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.events.add(5, "a", device="d", what="x\x00\x1b[31m", detail="y" * 9999)
        session.events.add(4, "b")
    with catalog.read() as session:
        first, second = session.events.after(0, 10)
        assert (first.kind, second.kind) == ("a", "b")
        assert first.what == "x\ufffd\ufffd[31m" and len(first.detail) == 4000
        assert session.events.after(first.id, 10) == [second]
        assert session.events.after(0, 10, device="d") == [first]


def test_old_lines_of_the_trail_go_oldest_first_and_never_the_newest(catalog: Catalog) -> None:
    with catalog.write() as session:
        for at_ms in (1, 2, 900, 3, 4):  # the clock was ahead once
            session.events.add(at_ms, f"at-{at_ms}")
        assert session.events.forget(100, 1) == 1
        assert session.events.forget(100, 9) == 1
        assert [event.kind for event in session.events.after(0, 10)] == ["at-900", "at-3", "at-4"]
        assert session.events.forget(100, 10) == 0, "what is left is one chain"
        assert session.events.forget(10_000, 10) == 2
        (newest,) = session.events.after(0, 10)
        session.events.add(5, "next")
        assert [event.kind for event in session.events.after(newest.id, 10)] == ["next"]


def chain(session: Session) -> list[str]:
    """The kinds of a trail that holds."""
    lines = session.events.after(0, 1000)
    number, before = session.events.base()
    assert check_chain(lines, before, number) == session.events.head()
    return [line.kind for line in lines]


def test_the_audit_trail_is_one_chain_also_when_its_beginning_went(catalog: Catalog) -> None:
    with catalog.write() as session:
        assert chain(session) == []
        for at_ms in range(5):
            session.events.add(at_ms, f"at-{at_ms}", who="ada", device="d", what="\u00e4", detail='"')
        assert chain(session) == ["at-0", "at-1", "at-2", "at-3", "at-4"]
        session.events.forget(2, 10)
        assert chain(session) == ["at-2", "at-3", "at-4"]
        assert [line.kind for line in session.events.last(2)] == ["at-3", "at-4"]
        assert session.events.last(2, "another") == []


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE events SET detail = 'other' WHERE id = 2",
        "UPDATE events SET who = 'bob' WHERE id = 3",
        "DELETE FROM events WHERE id = 2",
        "UPDATE events SET id = 9 WHERE id = 3",
    ],
)
def test_a_line_that_somebody_harms_in_the_database_breaks_the_chain(catalog: Catalog, url: str, harm: str) -> None:
    with catalog.write() as session:
        for at_ms in range(3):
            session.events.add(at_ms, "e", who="ada")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(harm))
    engine.dispose()
    with catalog.read() as session, pytest.raises(Refused, match="audit trail"):
        chain(session)


def test_threads_that_write_at_once_make_one_chain(catalog: Catalog) -> None:
    def write(name: str) -> None:
        for _ in range(20):
            with catalog.write() as session:
                session.events.add(1, name)
                session.events.add(2, name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.read() as session:
        assert len(chain(session)) == 160


def test_lines_of_an_older_catalog_are_chained_as_they_stand(url: str) -> None:
    Catalog(url).close()
    engine = create_engine(url)
    columns = "INSERT INTO events (id, at_ms, kind, device, what, reason, detail) VALUES "
    with engine.begin() as connection:
        for change in (
            "ALTER TABLE events DROP COLUMN hash",
            "ALTER TABLE events DROP COLUMN who",
            columns + "(7, 1, 'a', '', '', '', 'by ada')",
            columns + "(9, 2, 'b', 'd', '', '', '')",
        ):
            connection.execute(text(change))
    engine.dispose()
    at_version(url, "0002")
    catalog = Catalog(url)
    with catalog.write() as session:
        session.events.add(3, "c", who="ada")
        assert chain(session) == ["a", "b", "c"]
        assert session.events.base() == (6, START)
    catalog.close()


def test_old_statuses_and_alerts_go_oldest_first(catalog: Catalog) -> None:
    enrol(catalog)
    with catalog.write() as session:
        for at_ms in range(5):
            name = f"{at_ms:032x}"
            news = UpdateStatus(id=name, manifest="a" * 64, rollout="r", state="TRIAL", at_ms=1)
            session.devices.add_statuses("tractor-1", [news], at_ms)
            session.devices.add_alerts("tractor-1", [Alert(id=name, kind="k", at_ms=1)], at_ms)
        assert session.devices.forget_reports(3, 2) == 4
        assert [int(each.id, 16) for each in session.devices.statuses("tractor-1", 10)] == [4, 3, 2]
        assert session.devices.forget_reports(3, 2) == 2
        assert [int(each.id, 16) for each in session.devices.alerts("tractor-1", 10)] == [4, 3]


def test_what_was_lost_stays_counted_once_its_records_are_gone(catalog: Catalog) -> None:
    with catalog.write() as session:
        lose(session, (0, 4), (10, 14))
        assert session.results.forget_losses(2, 10) == 2
        assert session.results.forget_losses(2, 10) == 0
        lose(session, (10, 14), (14, 15))  # the stick brings an old one again
        session.results.add("d", "e", "results", [(3, b"late")], at_ms=1)
        assert session.results.totals()["d"]["results"] == Totals(ingested=1, lost=10)


def test_a_round_forgets_what_the_settings_say_and_not_more_at_once(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    day_ms = 86_400_000
    enrol(catalog)
    with catalog.write() as session:
        for at_ms in range(8):
            session.events.add(at_ms * day_ms, "e")
            session.devices.add_alerts("tractor-1", [Alert(id=f"{at_ms:032x}", kind="k", at_ms=1)], at_ms * day_ms)
    settings = Retention(events_days=6, reports_days=3)
    assert retention.forget(catalog, settings, 8 * day_ms) == 2 + 5
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    assert retention.forget(catalog, settings, 3650 * day_ms) == 2 + 2, "the clock is ten years ahead"
    with catalog.read() as session:
        assert len(session.events.after(0, 10)) == 4
