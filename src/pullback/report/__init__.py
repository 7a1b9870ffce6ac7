"""What people look at: the HTML report, the panel, the index, and the machine-readable record."""

from pullback.report.explanation import ChannelEntry, Explanation, Foreground, Guess, StageRow, StageSpectrum
from pullback.report.page import IndexEntry, index, page, thumbnail
from pullback.report.panel import panel
from pullback.report.record import record, record_json

__all__ = [
    "ChannelEntry", "Explanation", "Foreground", "Guess", "IndexEntry", "StageRow", "StageSpectrum",
    "index", "page", "panel", "record", "record_json", "thumbnail",
]  # fmt: skip
