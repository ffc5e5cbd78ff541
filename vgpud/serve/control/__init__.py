"""The control socket: who may call, what was called, and that no client's silence costs another."""
