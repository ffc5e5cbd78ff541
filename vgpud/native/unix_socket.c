/*
 * Options of sockets that another process has passed, and whose locks it can hold.
 *
 * Whether a socket is a unix stream socket is found without waiting: Python asks each socket for its name, for which the kernel takes the lock of a TCP socket: another
 * thread may hold that while it receives into memory that never comes. These two options are
 * constants of the socket, and need no lock. The size of the send buffer is set under the lock of a
 * socket's options, for which Python waits with its own lock held; here only the calling thread
 * waits. Source: socket(7), SO_DOMAIN, SO_TYPE and SO_SNDBUF; Linux, net/core/sock.c,
 * sk_getsockopt() and sk_setsockopt().
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <sys/socket.h>

int vgpud_is_unix_stream(int fd)
{
    int domain = 0, type = 0;
    socklen_t size = sizeof(int);

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        return -errno;
    return domain == AF_UNIX && type == SOCK_STREAM;
}

int vgpud_set_send_buffer(int fd, int size)
{
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) == 0)
        return 0;
    if (errno != EPERM || setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) < 0)
        return -errno;
    return 0;
}
