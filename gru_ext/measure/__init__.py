"""What measures: shapes, timing, the machine's limits, and how results are kept and shown.

The commands of ``python -m gru_ext`` and the scripts in ``benchmarks/`` are uses of this one harness. It calls gru_ext
as a user does; no kernel and no module of gru_ext's own imports it.
"""


class BadInput(ValueError):
    """What was asked for cannot be done; the message is one sentence that says why."""
