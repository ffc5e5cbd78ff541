/*
 * Whether a descriptor of another process is a unix stream socket, found without waiting for it.
 *
 * Python asks each socket for its name, for which the kernel takes the lock of a TCP socket: another
 * thread may hold that while it receives into memory that never comes. These two options are
 * constants of the socket, and need no lock. Source: socket(7), SO_DOMAIN and SO_TYPE; Linux,
 * net/core/sock.c, sk_getsockopt().
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
