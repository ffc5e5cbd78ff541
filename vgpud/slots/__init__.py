"""Memory slots of a VM, and their owners: the front-end, an agent, or this process."""
