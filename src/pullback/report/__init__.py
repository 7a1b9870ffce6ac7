"""What people look at: the HTML report, the panel, the index, and the machine-readable record."""

from pullback.report.explanation import ChannelEntry, Explanation, Foreground, Guess, StageRow, StageSpectrum
from pullback.report.page import IndexEntry, index, is_page, page, thumbnail
from pullback.report.panel import panel
from pullback.report.record import is_record, record, record_json

__all__ = [
    "ChannelEntry", "Explanation", "Foreground", "Guess", "IndexEntry", "StageRow", "StageSpectrum",
    "index", "is_page", "is_record", "page", "panel", "record", "record_json", "thumbnail",
]  # fmt: skip
