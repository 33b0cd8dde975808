"""What hosts and nodes were used for, in numbers: from the bars of :mod:`saltmarsh.timeline`."""

from saltmarsh.timeline import BARE, LEASE, RESTORING, SAVING, SUSPENDED, sums

_BY_LEASE = "suspended by a lease"


def report(bars, runs, cpus, pools, leases, since, until):
    """
    Sums between two times.

    :param bars: saltmarsh.timeline.Bar, clipped to that time
    :param runs: saltmarsh.slurmrecords.Run
    :param dict cpus: of each host by name
    :param dict pools: the pool of each node by name
    :param str leases: the partition of the leases
    :param float since: seconds since the epoch
    :param float until: seconds since the epoch
    :returns: ``hosts``: of each, how much of its CPUs bare-metal jobs and leases held, and what was idle, in per cent;
        ``pools``: node-hours by what the nodes did; ``preemptions``; ``cpu hours saved``, which a kill at each of them
        would have thrown away; ``seconds lost`` to saving and restoring
    :rtype: dict
    """
    by_row = sums(bars)
    nodes = {row: kinds for row, kinds in by_row.items() if row in pools}
    hours = {}
    for name, kinds in nodes.items():
        for kind, seconds in kinds.items():
            pool = hours.setdefault(pools[name], {})
            pool[kind] = pool.get(kind, 0.0) + seconds / 3600
    return {
        "hosts": {host: _shares(host, count, runs, leases, since, until) for host, count in cpus.items()},
        "pools": {pool: {kind: round(value, 3) for kind, value in kinds.items()} for pool, kinds in hours.items()},
        "preemptions": sum(bar.kind == SUSPENDED and bar.text.startswith(_BY_LEASE) for bar in bars),
        "cpu hours saved": round(sum(_saved(name, bars, runs) for name in nodes) / 3600, 3),
        "seconds lost": round(sum(kinds.get(SAVING, 0) + kinds.get(RESTORING, 0) for kinds in nodes.values()), 1),
    }


def _shares(host, cpus, runs, leases, since, until):
    """Per cent of a host's CPUs by what held them."""
    held = {BARE: 0.0, LEASE: 0.0}
    for run in runs:
        if host in run.nodes:
            seconds = min(until if run.end is None else run.end, until) - max(run.start, since)
            kind = LEASE if run.partition == leases else BARE
            held[kind] += max(0.0, seconds) * run.cpus / len(run.nodes)
    whole = cpus * (until - since)
    shares = {kind: round(100 * value / whole, 1) for kind, value in held.items()}
    return shares | {"idle": round(100 - sum(shares.values()), 1)}


def _saved(name, bars, runs):
    """CPU seconds of work in a node that kills would have thrown away, each of them what was done since the last."""
    away = [bar for bar in bars if bar.row == name and bar.kind in (SAVING, SUSPENDED, RESTORING)]
    begun = [bar for bar in away if bar.kind == SUSPENDED and bar.text.startswith(_BY_LEASE)]
    saved = 0.0
    for run in runs:
        if name not in run.nodes:
            continue
        last = run.start
        for bar in begun:
            if run.start < bar.start and (run.end is None or bar.start < run.end):
                lost = sum(max(0.0, min(each.end, bar.start) - max(each.start, last)) for each in away)
                saved += (bar.start - last - lost) * run.cpus / len(run.nodes)
                last = bar.start
    return saved
