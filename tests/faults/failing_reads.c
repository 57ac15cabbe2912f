/* Preloaded into a job and all its workers: reads of the files that a rule names fail as on a broken disk.
 *
 * FAILING_READS_PATH   reads of files whose path holds this text may fail
 * FAILING_READS_EVERY, FAILING_READS_BURST   of every N such reads of a process the first B fail
 * FAILING_READS_FROM, FAILING_READS_TO   bytes of the file that can never be read; a read from before ends there
 * FAILING_READS_LOG    grows by one byte for every read that failed
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long matching_reads;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static int fail(void) {
    const char *log = getenv("FAILING_READS_LOG");
    int handle = log ? open(log, O_WRONLY | O_APPEND | O_CREAT, 0644) : -1;
    if (handle >= 0) {
        if (write(handle, "x", 1) < 0) abort();
        close(handle);
    }
    errno = EIO;
    return -1;
}

/* -1 when a read of `count` bytes at `begin` must fail; otherwise shortens it to what lies before the broken bytes. */
static int rule(int handle, off_t begin, size_t *count) {
    const char *wanted = getenv("FAILING_READS_PATH");
    if (!wanted) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, wanted)) return 0;
    long every = number("FAILING_READS_EVERY", 0);
    if (every && atomic_fetch_add(&matching_reads, 1) % every < number("FAILING_READS_BURST", 1)) return fail();
    off_t from = number("FAILING_READS_FROM", -1), to = number("FAILING_READS_TO", -1);
    if (from < 0 || begin >= to || begin + (off_t)*count <= from) return 0;
    if (begin >= from) return fail();
    *count = from - begin;
    return 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t read(int handle, void *buffer, size_t count) {
    off_t begin = lseek(handle, 0, SEEK_CUR);
    if (begin >= 0 && rule(handle, begin, &count)) return -1;
    return NEXT(read)(handle, buffer, count);
}

#define POSITIONED(name, offset_type)                                               \
    ssize_t name(int handle, void *buffer, size_t count, offset_type begin) {       \
        return rule(handle, begin, &count) ? -1 : NEXT(name)(handle, buffer, count, begin); \
    }
POSITIONED(pread, off_t)
POSITIONED(pread64, off64_t)

static int vector_rule(int handle, const struct iovec *parts, int number_of_parts, struct iovec *first, off_t begin) {
    size_t count = 0;
    for (int i = 0; i < number_of_parts; i++) count += parts[i].iov_len;
    *first = parts[0];
    size_t allowed = count;
    if (rule(handle, begin, &allowed)) return -1;
    if (allowed == count) return 0;
    if (allowed < first->iov_len) first->iov_len = allowed;
    return 1;
}

#define VECTORED(name, offset_type)                                                              \
    ssize_t name(int handle, const struct iovec *parts, int number_of_parts, offset_type begin) { \
        struct iovec first;                                                                      \
        int cut = vector_rule(handle, parts, number_of_parts, &first, begin);                    \
        return cut < 0 ? -1 : NEXT(name)(handle, cut ? &first : parts, cut ? 1 : number_of_parts, begin); \
    }
VECTORED(preadv, off_t)
VECTORED(preadv64, off64_t)

#define VECTORED2(name, offset_type)                                                                        \
    ssize_t name(int handle, const struct iovec *parts, int number_of_parts, offset_type begin, int flags) { \
        struct iovec first;                                                                                 \
        int cut = vector_rule(handle, parts, number_of_parts, &first, begin);                               \
        return cut < 0 ? -1 : NEXT(name)(handle, cut ? &first : parts, cut ? 1 : number_of_parts, begin, flags); \
    }
VECTORED2(preadv2, off_t)
VECTORED2(preadv64v2, off64_t)
