"""The display of the VMM: what it is sent of each scanout, and when."""
