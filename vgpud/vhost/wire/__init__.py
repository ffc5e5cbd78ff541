"""The vhost-user protocol, sans-IO: its messages, and the order in which they are allowed.

`protocol` holds the numbers. `messages` has one class for each request, with its layout, its
descriptors and its reply in one place; `requests` declares requests and converts them to bytes and
back; `replies` has the answers. `connection` is the back-end's end of the main channel,
`back_end_channel` both ends of the channel on which the back-end asks the front-end. A file
descriptor is an opaque handle that travels with a message: the reader of the socket owns the system
calls.

A new request needs its number (and the feature that it requires) in `protocol`, its class in
`messages`, and its handler in `vhost.session`.

Source: QEMU's docs/interop/vhost-user.rst, which is the protocol's specification.
"""
