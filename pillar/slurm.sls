# The lab's Slurm, see docs/howto/slurm.md for every key. Nodes of pools come from elastic:pools.
slurm:
  cluster_name: lab
  controller: {name: ctl, address: 10.77.0.1}
  config:
    # The lab's hosts are containers without cgroup controllers.
    ProctrackType: proctrack/linuxproc
    TaskPlugin: task/none
    SlurmctldTimeout: 30
    SlurmdTimeout: 30
    KillWait: 10
    SchedulerParameters: [bf_interval=5, sched_interval=5]
    PreemptType: preempt/partition_prio
    PreemptMode: REQUEUE
    # Of hosts alone (state lease): a node has no such files.
    Prolog: /usr/local/libexec/saltmarsh/slurm-prolog
    Epilog: /usr/local/libexec/saltmarsh/slurm-epilog
    # For elastic.timeline and elastic.report: every run of every job, also of those that are put back into the queue.
    JobCompType: jobcomp/filetxt
    JobCompLoc: /var/log/slurm/jobcomp.log
    SlurmctldDebug: verbose
    SlurmdDebug: verbose
    DebugFlags: GLOB_SILENCE
  cgroup:
    CgroupPlugin: disabled
  nodes:
    hv1: {NodeAddr: 10.77.0.11, CPUs: 2, RealMemory: 6000, Feature: bare}
    hv2: {NodeAddr: 10.77.0.12, CPUs: 2, RealMemory: 6000, Feature: bare}
  partitions:
    metal: {Nodes: 'hv[1-2]', PriorityTier: 100, PreemptMode: 'OFF', DefMemPerCPU: 1000, MaxTime: INFINITE}
    lease: {Nodes: 'hv[1-2]', PriorityTier: 1, PreemptMode: REQUEUE, DefMemPerCPU: 1000, MaxTime: INFINITE}
    virtual: {Default: YES, PriorityTier: 10, DefMemPerCPU: 128, MaxTime: INFINITE}
