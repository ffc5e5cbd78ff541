"""C code of vgpud, and a typed facade for each part of it."""
