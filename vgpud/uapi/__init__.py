"""The kernel's and the CPU's ABI: native code through cffi, and a typed facade over it."""
