"""What runs on CUDA: torch's own kernels, our kernels layer by layer, or our kernels in stacked layers that overlap.

:mod:`gru_ext.cuda.decision` decides, once a call. :mod:`gru_ext.cuda.library` and :mod:`gru_ext.cuda.wavefront` run the
first and the last of the three. :mod:`gru_ext.cuda.tuning` measures which is fastest, and :mod:`gru_ext.cuda.choices`
keeps the results in a file.
"""
