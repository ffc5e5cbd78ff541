"""The VMM's display: which parts of each scanout it is sent, and when."""
