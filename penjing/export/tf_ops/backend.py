"""TensorFlow, imported once. Only modules of this package import it at their top."""

from penjing.export.coexist import entering_tensorflow

with entering_tensorflow():
    import tensorflow as tf

__all__ = ["tf"]
