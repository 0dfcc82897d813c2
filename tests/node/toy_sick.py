"""An engine whose import fails."""

raise ImportError("libsick.so.1 is not there")
