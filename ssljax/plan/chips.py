"""Chips and what they can do, each from its maker's page."""

import dataclasses

GB, GIB, TERA = 1e9, 2.0**30, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's peaks.

    Attributes:
        name: as in the name of a topology.
        flops: peak FLOP/s; of a TPU in bfloat16, which its default precision uses for float32 too.
        hbm: bytes of main memory.
        bandwidth: of main memory, bytes/s.
        interconnect: bytes/s that leave it over all its links together, one way; infinite where
            there is none to wait for.
        source: where the figures are from.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    interconnect: float
    source: str


# The pages have stated the interconnect in three ways. One way per chip is half the bidirectional
# figure, an eighth of the older one in Gbps, and a pod's all-reduce bandwidth by its chips; for v5e
# (400 GBps, 1600 Gbps, 51.2 TB/s by 256) the three agree.
CHIPS = {
    'v4': Chip(
        'v4',
        flops=275 * TERA,
        hbm=32 * GIB,
        bandwidth=1200 * GB,
        interconnect=1.1e15 / 4096,  # no figure per chip: the pod's all-reduce bandwidth
        source='https://docs.cloud.google.com/tpu/docs/v4',
    ),
    'v5e': Chip(
        'v5e',
        flops=197 * TERA,
        hbm=16 * GIB,
        bandwidth=819 * GB,
        interconnect=400 * GB / 2,
        source='https://docs.cloud.google.com/tpu/docs/v5e',
    ),
    'v5p': Chip(
        'v5p',
        flops=459 * TERA,
        hbm=95 * GIB,
        bandwidth=2765 * GB,
        interconnect=1200 * GB / 2,
        source='https://docs.cloud.google.com/tpu/docs/v5p',
    ),
    'v6e': Chip(
        'v6e',
        flops=918 * TERA,
        hbm=32 * GIB,
        bandwidth=1600 * GB,
        interconnect=800 * GB / 2,
        source='https://docs.cloud.google.com/tpu/docs/v6e',
    ),
}

KINDS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v5p': 'v5p'} | {
    'TPU v5e': 'v5e',
    'TPU v6 lite': 'v6e',
    'TPU v6e': 'v6e',
}
"""Names in the table by what JAX calls a device's kind."""


def known(kind: str) -> Chip | None:
    """The chip of a device's kind, None if it is not in the table."""
    return CHIPS.get(KINDS.get(kind, ''))
