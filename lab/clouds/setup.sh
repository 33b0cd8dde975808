#!/bin/bash
# From installed packages to services that run (inside, as root). /cfg holds the configuration of this one cloud.
set -euo pipefail
cp /cfg/keystone.conf /etc/keystone/
cp /cfg/glance-api.conf /etc/glance/
cp /cfg/placement.conf /etc/placement/
cp /cfg/nova.conf /etc/nova/
# In one file: the rules by which Nova's helper may become root know no second one.
cat /cfg/nova.conf /cfg/real.conf >/etc/nova/real.conf
cp /cfg/neutron.conf /etc/neutron/
cp /cfg/ml2_conf.ini /etc/neutron/plugins/ml2/
packages=/usr/lib/python3/dist-packages
cp /cfg/cibridge.py $packages/
mkdir -p $packages/cibridge-1.0.dist-info
printf 'Metadata-Version: 2.1\nName: cibridge\nVersion: 1.0\n' >$packages/cibridge-1.0.dist-info/METADATA
printf '[neutron.ml2.mechanism_drivers]\ncibridge = cibridge:CIBridge\n' >$packages/cibridge-1.0.dist-info/entry_points.txt
# oslo.messaging looks for the reply of an RPC every half second: every one of them would take as long.
sed -i 's/                time.sleep(0.5)/                time.sleep(0.01)/' $packages/oslo_messaging/_drivers/amqpdriver.py
mkdir -p /run/lock/{nova,neutron} /run/{libvirt,mysqld} /var/lib/nova/real/instances /var/lib/glance/{images,staging,tasks} \
    /var/log/{services,nova,neutron,glance,placement,keystone}
chown mysql /run/mysqld
printf '127.0.0.1 localhost %s\n@ADDRESS@ controller\n' "$(hostname)" >/etc/hosts
cat >/etc/mysql/mariadb.conf.d/99-lab.cnf <<'X'
[mysqld]
skip-networking
performance_schema=OFF
innodb_buffer_pool_size=128M
innodb_flush_log_at_trx_commit=0
innodb_flush_method=nosync
innodb_doublewrite=0
sync_binlog=0
skip-log-bin
max_connections=500
X
cat >/etc/rabbitmq/rabbitmq-env.conf <<'X'
NODENAME=rabbit@localhost
NODE_IP_ADDRESS=127.0.0.1
SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
X
# No polkit, no users of their own, no cgroups in here.
echo 'auth_unix_rw = "none"' >>/etc/libvirt/libvirtd.conf
cat >>/etc/libvirt/qemu.conf <<'X'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
security_driver = "none"
seccomp_sandbox = 0
X
/cfg/services.sh mariadb memcached rabbitmq
for _ in $(seq 300); do mysqladmin ping >/dev/null 2>&1 && break; sleep .2; done
for name in keystone glance placement nova_api nova nova_cell0 neutron; do
    echo "CREATE DATABASE IF NOT EXISTS $name CHARACTER SET utf8mb3;"
done | mysql
keystone-manage fernet_setup --keystone-user root --keystone-group root
keystone-manage credential_setup --keystone-user root --keystone-group root
identity() {
    local url=http://@ADDRESS@:5000/v3
    keystone-manage db_sync
    keystone-manage bootstrap --bootstrap-password @PASSWORD@ --bootstrap-admin-url $url --bootstrap-internal-url $url \
        --bootstrap-public-url $url --bootstrap-region-id RegionOne
    /cfg/services.sh keystone
    glance-manage db_sync
    placement-manage db sync
    # Nova's services end at once if they can't log in when they start.
    /cfg/seed.py identity
}
networks() {
    neutron-db-manage --config-file /etc/neutron/neutron.conf --config-file /etc/neutron/plugins/ml2/ml2_conf.ini \
        upgrade heads
    nova-manage api_db sync
}
identity & first=$!
networks & second=$!
wait $first
wait $second
database='mysql+pymysql://root@localhost/nova_cell0?unix_socket=/run/mysqld/mysqld.sock'
nova-manage cell_v2 map_cell0 --database_connection "$database"
nova-manage cell_v2 create_cell --name cell1
nova-manage db sync
for _ in $(seq 60); do rabbitmqctl await_startup --timeout 60 && break; sleep 1; done
/cfg/services.sh placement glance neutron nova-api nova-scheduler nova-conductor
