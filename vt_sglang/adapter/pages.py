# SPDX-License-Identifier: Apache-2.0
"""Where the pages of the budget are."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a type of the core's stub alone
    from vt_sglang._core import Usage


def pages_by_state(usage: "Usage") -> dict[str, int]:
    """Pages of the budget by state; the sum is the budget. The padding page is not among them.

    free: created, and held by nobody. evictable: held by the tree alone, and not locked. pinned: held by a request, or
    by a locked node. withheld: cannot be created for now, as there is no memory or the limit is below. not_created:
    could be.
    """
    whole = usage["budget_pages"] + 1  # with the padding page
    creatable = max(0, min(usage["limit_pages"] + 1, whole - usage["withheld_pages"]) - usage["created_pages"])
    return {
        "free": usage["free_pages"],
        "pinned": usage["held_pages"] - usage["evictable_pages"] - 1,
        "evictable": usage["evictable_pages"],
        "withheld": whole - usage["created_pages"] - creatable,
        "not_created": creatable,
    }
