"""The picture of a timeline: one row for each host and node, bars for what was there (altair, vl-convert)."""

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
    rows = {bar.row for bar in bars}
    order = [*(host for host in hosts if host in rows), *sorted(rows - set(hosts))]
    kinds = [kind for kind in timeline.KINDS if any(bar.kind == kind for bar in bars)]
    values = [
        {
            "row": bar.row,
            "kind": bar.kind,
            "start": _utc(bar.start),
            "end": _utc(bar.end),
            "seconds": round(bar.seconds, 1),
            "host": bar.host or "",
            "text": bar.text,
        }
        for bar in bars
    ]
    return (
        altair.Chart(altair.Data(values=values), width=_WIDTH, height=_ROW * len(order))
        .mark_bar(stroke="#555555", strokeWidth=0.5)
        .encode(
            x=altair.X("start:T", title=None, axis=altair.Axis(format="%H:%M:%S", labelOverlap=True)),
            x2="end:T",
            y=altair.Y("row:N", sort=order, title=None),
            color=altair.Color(
                "kind:N",
                title=None,
                scale=altair.Scale(domain=kinds, range=[_COLOURS[kind] for kind in kinds]),
                legend=altair.Legend(orient="bottom", columns=len(kinds)),
            ),
            tooltip=[
                altair.Tooltip("row:N", title="on"),
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
