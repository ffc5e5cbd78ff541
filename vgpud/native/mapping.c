/*
 * Shared file mappings, and a guard for those whose file shrinks.
 *
 * A front-end shares its memory as a file, and nothing stops it from truncating the file
 * afterwards. An access beyond the new end raises SIGBUS, which would end the daemon with all its
 * other devices. So every mapping is registered here; on a SIGBUS inside one, the handler puts
 * anonymous zero pages in place of the mapping from there to its end, marks it as faulted, signals
 * an eventfd and lets the access run again: the session ends when the event loop sees the signal.
 * Any other SIGBUS is passed on to the handler that was installed before.
 *
 * The handler must not fail, and mmap fails for a process that has as many mappings as it may have
 * (vm.max_map_count). So each mapping has a page of its own behind it, which no access is allowed
 * to: a spare. If mmap fails, the handler unmaps the spare, and replaces all of the mapping, so that
 * it is not cut in two. The spare also keeps the kernel from merging the mapping with a neighbour,
 * so that the whole of it can be replaced, and unmapped, without another mapping being made.
 *
 * The kernel holds the lock of all mappings of the process (mmap_lock) while it unmaps pages, which
 * takes 0.1 ms for each MiB, and the event loop needs it for its own memory. So pages are dropped
 * in steps before their mapping goes.
 *
 * The handler may interrupt any thread at any instruction that touches a mapping, so it takes no
 * lock, allocates nothing and calls the kernel only (mmap is not on POSIX's list of safe functions,
 * but as a bare system call there is nothing unsafe in it). Writers hold a mutex; a sequence count,
 * odd while an entry changes, keeps the handler from using a half-written entry. Skipping an entry
 * that changes is correct: an entry changes only while no thread may access its memory.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct vgpud_mapping {
    atomic_uint sequence;
    atomic_uintptr_t address; /* 0: the entry is free */
    atomic_size_t length; /* without the spare */
    atomic_size_t page_size;
    atomic_size_t kept; /* bytes before the first fault, all of them without one */
    atomic_int faulted;
    atomic_int spare; /* whether it has its spare */
    atomic_int replacing; /* by a handler */
};

enum { SPARE = 4096 };

#define LEAST_STEP ((size_t)16 << 20) /* bytes that are dropped at a time: 2 ms at most */
#define MOST_STEP ((size_t)64 << 20)
#define FEW_PAGES_NS 100000

#define ENTRIES 64

/* Entries come in blocks that are never freed, so that the handler can walk them without a lock. */
struct block {
    struct vgpud_mapping entry[ENTRIES];
    struct block *next;
};

static struct block first_block;
static _Atomic(struct block *) blocks = &first_block;
static pthread_mutex_t writers = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(struct sigaction *) former;
#define RAISED ((uintptr_t)1)      /* a cause that is no address: a process raised the signal */
static atomic_uintptr_t passed_on; /* the cause of the last signal that was passed on */

/*
 * What takes the place of lost pages where a private mapping can't be made (vm.overcommit_memory 2,
 * RLIMIT_DATA): a part of one sparse file, at the mapping's address, which no other mapping has.
 */
#define LOST_PAGES_SIZE ((off_t)1 << 47)
static int lost_pages = -1;
static int fault_event = -1; /* counts the mappings that have faulted */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void set_up(void)
{
    fault_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lost_pages = memfd_create("vgpud-lost-pages", MFD_CLOEXEC);
    if (lost_pages >= 0 && ftruncate(lost_pages, LOST_PAGES_SIZE) != 0) {
        close(lost_pages);
        lost_pages = -1;
    }
}

/*
 * Drop the pages of a mapping in steps, which may grow where few pages are: a large mapping can be
 * almost empty. It is no error if that fails, as for a huge page that is larger than a step.
 */
static void drop_pages(uintptr_t address, size_t length)
{
    size_t step = LEAST_STEP;

    while (length > 0) {
        struct timespec before, after;
        size_t part = length < step ? length : step;
        int64_t taken;

        clock_gettime(CLOCK_MONOTONIC, &before);
        syscall(SYS_madvise, address, part, (long)MADV_DONTNEED);
        clock_gettime(CLOCK_MONOTONIC, &after);
        taken = (after.tv_sec - before.tv_sec) * 1000000000 + (after.tv_nsec - before.tv_nsec);
        if (taken < FEW_PAGES_NS && step < MOST_STEP)
            step *= 2;
        else if (taken >= FEW_PAGES_NS)
            step = LEAST_STEP;
        address += part;
        length -= part;
    }
}

