"""What tests of the verbs look at afterwards."""

from saltmarsh.machine import PowerState
from saltmarsh.model import State


def states(controller):
    """The nodes that are not free, with their states."""
    return {node.name: node.state for node in controller.ledger.nodes()}


def reasons(controller, name):
    """Why a node came to each state that it was in."""
    return [(row.after, row.reason) for row in controller.ledger.history(name)]


def traces(controller):
    """Where the site knows of a node: machines, DNS names, the tunnel, keys, and nodes that Slurm has or expects."""
    in_slurm = {
        name for name, node in controller.slurm.nodes().items() if node.reason != "not grown" or not node.absent
    }
    return {
        *controller.minions.provider.machines(),
        *controller.dns.names(),
        *controller.tunnel.names(),
        *controller.cloud.accepted_keys(),
        *in_slurm,
    }


def assert_untouched(controller):
    """Nothing has been changed, and nothing was begun."""
    assert controller.ledger.nodes() == controller.ledger.operations(unfinished=False) == ()
    assert traces(controller) == set()


def assert_undone(controller):
    """What was begun is over, and nothing is left of it."""
    assert states(controller) == {}
    assert controller.ledger.operations() == ()
    assert traces(controller) == set()


def assert_working(controller, names, jobs=()):
    """Nodes are at work, and nothing is left of a suspension; these jobs go on."""
    vmstates = controller.vmstates_of("osg1")
    for name in names:
        assert states(controller)[name] is State.READY
        look = vmstates.look(name)
        assert (look.machine.state, look.suspension, look.state) == (PowerState.RUNNING, None, None)
        assert look.machine.host == controller.ledger.nodes([name])[0].host
        assert controller.slurm.usable(name)
        assert controller.slurm.nodes()[name].address == controller.site.pool_of(name).address_of(name)
    assert all(controller.slurm.job_states(job) == {"RUNNING"} for job in jobs)


def assert_suspended(controller, names, jobs=()):
    """Nodes are nothing but volumes and complete state files, and the stand-in answers for them; these jobs wait."""
    vmstates = controller.vmstates_of("osg1")
    for name in names:
        assert states(controller)[name] is State.SUSPENDED
        look = vmstates.look(name)
        assert look.machine is None
        assert look.state.machine
        assert not look.state.suspension.ran
        assert controller.slurm.stood_in(name)
        assert {"DRAIN"} <= controller.slurm.nodes()[name].states
    assert all(controller.slurm.job_states(job) == {"SUSPENDED"} for job in jobs)


def error_of(raised):
    """The message of an error, which must be one line."""
    message = str(raised.value)
    assert "\n" not in message
    return message
