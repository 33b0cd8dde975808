# What every machine and node of the site may know. Values are the lab's.
site:
  domain: lab
  controller: {name: ctl, address: 10.77.0.1}
  network: 10.77.0.0/24
  further_networks: []            # of nodes that are reached through others (docs/howto/networks.md)
  machines:                       # served by DNS beside the nodes
    ctl: 10.77.0.1
    hv1: 10.77.0.11
    hv2: 10.77.0.12

dns:
  nameservers: [10.77.0.1]

chrony:
  servers: [10.77.0.1]
  serve: 10.77.0.0/24
  stratum: 8
  daemon_options: -x              # a container shares its machine's clock: never step it

nfs:
  server: 10.77.0.1
  exports:                        # directory on the server: pseudo path, mount point, access
    /srv/export/home: {pseudo: /home, mount: /home, access: RW}
    /srv/export/shared: {pseudo: /shared, mount: /shared, access: RW, gate: write}
    /srv/export/software: {pseudo: /software, mount: /software, access: RO}

users:
  alice: {uid: 1000}
  bob: {uid: 1001}

salt:
  master:
    checkout: /srv/saltmarsh
    site_pillar: /srv/pillar-site
    worker_threads: 4
  prefix: /opt/saltmarsh/bin
