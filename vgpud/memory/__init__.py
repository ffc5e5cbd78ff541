"""Memory that is shared with guests: mappings, extents, buffers, and the copy engine."""
