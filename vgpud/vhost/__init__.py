"""A vhost-user back-end for virtio devices."""
