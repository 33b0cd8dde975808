"""
The picture of a timeline: one row for each host and node, bars for what was there (altair, vl-convert).

What was on a host at the same time has a lane each, which is a row without a name below that of the host.
"""

from collections import defaultdict
from datetime import UTC, datetime

from saltmarsh import timeline
from saltmarsh.errors import InvalidInput

_COLOURS = {
    timeline.BARE: "#c44e52",
    timeline.LEASE: "#c3c9d4",
    timeline.RUNNING: "#4878a8",
    timeline.SAVING: "#e8a33d",
    timeline.SUSPENDED: "#e9e4c9",
    timeline.RESTORING: "#6aa84f",
    timeline.MAKING: "#9fc5e8",
    timeline.LEAVING: "#d0d0d0",
    timeline.FAILED: "#222222",
}
_ROW = 26  # pixels
_WIDTH = 900
_NAME = "indexof(datum.label, ' ') < 0 ? datum.label : ''"  # only of a first lane


def draw(bars, hosts, path):
    """
    Write the picture.

    :param bars: saltmarsh.timeline.Bar
    :param hosts: names of the hosts, which come first
    :param str path: ``.html``, where each bar tells what it is when it is pointed at, or ``.svg``
    :raises InvalidInput: another ending, the library is not installed, or there is nothing to be drawn
    """
    if not path.endswith((".html", ".svg")):
        raise InvalidInput(f"out={path!r}: expected a name that ends with .html or .svg")
    if not bars:
        raise InvalidInput("nothing has happened in that time")
    chart(bars, hosts).save(path, **({"inline": True} if path.endswith(".html") else {}))


def chart(bars, hosts):
    """
    The picture as an altair chart.

    :rtype: altair.Chart
    """
    altair = _altair()
    lanes = _lanes(bars)
    order = [*(host for host in hosts if host in lanes), *sorted(lanes.keys() - set(hosts))]
    rows = {(row, lane): f"{row} {lane}" if lane else row for row in order for lane in range(len(lanes[row]))}
    kinds = [kind for kind in timeline.KINDS if any(bar.kind == kind for bar in bars)]
    values = [
        {
            "row": rows[bar.row, lane],
            "on": bar.row,
            "kind": bar.kind,
            "start": _utc(bar.start),
            "end": _utc(bar.end),
            "seconds": round(bar.seconds, 1),
            "host": bar.host or "",
            "text": bar.text,
        }
        for row in order
        for lane, members in enumerate(lanes[row])
        for bar in members
    ]
    return (
        altair.Chart(altair.Data(values=values), width=_WIDTH, height=_ROW * len(rows))
        .mark_bar(stroke="#555555", strokeWidth=0.5)
        .encode(
            x=altair.X("start:T", title=None, axis=altair.Axis(format="%H:%M:%S", labelOverlap=True)),
            x2="end:T",
            y=altair.Y("row:N", sort=list(rows.values()), title=None, axis=altair.Axis(labelExpr=_NAME)),
            color=altair.Color(
                "kind:N",
                title=None,
                scale=altair.Scale(domain=kinds, range=[_COLOURS[kind] for kind in kinds]),
                legend=altair.Legend(orient="bottom", columns=len(kinds)),
            ),
            tooltip=[
                altair.Tooltip("on:N"),
                altair.Tooltip("kind:N", title="what"),
                altair.Tooltip("text:N", title="why"),
                altair.Tooltip("host:N"),
                altair.Tooltip("start:T", format="%H:%M:%S"),
                altair.Tooltip("end:T", format="%H:%M:%S"),
                altair.Tooltip("seconds:Q"),
            ],
        )
        .configure_view(stroke=None)
        .configure_axisY(grid=True)
    )


def _lanes(bars):
    """By row, the bars of each of its lanes, of which none covers another."""
    rows = defaultdict(list)
    for bar in sorted(bars, key=lambda bar: bar.start):
        lanes = rows[bar.row]
        if free := next((lane for lane in lanes if lane[-1].end <= bar.start), None):
            free.append(bar)
        else:
            lanes.append([bar])
    return rows


def _utc(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _altair():
    # Nothing else needs it, and it takes half a second.
    try:
        import altair
        import vl_convert  # noqa: F401 (what altair saves with)
    except ImportError as err:
        raise InvalidInput(f"pictures need altair and vl-convert-python (salt-pip install both): {err}") from err
    return altair
