"""The virtio-GPU device: resources, scanouts, contexts, and the execution of commands."""
