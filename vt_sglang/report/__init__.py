# SPDX-License-Identifier: Apache-2.0
"""Results of other commands for the eye: one HTML page, the same tables in the terminal, pictures.

Files are read by `load`; `sections` takes the figures from them (model.py says what a figure is). That is the one place
where numbers come from a result: page.py, terminal.py and picture.py only draw them.
"""
