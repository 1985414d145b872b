# SPDX-License-Identifier: Apache-2.0
"""The command `vt-sglang`. What a command needs is imported when it runs, so that `--help` answers at once."""

import typer

from vt_sglang.cli.chat import chat
from vt_sglang.cli.doctor import doctor
from vt_sglang.cli.memory import memory
from vt_sglang.cli.once import OnceCommand
from vt_sglang.cli.replay import replay
from vt_sglang.cli.report import report
from vt_sglang.cli.watch import watch

app = typer.Typer(
    help="Virtual tensors as the KV cache of SGLang.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(cls=OnceCommand)(chat)
app.command(cls=OnceCommand)(doctor)
app.command(cls=OnceCommand)(memory)
app.command(cls=OnceCommand)(replay)
app.command(cls=OnceCommand)(report)
app.command(cls=OnceCommand)(watch)
