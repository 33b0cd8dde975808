"""The words of pillar: names, addresses and numbers as types, each checked by itself; and what is made up of them."""

import itertools
import math
import re
import reprlib
from ipaddress import IPv4Address
from typing import Annotated

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

MOST_NAMES = 100_000

# A DNS label (RFC 1123, section 2.1) that begins with a letter, in lower case: this is also a minion id, a libvirt
# domain and plain text in YAML, and can't be mistaken for a count.
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
# What Slurm, salt-cloud and a file system all take as one plain word.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
# What Slurm (slurm.conf(5): DEFAULT, scontrol(1): ALL, in any case) or the resolver takes for something else.
_NO_HOST = ("all", "default", "localhost")

_PART = r"[0-9]{1,9}(?:-[0-9]{1,9})?"
_ITEM = rf"(?:[a-z0-9.-]|\[{_PART}(?:,{_PART})*\])+"
_HOSTLIST = re.compile(rf"{_ITEM}(?:,{_ITEM})*")


def _expand(text):
    """The names of a hostlist in the order in which they are written, repetitions included (NodeSet sorts, merges)."""
    if not isinstance(text, str) or not text:
        raise ValueError("it is empty or not text")
    if odd := re.search(r"[^a-z0-9.,\[\]-]", text):
        raise ValueError(f"{odd.group()!r} can't stand in it, only a-z, 0-9, '-', ',' and ranges in brackets")
    if not _HOSTLIST.fullmatch(text):
        raise ValueError("its brackets, commas or ranges don't fit together")
    items = [re.findall(r"\[[^\]]*\]|[^\[\]]+", item) for item in re.findall(_ITEM, text)]
    if sum(math.prod(map(_size, item)) for item in items) > MOST_NAMES:
        raise ValueError(f"it stands for more than {MOST_NAMES} names")
    names = []
    try:
        for item in items:
            for piece in itertools.product(*map(_choices, item)):
                names += NodeSet("".join(piece), resolver=RESOLVER_NOGROUP)
    except NodeSetException as err:
        raise ValueError(str(err)) from err
    return names


def _choices(token):
    """``[1-4,7]`` as ``[1-4]`` and ``[7]``; anything else as itself."""
    return [f"[{part}]" for part in token[1:-1].split(",")] if token[0] == "[" else [token]


def _size(token):
    """How many names a token stands for, known without expanding it."""
    ranges = [[int(bound) for bound in re.findall("[0-9]+", choice)] for choice in _choices(token) if choice[0] == "["]
    return sum(max(1, bounds[-1] - bounds[0] + 1) for bounds in ranges) or 1


def short(value):
    """A value in a message, however long it is."""
    return reprlib.repr(value)


def _label(value):
    if not _LABEL.fullmatch(value) or value in _NO_HOST:
        raise ValueError(
            f"{short(value)} is no host name: a-z, 0-9 and '-', a letter first, at most 63 characters, "
            f"and not {', '.join(_NO_HOST)}"
        )
    return value


def _domain(value):
    if not _DOMAIN.fullmatch(value):
        raise ValueError
    return value


def _word(value):
    if not _WORD.fullmatch(value):
        raise ValueError
    return value


def _partition(value):
    if _word(value).lower() == "default":
        raise ValueError("Slurm takes this word for the defaults of all partitions")
    return value


def _directory(value):
    if not value.startswith("/"):
        raise ValueError
    return value


def _address(value):
    return str(IPv4Address(value))


def node_names(text):
    """The names of a hostlist as :func:`_expand`, if nodes can have them."""
    return tuple(map(_label, _expand(text)))


def _addresses(value):
    """Addresses in order, from one range or a list of ranges and single addresses."""
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) for item in items):
        raise ValueError("it is empty or not text")
    addresses = []
    for item in items:
        first, dash, last = item.partition("-")
        if dash and "[" not in item:
            low = IPv4Address(first)
            high = IPv4Address(last if "." in last else f"{first.rpartition('.')[0]}.{last}")
            if high < low:
                raise ValueError(f"{item!r} does not go from a lower to a higher address")
            if int(high) - int(low) >= MOST_NAMES:
                raise ValueError(f"{item!r} stands for more than {MOST_NAMES} addresses")
            addresses += [str(IPv4Address(number)) for number in range(int(low), int(high) + 1)]
        else:
            addresses += [str(IPv4Address(name)) for name in _expand(item)]
    return tuple(addresses)


Label = Annotated[str, Strict(), AfterValidator(_label)]
Word = Annotated[str, Strict(), AfterValidator(_word)]
Partition = Annotated[str, Strict(), AfterValidator(_partition)]
Directory = Annotated[str, Strict(), AfterValidator(_directory)]
Domain = Annotated[str, Strict(), AfterValidator(_domain)]
Address = Annotated[str, Strict(), AfterValidator(_address)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses)]
Names = Annotated[tuple[str, ...], BeforeValidator(node_names)]
WholeNumber = Annotated[int, Field(strict=True, gt=0)]


class Frozen(BaseModel):
    """Part of pillar: never changed, and without keys that are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")
