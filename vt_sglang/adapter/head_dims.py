# SPDX-License-Identifier: Apache-2.0
"""Which sizes of heads the attention kernels take."""


def refused_head_dims(head_dim: int, v_head_dim: int, *, least: int, most: int | None) -> list[str]:
    """What cannot be served of heads of these sizes; nothing, if they can.

    Args:
        head_dim, v_head_dim: elements of a head of K and of V.
        least, most: elements that the kernels take. None: any number.
    """
    refused = []
    if most is not None and (dim := max(head_dim, v_head_dim)) > most:
        refused.append(f"heads of {dim} elements, of which {most} are the most")
    if (dim := min(head_dim, v_head_dim)) < least:
        refused.append(f"heads of {dim} elements, of which {least} are the least")
    return refused
