#!/bin/bash
# Start services of a cloud: services.sh SERVICE... (inside, as root)
uwsgi=(uwsgi_python3 --ini /cfg/uwsgi.ini)
run() {
    local name=$1
    shift
    setsid "$@" </dev/null >>"/var/log/services/$name.log" 2>&1 &
}
for service; do
    case $service in
    mariadb) run mariadb mariadbd --user=mysql ;;
    memcached) run memcached memcached -u nobody -m 64 -l 127.0.0.1 ;;
    rabbitmq) run rabbitmq rabbitmq-server ;;
    keystone) run keystone "${uwsgi[@]}" --http-socket :5000 --wsgi-file /usr/bin/keystone-wsgi-public --processes 2 ;;
    placement) run placement "${uwsgi[@]}" --http-socket :8778 --wsgi-file /usr/bin/placement-api --processes 1 ;;
    glance) run glance glance-api --config-file /etc/glance/glance-api.conf ;;
    neutron) run neutron "${uwsgi[@]}" --http-socket :9696 --wsgi-file /usr/bin/neutron-api --processes 1 \
        --paste config:/etc/neutron/api-paste.ini ;;
    nova-api) run nova-api "${uwsgi[@]}" --http-socket :8774 --wsgi-file /usr/bin/nova-api-wsgi --processes 2 ;;
    libvirt) run virtlogd virtlogd; run libvirtd libvirtd ;;
    nova-compute-real) run "$service" nova-compute --config-file /etc/nova/real.conf ;;
    nova-*) run "$service" "$service" --config-file /etc/nova/nova.conf ;;
    esac
done
