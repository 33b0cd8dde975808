#!/bin/sh -e
# The first process of a machine with the root file system $1, in namespaces of its own (unshare). $2 is a directory that has the
# same path inside; $2/slurm is /etc/slurm. Nodes are network namespaces on one bridge, as name=address in $3...
root=$1 shared=$2
shift 2
mount --make-rprivate /
mkdir -p "$root$shared"
mount --bind "$shared" "$root$shared"
mount --bind "$shared/slurm" "$root/etc/slurm"
cd "$root"
mkdir -p before
pivot_root . before
cd /
mount -t proc proc /proc
umount -l /before
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs dev /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9
ln -s /proc/self/fd /dev/fd
mkdir -p /dev/net
mknod -m 666 /dev/net/tun c 10 200
mkdir /dev/shm /run/netns /run/munge /run/slurm /run/slurmctld
hostname ctl
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
echo "10.77.0.1 ctl" > /etc/hosts
for node; do
    name=${node%=*} address=${node#*=}
    echo "$address $name" >> /etc/hosts
    ip netns add "$name"
    ip link add "$name" type veth peer name eth0 netns "$name"
    ip link set "$name" master br0 up
    ip -n "$name" addr add "$address/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" link set lo up
done
mkdir -p /var/log/munge
[ -s /etc/munge/munge.key ] || mungekey --create
chown -R munge:munge /etc/munge /var/lib/munge /var/log/munge /run/munge
chmod 700 /etc/munge
setpriv --reuid=munge --regid=munge --clear-groups munged
touch "$shared/ready"
exec sleep infinity
