"""Pure decisions: values in, a value out, and the reason for it.

Must not import os, socket, asyncio, cffi or mmap: what is decided here needs no host to be tested.
"""
