"""The programs: `vgpud` with one module for each verb, and `vhost-user-vgpu`."""
