"""
The ready gate as a state: everything that must hold on a node before slurmd may start there.
"""

from saltmarsh import gate


def passed(name, controller, mounts, max_offset=0.5, patience=30, translated=False):
    """
    All checks of the ready gate hold. Changes nothing; require it where something may only happen on a ready node.

    name
        The node's name; its address in DNS must be this machine's.
    controller
        The name of the machine that runs slurmctld.
    mounts
        By mount point: ``ro``, ``rw``, or ``write`` where root must be able to make a file.
    max_offset
        Seconds that the clock may be off. Munge itself allows 300 (munged(8)); programs are less patient.
    patience
        Seconds for which checks that fail are tried again.
    translated
        Whether the node is reached by an address that a router translates to its own: then DNS has that one.

    CLI Example:

    .. code-block:: yaml

        the ready gate:
          ready_gate.passed:
            - name: vn001
            - controller: ctl
            - mounts: {/home: rw, /software: ro}
    """
    trouble = gate.check(name, controller, mounts, max_offset, patience, translated)
    comment = "; ".join(trouble) if trouble else "the node is ready"
    return {"name": name, "result": not trouble, "changes": {}, "comment": comment}
