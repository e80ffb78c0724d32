"""Names and digests are checked in one place, so that they can be parts of paths, URLs and target names."""

import pytest

from protocol.errors import Reason, Refused
from protocol.ids import RESERVED_ROLES, digest, is_digest, is_name, parse_name, parse_product


@pytest.mark.parametrize("good", ["a", "tractor-1", "0", "a.b_c-d", "x" * 64])
def test_a_name_is_what_the_rule_says(good):
    assert parse_name(good, "device") == good


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "a/b", "../a", "A", "a ", " a", "a\n", "-a", "a-", ".a", "a\x00", "x" * 65, "ä", "a%2f", "'--"],
)
def test_whatever_could_leave_a_path_or_a_query_is_no_name(bad):
    assert not is_name(bad)
    with pytest.raises(Refused) as refusal:
        parse_name(bad, "device")
    assert refusal.value.reason is Reason.METADATA


@pytest.mark.parametrize("role", sorted(RESERVED_ROLES))
def test_no_product_takes_the_name_of_another_role(role):
    with pytest.raises(Refused, match="role"):
        parse_product(role)


def test_a_digest_is_64_lower_case_hexadecimal_digits():
    good = digest(b"")
    assert is_digest(good)
    for bad in (good[:-1], good + "0", good.upper(), good + "\n", "../" + good[3:], ""):
        assert not is_digest(bad)
