"""Keras reads its backend once, when it is first imported: in the test processes that is torch."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")
