"""Salt minions, asked over the master's bus. Nothing else in the project publishes to minions."""

import time
from dataclasses import dataclass

import salt.client


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

    def answering(self, names, timeout):
        """
        Which minions answer a ping.

        :param names: minion ids
        :param float timeout: seconds
        :rtype: frozenset[str]
        """
        return frozenset(reply.minion for reply in self.call(names, "test.ping", timeout=timeout))

    def call(self, names, function, *args, timeout):
        """
        Call an execution function on minions, all at once.

        No minion is asked in between whether it still works on it, as Salt's own clients do: that costs a small node
        seconds, and delays the answers of the others.

        :param names: minion ids
        :param str function: for example ``state.highstate``
        :param args: its arguments
        :param float timeout: seconds until minions that have not answered are given up
        :returns: an iterator over the replies, as they come; a minion that does not answer in time is not in it
        :rtype: Iterator[Reply]
        """
        deadline = time.monotonic() + timeout
        with salt.client.get_local_client(mopts=self._opts) as client:
            job = client.run_job(sorted(names), function, args, tgt_type="list", timeout=timeout, listen=True)
            waiting = set(job.get("minions", ()))
            returns = f"salt/job/{job['jid']}/ret/" if waiting else None
            while waiting and (left := deadline - time.monotonic()) > 0:
                event = client.event.get_event(wait=left, tag=returns, match_type="startswith", full=True)
                if event is None:
                    return
                answer = event["data"]
                # The master has checked that the answer is this minion's; the tag is its own.
                if answer.get("id") in waiting and "return" in answer:
                    waiting.discard(answer["id"])
                    yield Reply(answer["id"], answer["return"], answer.get("retcode", 0) == 0)


def failures(states):
    """
    Why a highstate failed, in one line.

    :param states: what ``state.highstate`` returned
    :rtype: str
    """
    if not isinstance(states, dict):
        return " ".join(" ".join(map(str, states)).split()) if isinstance(states, list) else str(states)
    failed = [state for state in states.values() if state["result"] is False]
    root_causes = [state for state in failed if not state["comment"].startswith("One or more requisite failed")]
    return "; ".join(
        f"{state['__id__']}: {' '.join(state['comment'].split())[:300]}" for state in root_causes or failed
    )
