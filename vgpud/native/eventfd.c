/*
 * Signals to eventfds of which another process has a descriptor, too.
 *
 * write(2) waits where the count is full, and O_NONBLOCK belongs to the open file: the other
 * process can clear it at any time. The kernel itself signals an eventfd without ever waiting, when
 * an asynchronous operation ends. So this begins one that fails at once: a read of no bytes of the
 * eventfd, which has to be one of 8. Source: io_submit(2), IOCB_FLAG_RESFD; eventfd(2).
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RESULTS = 128 }; /* of operations that have ended, before they have to be collected */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static aio_context_t context;
static bool asynchronous;

static void set_up(void)
{
    asynchronous = syscall(SYS_io_setup, RESULTS, &context) == 0;
}

/* For a kernel or a sandbox without io_setup. It may wait if the count is filled meanwhile. */
static int write_one(int fd)
{
    struct pollfd room = {.fd = fd, .events = POLLOUT};
    const uint64_t one = 1;

    if (poll(&room, 1, 0) < 0)
        return -errno;
    if (!room.revents)
        return 0; /* the count is full, and so has been signalled */
    return write(fd, &one, sizeof(one)) < 0 && errno != EAGAIN ? -errno : 0;
}

int vgpud_eventfd_signal(int fd)
{
    struct iocb read_nothing = {
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)fd,
        .aio_buf = (uintptr_t)&context,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)fd,
    };
    struct iocb *operations[] = {&read_nothing};

    pthread_once(&once, set_up);
    if (!asynchronous)
        return write_one(fd);
    while (syscall(SYS_io_submit, context, 1, operations) != 1) {
        struct io_event results[RESULTS];

        if (errno != EAGAIN)
            return -errno;
        if (syscall(SYS_io_getevents, context, 0, RESULTS, results, NULL) < 0)
            return -errno;
    }
    return 0;
}
