/* Makes calls on files below one folder fail, as a full or broken disk or a full table of files would.
 *
 * Preloaded into the server and everything that it starts. The tests arm it through a file that is mapped into
 * every process, so that one count goes over all of them: see faults.py, which compiles this.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPENS = 1, WRITES = 2, READS = 4 };

struct control {
    _Atomic int error;   /* 0: not armed */
    _Atomic int calls;   /* which calls: OPENS | WRITES | READS */
    _Atomic int first;   /* the first call that fails, counted from 1 */
    _Atomic int every;   /* 0: only that one; n: it and each n-th after it */
    _Atomic int counted; /* calls that could have failed */
    _Atomic int failed;
    char only[256];      /* part of the path that a call must be about; empty: any */
};

static struct control *control;
static char root[PATH_MAX];
static size_t root_length;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("TESSERA_TEST_FAULTS");
    const char *folder = getenv("TESSERA_TEST_FAULTS_ROOT");
    if (!file || !folder) return;
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int descriptor = real(file, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED) return;
    root_length = strlen(folder);
    memcpy(root, folder, root_length + 1);
    control = mapped;
}

static int fails(int kind, const char *path) {
    if (!control || !control->error || !(control->calls & kind)) return 0;
    if (strncmp(path, root, root_length)) return 0;
    if (control->only[0] && !strstr(path + root_length, control->only)) return 0;
    int number = atomic_fetch_add(&control->counted, 1) + 1, first = control->first, every = control->every;
    if (number != first && !(every && number > first && (number - first) % every == 0)) return 0;
    atomic_fetch_add(&control->failed, 1);
    errno = control->error;
    return 1;
}

static int fails_at(int kind, int folder, const char *path) {
    if (!control || !control->error || !(control->calls & kind)) return 0;
    if (path[0] == '/') return fails(kind, path);
    char link[64], full[2 * PATH_MAX];
    ssize_t length = 0;
    if (folder == AT_FDCWD) {
        if (!getcwd(full, PATH_MAX)) return 0;
        length = (ssize_t)strlen(full);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, full, PATH_MAX);
        if (length < 0) return 0;
    }
    snprintf(full + length, sizeof full - (size_t)length, "/%s", path);
    return fails(kind, full);
}

static int fails_on(int kind, int descriptor) {
    if (!control || !control->error || !(control->calls & kind)) return 0;
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

#define REAL(name) ((__typeof__(&name))real(#name, &at_##name))
#define AT(name) static void *at_##name
static void *real(const char *name, void **at) {
    if (!*at) *at = dlsym(RTLD_NEXT, name);
    return *at;
}

#define OPEN(name)                                                                    \
    AT(name);                                                                         \
    int name(const char *path, int flags, ...) {                                      \
        va_list rest;                                                                 \
        va_start(rest, flags);                                                        \
        mode_t mode = va_arg(rest, mode_t);                                           \
        va_end(rest);                                                                 \
        int kind = OPENS | (flags & (O_CREAT | O_TRUNC) ? WRITES : 0);                \
        return fails_at(kind, AT_FDCWD, path) ? -1 : REAL(name)(path, flags, mode);   \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                  \
    AT(name);                                                                         \
    int name(int folder, const char *path, int flags, ...) {                          \
        va_list rest;                                                                 \
        va_start(rest, flags);                                                        \
        mode_t mode = va_arg(rest, mode_t);                                           \
        va_end(rest);                                                                 \
        int kind = OPENS | (flags & (O_CREAT | O_TRUNC) ? WRITES : 0);                \
        return fails_at(kind, folder, path) ? -1 : REAL(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define ON(type, name, kind, parameters, ...)                                         \
    AT(name);                                                                         \
    type name parameters { return fails_on(kind, file) ? -1 : REAL(name)(__VA_ARGS__); }
ON(ssize_t, write, WRITES, (int file, const void *data, size_t size), file, data, size)
ON(ssize_t, writev, WRITES, (int file, const struct iovec *parts, int count), file, parts, count)
ON(ssize_t, pwrite, WRITES, (int file, const void *data, size_t size, off_t at), file, data, size, at)
ON(ssize_t, pwrite64, WRITES, (int file, const void *data, size_t size, off64_t at), file, data, size, at)
ON(ssize_t, read, READS, (int file, void *data, size_t size), file, data, size)
ON(ssize_t, pread, READS, (int file, void *data, size_t size, off_t at), file, data, size, at)
ON(ssize_t, pread64, READS, (int file, void *data, size_t size, off64_t at), file, data, size, at)
ON(int, fsync, WRITES, (int file), file)
ON(int, fdatasync, WRITES, (int file), file)
ON(int, ftruncate, WRITES, (int file, off_t size), file, size)
ON(int, ftruncate64, WRITES, (int file, off64_t size), file, size)
ON(int, fallocate, WRITES, (int file, int mode, off_t at, off_t size), file, mode, at, size)
ON(int, fallocate64, WRITES, (int file, int mode, off64_t at, off64_t size), file, mode, at, size)

/* These two return the error. */
AT(posix_fallocate);
int posix_fallocate(int file, off_t at, off_t size) {
    return fails_on(WRITES, file) ? errno : REAL(posix_fallocate)(file, at, size);
}
AT(posix_fallocate64);
int posix_fallocate64(int file, off64_t at, off64_t size) {
    return fails_on(WRITES, file) ? errno : REAL(posix_fallocate64)(file, at, size);
}

AT(mkdir);
int mkdir(const char *path, mode_t mode) {
    return fails_at(WRITES, AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}
AT(rename);
int rename(const char *from, const char *to) {
    return fails_at(WRITES, AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}
AT(link);
int link(const char *from, const char *to) {
    return fails_at(WRITES, AT_FDCWD, to) ? -1 : REAL(link)(from, to);
}
AT(linkat);
int linkat(int from_folder, const char *from, int folder, const char *to, int flags) {
    return fails_at(WRITES, folder, to) ? -1 : REAL(linkat)(from_folder, from, folder, to, flags);
}
