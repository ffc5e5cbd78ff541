"""The kernel's ABI by cffi, with typed facades: KVM, DRM, udmabuf."""
