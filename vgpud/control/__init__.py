"""The control API: what can be asked of a daemon, and what it answers, as pydantic models.

Both ends use it, and `rpc.discover` describes it.
"""
