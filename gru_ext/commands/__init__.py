"""The commands of ``python -m gru_ext``, a file each, with ``add_arguments(parser)`` and ``run(arguments) -> int``.

A command asks :mod:`gru_ext.measure` and gru_ext's public functions, and shows what they say.
"""
