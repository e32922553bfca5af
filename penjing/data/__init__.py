"""Data sources and the loader: embedded glyphs, image folders, Parquet, npz and the user's own loaders."""

from __future__ import annotations

from penjing.data.glyphs import contact_sheet, glyphs
from penjing.data.sources import hold_out, open_data
from penjing.data.split import ArraySplit, DataBundle, Loader, Split

__all__ = ["ArraySplit", "DataBundle", "Loader", "Split", "contact_sheet", "glyphs", "hold_out", "open_data"]
