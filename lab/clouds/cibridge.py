"""ML2 mechanism driver without agents: every port on a flat network goes to one Linux bridge."""

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings as pb
from neutron_lib.plugins.ml2 import api


class CIBridge(api.MechanismDriver):
    def initialize(self):
        pass

    @property
    def connectivity(self):
        return pb.CONNECTIVITY_L2

    def bind_port(self, context):
        if context.current[pb.VNIC_TYPE] != pb.VNIC_NORMAL:
            return
        for seg in context.segments_to_bind:
            if seg[api.NETWORK_TYPE] in (constants.TYPE_FLAT, constants.TYPE_LOCAL):
                context.set_binding(
                    seg[api.ID],
                    pb.VIF_TYPE_BRIDGE,
                    {
                        pb.CAP_PORT_FILTER: False,
                        pb.VIF_DETAILS_BRIDGE_NAME: "br-ci",
                        pb.VIF_DETAILS_CONNECTIVITY: pb.CONNECTIVITY_L2,
                    },
                    status=constants.PORT_STATUS_ACTIVE,
                )
                return
