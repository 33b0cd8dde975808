"""
Hostlists in which the order counts: Slurm matches NodeName= and NodeAddr= by position (slurm.conf(5)).

For sets of nodes there is ClusterShell's NodeSet, which sorts.
"""

import re


def fold(names):
    """
    A hostlist that stands for names or addresses in exactly this order, repetitions included.

    >>> fold(["vn001", "vn002", "vn003", "ctl"])
    'vn[001-003],ctl'
    >>> fold(["10.77.0.102", "10.77.0.101"])
    '10.77.0.102,10.77.0.101'

    :param names: names or addresses
    :rtype: str
    """
    runs = []  # [prefix, first, last] with the numbers as text; no number is ""
    for name in names:
        prefix, digits = re.fullmatch(r"(.*?)([0-9]{0,9})", name).groups()
        if runs and runs[-1][0] == prefix and _follows(runs[-1][2], digits):
            runs[-1][2] = digits
        else:
            runs.append([prefix, digits, digits])
    return ",".join(prefix + (first if first == last else f"[{first}-{last}]") for prefix, first, last in runs)


def fold_words(words):
    """
    One line for all names of which the same is said, but for the name itself.

    >>> fold_words({"vn001": "no room for vn001", "vn002": "no room for vn002", "vn003": "no image"})
    ['vn[001-002]: no room for vn001', 'vn003: no image']

    :param dict words: what is said of each name
    :rtype: list[str]
    """
    groups = {}
    for name, said in words.items():
        groups.setdefault(said.replace(name, "\0"), []).append(name)
    return [f"{fold(names)}: {words[names[0]]}" for names in groups.values()]


def _follows(number, other):
    """Whether a range goes on from one number to the other: leading zeros are part of the name."""
    return number != "" and other == str(int(number) + 1).zfill(len(number))
