"""Salt minions, asked over the master's bus. Nothing else in the project publishes to minions."""

import time
from dataclasses import dataclass

import salt.client

_MOST_STATES = 5
_HALF = 150  # characters


@dataclass(frozen=True)
class Reply:
    """What a minion answered to a function: its value, and whether it says that it went well."""

    minion: str
    value: object
    ok: bool


class Minions:
    """
    The minions of this master.

    :param dict opts: the master's configuration
    """

    def __init__(self, opts):
        self._opts = opts

    def answering(self, names, timeout, over=None):
        """
        Which minions answer a ping.

        :param names: minion ids
        :param float timeout: seconds
        :param over: as of :meth:`call`
        :rtype: frozenset[str]
        """
        return frozenset(reply.minion for reply in self.call(names, "test.ping", timeout=timeout, over=over))

    def call(self, names, function, *args, timeout, over=None):
        """
        Call an execution function on minions, all at once.

        No minion is asked in between whether it still works on it, as Salt's own clients do: that costs a small node
        seconds, and delays the answers of the others.

        :param names: minion ids
        :param str function: for example ``state.highstate``
        :param args: its arguments
        :param float timeout: seconds until minions that have not answered are given up
        :param over: asked every second; when it returns true, they are given up
        :returns: an iterator over the replies, as they come; a minion that does not answer in time is not in it
        :rtype: Iterator[Reply]
        """
        deadline = time.monotonic() + timeout
        with salt.client.get_local_client(mopts=self._opts) as client:
            job = client.run_job(sorted(names), function, args, tgt_type="list", timeout=timeout, listen=True)
            waiting = set(job.get("minions", ()))
            returns = f"salt/job/{job['jid']}/ret/" if waiting else None
            look_at = time.monotonic() + 1
            while waiting and (left := deadline - time.monotonic()) > 0:
                if over and time.monotonic() >= look_at:
                    if over():
                        return
                    look_at = time.monotonic() + 1
                event = client.event.get_event(wait=min(left, 1), tag=returns, match_type="startswith", full=True)
                if event is None:
                    continue
                answer = event["data"]
                # The master has checked that the answer is this minion's; the tag is its own.
                if answer.get("id") in waiting and "return" in answer:
                    waiting.discard(answer["id"])
                    yield Reply(answer["id"], answer["return"], answer.get("retcode", 0) == 0)


def failures(answer):
    """
    Why a highstate failed, in one line that can be printed, whatever it is that the minion answered.

    :param answer: what ``state.highstate`` returned: states, or a list of mistakes in them, or a traceback
    :rtype: str
    """
    if not isinstance(answer, dict):
        return _short("; ".join(map(str, answer)) if isinstance(answer, list) else str(answer))
    states = [state for state in answer.values() if isinstance(state, dict)]
    failed = [(str(state.get("__id__")), str(state.get("comment"))) for state in states if state.get("result") is False]
    root_causes = [(name, why) for name, why in failed if not why.startswith("One or more requisite failed")]
    return "; ".join(f"{_short(name)}: {_short(why)}" for name, why in (root_causes or failed)[:_MOST_STATES])


def _short(text):
    """Text of a stranger as one line without control characters; of a long one its beginning and its end."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= 2 * _HALF else f"{line[:_HALF]} ... {line[-_HALF:]}"
