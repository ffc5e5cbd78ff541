"""Memory types: what the host and the VM do with them, and the plan for each blob."""
