"""
Saltmarsh: Slurm clusters that rise and fall with virtual machines.

Everything the project knows is in this package; runners, execution modules, states, the engine and the
salt-cloud drivers only parse arguments, call it, and shape the answer. Nothing here uses Salt's dunders.
"""
