# SPDX-License-Identifier: Apache-2.0
"""`python -m vt_sglang` is `vt-sglang`."""

from vt_sglang.cli import app

if __name__ == "__main__":
    app(prog_name="vt-sglang")
