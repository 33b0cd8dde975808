"""The reference cluster in a box: containers as machines, QEMU guests as nodes, one bridge, no host network."""
