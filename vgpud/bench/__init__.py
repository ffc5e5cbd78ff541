"""Measurements of vgpud's own parts, for `vgpud bench`. Each returns rows and prints nothing."""
