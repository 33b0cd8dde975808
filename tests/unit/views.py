"""What tests of the verbs look at afterwards."""


def states(controller):
    """The nodes that are not free, with their states."""
    return {node.name: node.state for node in controller.ledger.nodes()}


def reasons(controller, name):
    """Why a node came to each state that it was in."""
    return [(row.after, row.reason) for row in controller.ledger.history(name)]


def traces(controller):
    """Where the site knows of a node: machines, DNS names, keys, and nodes that Slurm has or expects."""
    in_slurm = {
        name for name, node in controller.slurm.nodes().items() if node.reason != "not grown" or not node.absent
    }
    return {
        *controller.minions.provider.machines(),
        *controller.dns.names(),
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


def error_of(raised):
    """The message of an error, which must be one line."""
    message = str(raised.value)
    assert "\n" not in message
    return message
