"""Following a CA: only by the word of a key that is trusted, never back, whatever the dates say."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from protocol.errors import Reason, Refused
from server.ca import Authority
from signing import anchors

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def generations(count: int) -> list[Authority]:
    """Each was dead and gone for years when the next one came: dates play no part."""
    return [Authority.make(NOW - timedelta(days=1000 * (count - n)), timedelta(days=10)) for n in range(count)]


def links(of: list[Authority]) -> tuple:
    return tuple(old.vouch_for(new) for old, new in itertools.pairwise(of))[::-1]


def roots(*of: Authority) -> tuple:
    return tuple(each.certificate for each in of)


def test_whoever_slept_through_any_number_of_rotations_follows_them_all() -> None:
    line = generations(6)
    offered = roots(line[5], line[4])
    for asleep_since in range(5):
        assert anchors.follow(roots(line[asleep_since]), offered, links(line)) == offered
    # Nobody vouches for the one before: who never trusted it does not begin to.
    assert anchors.follow(roots(line[5]), offered, links(line)) == roots(line[5])


def test_the_order_of_links_does_not_matter() -> None:
    line = generations(4)
    assert anchors.follow(roots(line[0]), roots(line[3]), links(line)[::-1]) == roots(line[3])


def test_a_stranger_is_not_followed() -> None:
    line, others = generations(2), generations(2)
    assert anchors.follow(roots(line[0]), roots(line[1], others[1]), links(line)) == roots(line[1])
    for offered, shown in (
        (roots(others[1]), links(others)),
        (roots(others[1]), links(line)),
        (roots(others[1], line[1]), links(line)),
        (roots(line[1]), ()),
        ((), links(line)),
    ):
        with pytest.raises(Refused) as caught:
            anchors.follow(roots(line[0]), offered, shown)
        assert caught.value.reason is Reason.CERTIFICATE


def test_an_older_ca_that_is_trusted_still_does_not_become_the_newest_again() -> None:
    line = generations(3)
    with pytest.raises(Refused, match="older"):
        anchors.follow(roots(line[2], line[1]), roots(line[1]), links(line))
    fork = Authority.make(NOW)
    with pytest.raises(Refused, match="older"):  # whoever stole the old key founds a line of their own
        anchors.follow(roots(line[2], line[1]), roots(fork), (line[1].vouch_for(fork),))


def test_a_server_key_makes_no_ca() -> None:
    """What the CA signed for a listener or a machine vouches for nobody: it is no CA."""
    from cryptography.hazmat.primitives.asymmetric import ec

    line = generations(1)
    leaf = Authority.make(NOW).issue_server(ec.generate_private_key(ec.SECP256R1()), ["farm.example"], NOW)
    with pytest.raises(Refused, match="no CA"):
        anchors.read(leaf)
    with pytest.raises(Refused, match="did not sign itself"):
        anchors.follow(roots(line[0]), links([line[0], Authority.make(NOW)]), ())


def test_garbage_is_refused() -> None:
    for pem in ("", "nonsense", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "x" * 10_000_000):
        with pytest.raises(Refused) as caught:
            anchors.read(pem)
        assert caught.value.reason is Reason.CERTIFICATE


def test_marks_tell_cas_apart() -> None:
    a, b = roots(*generations(2))
    assert anchors.marks([a, b]) == (anchors.sha256(a)[:16], anchors.sha256(b)[:16])
