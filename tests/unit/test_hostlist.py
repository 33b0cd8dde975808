"""Hostlists that keep their order."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saltmarsh.hostlist import fold


def expand(hostlist):
    """What Slurm makes of it: each item in turn, a range counts up with the width of its first number."""
    for prefix, low, high, single in re.findall(r"([^,\[\]]*)\[(\d+)-(\d+)\]|([^,\[\]]+)", hostlist):
        if single:
            yield single
        else:
            yield from (f"{prefix}{number:0{len(low)}d}" for number in range(int(low), int(high) + 1))


@pytest.mark.parametrize(
    ("names", "hostlist"),
    [
        ([], ""),
        (["ctl"], "ctl"),
        (["vn001", "vn002", "vn003", "ctl"], "vn[001-003],ctl"),
        (["vn9", "vn10"], "vn[9-10]"),
        (["vn09", "vn10"], "vn[09-10]"),
        (["vn099", "vn100"], "vn[099-100]"),
        (["vn9", "vn010"], "vn9,vn010"),
        (["b2", "b1"], "b2,b1"),
        (["a1", "b2"], "a1,b2"),
        (["a", "a1"], "a,a1"),
        (["10.77.0.99", "10.77.0.100", "10.77.1.101"], "10.77.0.[99-100],10.77.1.101"),
    ],
)
def test_only_what_counts_up_becomes_a_range(names, hostlist):
    assert fold(names) == hostlist


@given(st.lists(st.from_regex(r"(vn|10\.77\.[01]\.)[0-9]{1,4}", fullmatch=True)))
def test_a_hostlist_stands_for_the_names_in_their_order(names):
    assert list(expand(fold(names))) == names


def test_ten_thousand_addresses_fit_into_one_line():
    addresses = [f"10.80.{number // 250}.{number % 250 + 1}" for number in range(10_000)]
    assert list(expand(fold(addresses))) == addresses
    assert len(fold(addresses)) < 1000
