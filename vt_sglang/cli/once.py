# SPDX-License-Identifier: Apache-2.0
"""Options are given once: of two values, one would be passed over in silence."""

from typing import Any

from typer.core import TyperCommand


class OnceCommand(TyperCommand):
    """A command that refuses an option given twice, unless it takes a list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base class, after a usage error for the first option that is repeated."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        seen = set()
        for parameter in given:
            if parameter.name in seen:
                ctx.fail(f"{parameter.opts[0]} is given more than once; give it once")
            # Help ends everything, as often as it is asked for.
            if not (getattr(parameter, "multiple", False) or parameter.is_eager):
                seen.add(parameter.name)
        return super().parse_args(ctx, args)
