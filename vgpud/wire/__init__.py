"""Bytes to values and back, and the order in which they may come: every protocol vgpud speaks.

Sans-IO: nothing below imports os, socket, asyncio, mmap or cffi, so that all of it can be driven
byte by byte in a test. A malformed peer is a `PeerError`, a malformed guest command a `GuestError`.
"""
