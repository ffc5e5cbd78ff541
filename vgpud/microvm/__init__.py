"""A minimal VMM on /dev/kvm, and the guest in it: the whole path of a blob, without QEMU."""
