"""The programs: `vgpud`, with modules for its larger verbs, and `vhost-user-vgpu`."""
