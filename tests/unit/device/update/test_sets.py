"""What outside readers and containers see of a release: the folder of sets, and the link in it."""

import os
import stat

import pytest

from device.update.ports import ReleaseSet
from device.update.sets import Sets
from protocol.ids import digest
from protocol.release import parse_manifest
from signing.durable import TEMPORARY_PREFIX, Disk
from tests.fakes.updates import Release, noise

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(1000, 2))


class Power(BaseException):
    """It went."""


@pytest.fixture
def state(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path


def put(state, release):
    """The release as it lies in the store."""
    manifest = parse_manifest(release.manifest_bytes)
    files = {}
    for data in (*release.artifacts.values(), release.manifest_bytes):
        files[digest(data)] = state / "store" / digest(data)
        if not files[digest(data)].exists():
            files[digest(data)].write_bytes(data)
            files[digest(data)].chmod(0o444)
    variants = {model.name: model.variants[0] for model in manifest.models}
    return ReleaseSet(digest=release.digest, manifest=manifest, variants=variants, files=files)


def show(sets, state, release):
    found = put(state, release)
    sets.show(found, found.files[release.digest])
    return found


def test_who_has_only_the_sets_mounted_sees_the_link_flip(state):
    sets = Sets(state)
    show(sets, state, OLD)
    mounted = os.open(state / "sets", os.O_RDONLY | os.O_DIRECTORY)  # as a mount: the folder itself, not its name
    try:
        for release in (OLD, NEW, OLD):
            show(sets, state, release)
            assert os.readlink("active", dir_fd=mounted) == release.digest
            model = os.open("active/models/pests", os.O_RDONLY, dir_fd=mounted)
            assert os.read(model, 2000) == release.model
            os.close(model)
            assert (state / "active/models/pests").read_bytes() == release.model
        sets.hide()
        with pytest.raises(FileNotFoundError):
            os.readlink("active", dir_fd=mounted)
    finally:
        os.close(mounted)


def test_any_user_may_read_all_of_a_set_and_nobody_may_write(state):
    umask = os.umask(0o077)
    try:
        show(Sets(state), state, NEW)
    finally:
        os.umask(umask)
    folder = state / "sets"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes == {0o755, 0o444}


def test_each_change_is_told_once_the_link_has_it(state):
    told = []
    sets = Sets(state, tell=lambda release: told.append((release.digest if release else None, sets.shown())))
    show(sets, state, OLD)
    show(sets, state, NEW)
    sets.hide()
    assert told == [(OLD.digest, OLD.digest), (NEW.digest, NEW.digest), (None, None)]


def test_a_link_that_a_cut_left_unfinished_takes_no_set_with_it(state):
    show(Sets(state), state, OLD)
    (state / "sets" / f"{TEMPORARY_PREFIX}active").symlink_to(OLD.digest)
    show(Sets(state), state, OLD)
    assert (state / "sets/active/models/pests").read_bytes() == OLD.model
    assert sorted(path.name for path in (state / "sets").iterdir()) == sorted([OLD.digest, "active"])


def test_at_a_cut_before_any_effect_readers_have_one_release_or_the_other(state):
    old = show(Sets(state), state, OLD)
    new = put(state, NEW)
    at = 0
    while True:
        left = iter(range(at))

        def before(effect, path, left=left):
            if next(left, None) is None:
                raise Power

        try:
            Sets(state, disk=Disk(before)).show(new, new.files[NEW.digest])
        except Power:
            pass
        else:
            break
        assert (state / "active/models/pests").read_bytes() in (OLD.model, NEW.model), at
        Sets(state).show(old, old.files[OLD.digest])
        Sets(state).collect({OLD.digest})
        at += 1
    assert at > 10
    assert (state / "active/models/pests").read_bytes() == NEW.model
