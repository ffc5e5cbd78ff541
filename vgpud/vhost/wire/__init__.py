"""The vhost-user protocol, sans-IO: what the two ends say, and in what order they may say it.

`protocol` holds the numbers, `messages` the values; `header`, `requests` and `replies` turn values
into bytes and back; `connection` is the back-end's end of the main channel, `back_end_channel` both
ends of the channel on which the back-end asks the front-end. Nothing here imports os, socket,
asyncio, mmap or cffi: file descriptors are plain integers that travel with a message, and whoever
reads the socket owns the system calls.

Source: QEMU's docs/interop/vhost-user.rst, which is the protocol's specification.
"""