/* Put zeros in place of a part of a mapping; return false if that fails. */
static bool replace(uintptr_t address, size_t length)
{
    const long access = PROT_READ | PROT_WRITE, flags = MAP_FIXED | MAP_NORESERVE;
    const long private = flags | MAP_PRIVATE | MAP_ANONYMOUS, shared = flags | MAP_SHARED;

    return syscall(SYS_mmap, address, length, access, private, -1L, 0L) != -1 ||
           syscall(SYS_mmap, address, length, access, shared, (long)lost_pages, address) != -1;
}

/* Replace a mapping from an offset to where it has been replaced; return false if that fails. */
static bool replace_from(struct vgpud_mapping *entry, uintptr_t address, size_t offset)
{
    size_t length = atomic_load(&entry->length), kept = atomic_load(&entry->kept);
    const uint64_t one = 1;

    if (offset >= kept) /* another thread has done it */
        return true;
    drop_pages(address + offset, kept - offset);
    if (!replace(address + offset, kept - offset)) {
        if (!atomic_exchange(&entry->spare, 0))
            return false;
        syscall(SYS_munmap, address + length, (size_t)SPARE);
        offset = 0;
        drop_pages(address, kept);
        if (!replace(address, kept))
            return false;
    }
    atomic_store(&entry->kept, offset);
    atomic_store(&entry->faulted, 1);
    /* Never waits; if it fails, the count is full and so has been signalled. */
    (void)!write(fault_event, &one, sizeof(one));
    return true;
}

/*
 * Replace the mapping that the address is in, from there to its end; return false if it is in none.
 * Not only the lost pages, which may be scattered, or the mapping would become many. Nor all of it,
 * unless it must not become two: that would take as long as it has pages.
 */
static bool replace_lost_pages(uintptr_t fault)
{
    for (struct block *block = atomic_load(&blocks); block != NULL; block = block->next)
        for (int i = 0; i < ENTRIES; i++) {
            struct vgpud_mapping *entry = &block->entry[i];
            unsigned sequence = atomic_load(&entry->sequence);
            uintptr_t address = atomic_load(&entry->address);
            size_t length = atomic_load(&entry->length);
            size_t page_size = atomic_load(&entry->page_size);
            bool done;

            if (address == 0 || sequence % 2 != 0 || sequence != atomic_load(&entry->sequence))
                continue;
            if (fault < address || fault - address >= length)
                continue;
            /* Another thread is replacing it: the access runs again until it has. */
            if (atomic_exchange(&entry->replacing, 1))
                return true;
            done = replace_from(entry, address, (fault - address) & ~(page_size - 1));
            atomic_store(&entry->replacing, 0);
            return done;
        }
    return false;
}

/*
 * Call the former handler for a fault in no registered mapping. It may repair the cause and return.
 * But it may also return without a repair, or raise the signal again, which arrives at this handler
 * (Python's faulthandler, if it was installed after this handler, and this one after it again), and
 * that would be an endless loop. So if the cause is the same twice in a row, the default action
 * ends the process, as is right after an access to memory that is gone.
 */
static void pass_on(int number, siginfo_t *info, void *context)
{
    const struct sigaction *action = atomic_load(&former);
    bool raised = info->si_code <= 0; /* by a process: it does not recur by itself */
    uintptr_t cause = raised ? RAISED : (uintptr_t)info->si_addr;
    bool again = (!raised || info->si_pid == getpid()) &&
                 atomic_exchange(&passed_on, cause) == cause;
    bool handled = false;

    if (action != NULL && !again && action->sa_flags & SA_SIGINFO) {
        action->sa_sigaction(number, info, context);
        handled = true;
    } else if (action != NULL && !again && action->sa_handler != SIG_DFL &&
               action->sa_handler != SIG_IGN) {
        action->sa_handler(number);
        handled = true;
    }
    if (!handled) {
        struct sigaction end = {0};

        end.sa_handler = SIG_DFL;
        sigaction(number, &end, NULL);
        if (raised)
            raise(number);
    }
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    int saved = errno;

    if (info->si_code != BUS_ADRERR || !replace_lost_pages((uintptr_t)info->si_addr))
        pass_on(number, info, context);
    errno = saved;
}

/* Called for each mapping, not once: other code may have replaced the handler since. The caller
 * holds the writers' lock. */
static int install_handler(void)
{
    struct sigaction now, guard = {0};
    struct sigaction *kept;

    if (sigaction(SIGBUS, NULL, &now) != 0)
        return -1;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)
        return 0;
    kept = malloc(sizeof *kept); /* never freed: the handler may be reading the former one */
    if (kept == NULL)
        return -1;
    *kept = now;
    atomic_store(&former, kept);
    guard.sa_sigaction = on_sigbus;
    guard.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&guard.sa_mask);
    return sigaction(SIGBUS, &guard, NULL);
}

