/* Counts a process's I/O calls below one folder, and makes one of them go wrong.

   cc -shared -fPIC -O1 -o io_faults.so io_faults.c -ldl;  LD_PRELOAD=io_faults.so python ...

   A process arms itself with io_faults_arm(root, at, fault), or is armed at its start by
   IO_FAULTS="root at fault" if IO_FAULTS_RANK equals RANK. Call number `at` (from 1; 0: none) goes
   wrong. Not counted: calls outside the folder, and opening for reading what is not there (ranks
   that poll for one another's files do so any number of times). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILL = 1, TORN, SHORT, NO_SPACE, IO_ERROR, READ_ONLY };
enum { READS, WRITES };
enum { MAX_FDS = 4096, NAME = 96, TRACE = 1 << 16 };

static char root[4096], names[MAX_FDS][NAME], trace[TRACE];
static int armed, at, fault, count;

void io_faults_arm(const char *folder, int number, int kind) {
    snprintf(root, sizeof root, "%s", folder);
    at = number, fault = kind, count = 0, trace[0] = 0, armed = 1;
}
int io_faults_count(void) { return count; }
const char *io_faults_trace(void) { return trace; } /* a line a call: its name and the file's */

__attribute__((constructor)) static void arm_from_environment(void) {
    const char *words = getenv("IO_FAULTS"), *wanted = getenv("IO_FAULTS_RANK"), *rank = getenv("RANK");
    char folder[4096];
    int number, kind;
    if (words && wanted && rank && !strcmp(wanted, rank) &&
        sscanf(words, "%4095s %d %d", folder, &number, &kind) == 3)
        io_faults_arm(folder, number, kind);
}

static const char *last(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
static int inside_path(const char *path) { return armed && !strncmp(path, root, strlen(root)); }
static int inside_fd(int fd) { return armed && fd >= 0 && fd < MAX_FDS && names[fd][0]; }
static int inside(int folder, const char *path) {
    return path[0] == '/' || folder == AT_FDCWD ? inside_path(path) : inside_fd(folder);
}

/* Counts a call. Returns 0 to let it happen, 1 for "half of it", else -1 with errno set. */
static int step(const char *call, const char *name, int kind, int is_write) {
    int number = ++count;
    size_t used = strlen(trace);
    snprintf(trace + used, TRACE - used, "%s %s\n", call, name);
    if (!at || number < at) return 0;
    if (number == at) {
        if (fault == KILL) kill(getpid(), SIGKILL), pause();
        if ((fault == TORN || fault == SHORT) && is_write) return 1;
        if (fault == IO_ERROR) return errno = EIO, -1;
    }
    if (fault == NO_SPACE && kind == WRITES && strcmp(call, "unlink") && strcmp(call, "rmdir") &&
        strcmp(call, "fsync"))
        return errno = ENOSPC, -1; /* and the disk stays full */
    if (fault == READ_ONLY && kind == WRITES) return errno = EROFS, -1; /* and stays so */
    return 0;
}

#define REAL(name, result, ...) ((result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

static int track(int fd, const char *path) {
    if (fd >= 0 && fd < MAX_FDS) snprintf(names[fd], NAME, "%s", last(path));
    return fd;
}
static int opened(int folder, const char *path, int flags, mode_t mode) {
    int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, "openat64");
    if (!inside(folder, path)) return real(folder, path, flags, mode);
    if ((flags & O_ACCMODE) == O_RDONLY) {
        int fd = real(folder, path, flags, mode);
        if (fd < 0 && errno == ENOENT) return fd;
        if (step("open", last(path), READS, 0)) {
            int error = errno;
            if (fd >= 0) REAL(close, int, int)(fd);
            return errno = error, -1;
        }
        return track(fd, path);
    }
    if (step("create", last(path), WRITES, 0)) return -1;
    return track(real(folder, path, flags, mode), path);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); \
    }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int d, const char *path, int flags, ...) { MODE(flags) return opened(d, path, flags, mode); }
int openat64(int d, const char *path, int flags, ...) { MODE(flags) return opened(d, path, flags, mode); }

int close(int fd) {
    if (fd >= 0 && fd < MAX_FDS) names[fd][0] = 0;
    return REAL(close, int, int)(fd);
}
ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!inside_fd(fd)) return real(fd, data, size);
    int answer = step("write", names[fd], WRITES, 1);
    if (answer < 0) return -1;
    ssize_t written = real(fd, data, answer ? (size + 1) / 2 : size);
    if (answer && fault == TORN) kill(getpid(), SIGKILL), pause();
    return written;
}
ssize_t read(int fd, void *data, size_t size) {
    if (inside_fd(fd) && step("read", names[fd], READS, 0)) return -1;
    return REAL(read, ssize_t, int, void *, size_t)(fd, data, size);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t offset) {
    if (inside_fd(fd) && step("pread", names[fd], READS, 0)) return -1;
    return REAL(pread64, ssize_t, int, void *, size_t, off64_t)(fd, data, size, offset);
}
int fsync(int fd) {
    if (inside_fd(fd) && step("fsync", names[fd], WRITES, 0)) return -1;
    return REAL(fsync, int, int)(fd);
}
int rename(const char *from, const char *to) {
    if (inside_path(to) && step("rename", last(to), WRITES, 0)) return -1;
    return REAL(rename, int, const char *, const char *)(from, to);
}
int mkdir(const char *path, mode_t mode) {
    if (inside_path(path) && step("mkdir", last(path), WRITES, 0)) return -1;
    return REAL(mkdir, int, const char *, mode_t)(path, mode);
}
int unlink(const char *path) {
    if (inside_path(path) && step("unlink", last(path), WRITES, 0)) return -1;
    return REAL(unlink, int, const char *)(path);
}
int unlinkat(int folder, const char *path, int flags) {
    const char *call = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    if (inside(folder, path) && step(call, last(path), WRITES, 0)) return -1;
    return REAL(unlinkat, int, int, const char *, int)(folder, path, flags);
}
int rmdir(const char *path) {
    if (inside_path(path) && step("rmdir", last(path), WRITES, 0)) return -1;
    return REAL(rmdir, int, const char *)(path);
}
