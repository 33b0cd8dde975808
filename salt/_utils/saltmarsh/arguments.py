"""
The arguments of the verbs, as somebody types them: each comes back as it is meant, or is InvalidInput in one line.

Salt reads them as YAML before, so a number is a number already, and ``maybe`` is text. Nodes are parsed by
:mod:`saltmarsh.pools`.
"""

import re
import time
from datetime import datetime

from saltmarsh.errors import InvalidInput
from saltmarsh.pools import parse_nodes

_LONGEST = 200


def text(name, value):
    """Text, or None."""
    if value is None or isinstance(value, str):
        return value
    raise InvalidInput(f"{name}={value!r}: expected text")


def line(name, value):
    """Text that Slurm and a log take as one line."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST:
        raise InvalidInput(f"{name}={value!r}: expected one line of at most {_LONGEST} characters")
    return value


def flag(name, value):
    """True or False. Anything else would count as true: force=maybe must not kill a job."""
    if isinstance(value, bool):
        return value
    raise InvalidInput(f"{name}={value!r}: expected True or False")


def seconds(name, value):
    """A number of seconds above 0, or None."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0):
        return value
    raise InvalidInput(f"{name}={value!r}: expected a number of seconds above 0")


def whole_seconds(name, value):
    """A whole number of seconds, also 0."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise InvalidInput(f"{name}={value!r}: expected a whole number of seconds")


def since(value):
    """A time in seconds since the epoch: so long ago, or one that is written out."""
    if match := re.fullmatch(r"([0-9]{1,6})([smhd])", str(value)):
        return time.time() - int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError) as err:
        raise InvalidInput(f"since={value!r}: expected for example 30m, 12h, 7d or 2026-11-21T08:00") from err


def one_node(node):
    """The name of one node."""
    names = list(parse_nodes(node))
    if len(names) != 1:
        raise InvalidInput(f"{node!r}: expected the name of one node")
    return names[0]


def pool_of(site, what):
    """The one pool that is meant where none is named: that of the nodes, or None where only their number is given."""
    if isinstance(what, int):
        return None
    pools = {site.pool_of(name).name for name in what}
    if len(pools) > 1:
        raise InvalidInput(f"{what} are of several pools ({', '.join(sorted(pools))}): one at a time")
    return pools.pop()
