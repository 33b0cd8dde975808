# Firewall on the controller and on nodes. Assign it beside "site" (docs/howto/networks.md).
firewall:
  srun_ports: 60001-63000         # also SrunPortRange in slurm.conf
  job_ports: []                   # TCP ports by which the processes of a job may talk between nodes, such as 50000-59999
  accept:                         # what else may reach a machine that has this pillar
    ssh: {protocol: tcp, ports: [22], from: [10.77.0.1]}