/* Return a free entry. The caller holds the writers' lock. */
static struct vgpud_mapping *new_entry(void)
{
    struct block *block;

    for (block = atomic_load(&blocks); block != NULL; block = block->next)
        for (int i = 0; i < ENTRIES; i++)
            if (atomic_load(&block->entry[i].address) == 0)
                return &block->entry[i];
    block = calloc(1, sizeof *block);
    if (block == NULL)
        return NULL;
    block->next = atomic_load(&blocks);
    atomic_store(&blocks, block);
    return &block->entry[0];
}

/*
 * Reserve addresses for a mapping and its spare, which stays reserved; return NULL if that fails.
 * The result is a multiple of the page size, as hugetlbfs requires.
 */
static uint8_t *reserve(size_t length, size_t page_size)
{
    size_t total = length + page_size + SPARE;
    uint8_t *start = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint8_t *aligned, *end;

    if (start == MAP_FAILED)
        return NULL;
    aligned = start + (-(uintptr_t)start & (page_size - 1));
    end = aligned + length + SPARE;
    if (aligned != start)
        munmap(start, (size_t)(aligned - start));
    if (end != start + total)
        munmap(end, (size_t)(start + total - end));
    /* So that it is never merged with what else is reserved in the process. */
    madvise(aligned, length + SPARE, MADV_DONTFORK);
    return aligned;
}

vgpud_mapping *vgpud_map_shared(int fd, uint64_t offset, uint64_t length, uint64_t page_size,
                                int writable)
{
    struct vgpud_mapping *entry = NULL;
    uint8_t *address;

    if (length == 0 || length > INT64_MAX / 2 || page_size < SPARE || page_size > INT64_MAX / 4 ||
        page_size & (page_size - 1) || length % page_size || offset > INT64_MAX) {
        errno = EINVAL;
        return NULL;
    }
    pthread_once(&once, set_up);
    address = reserve(length, page_size);
    if (address == NULL)
        return NULL;
    /* The file's owner has reserved its huge pages, or has not: this mapping reserves none. */
    if (mmap(address, length, writable ? PROT_READ | PROT_WRITE : PROT_READ,
             MAP_FIXED | MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset) == MAP_FAILED) {
        int failure = errno;

        munmap(address, length + SPARE);
        errno = failure;
        return NULL;
    }
    pthread_mutex_lock(&writers);
    if (install_handler() == 0)
        entry = new_entry();
    if (entry != NULL) {
        atomic_fetch_add(&entry->sequence, 1);
        atomic_store(&entry->length, length);
        atomic_store(&entry->page_size, page_size);
        atomic_store(&entry->kept, length);
        atomic_store(&entry->faulted, 0);
        atomic_store(&entry->spare, 1);
        atomic_store(&entry->replacing, 0);
        atomic_store(&entry->address, (uintptr_t)address);
        atomic_fetch_add(&entry->sequence, 1);
    }
    pthread_mutex_unlock(&writers);
    if (entry == NULL) {
        munmap(address, length + SPARE);
        errno = ENOMEM;
    }
    return entry;
}

void vgpud_unmap(vgpud_mapping *mapping)
{
    uintptr_t address;
    size_t length;
    bool faulted, spare;

    pthread_mutex_lock(&writers);
    address = atomic_load(&mapping->address);
    length = atomic_load(&mapping->length);
    faulted = atomic_load(&mapping->faulted);
    spare = atomic_load(&mapping->spare);
    atomic_fetch_add(&mapping->sequence, 1);
    atomic_store(&mapping->address, 0);
    atomic_fetch_add(&mapping->sequence, 1);
    pthread_mutex_unlock(&writers);
    if (address == 0)
        return;
    /* First, because another mapping may be at that address once this one is gone. */
    if (faulted && lost_pages >= 0)
        fallocate(lost_pages, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)address,
                  (off_t)length);
    drop_pages(address, length);
    munmap((void *)address, spare ? length + SPARE : length);
}

int vgpud_fault_event(void)
{
    pthread_once(&once, set_up);
    return fault_event;
}

uint64_t vgpud_mapping_address(const vgpud_mapping *mapping)
{
    return atomic_load(&mapping->address);
}

int vgpud_mapping_faulted(const vgpud_mapping *mapping)
{
    return atomic_load(&mapping->faulted);
}

int vgpud_punch_hole(int fd, uint64_t offset, uint64_t length)
{
    if (offset > INT64_MAX || length > INT64_MAX) {
        errno = EINVAL;
        return -1;
    }
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
}
