"""The control API: its methods, parameters and results as pydantic models, JSON-RPC and the server.

The daemon and its clients use the same models, and `rpc.discover` describes them.
"""
